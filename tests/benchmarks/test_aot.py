"""The ahead-of-time report: what it compiles, what fails it, and its last line."""

import json
import os
import subprocess
import sys

import pytest

from videoar.benchmarks import aot
from videoar.kernels.jit import jit, tl
from videoar.kernels.variant import Variant

# What a process without the interpreter compiles: one of the repository's kernels under a name of
# its own, and what it must refuse.
PROGRAM = """
import sys
from dataclasses import replace
from videoar.benchmarks import aot
from videoar.kernels.swiglu import aot_variants

good = aot_variants()[0]
variants = [
    good,
    replace(good, name="no-product", expects_mma=True),
    replace(good, name="one-by-one", divisible=("gate_ptr", "up_ptr")),
    replace(good, name="wrong-name", constexprs=good.constexprs | {"BLOCK_N": 1}),
    replace(good, name="not-a-power", constexprs=good.constexprs | {"BLOCK_F": 1000}),
]
aot.collect = lambda: variants
sys.exit(aot.main(sys.argv[1:]))
"""


def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout, process.stderr
    *table, last = process.stdout.splitlines()
    return process.returncode, table, json.loads(last), process.stderr


def test_every_kernel_compiles_for_sm_90():
    status, table, rows, errors = run("-m", "videoar.benchmarks.aot", "--fast")
    assert status == 0, (table, errors)
    assert len(rows) == len(table) - 2
    assert {row["kernel"] for row in rows} >= {"swiglu_forward", "rms_norm_backward-4b"}
    for row in rows:
        assert row["target"] == "sm_90"
        assert row["registers"] > 0
        assert row["spill_bytes"] == 0
        assert 0 <= row["shared_bytes"] <= 227 * 1024
        assert row["vector_bytes"] in (1, 2, 4, 8, 16)
    shared = {row["kernel"].split("-")[0]: row["shared_bytes"] for row in rows}
    assert shared["qk_norm_rope"] == 0, "angles and rows are laid out differently"


def test_a_row_with_a_problem_fails_the_run():
    status, table, rows, _ = run("-c", PROGRAM, "--target", "sm_90", "--target", "gfx942")
    assert status == 1
    problems = {(row["kernel"], row["target"]): row["problem"] for row in rows}
    assert len(problems) == 10
    assert problems["one-by-one", "sm_90"] == "accesses of 2 bytes, meant 16"
    for target in ("sm_90", "gfx942"):
        assert problems["swiglu_forward", target] == ""
        assert problems["no-product", target] == "no matrix instruction"
        assert "arguments expected" in problems["wrong-name", target]
        assert "power of 2" in problems["not-a-power", target]
    assert table[-1].startswith("not-a-power")
    assert rows[-1]["registers"] is None


@jit
def one_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr, BLOCK)


@jit
def other_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr, BLOCK)


def variant(name, kernel, targets=()):
    return Variant(
        name=name,
        kernel=kernel,
        signature={"x_ptr": "*i32"},
        constexprs={"BLOCK": 1},
        targets=targets,
    )


def test_choice():
    a, b = variant("one-a", one_kernel), variant("one-b", one_kernel)
    c = variant("other-c", other_kernel, targets=("sm_80",))
    d = variant("other-d", other_kernel, targets=("sm_90",))
    both = ["sm_80", "sm_90"]
    pairs = [(a, "sm_80"), (a, "sm_90"), (b, "sm_80"), (b, "sm_90"), (c, "sm_80")]
    assert aot.choose([a, b, c], "", both, fast=False) == pairs
    assert aot.choose([a, b, c], "one-", ["sm_90"], fast=False) == [(a, "sm_90"), (b, "sm_90")]
    assert aot.choose([a, b, c, d], "", both, fast=True) == [(a, "sm_90"), (d, "sm_90")]


def test_no_two_rows_of_a_report_have_the_same_name():
    pairs = aot.choose(aot.collect(), "", list(aot.TARGETS), fast=False)
    names = [(variant.name, target) for variant, target in pairs]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("arguments", [["--target", "sm_70"], ["--kernel", "nothing"]])
def test_refuses(arguments, monkeypatch):
    monkeypatch.setattr(aot, "interpreted", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        aot.main(arguments)


def test_refuses_the_interpreter(monkeypatch, capsys):
    monkeypatch.setattr(aot, "interpreted", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        aot.main(["--fast"])
    assert "TRITON_INTERPRET" in capsys.readouterr().err
