"""Programmatic dependent launch: who asks for it, that every launch does, and where it waits.

No GPU has run it here: without one the assembly is checked, with one the results.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module

import pytest
import torch

from videoar.kernels import (
    CacheWrite,
    cached_attention,
    group_norm_silu,
    jit,
    next_scale,
    qk_norm_rope,
    rms_norm,
    swiglu,
)

KERNELS = {
    "cached_attention",
    "cached_attention_combine",
    "group_norm_silu_affine",
    "group_norm_silu_apply",
    "group_norm_silu_sums",
    "next_scale",
    "qk_norm_rope",
    "rms_norm_forward",
    "swiglu_forward",
}
PDL = {"PDL": True, "launch_pdl": True}

# In a process without the interpreter: each kernel with PDL once, by target, and in its assembly
# the order of the wait, the release, the accesses to global memory and requests of tensor memory.
PROGRAM = r"""
import json, re, subprocess, tempfile
from videoar.benchmarks import aot

ACCESS = re.compile(
    r"griddepcontrol\.\w+|(?:ld|st|red|atom)\.(?:\w+\.)*global|cp\.async(?!\.(?:wait|commit))"
    r"|cp\.reduce|prefetch|tcgen05\.alloc"
)
variants = [v for v in aot.collect() if "PDL" in v.kernel.arg_names]
rows = []
for variant in {v.kernel: v for v in variants}.values():
    for name in ("sm_80", "sm_90", "sm_100"):
        compiled = aot.compile_variant(variant, aot.TARGETS[name])
        rows.append({
            "kernel": variant.name.partition("-")[0],
            "target": name,
            "order": ACCESS.findall(compiled.asm["ptx"]),
            "launch_pdl": compiled.metadata.launch_pdl,
            "spill_bytes": aot.measure(variant, name).spill_bytes,
        })
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def assembly():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_waits_before_it_touches_memory(assembly, target):
    rows = [row for row in assembly if row["target"] == target]
    assert {row["kernel"] for row in rows} == KERNELS
    for row in rows:
        order = list(row["order"])
        # The products of Blackwell. Were it asked for after the release, a program that waits could
        # hold what one that it waits for needs to go on.
        if (target, row["kernel"]) == ("sm_100", "cached_attention"):
            assert order.pop(0) == "tcgen05.alloc", row
        wait, release, *accesses = order
        assert wait == "griddepcontrol.wait", row
        assert release == "griddepcontrol.launch_dependents", row
        assert any(a.startswith(("ld", "cp")) for a in accesses), row
        assert "st.global" in accesses, row
        assert not any(a.startswith(("griddepcontrol", "tcgen05")) for a in accesses), row
        assert row["launch_pdl"] is True
        assert row["spill_bytes"] == 0


def test_an_older_target_has_none_of_it(assembly):
    rows = [row for row in assembly if row["target"] == "sm_80"]
    assert {row["kernel"] for row in rows} == KERNELS
    for row in rows:
        assert row["order"], row
        assert not any(a.startswith("griddepcontrol") for a in row["order"]), row
        assert row["launch_pdl"] is False
        assert row["spill_bytes"] == 0


@pytest.mark.parametrize(
    ("name", "capability", "hip", "interpreted", "expected"),
    [
        ("cuda:0", (9, 0), None, False, PDL),
        ("cuda:1", (10, 3), None, False, PDL),
        ("cuda:0", (12, 0), None, False, PDL),
        ("cuda:0", (8, 9), None, False, {}),
        ("cuda:0", (8, 0), None, False, {}),
        # An AMD GPU: torch calls it cuda as well, and gfx942 has "capability" 9.4.
        ("cuda:0", (9, 4), "7.0", False, {}),
        ("cuda:0", (9, 0), None, True, {}),
        ("cpu", None, None, False, {}),
        ("meta", None, None, False, {}),
    ],
)
def test_rule(name, capability, hip, interpreted, expected, monkeypatch):
    def capability_of(asked):
        assert asked == torch.device(name)
        assert capability is not None, "only a GPU has one"
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability_of)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(jit, "interpreted", lambda: interpreted)
    assert jit.pdl_options.__wrapped__(torch.device(name)) == expected


def test_rule_is_asked_once_a_device(monkeypatch):
    asked = []
    monkeypatch.setattr(jit, "interpreted", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: asked.append(d) or (9, 0))
    jit.pdl_options.cache_clear()
    try:
        for device in ("cuda:0", "cuda:1", "cuda:0"):
            assert jit.pdl_options(torch.device(device)) == PDL
    finally:
        jit.pdl_options.cache_clear()
    assert asked == [torch.device("cuda:0"), torch.device("cuda:1")]


# Every operation on 2,048 numbers, to give at least as many for the next one.


def run_rms_norm(x):
    x = x.view(4, 512)
    y, s = rms_norm(x, x[0], x)
    return torch.cat([y, s])


def run_swiglu(x):
    return swiglu(x, x.flip(0))


def run_rope(x):
    x = x.view(1, 2, 16, 64)
    cache = torch.zeros(2, 1, 2, 20, 64, device=x.device)
    positions = torch.arange(48, device=x.device).view(16, 3)
    write = CacheWrite(x, cache[0], cache[1], 3)
    q, k = qk_norm_rope(x, x, positions, sections=(8, 12, 12), cache=write)
    return torch.cat([q.flatten(), k.flatten(), cache.flatten()])


def run_attention(x):
    q = x.view(1, 2, 16, 64)
    cache = q.repeat(1, 1, 32, 1)
    return cached_attention(q, cache, cache, segments_on(x.device))


@cache
def segments_on(device):
    # A copy from the host cannot be captured.
    return torch.tensor([[[0, 300], [400, 100]]], dtype=torch.int32, device=device)


def run_next_scale(x):
    accumulator = torch.zeros(1, 64, 4, 4, device=x.device)
    step = next_scale(x.view(1, 16, 128), accumulator, ((4, 4),), 0, temperature=0.0)
    return torch.cat([part.flatten() for part in step])


def run_group_norm(x):
    return group_norm_silu(x.view(2, 4, 16, 16), x[:16], x[16:32], 4)


# Each with its kernels' file and their names.
RUNS = [
    (run_rms_norm, "rms_norm", ["_forward_kernel"]),
    (run_swiglu, "swiglu", ["_forward_kernel"]),
    (run_rope, "qk_norm_rope_triton", ["forward_kernel"]),
    (run_attention, "cached_attention_triton", ["split_attention_kernel", "combine_kernel"]),
    (run_next_scale, "next_scale_triton", ["next_scale_kernel"]),
    (run_group_norm, "group_norm_silu", ["_sums_kernel", "_affine_kernel", "_apply_kernel"]),
]


def kernel_file(name):
    # The package shows the function of that name instead of its file.
    return import_module(f"videoar.kernels.{name}")


class Launches(list):
    """Stands for a kernel: `kernel[grid](...)` notes the options and computes nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.append(options)


@pytest.mark.parametrize(("run", "name", "kernels"), RUNS, ids=[name for _, name, _ in RUNS])
def test_every_launch_asks_for_its_device(run, name, kernels, triton_device, monkeypatch):
    file, asked, launches = kernel_file(name), [], {kernel: Launches() for kernel in kernels}
    monkeypatch.setattr(file, "pdl_options", lambda device: asked.append(device) or PDL)
    for kernel, noted in launches.items():
        monkeypatch.setattr(file, kernel, noted)
    run(torch.zeros(2048, device=triton_device))
    assert {device.type for device in asked} == {triton_device.type}
    for kernel, noted in launches.items():
        assert [(o["PDL"], o["launch_pdl"]) for o in noted] == [(True, True)], kernel


@pytest.mark.gpu
def test_results_are_those_without_it(monkeypatch):
    x, wide = torch.randn(2048, device="cuda"), torch.randn(4096, 2048, device="cuda")

    def work():
        results, y = [x], wide
        for run, _, _ in 8 * RUNS:
            results.append(run(results[-1]).flatten()[:2048] + x)
        # Nothing of torch in between, and programs enough to start while others still run.
        for _ in range(16):
            y = rms_norm(swiglu(y, y), wide[0])
        return [*results, y]

    eager = work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    for _, name, _ in RUNS:
        monkeypatch.setattr(kernel_file(name), "pdl_options", lambda device: {})
    expected = work()
    for results in (eager, captured):
        for got, want in zip(results, expected, strict=True):
            assert torch.equal(got, want)
