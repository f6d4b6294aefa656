"""The suite: what an entry says, what is selected, what fits, and runs of it from outside."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from videoar import _C
from videoar.benchmarks import conftest, report, suite_race, suite_turns
from videoar.benchmarks.par_config import PAR_PRESETS, ParConfig
from videoar.benchmarks.par_floor import BareSteps
from videoar.benchmarks.suite import CannotRunError, Suite
from videoar.benchmarks.suite_contenders import BareVideo, Run
from videoar.benchmarks.suite_costs import par_costs, video_costs
from videoar.benchmarks.suite_entry import Entry, extra_info, part_clock, replay
from videoar.benchmarks.suite_par import sampled_steps
from videoar.benchmarks.suite_race import Setting, WrongResultError, build, race
from videoar.benchmarks.suite_select import MODELS, Selection, needed_bytes, parts_of, races
from videoar.benchmarks.suite_turns import Turns, result_of
from videoar.runtime import plan
from videoar.runtime.cost import Limits, Work, clip_steps
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import PRESETS

LIMITS = Limits(name="x", bandwidth=1e10, rate=1e12, source="given", memory=1 << 40)
ROOT = Path(__file__).resolve().parents[2]
# What a report reads.
KEYS = {
    *("model", "way", "part", "batch", "steps", "bytes", "flops", "limit_s", "limit_note"),
    *("share", "device", "dtype", "threads", "versions", "commit", "timed", "opponents"),
    *("rounds", "step_s", "step_limit_s", "scaled", "compile_s"),
}


class Benchmark:
    """What `replay` and `describe` need of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.times, self.extra_info, self.group = [], {}, None

    def pedantic(self, target, rounds, **_) -> None:
        for _ in range(rounds):
            begin = part_clock()
            target()
            self.times.append(part_clock() - begin)


def suite_of(**changes) -> Suite:
    selection = Selection.of("cpu", **changes.pop("selection", {}))
    options = {"device": "cpu", "dtype_name": "float32", "rounds": 2, "stride": 8}
    return Suite(selection=selection, **options | changes)


class TestEntry:
    def test_extra_info(self):
        entry = Entry(
            model="videoar-l", way="videoar", part="transformer", timed="all steps", limit_s=1.0
        )
        samples = {"videoar": [2.0, 4.0, 2.5], "eager": [3.0, 6.0, 3.0], "par-4x": [8.0, 20.0]}
        facts = dict.fromkeys(("device", "dtype", "threads", "versions", "commit"))
        info = extra_info(entry, samples, facts)
        assert set(info) == KEYS
        # Of every round (1.5, 1.5, 1.2; 4, 5) and then the median.
        assert info["opponents"]["eager"] == {"samples": [3.0, 6.0, 3.0], "ratio": 1.5}
        assert info["opponents"]["par-4x"]["ratio"] == 4.5
        assert (info["share"], info["rounds"]) == (1 / 2.5, 3)
        assert json.loads(json.dumps(info)) == info

    def test_a_limit_that_is_not_known_says_so(self):
        entry = Entry(model="x", way="bare", part="load", timed="")
        info = extra_info(entry, {"bare": [1.0]}, {})
        assert (info["limit_s"], info["share"], info["limit_note"]) == (None, None, "not known")

    def test_unknown_words(self):
        with pytest.raises(ValueError, match="way: expected one of"):
            Entry(model="x", way="fast", part="clip", timed="")
        with pytest.raises(ValueError, match="part: expected one of"):
            Entry(model="x", way="eager", part="all", timed="")

    def test_recorded_times_are_replayed(self):
        benchmark = Benchmark()
        replay(benchmark, [0.5, 2e-6, 3.0])
        assert benchmark.times == pytest.approx([0.5, 2e-6, 3.0])

    def test_race_gives_the_entry_its_own_times(self):
        suite, benchmark, calls = suite_of(), Benchmark(), []
        runs = {name: lambda name=name: calls.append(name) for name in ("videoar", "bare")}
        samples = suite.race(benchmark, runs)
        assert benchmark.times == pytest.approx(samples["videoar"])
        # Each once before, then every round another one first.
        assert calls == ["videoar", "bare", "videoar", "bare", "bare", "videoar"]


class TestSelection:
    def test_default_of_a_cpu(self):
        chosen = Selection.of("cpu")
        cases = {(case.model, case.way, case.part) for case in chosen.cases()}
        for model in ("videoar-l", "par-4x"):
            for way in ("videoar", "eager", "compiled", "bare"):
                assert (model, way, "transformer") in cases
        assert ("videoar-l", "videoar", "first_frame") in cases
        assert ("videoar-l", "compiled", "clip") not in cases
        assert not chosen.requested
        left = {(model, batch, way) for model, batch, way, *_ in chosen.left_out()}
        assert {("videoar-xl", 1, "all"), ("videoar-l", 8, "all")} <= left
        assert ("videoar-l", 1, "compiled") in left

    def test_what_is_asked_for(self):
        chosen = Selection.of("cpu", models=["digits"], batches=[2], ways=["compiled"])
        assert chosen.requested
        parts = [case.part for case in chosen.cases() if case.way == "compiled"]
        assert parts == ["transformer", "decoder", "clip"]
        assert {case.way for case in chosen.cases()} == {"videoar", "compiled"}

    def test_everything_on_a_gpu(self):
        chosen = Selection.of("cuda")
        assert chosen.left_out() == []
        count = sum(len(parts_of(model, way)) for model in MODELS for way in chosen.ways)
        assert len(chosen.cases()) == 3 * count

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"models": ["videoar-m"]}, "presets: no 'videoar-m'"),
            ({"ways": ["fast"]}, "ways: no 'fast'"),
            ({"batches": [0]}, "batches: expected 1 or more"),
        ],
    )
    def test_bad_words(self, changes, message):
        with pytest.raises(ValueError, match=message):
            Selection.of("cpu", **changes)

    def test_rivals_share_their_rounds_where_they_fit(self):
        needed = {"digits": 1, "videoar-l": 8, "videoar-xl": 16, "par-4x": 6}
        models = list(needed)
        assert races(models, needed, 40) == [("digits",), ("videoar-l", "videoar-xl", "par-4x")]
        pair = ("videoar-l", "par-4x")
        assert races(models, needed, 20) == [("digits",), pair, ("videoar-xl",)]
        assert len(races(models, needed, 10)) == 4

    def test_memory_of_the_ways(self):
        needed = needed_bytes("videoar-l", ("eager", "compiled"), 1, torch.bfloat16, "cpu")
        weights = 2 * 926e6
        assert needed["videoar"] > weights
        assert needed["eager"] > weights
        # The compiled way has the eager one's weights, and its own where that is not there.
        assert needed["compiled"] < 0.2e9
        alone = needed_bytes("videoar-l", ("compiled",), 1, torch.bfloat16, "cpu")
        assert alone["compiled"] > weights
        assert needed_bytes("par-4x", (), 1, torch.bfloat16, "cpu")["videoar"] > 2 * 770e6


class TestCosts:
    def test_parts_of_a_clip_add_up(self):
        config = PRESETS["videoar-l"]
        work = {"sequences": 2, "itemsize": 2, "batch": 1, "times": 1}
        costs = video_costs(config, LIMITS, **work)
        frames = costs["first_frame"].seconds + 4 * costs["steady_frame"].seconds
        assert frames == pytest.approx(costs["clip"].seconds)
        card = Work(requests=1, sequences=2, text=1, window=4, itemsize=2)
        steps = clip_steps(config.transformer, card, 5)
        assert costs["transformer"].flops == sum(step.flops for step in steps)
        assert costs["transformer"].steps == costs["clip"].steps == len(costs["transformer"].step_s)
        twice = video_costs(config, LIMITS, **work | {"times": 2})
        assert twice["transformer"].steps == costs["transformer"].steps
        assert twice["clip"].seconds == pytest.approx(2 * costs["clip"].seconds)

    def test_par(self):
        cost = par_costs(PAR_PRESETS["par-4x"], LIMITS, sequences=2, itemsize=2)["transformer"]
        assert cost.steps == len(cost.step_s) == 323
        assert cost.seconds == pytest.approx(sum(cost.step_s))


class TestRace:
    def test_a_sample_of_the_steps_stands_for_all(self):
        assert list(sampled_steps(323, 1)) == list(range(323))
        assert list(sampled_steps(323, 8))[:2] == [4, 12]
        assert Run(step_s=(1.0, 3.0), steps=10).part("transformer") == 20
        assert Run(step_s=(1.0,), steps=1).part("clip") is None

    def test_order_changes_and_what_fails_is_out(self):
        calls, lost = [], []

        class Fake:
            def __init__(self, name: str) -> None:
                self.name = name

            def run(self) -> Turns[Run]:
                calls.append(self.name)
                if calls.count("b") == 2 and self.name == "b":
                    raise MemoryError("no more")
                yield from ()
                return Run(step_s=(1.0,), steps=1)

        contenders = {("m", name): Fake(name) for name in "abc"}
        runs = race(contenders, 3, lambda done: True, lambda *what: lost.append(what[:2]))
        # The first three are not timed.
        assert calls == [*"abc", *"bca", *"ac", *"ca"]
        assert lost == [("m", "b")]
        assert {key: len(of) for key, of in runs.items()} == {("m", "a"): 3, ("m", "c"): 3}
        calls.clear()
        race(contenders, 3, lambda done: done < 2, lambda *what: None)
        assert calls == [*"abc", *"bca"]

    @pytest.mark.parametrize("turn_s", [suite_turns.TURN_S, 0.0])
    def test_all_ways_of_a_small_par(self, monkeypatch, turn_s):
        """Built, checked against each other, timed; a wrong result is no contender."""
        monkeypatch.setattr(suite_turns, "TURN_S", turn_s)
        small = ParConfig(
            layers=2,
            width=32,
            heads=2,
            mlp_width=48,
            codebook=24,
            classes=5,
            num_frames=2,
            grid=(4, 4),
            rope_sections=(2, 3, 3),
        )
        monkeypatch.setitem(PAR_PRESETS, "par-4x", small)
        lost, ways = {}, {"par-4x": ("videoar", "eager", "compiled", "bare")}
        setting = Setting(batch=2, dtype="float32", device="cpu", stride=3, backend="aot_eager")

        def give_up(model: str, way: str, error: Exception) -> None:
            lost[way] = error

        contenders = build(["par-4x"], ways, setting, give_up)
        assert lost == {}
        runs = race(contenders, 1, lambda done: True, give_up)
        for (_, way), (run,) in runs.items():
            assert len(run.step_s) == (11 if way == "videoar" else 4)
            assert run.steps == 11
            assert run.part("transformer") > 0
        assert contenders["par-4x", "compiled"].compile_s > 0
        right = suite_race.par_logits

        def wrong(*arguments):
            got, expected = right(*arguments)
            return got + 0.01 * expected.std(), expected

        monkeypatch.setattr(suite_race, "par_logits", wrong)
        assert ("par-4x", "eager") not in build(["par-4x"], ways, setting, give_up)
        assert isinstance(lost["eager"], WrongResultError)

    def test_turns_of_a_small_video(self, monkeypatch):
        """In turns of a step, every part is there, and rounds are as long as at one go."""
        digits = PRESETS["digits"]
        small = replace(digits.transformer, layers=1, max_frames=2, sizes=((1, 1), (4, 4)))
        monkeypatch.setitem(PRESETS, "digits", replace(digits, transformer=small))
        monkeypatch.setattr(suite_turns, "TURN_S", 0.0)
        setting = Setting(batch=2, dtype="float32", device="cpu", stride=1)
        lost: list[tuple] = []
        ways, turns = {"digits": ("videoar", "eager", "bare")}, []
        contenders = build(["digits"], ways, setting, lambda *what: lost.append(what))
        runs = race(
            contenders,
            1,
            lambda done: True,
            lambda *what: lost.append(what),
            lambda: turns.append(0),
        )
        assert lost == []
        # A frame of both clips; every step of both behind the text; a frame of each batch; to end.
        batches = 1 if _C.isa() != "baseline" else 2
        assert len(turns) == 2 * (2 + 1 + 2 * 2 + 1 + 1 + 2 * batches + 1)
        for (_, way), (run,) in runs.items():
            assert len(run.step_s) == run.steps == 4
            assert 0 < sum(run.step_s) < 5
            assert 0 < run.decoder_s < 5
            assert (run.clip_s is None) is (way == "bare")
            if run.clip_s is not None:
                assert run.clip_s > run.part("transformer") + run.decoder_s

    @pytest.mark.skipif(_C.isa() == "baseline", reason="no packed panels on this processor")
    def test_bare_products_are_those_of_the_batches(self, monkeypatch):
        digits = PRESETS["digits"]
        small = replace(digits.transformer, layers=1, max_frames=2, sizes=((1, 1), (4, 4)))
        # 3 clips of 2 x 16 rows: two together, and the third.
        monkeypatch.setattr(plan, "MOST_ROWS", 64)
        monkeypatch.setitem(PRESETS, "digits", replace(digits, transformer=small))
        model, seen, multiply = VideoAR.preset("digits"), [], BareSteps._multiply

        def spied(bare: BareSteps, rows: int) -> None:
            seen.append(rows)
            multiply(bare, rows)

        monkeypatch.setattr(BareSteps, "_multiply", spied)
        run = result_of(BareVideo(model, 3, None).run())
        assert seen == [4, 64, 4, 64, 2, 32, 2, 32]
        assert len(run.step_s) == 4
        assert run.decoder_s > 0

    def test_a_decoder_is_compiled_only_where_it_is_wanted(self, monkeypatch):
        digits = PRESETS["digits"]
        small = replace(digits.transformer, layers=1, max_frames=2, sizes=((1, 1), (4, 4)))
        monkeypatch.setitem(PRESETS, "digits", replace(digits, transformer=small))
        setting = Setting(
            batch=1,
            dtype="float32",
            device="cpu",
            stride=1,
            compile_decoder=False,
            backend="aot_eager",
        )
        lost: list[tuple] = []
        ways = {"digits": ("videoar", "compiled")}
        contenders = build(["digits"], ways, setting, lambda *what: lost.append(what))
        runs = race(contenders, 1, lambda done: True, lambda *what: lost.append(what))
        assert lost == []
        (ours,), (other,) = runs.values()
        assert None not in [ours.part(name) for name in parts_of("digits", "videoar")]
        assert other.part("transformer") > 0
        assert (other.part("decoder"), other.part("clip")) == (None, None)

    def test_what_does_not_fit_has_a_reason(self, monkeypatch):
        monkeypatch.setattr("videoar.benchmarks.suite.available_bytes", lambda device: 1 << 30)
        recorded = suite_of().recorded("videoar-l", 1)
        assert recorded.runs == {}
        assert "GiB, 0.9 GiB are left" in recorded.reasons["videoar-l", "videoar"]
        assert set(recorded.reasons) >= {("videoar-l", way) for way in ("eager", "bare")}


class TestCannotRun:
    def test_asked_for_or_not(self):
        for asked in ({}, {"models": ["videoar-l"]}):
            suite = suite_of(selection=asked)
            with pytest.raises(CannotRunError) as error:
                suite.require("videoar-l", "train", needed=1 << 60)
            assert error.value.requested is bool(asked)
            (row,) = suite.not_run
            assert row["requested"] is bool(asked)
            assert (row["model"], row["part"]) == ("videoar-l", "train")
            assert row["reason"].startswith("needs 1073741824.0 GiB, ")

    def test_ceilings_are_medians_of_those_measured(self, monkeypatch):
        rates = iter([(2e9, 7e12), (3e9, 5e12), (1e9, 6e12)])

        def measure(device, dtype, budget_s):
            bandwidth, rate = next(rates)
            return replace(LIMITS, bandwidth=bandwidth, rate=rate)

        monkeypatch.setattr("videoar.benchmarks.suite.measure_limits", measure)
        suite = suite_of()
        assert suite.limit_note == "given: 2.0 GB/s, 7.000 TFLOP/s"
        suite._measure_again()  # too early
        monkeypatch.setattr("videoar.benchmarks.suite._AGAIN_S", -1.0)
        suite._measure_again()
        suite._measure_again()
        assert (suite.limits.bandwidth, suite.limits.rate) == (2e9, 6e12)
        assert suite.limit_note == "given, the median of 3: 2.0 GB/s, 6.000 TFLOP/s"
        ceilings = {"bandwidth": [1e9, 3e9], "rate": [5e12, 7e12]}
        assert suite.document()["ceilings"] == ceilings

    def test_short_clips_have_more_rounds(self, monkeypatch):
        seen: list[tuple[int, list[bool]]] = []

        def race(contenders, rounds, go_on, give_up, between):
            suite._began -= 6
            seen.append((rounds, [go_on(done) for done in (3, 4, 5)]))
            return {}

        monkeypatch.setattr("videoar.benchmarks.suite.race", race)
        monkeypatch.setattr("videoar.benchmarks.suite.build", lambda *_: {})
        suite = suite_of(rounds=3, short_rounds=25)
        suite.recorded("digits", 1)
        # Three and the untimed one are over after 6 s.
        assert seen == [(25, [True, False, False])]
        monkeypatch.setattr("videoar.benchmarks.suite._SHORT_S", 100.0)
        suite = suite_of(rounds=3, short_rounds=25)
        suite.recorded("digits", 1)
        assert seen[1:] == [(25, [True, True, True])]

    def test_late(self):
        with pytest.raises(CannotRunError, match="not begun: 0 s have passed"):
            suite_of(seconds=0.0).require("digits", "load", needed=1)


SHRINK = '''
"""A plugin: one tiny preset, and as much memory as a variable says."""
import os
import sys
from dataclasses import replace

if "MEMORY" in os.environ:
    # A bare GPU machine has none of these, and the suite is collected there.
    sys.modules |= dict.fromkeys(("av", "tokenizers", "mlxtend", "matplotlib"))

from videoar.benchmarks import suite, suite_select
from videoar.runtime.presets import PRESETS

small = PRESETS["digits"]
PRESETS["digits"] = replace(small, transformer=replace(small.transformer, layers=1, max_frames=2))
suite_select.CPU_MODELS = ("digits",)
if "MEMORY" in os.environ:
    suite.available_bytes = lambda device: int(os.environ["MEMORY"])
'''


def run_suite(tmp_path: Path, *words: str, **variables: str) -> tuple[int, str, dict | None]:
    """Exit status, output and JSON of a run of the suite's clips in a process of its own."""
    (tmp_path / "shrink.py").write_text(SHRINK)
    out = tmp_path / "suite.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "shrink", "-p", "no:cacheprovider"]
    command += ["benchmarks/bench_generate.py", "--benchmark-only", f"--benchmark-json={out}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    return done.returncode, text, json.loads(out.read_text()) if out.exists() else None


class TestFromOutside:
    def test_digits(self, tmp_path):
        pytest.importorskip("pytest_benchmark")
        words = ("--ways", "eager,bare", "--rounds", "2", "--suite-dtype", "float32")
        status, text, document = run_suite(tmp_path, *words)
        assert status == 0, text
        assert "not run" in text
        entries = {(e["way"], e["part"]): e for e in infos(document)}
        assert len(entries) == 5 + 3 + 2
        for bench in document["benchmarks"]:
            info = bench["extra_info"]
            assert set(info) == KEYS
            assert info["model"] == "digits"
            assert info["rounds"] == len(bench["stats"]["data"]) == 2
            assert min(bench["stats"]["data"]) > 0
            assert info["limit_s"] > 0
            assert info["share"] == pytest.approx(info["limit_s"] / bench["stats"]["median"])
        ours = entries["videoar", "transformer"]
        assert set(ours["opponents"]) == {"eager", "bare"}
        assert len(ours["step_s"]) == len(ours["step_limit_s"]) == ours["steps"] == 8
        other = entries["eager", "transformer"]["opponents"]["videoar"]["samples"]
        own = [sum(ours["opponents"]["eager"]["samples"])]
        assert own == [sum(data(document, "eager", "transformer"))]
        assert other == data(document, "videoar", "transformer")
        assert {row["model"] for row in document["not_run"]} >= {"videoar-xl", "par-1x"}
        assert document["suite"]["command"].startswith("pytest ")
        assert document["suite"]["limits"]["bandwidth"] > 0

    @pytest.mark.parametrize("asked", [False, True])
    def test_no_memory(self, tmp_path, asked):
        """Told in the table; a failure only where someone asked for it."""
        pytest.importorskip("pytest_benchmark")
        words = ("--presets", "digits") if asked else ()
        status, text, document = run_suite(tmp_path, *words, MEMORY="1000000")
        assert status == (1 if asked else 0), text
        table = text[text.index("not run") :]
        assert re.search("digits +1 +eager +clip +needs", table)
        # pytest-benchmark writes no JSON where nothing ran.
        assert document["benchmarks"] == []
        reasons = {row["reason"][:5] for row in document["not_run"] if row["model"] == "digits"}
        assert "needs" in reasons
        suite = tmp_path / "suite.json"
        assert report.main(["--json", str(suite), "--out", str(tmp_path)]) == asked
        assert ("asked for, and cannot run: needs" in text) is asked

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"--presets": "videoar-m"}, "--presets: no 'videoar-m', there are digits"),
            ({"--ways": "eager, fast"}, "--ways: no 'fast'"),
            ({"--batches": "0"}, "--batches: expected 1 or more, got 0"),
            ({"--batches": "two"}, "--batches: expected numbers, got 'two'"),
            ({"--presets": ","}, "--presets: expected at least one"),
            ({"--rounds": 0}, "--rounds: at least 1, got 0"),
            ({"--suite-seconds": math.nan}, "--suite-seconds: expected above 0, got nan"),
            ({"--suite-device": "cuda"}, "--suite-device cuda: torch sees no CUDA device"),
        ],
    )
    def test_bad_options(self, monkeypatch, options, message):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(pytest.UsageError, match=message):
            conftest._suite(Config(options))


class Config:
    """Of pytest, with some options set."""

    def __init__(self, options: dict) -> None:
        self.stash, self.options = {}, {"--suite-dtype": "bfloat16", "--rounds": 3} | options

    def getoption(self, name: str) -> object:
        return self.options.get(name)


def infos(document: dict) -> list[dict]:
    return [bench["extra_info"] for bench in document["benchmarks"]]


def data(document: dict, way: str, part: str) -> list[float]:
    """The samples of an entry."""
    for bench in document["benchmarks"]:
        if (bench["extra_info"]["way"], bench["extra_info"]["part"]) == (way, part):
            return bench["stats"]["data"]
    raise AssertionError(f"no entry {way}, {part}")


def test_steps_of_a_shorter_model_are_its_own():
    config = PRESETS["digits"]
    short = replace(config, transformer=replace(config.transformer, max_frames=1))
    costs = video_costs(short, LIMITS, sequences=2, itemsize=2, batch=1, times=1)
    assert "steady_frame" not in costs
    assert costs["first_frame"].seconds == pytest.approx(costs["clip"].seconds)
