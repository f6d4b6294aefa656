"""Which values are read: those of the host always, those of a device under the debug switch.

In Triton's interpreter CPU tensors stand for those of the device.
"""

from functools import partial

import pytest
import torch

from videoar.kernels import CacheWrite, next_scale, philox_uniform, use_backend
from videoar.kernels.cached_attention import cached_attention
from videoar.kernels.chunk_attention import chunk_attention
from videoar.kernels.qk_norm_rope import qk_norm_rope
from videoar.kernels.values import values_known
from videoar.runtime.schedule import ChunkSchedule

SCHEDULE = ChunkSchedule.video(2, ((1, 1), (1, 2)))


def attend_to_the_cache(device, pairs=((0, 5), (4, 2))):
    """Two segments that overlap; they lie within the cache, so the kernel survives them."""
    q = torch.randn(1, 1, 2, 16, device=device)
    cache = torch.randn(1, 1, 8, 16, device=device)
    segments = torch.tensor([pairs], dtype=torch.int32, device=device)
    return partial(cached_attention, q, cache, cache, segments)


def attend_to_the_sequence(device, length=3):
    """One text token too many."""
    q = torch.randn(1, 1, 2 + SCHEDULE.num_tokens, 16, device=device)
    lengths = torch.tensor([length], device=device)
    return partial(chunk_attention, q, q, q, SCHEDULE, text_len=2, text_lengths=lengths)


def write_to_the_cache(device, start=3):
    """The last row lies behind the capacity of the view, but within the memory under it."""
    x, cache = torch.randn(1, 1, 2, 16, device=device), torch.zeros(1, 1, 8, 16, device=device)
    view, rows = cache[:, :, :4], torch.tensor([start], device=device)
    write = CacheWrite(v_BGLD=x, k_cache=view, v_cache=view, start=rows)
    positions = torch.zeros(2, 3, dtype=torch.int64, device=device)
    return partial(qk_norm_rope, x, x, positions, sections=(2, 3, 3), cache=write)


def draw(device, frame=-1):
    """A frame below zero."""
    seeds, frames = torch.tensor([[1], [frame]], device=device)
    return partial(philox_uniform, seeds, frames, 0, 2, 3)


def sample(device, temperature=-1.0):
    """A temperature below zero."""
    logits, noise = torch.randn(1, 1, 6, device=device), torch.rand(1, 1, 3, device=device)
    rows = torch.tensor([temperature], device=device)
    accumulator = torch.zeros(1, 3, 1, 1, device=device)
    return partial(next_scale, logits, accumulator, ((1, 1),), 0, temperature=rows, noise=noise)


CALLS = [
    (attend_to_the_cache, {"pairs": ((0, 4), (4, 2))}, r"segments\[0\]: expected disjoint"),
    (attend_to_the_sequence, {"length": 2}, r"text_lengths: expected 0 .. 2, got \[3\]"),
    (write_to_the_cache, {"start": 2}, r"cache.start: expected 0 .. 2 .* got \[3\]"),
    (draw, {"frame": 0}, r"frames: expected .* got \[-1\]"),
    (sample, {"temperature": 0.5}, r"temperature: expected at least 0, got tensor"),
]
NAMES = ["segments", "text_lengths", "start", "frames", "temperature"]
each_call = pytest.mark.parametrize(("prepare", "good", "message"), CALLS, ids=NAMES)


@pytest.fixture(params=["", "0", "1"])
def switch(request, monkeypatch):
    monkeypatch.setenv("VIDEOAR_DEBUG", request.param)
    return request.param == "1"


@each_call
def test_on_the_host_always(prepare, good, message, switch):
    prepare("cpu", **good)()
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare("cpu")()


@each_call
def test_on_a_device_under_the_switch(prepare, good, message, switch, triton_device):
    prepare(triton_device, **good)()
    if not switch:
        prepare(triton_device)()
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare(triton_device)()


@pytest.mark.gpu
@each_call
def test_without_the_switch_nothing_waits(prepare, good, message, monkeypatch):
    monkeypatch.setenv("VIDEOAR_DEBUG", "")
    call = prepare("cuda", **good)
    call()  # compiles, and makes the tables that are kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_nothing_is_read_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setenv("VIDEOAR_DEBUG", "1")
    x = torch.zeros(1, device="cuda")
    assert values_known(x)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert not values_known(x)
        x += 1


def test_what_is_known(switch):
    host, meta = torch.zeros(1), torch.zeros(1, device="meta")
    assert values_known(host)
    assert not values_known(meta)
    with use_backend("reference"):
        assert values_known(host)
    with use_backend("triton"):
        assert values_known(host) == switch
        assert not values_known(meta)
