"""Tuning: candidates go through the real launchers, wrong ones are refused, the best one wins."""

import json
import time
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from videoar.benchmarks import tune
from videoar.benchmarks.kernel_case import Setting
from videoar.benchmarks.kernel_cases import CASES
from videoar.benchmarks.timing import Clock
from videoar.benchmarks.tune_kernels import KERNELS, TUNABLES, Tunable, forced
from videoar.kernels.dispatch import use_backend
from videoar.kernels.jit import interpreted

CPU = torch.device("cpu")
SMALL = Setting(device=CPU, dtype=torch.float32, small=True)
interpreter = pytest.mark.skipif(not interpreted(), reason="needs Triton's interpreter")


def tunable(op, kernel):
    (found,) = (one for one in TUNABLES if (one.op, one.kernel) == (op, kernel))
    return found


def case_of(one):
    return next(case for case in CASES[one.op](SMALL) if one.serves(case))


@pytest.mark.parametrize("one", TUNABLES, ids=lambda one: f"{one.op}-{one.kernel}")
def test_functions_and_fields_exist(one):
    """The names are those of the launchers' modules, and the fields those of the tiles."""
    function = getattr(import_module(KERNELS + one.module), one.function)
    arguments = {
        "chunk_attention_tiles": (1000, 128, 2, 232448),
        "backward_tiles": (128, 2, 232448),
        "cached_attention_tiles": (2, 12, 64, 780, 128, 2),
    }.get(one.function, (64, 128)[: function.__code__.co_argcount])
    chosen = function(*arguments)
    tiles = chosen if one.part is None else chosen[one.part]
    assert len(tiles) == len(one.fields)
    if hasattr(tiles, "_fields"):
        assert tiles._fields == one.fields
    assert set(one.axes) <= set(range(len(one.fields)))
    assert one.changed(chosen, {}, arguments) == chosen
    # The tiles of today as a choice are the tiles of today, derived numbers too.
    same = {place: tiles[place] for place in one.axes}
    assert one.changed(chosen, same, arguments) == chosen
    case_of(one)


@interpreter
@pytest.mark.parametrize("form", ["sums", "lanes"])
def test_a_case_asks_for_the_tiles_of_its_kernel(form):
    one = tunable("bsq_quantize", form)
    case = case_of(one)
    with forced(one, {}) as taken, use_backend("triton"):
        case.run(*case.make(1))
    assert taken


def test_forced_tiles_last_for_the_block():
    one = tunable("next_scale", "forward")
    module = import_module(KERNELS + one.module)
    before = module.next_scale_tiles
    with forced(one, {0: 32}) as taken:
        assert module.next_scale_tiles(64) == (32, *before(64)[1:])
        assert taken == [(32, *before(64)[1:])]
        with pytest.raises(RuntimeError, match="inside"), forced(one, {2: 1}):
            raise RuntimeError("inside")
        assert module.next_scale_tiles(64)[0] == 32
    assert module.next_scale_tiles is before


def test_the_other_tiles_of_a_pair_stay():
    one = tunable("chunk_attention", "gradients of k and v")
    module = import_module(KERNELS + one.module)
    before = module.backward_tiles(128, 2, 0)
    with forced(one, {1: 32}) as taken:
        first, second = module.backward_tiles(128, 2, 0)
    assert first == before[0]
    assert second == before[1]._replace(block_n=32)
    assert taken == [tuple(second)]


class Search(tune.Search):
    """Times made up: milliseconds by tiles."""

    def __init__(self, times, wrong=()):
        self.tunable = Tunable(
            op="x",
            kernel="y",
            module="z",
            function="f",
            fields=("m", "n"),
            axes={0: (1, 2, 4), 1: (8, 16)},
        )
        self.axes, self.effort, self.times, self.wrong = self.tunable.axes, tune.LEAST, times, wrong
        self.case = type("Case", (), {"name": "case"})
        self.asked = []

    def sampler(self, choice):
        tiles = (choice.get(0, 1), choice.get(1, 8))
        self.asked.append(tiles)
        if tiles in self.wrong:
            raise ValueError("wrong: max 1")
        return lambda: self.times[tiles], tiles


LATER = time.monotonic() + 3600


def test_climbs_one_number_after_the_other():
    times = {(1, 8): 5.0, (2, 8): 4.0, (4, 8): 4.5, (2, 16): 3.0, (1, 16): 9.0, (4, 16): 2.0}
    found = Search(times).run(LATER)
    # 2 beats 1 and 4 at n = 8; then n = 16; a second pass finds m = 4 beside it.
    assert (found.today, found.best) == ((1, 8), (4, 16))
    assert (found.today_ms, found.best_ms, found.ratio) == (5.0, 2.0, 2.5)
    assert found.tried == 5
    assert found.refused == {}


def test_noise_is_no_improvement():
    times = dict.fromkeys([(1, 8), (2, 8), (4, 8), (1, 16)], 5.0) | {(2, 8): 4.95}
    found = Search(times).run(LATER)
    assert found.best == found.today == (1, 8)
    assert found.ratio == 1.0


def test_a_wrong_candidate_never_wins():
    times = {(1, 8): 5.0, (2, 8): 0.1, (4, 8): 4.0, (4, 16): 6.0, (1, 16): 6.0, (2, 16): 0.1}
    found = Search(times, wrong=[(2, 8), (2, 16)]).run(LATER)
    assert found.best == (4, 8)
    assert found.refused["m 2"] == "ValueError: wrong: max 1"


def test_wrong_tiles_of_today_are_the_row():
    found = Search({}, wrong=[(1, 8)]).run(LATER)
    assert found.reason == "ValueError: wrong: max 1"
    assert found.ratio is None


def test_nothing_new_behind_the_deadline():
    search = Search({(1, 8): 5.0})
    found = search.run(time.monotonic() - 1)
    assert set(search.asked) == {(1, 8)}
    assert found.best == found.today


@interpreter
def test_a_wrong_kernel_is_refused():
    """Too few programs leave cells out, so the result differs from the reference."""
    right = tunable("swiglu", "forward")
    search = tune.Search(right, case_of(right), Clock(CPU), "triton", tune.LEAST)
    sampler, tiles = search.sampler({1: 512})
    assert tiles == (1, 512, 16)
    assert sampler() > 0
    search.tunable = replace(right, derive=lambda tiles, arguments: [*tiles[:2], 1])
    with pytest.raises(ValueError, match="wrong"):
        search.sampler({1: 512})


@interpreter
def test_command_in_the_interpreter(tmp_path, capsys):
    out = tmp_path / "tiles.json"
    assert tune.main(["--interpret", "--op", "swiglu", "--out", str(out)]) == 0
    title, *lines, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document == json.loads(out.read_text())
    assert "the times mean nothing" in title
    assert document["date"] in title
    (row,) = document["rows"]
    assert row["function"] == "swiglu._tiles"
    assert row["today"] == [1, 1024, 8]
    assert row["tried"] == 1
    assert any("| `swiglu._tiles` | forward |" in line for line in lines)


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no CUDA device" in captured.err
