"""The kernels' benchmark: its costs, its statistics, what fails it, and its last line."""

import json
import subprocess
import sys
import time

import pytest
import torch

from videoar.benchmarks import (
    kernel_case,
    kernel_cases,
    kernel_cases_attention,
    kernel_costs,
    kernel_rows,
    kernels,
    timing,
)
from videoar.kernels import chunk_mask, use_backend
from videoar.runtime.schedule import ChunkSchedule

MODES = ("warm", "cold")
OWN = ("cpp", "reference")
SMALL = kernel_case.Setting(device=torch.device("cpu"), dtype=torch.float32, small=True)


def run_module(*arguments):
    command = [sys.executable, "-m", "videoar.benchmarks.kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_ops_on_a_cpu(tmp_path):
    out = tmp_path / "kernels.json"
    ops = ("--op", "philox", "--op", "swiglu")
    process = run_module("--device", "cpu", "--quick", *ops, "--out", str(out))
    assert process.returncode == 0, process.stderr
    card, *table, last = process.stdout.splitlines()
    document = json.loads(last)
    assert card.startswith("measured ceilings: copy ")
    assert json.loads(out.read_text()) == document
    assert document["ok"] is True
    assert document["device"] == "cpu"
    assert document["dtype"] == "float32"
    assert document["torch"] == torch.__version__
    assert document["method"]["clock"] == "perf_counter"
    assert min(document["ceilings"].values()) > 0
    assert [cost["op"] for cost in document["cases"]] == ["philox", "swiglu", "swiglu"]
    rows = document["rows"]
    cases = ("philox", "swiglu forward", "swiglu forward+backward")
    kinds = dict(zip([cost["case"] for cost in document["cases"]], cases, strict=True))
    timed = {(kinds[row["case"]], row["variant"], row["mode"]) for row in rows if row["ms"]}
    assert timed == {(case, variant, mode) for case in cases for variant in OWN for mode in MODES}
    for row in rows:
        if row["ms"]:
            assert 0 < row["p10_ms"] <= row["ms"] <= row["p90_ms"]
        else:
            assert row["variant"] == "compiled"
            assert row["reason"]
    ours = [row["vs_ours"] for row in rows if row["variant"] == "cpp" and row["ms"]]
    assert ours == [1.0] * 6
    assert len([line for line in table if line.startswith(("philox", "swiglu"))]) == 3 + len(rows)


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no CUDA device" in captured.err


def test_ops_are_those_with_cases():
    assert set(kernels.OPS) == set(kernel_cases.CASES)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{c.op}-{c.name}") for c in kernels.cases_of(kernels.OPS, SMALL)],
)
def test_variants_agree(case, monkeypatch):
    """The reference and torch's ways, those to be compiled as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    builders = {"reference": lambda: case.run, **case.torch_best}
    # It has no backward on a CPU, and warns of being slow when it is not compiled.
    builders.pop("flex_attention", None)
    with use_backend("reference"):
        expected = case.expected(*case.make(1))
        for name, build in builders.items():
            assert timing.compare(build()(*case.make(1)), expected, case.ties) == "", name
    assert case.num_bytes > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("hidden", [False, True])
def test_flex_attention_has_the_same_mask(hidden, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    schedule = ChunkSchedule.video(2, ((1, 1), (2, 2)))
    visible = torch.zeros(2, 2, dtype=torch.bool) if hidden else None
    case = kernel_cases_attention._chunk_case(SMALL, schedule, 1, 16, visible, False)
    inputs = case.make(3)
    got = case.torch_best["flex_attention"]()(*inputs)
    assert timing.compare(got, case.expected(*inputs)) == ""


# Costs, counted by hand.


def test_visible_pairs():
    schedule = ChunkSchedule.video(2, ((1, 1), (1, 2)))
    # Frame 0: 1 x 1 + 2 x 3; frame 1: the same and 3 tokens of frame 0 before each of 3.
    assert kernel_costs.visible_pairs(schedule) == 7 + 7 + 9
    hidden = torch.zeros(2, 2, dtype=torch.bool)
    assert kernel_costs.visible_pairs(schedule, hidden) == 14


def test_visible_pairs_are_those_of_the_mask():
    schedule = ChunkSchedule.video(5, ((1, 1), (2, 3), (4, 4)))
    visible = kernel_cases_attention._half_hidden(5)
    for table in (None, visible):
        mask = chunk_mask(schedule, frame_visible=table)
        assert kernel_costs.visible_pairs(schedule, table) == int(mask.sum())
    # 0, 1, 1, 2 and 2 of the 0, 1, 2, 3 and 4 frames before.
    assert visible.sum(1).tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("count", "arguments", "expected"),
    [
        # Two products of 2 x 8 a pair; backwards the scores again and four gradients.
        (kernel_costs.attention_flops, (23, 8, False), 736),
        (kernel_costs.attention_flops, (23, 8, True), 736 + 1840),
        # q, out: 10 each; k, v: 4 each; 3 sums of 4 bytes.
        (kernel_costs.chunk_attention_bytes, (10, 4, 3, 2, False), 20 + 20 + 8 + 8 + 12),
        # Again, and grad_out, and the gradients of q, k and v.
        (
            kernel_costs.chunk_attention_bytes,
            (10, 4, 3, 2, True),
            68 + 68 + 20 + 20 + 8 + 8,
        ),
        (kernel_costs.cached_attention_bytes, (6, 10, 2), 12 + 12 + 20 + 20),
        (kernel_costs.qk_norm_rope_bytes, (6, 2, 2), 2 * 12 + 5 * 4),
        # 2 rows of 8 logits of 2 bytes; 4 bits; 4 values in and out, 1 on.
        (kernel_costs.next_scale_bytes, (4, 4, 1, 2), 32 + 4 + 32 + 4),
        (kernel_costs.next_scale_bytes, (4, 4, 1, 2, False), 16 + 4 + 32 + 4),
        # The taps of 4 from 2 are 1, 2, 2, 1: 6 x 2 columns, then 6 x 4 rows.
        (kernel_costs.resample_flops, (1, (2, 2), (4, 4), "bilinear"), 2 * (12 + 24)),
        (kernel_costs.resample_flops, (3, (4, 4), (2, 2), "area"), 3 * 2 * (16 + 8)),
        # 2 x 4 latents in and out, 5 x 2 targets, bits and inputs.
        (kernel_costs.bsq_bytes, (1, 2, 5, 4, 4), 64 + 20 + 40),
        # Two sums in 4 cells at 2 scales; down, up and down again between 1 and 2.
        (kernel_costs.bsq_flops, (1, 1, ((1, 1), (2, 2))), 16 + 12 + 12 + 12),
        (kernel_costs.pack_bytes, (3, 48), 3 * (48 + 8)),
        (kernel_costs.pack_bytes, (2, 33), 2 * (33 + 8)),
        (kernel_costs.cross_entropy_bytes, (10, 2, False), 40 + 10),
        (kernel_costs.cross_entropy_bytes, (10, 2, True), 50 + 50 + 40),
    ],
)
def test_costs(count, arguments, expected):
    assert count(*arguments) == expected


# Statistics.


def test_percentile():
    assert timing.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert timing.percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert timing.percentile(list(range(11)), 0.1) == 1.0
    assert timing.percentile([0.0, 10.0], 0.9) == 9.0
    assert timing.percentile([7.0], 0.9) == 7.0


def test_every_round_asks_all_and_another_one_first():
    order = []
    counts = dict.fromkeys("abc", 0)

    def sampler(name):
        def sample():
            order.append(name)
            counts[name] += 1
            return float(counts[name])

        return sample

    samples = timing.interleave({name: sampler(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert samples == {name: [1.0, 2.0, 3.0, 4.0] for name in "abc"}
    assert timing.interleave({}, 3) == {}


def test_rounds_fit_the_budget():
    assert timing.rounds_within(100.0, 10.0, 50) == 10
    assert timing.rounds_within(100.0, 0.0, 50) == 50
    assert timing.rounds_within(100.0, 1000.0, 50) == 5


def test_input_sets_exceed_the_cache_twice():
    clock = timing.Clock(torch.device("cpu"))
    assert clock.sets_to_be_cold(100) == 1
    clock.cache_bytes = 1000
    assert clock.sets_to_be_cold(300) == 7
    assert clock.sets_to_be_cold(5000) == 1
    assert clock.sets_to_be_cold(1) == 1


def test_poisoned():
    x, before = torch.zeros(3), torch.are_deterministic_algorithms_enabled()
    with timing.poisoned():
        assert x.new_empty(2).isnan().all()
        assert (torch.empty(2, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_compare():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    bits = x > 0
    assert timing.compare([bits, x], [bits, x.double()]) == ""
    assert "results" in timing.compare([x], [x, x])
    assert "shape" in timing.compare([x], [x[:3]])
    assert "max" in timing.compare([x * 1.001], [x])
    assert "nan" in timing.compare([torch.where(bits, x, torch.nan)], [x])
    other, moved = bits.clone(), x.clone()
    other[2, 1] ^= True
    moved[2] += 1
    assert "first at [2, 1]" in timing.compare([other, x], [bits, x])
    # What follows from a bit that was too close to call is left out, and nothing else.
    assert timing.compare([other, moved], [bits, x], ties=0.03) == ""
    moved[3] += 1
    assert "max" in timing.compare([other, moved], [bits, x], ties=0.03)


# What becomes of results and failures.


def case_with(run, **torch_best):
    return kernel_case.Case(
        op="philox",
        name="doubling",
        num_bytes=8_000,
        flops=1_000,
        make=lambda seed: (torch.full((4,), float(seed)),),
        run=run,
        expected=lambda x: (2 * x.double(),),
        torch_best={name: lambda run=run: run for name, run in torch_best.items()},
    )


def run_main(monkeypatch, capsys, case, *arguments):
    monkeypatch.setitem(kernel_cases.CASES, "philox", lambda setting: iter([case]))
    status = kernels.main(["--device", "cpu", "--quick", "--op", "philox", *arguments])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def test_a_wrong_result_fails_the_run_and_has_no_ratio(monkeypatch, capsys):
    case = case_with(lambda x: (2.1 * x,), twice=lambda x: (x + x,))
    status, rows = run_main(monkeypatch, capsys, case)
    assert status == 1
    reasons = {row["variant"]: row["reason"] for row in rows if row["reason"]}
    assert set(reasons) == {"cpp", "reference"}
    assert reasons["cpp"].startswith("result 0: max 5.0e-02")
    timed = [row for row in rows if row["ms"]]
    assert {row["variant"] for row in timed} == {"twice"}
    assert all(row["vs_ours"] is None for row in timed)


def test_a_variant_that_cannot_run_is_a_row(monkeypatch, capsys):
    def broken(x):
        raise RuntimeError("no such thing\nhere")

    case = case_with(lambda x: (x + x,), broken=broken, wrong=lambda x: (x,))
    status, rows = run_main(monkeypatch, capsys, case)
    assert status == 0
    reasons = {row["variant"]: row["reason"] for row in rows if row["reason"]}
    assert reasons["broken"] == "RuntimeError: no such thing"
    assert set(reasons) == {"broken", "wrong"}
    assert {row["variant"] for row in rows if row["ms"]} == {"cpp", "reference"}
    assert all(row["vs_ours"] for row in rows if row["ms"])


def test_past_the_time_a_case_is_a_row(monkeypatch, capsys):
    status, rows = run_main(monkeypatch, capsys, case_with(lambda x: (x + x,)), "--seconds", "1e-9")
    assert status == 0
    assert [row["reason"] for row in rows] == ["not run: --seconds have passed"]


def test_past_the_time_nothing_more_is_timed():
    case, now = case_with(lambda x: (x + x,)), time.monotonic()
    plan = kernels.Plan(quick=True, skip_compiled=True, compile_until=now, deadline=now - 1)
    limit = kernel_rows.Limit(copy_bandwidth=1e9, matmul_rate=1e9)
    rows = kernels.measure(case, timing.Clock(torch.device("cpu")), limit, plan)
    assert {(row.variant, row.mode) for row in rows} == {(v, m) for v in OWN for m in MODES}
    assert {row.reason for row in rows} == {"not run: --seconds have passed"}
    assert not any(kernel_rows.failed(row, "cpp") for row in rows)


def test_what_fails_a_run():
    def row(variant, mode="check", reason="wrong"):
        return kernel_rows.Row(op="x", case="y", variant=variant, mode=mode, reason=reason)

    assert kernel_rows.failed(row("triton"), "triton")
    assert kernel_rows.failed(row("triton", "graph"), "triton")
    assert kernel_rows.failed(row("reference"), "triton")
    assert not kernel_rows.failed(row("reference", "graph"), "triton")
    assert not kernel_rows.failed(row("sdpa"), "triton")
    assert not kernel_rows.failed(row("triton", reason=""), "triton")
    assert not kernel_rows.failed(row("cpp", reason="ValueError: x: no 'cpp' backend"), "cpp")
    refused = "ValueError: x: the 'cpp' backend has no backward"
    assert not kernel_rows.failed(row("cpp", reason=refused), "cpp")
    assert kernel_rows.failed(row("cpp", reason="result 0: max 1.0"), "cpp")


def test_numbers_of_a_row():
    limit = kernel_rows.Limit(copy_bandwidth=1e9, matmul_rate=1e9)
    assert limit.ms(8_000, 1_000) == pytest.approx(8e-3)
    assert limit.ms(1_000, 8_000) == pytest.approx(8e-3)
    case = case_with(lambda x: (x,))
    row = kernel_rows.timed_row(case, "triton", "warm", [0.02, 0.01, 0.03], limit)
    assert (row.ms, row.rounds) == (0.02, 3)
    assert row.gb_per_s == pytest.approx(0.4)
    assert row.tflop_per_s == pytest.approx(5e-5)
    assert row.percent_of_limit == pytest.approx(40)
    other = kernel_rows.timed_row(case, "sdpa", "warm", [0.05], limit)
    cold = kernel_rows.timed_row(case, "sdpa", "cold", [0.05], limit)
    ratios = [r.vs_ours for r in kernel_rows.with_ratios([row, other, cold], "triton")]
    assert ratios == [1.0, pytest.approx(2.5), None]


def test_compiled_variants_end_with_half_of_the_time():
    case = case_with(lambda x: (x + x,), compiled=lambda x: (x + x,))
    now = time.monotonic()
    plan = kernels.Plan(quick=True, skip_compiled=False, compile_until=now - 1, deadline=now + 1)
    good, reasons = kernels.check(case, "cpu", plan)
    assert set(good) == {"cpp", "reference"}
    assert set(reasons) == {"compiled"}
