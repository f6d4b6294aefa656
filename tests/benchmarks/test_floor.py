"""The floor benchmark: its ratios from known times, its work equal to the cost card's."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videoar.benchmarks import floor, floor_parts, kernels, peak_memory, timing
from videoar.runtime.cost import Work, clip_steps
from videoar.runtime.modules import random_modules
from videoar.runtime.packed import can_pack
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import PRESETS

DIGITS = PRESETS["digits"]
TINY = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=2, max_frames=2))
needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32), reason="no packed products in this build of torch"
)


@pytest.fixture(scope="module")
def model() -> VideoAR:
    return VideoAR.preset("digits")


class TestRatios:
    def test_from_known_times(self):
        samples = {
            "transformer, ours": [110.0, 220.0, 112.0],
            "gemms, model's own": [105.0, 210.0, 106.0],
            "gemms, packed": [100.0, 200.0, 100.0],
            "gemms, plain": [150.0, 10.0, 150.0],
            "decoder, ours": [60.0, 60.0, 90.0],
            "convs, packed": [50.0, 40.0, 60.0],
            "decoder, plain, float32": [150.0, 240.0, 180.0],
            "clip, ours": [10.0, 20.0],
            "clip, eager, bfloat16": [15.0, 28.0],
            "clip, eager, float32": [30.0],
        }
        assert floor.ratios(samples) == {
            "transformer_ratio": pytest.approx(1.1),
            "decoder_ratio": pytest.approx(1.5),
            "decoder_vs_plain_fp32": pytest.approx(2.5),
            "clip_vs_eager_bf16": pytest.approx(1.45),
            "clip_vs_eager_fp32": pytest.approx(3.0),
        }

    def test_a_slow_round_of_all_does_not_count(self):
        """A machine that is half as fast for one round changes no ratio."""
        samples = {"a": [11.0, 22.0, 11.0], "b": [10.0, 20.0, 10.0]}
        assert floor.ratio(samples, "a", "b") == pytest.approx(1.1)

    def test_lowest_times_and_uneven_rounds(self):
        samples = {"decoder, ours": [30.0, 12.0, 40.0], "convs, packed": [14.0, 10.0, 11.0]}
        assert floor.ratios(floor.lowest_of(samples))["decoder_ratio"] == pytest.approx(1.2)
        assert floor.disturbed(samples) == ["decoder, ours"]

    def test_what_was_not_timed_is_none(self):
        assert set(floor.ratios({}).values()) == {None}
        numbers = floor.ratios({"clip, ours": [1.0], "clip, eager, float32": [3.0]})
        assert numbers.pop("clip_vs_eager_fp32") == 3
        assert set(numbers.values()) == {None}

    def test_the_floor_is_the_fastest_form(self):
        assert floor.floor_of({"gemms, packed": [3.0, 5.0], "gemms, plain": [4.0, 3.5]}) == (
            "gemms, plain"
        )

    def test_timer(self, monkeypatch):
        clock = iter([1.0, 1.25])
        monkeypatch.setattr(floor.time, "perf_counter", lambda: next(clock))
        calls = []
        assert floor.timed(lambda: calls.append(1))() == 250
        assert calls == [1]

    def test_samples_are_announced(self, capsys):
        assert floor.announced({"a": lambda: 1234.5})["a"]() == 1234.5
        assert capsys.readouterr().err == "a: 1,234.5 ms\n"

    def test_table_says_how_much_longer_than_ours(self):
        samples = {"decoder, ours": [200.0], "convs, packed": [100.0]}
        lines = floor.table(samples, {"decoder, ours": 10**9, "convs, packed": 10**9})
        assert lines[2].split() == ["convs,", "packed", "1", *["100.0"] * 3, "10.0", "0.500x"]


def mm_flops(call) -> int:
    """FLOPs of the products torch sees."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class TestParts:
    def test_gemms_are_those_of_the_cost_card(self):
        for config in (TINY, PRESETS["videoar-l"], replace(TINY, guidance="constant:1")):
            sequences = 1 if config.guidance == "constant:1" else 2
            work = Work(requests=1, sequences=sequences, text=1, window=4, itemsize=2)
            frames = config.transformer.max_frames
            steps = clip_steps(config.transformer, work, frames)
            assert floor_parts.gemm_flops(config) == sum(step.gemm_flops for step in steps)

    @pytest.mark.parametrize("form", ["own", "plain"])
    def test_they_are_what_runs(self, form):
        """Every product of the card, and no other; packed ones torch does not count."""
        if form == "own":
            transformer, _ = random_modules(TINY, torch.float32, "cpu", 0)
            products = floor_parts.own_products(transformer)
            # Gate and up, q, k and v by themselves.
            assert len(products) == 2 + 2 * 7
        else:
            products = floor_parts.plain_products(TINY.transformer, torch.float32)
            assert len(products) == 2 + 2 * 4
        bare = floor_parts.BareGemms(products, TINY, torch.float32)
        assert mm_flops(bare.run) == floor_parts.gemm_flops(TINY)

    @needs_packing
    def test_packed_ones_have_the_same_shapes_and_memory_of_their_own(self):
        packed = floor_parts.packed_products(TINY.transformer, torch.float32)
        plain = floor_parts.plain_products(TINY.transformer, torch.float32)
        for (width, product), (other, reference) in zip(packed, plain, strict=True):
            x = torch.randn(3, width)
            assert width == other
            assert product(x).shape == reference(x).shape
        assert len({id(product.product.weight) for _, product in packed}) == len(packed)

    @needs_packing
    def test_convs_are_those_of_the_streaming_decoder(self, model):
        executor_convs = [
            convs
            for first in (True, False)
            for convs in floor_parts.conv_shapes(model.config)[not first]
        ]
        with model._executor(1) as executor:
            runs = [*executor.decoder.convs(True), *executor.decoder.convs(False)]
        assert executor_convs == runs
        bare = floor_parts.BareConvs(model.config, torch.float32)
        bare.run()
        assert bare.outputs.isfinite().all()
        assert [conv.shape for conv in (*bare.first, *bare.later)] == runs

    def test_prompts_change_from_clip_to_clip(self, model):
        prefixes = [floor_parts.job_of(model, index).shots[0].prefix for index in range(40)]
        assert len(set(prefixes)) == 40
        assert floor_parts.request(True, 7) == {"class_id": 7, "seed": 7}


@needs_packing
def test_a_run_on_digits(capsys, monkeypatch, tmp_path):
    memory = dict.fromkeys(("imported", "after_warm_up", "peak", "planned", "weights"), 2**30)
    memory["above_plan"] = 2**20
    monkeypatch.setattr(peak_memory, "peak_memory", lambda preset, dtype, threads: memory)
    small = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=1, max_frames=3))
    monkeypatch.setitem(PRESETS, "digits", small)
    out = tmp_path / "floor.json"
    words = ["--preset", "digits", "--dtype", "float32", "--repeats", "2", "--json-out", str(out)]
    assert floor.main(words) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert json.loads(out.read_text()) == document
    assert document["not_measured"] == ["clip_vs_eager_bf16"]
    assert document["clip_vs_eager_bf16"] is None
    for name in ("transformer_ratio", "decoder_ratio", "decoder_vs_plain_fp32"):
        assert 0.01 < document[name] < 100
    assert document["floor"] in floor.GEMMS
    assert document["memory"] == memory
    assert document["commit"] == kernels.commit()
    assert set(document["of_lowest"]) == set(floor.ratios({}))
    assert len(document["load_average"]) == 3
    assert document["threads"] == torch.get_num_threads()
    samples = document["samples_ms"]
    assert {len(times) for times in samples.values()} == {2}
    assert min(min(times) for times in samples.values()) > 0
    assert document["clip_vs_eager_fp32"] == pytest.approx(
        timing.percentile(
            [
                a / b
                for a, b in zip(samples["clip, eager, float32"], samples["clip, ours"], strict=True)
            ],
            0.5,
        )
    )
    assert any(line.startswith("peak memory 1,024 MiB, planned 1,024 MiB") for line in table)


@needs_packing
def test_sections_and_quick(capsys, monkeypatch):
    small = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=1, max_frames=2))
    monkeypatch.setitem(PRESETS, "digits", small)
    words = ["--preset", "digits", "--dtype", "bfloat16", "--repeats", "1", "--section", "clips"]
    if not can_pack(torch.bfloat16):
        assert floor.main(words) == 2
        return
    assert floor.main([*words, "--quick"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(document["samples_ms"]) == {"clip, ours", "clip, eager, bfloat16"}
    assert document["memory"] is None
    assert "clip_vs_eager_fp32" in document["not_measured"]
    assert document["clip_vs_eager_bf16"] > 0


def test_peak_memory_of_this_process(capsys, monkeypatch):
    sizes = iter([300, 500, 700, 700])
    monkeypatch.setattr(peak_memory, "_peak", lambda: next(sizes))
    small = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=1, max_frames=2))
    monkeypatch.setitem(PRESETS, "digits", small)
    peak_memory.main(["--preset", "digits", "--dtype", "float32"])
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["imported"], numbers["after_warm_up"], numbers["peak"]) == (300, 500, 700)
    assert numbers["above_plan"] == 700 - numbers["planned"]
    assert numbers["planned"] > numbers["weights"] > 10**6


def test_bad_repeats(capsys):
    with pytest.raises(SystemExit):
        floor.main(["--repeats", "0"])
    assert "--repeats: expected an integer of at least 1" in capsys.readouterr().err
