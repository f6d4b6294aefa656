"""Cached attention against loops over single queries, and against the uncached operation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoar.kernels.cached_attention import cached_attention, cached_attention_ref
from videoar.kernels.cached_attention_triton import cached_attention_tiles
from videoar.kernels.chunk_attention import chunk_attention
from videoar.runtime.schedule import ChunkSchedule

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
CAPACITY = 23


def brute(q, k_cache, v_cache, segments, scale):
    out = torch.zeros(q.shape, dtype=torch.float64)
    share = q.shape[1] // k_cache.shape[1]
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        rows = [r for start, n in segments[b].tolist() for r in range(start, start + n)]
        if rows:
            scores = k_cache[b, h // share, rows].double() @ q[b, h, i].double() * scale
            out[b, h, i] = scores.softmax(0) @ v_cache[b, h // share, rows].double()
    return out


def random_case(batch=3, heads=4, groups=2, length=5, width=16, capacity=CAPACITY):
    q = torch.randn(batch, length, heads, width).transpose(1, 2)
    cache = torch.randn(2, 2, batch, groups, capacity, width)
    return q, cache[0, 1], cache[1, 1]


@st.composite
def segment_rows(draw):
    """Disjoint segments in any order, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, CAPACITY), min_size=6, max_size=6)))
    pairs = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    return draw(st.permutations(pairs))


@given(st.lists(segment_rows(), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_segments(rows):
    segments = torch.tensor(rows, dtype=torch.int32)
    q, k_cache, v_cache = random_case()
    expected = brute(q, k_cache, v_cache, segments, 0.25)
    out = cached_attention(q, k_cache, v_cache, segments)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        [[[4, 9], [0, 4]], [[0, 13], [20, 0]], [[2, 11], [0, 2]]],
        [[[0, 4], [10, 3]], [[0, 0], [5, 0]], [[7, 16], [1, 1]]],
        [[[0, 0], [9, 0]]] * 3,
    ],
    ids=["one common range", "ragged with an empty row", "no keys at all"],
)
@pytest.mark.parametrize(
    ("heads", "groups", "length", "width"), [(1, 1, 1, 8), (6, 2, 17, 63), (4, 4, 3, 130)]
)
@pytest.mark.parametrize("impl", [None, "sdpa"])
@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0])
def test_matches_query_loop(rows, heads, groups, length, width, scale, impl, device):
    segments = torch.tensor(rows, dtype=torch.int32)
    case = random_case(3, heads, groups, length, width)
    expected = brute(*case, segments, scale)
    placed = [x.to(device) for x in case]
    out = cached_attention(*placed, segments.to(device), scale=scale, impl=impl)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "width"), [(1, 64), (17, 130), (63, 80), (130, 128)])
def test_many_keys_in_three_segments(length, width, assert_near, device):
    """Splits that hold parts of two segments, one segment, or nothing."""
    segments = torch.tensor(
        [[[0, 7], [100, 200], [20, 33]], [[0, 12], [30, 1], [40, 0]], [[5, 0], [0, 0], [9, 0]]],
        dtype=torch.int32,
    )
    case = random_case(3, 2, 1, length, width, capacity=300)
    expected = cached_attention_ref(*(x.double() for x in case), segments)
    out = cached_attention(*(x.to(device) for x in case), segments.to(device))
    assert_near(out, expected)
    assert (out[2] == 0).all()


@pytest.mark.parametrize("rows", [1, 17, 63, 130, 1000])
@pytest.mark.parametrize("capacity", [1, 150, 13000])
@pytest.mark.parametrize("groups", [1, 12, 500])
def test_tiles(rows, capacity, groups):
    block_m, block_n, splits, _, _ = cached_attention_tiles(2, groups, rows, capacity, 128, 2)
    assert 16 <= block_m <= 128
    programs = 2 * groups * -(-rows // block_m)
    assert splits == 1 or (splits * programs <= 132 and splits * 2 * block_n <= capacity)


def test_half(half, device):
    segments = torch.tensor([[[0, 4], [10, 3]], [[0, 0], [5, 0]], [[7, 16], [1, 1]]]).int()
    case = [x.to(half) for x in random_case(width=64)]
    expected = brute(*case, segments, 64**-0.5)
    out = cached_attention(*(x.to(device) for x in case), segments.to(device))
    assert out.dtype == half
    error = out.cpu().double() - expected
    assert error.square().mean().sqrt() < 8e-3 * expected.square().mean().sqrt()
    assert (out[1] == 0).all()


def test_rows_outside_of_the_segments_change_nothing(device):
    segments = torch.tensor([[[2, 3], [9, 4]]] * 3, dtype=torch.int32, device=device)
    q, k_cache, v_cache = (x.to(device) for x in random_case())
    before = cached_attention(q, k_cache, v_cache, segments)
    unused = [r for r in range(CAPACITY) if not (2 <= r < 5 or 9 <= r < 13)]
    for cache in (k_cache, v_cache):
        cache[:, :, unused] = 100.0
    assert torch.equal(cached_attention(q, k_cache, v_cache, segments), before)


def test_decoding_chunk_by_chunk_equals_the_sequence(device):
    """Text of each row's own length in a fixed region, then the chunks."""
    schedule, text_len = ChunkSchedule.video(3, ((1, 1), (1, 2), (2, 2))), 4
    text_lengths = torch.tensor([0, 2, 4], device=device)
    q, _, _ = random_case(length=text_len + schedule.num_tokens)
    k, v = torch.randn(2, 3, 2, text_len + schedule.num_tokens, 16).to(device)
    q = q.to(device)
    whole = chunk_attention(q, k, v, schedule, text_len=text_len, text_lengths=text_lengths)
    for chunk in schedule.chunks:
        first = text_len + chunk.offset
        segments = torch.zeros(3, 2, 2, dtype=torch.int32, device=device)
        segments[:, 0, 1] = text_lengths
        segments[:, 1] = torch.tensor([text_len, chunk.offset + chunk.length])
        rows = slice(first, first + chunk.length)
        out = cached_attention(q[:, :, rows], k, v, segments)
        torch.testing.assert_close(out, whole[:, :, rows], rtol=1e-5, atol=1e-5)


def test_reference_takes_the_public_arguments():
    segments = torch.tensor([[[0, 5]]] * 3, dtype=torch.int32)
    case = random_case()
    assert torch.equal(
        cached_attention_ref(*case, segments, scale=None, impl=None),
        cached_attention(*case, segments, impl="sdpa"),
    )


@pytest.mark.parametrize(
    "pairs",
    [
        [[0, 5], [4, 2]],
        [[20, 4], [0, 1]],
        [[-1, 3], [5, 1]],
        [[3, -1], [5, 1]],
    ],
    ids=["overlap", "beyond the capacity", "before the cache", "negative length"],
)
def test_refuses_segments(pairs):
    segments = torch.tensor([[[0, 1], [1, 1]], pairs, pairs], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^segments\[1\]: expected disjoint"):
        cached_attention(*random_case(), segments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_BHLD": torch.zeros(3, 4, 16)}, "q: expected"),
        ({"q_BHLD": torch.zeros(3, 4, 5, 16).int()}, "q: expected floating"),
        ({"q_BHLD": torch.zeros(3, 4, 5, 0)}, "q: expected"),
        ({"q_BHLD": torch.zeros(3, 0, 5, 16)}, "q: expected"),
        ({"k_cache": torch.zeros(3, 2, CAPACITY, 8)}, "k_cache: expected"),
        ({"k_cache": torch.zeros(3, 0, CAPACITY, 16)}, "k_cache: expected"),
        ({"k_cache": torch.zeros(3, 2, CAPACITY, 16, device="meta")}, "k_cache: expected on cpu"),
        ({"v_cache": torch.zeros(3, 2, CAPACITY, 16, device="meta")}, "v_cache: expected on cpu"),
        ({"k_cache": torch.zeros(3, 3, CAPACITY, 16)}, "k_cache: expected"),
        ({"v_cache": torch.zeros(3, 2, 9, 16)}, "v_cache: expected"),
        ({"v_cache": torch.zeros(3, 2, CAPACITY, 16).double()}, "v_cache: expected"),
        ({"segments": torch.zeros(3, 1, 2)}, "segments: expected torch.int32"),
        ({"segments": torch.zeros(2, 1, 2).int()}, "segments: expected"),
        ({"segments": torch.zeros(3, 1, 2, device="meta").int()}, "segments: expected on cpu"),
        ({"impl": "fast"}, "impl: expected"),
    ],
)
def test_refuses(change, message):
    q, k_cache, v_cache = random_case()
    segments = torch.zeros(3, 1, 2, dtype=torch.int32)
    arguments = {"q_BHLD": q, "k_cache": k_cache, "v_cache": v_cache, "segments": segments}
    with pytest.raises(ValueError, match=f"^{message}"):
        cached_attention(**{**arguments, **change})


@pytest.mark.parametrize(
    ("dtype", "width", "strided", "message"),
    [
        (torch.float64, 16, None, r"q: .* got torch.float64"),
        (torch.float32, 264, None, r"q: .* D up to 256, got"),
        (torch.float32, 16, "k_cache", "k_cache: expected unit stride"),
        (torch.float32, 16, "v_cache", "v_cache: expected unit stride"),
    ],
)
def test_the_kernel_refuses(dtype, width, strided, message, triton_device):
    names = ("q_BHLD", "k_cache", "v_cache")
    case = {
        name: x.to(triton_device, dtype)
        for name, x in zip(names, random_case(width=width), strict=True)
    }
    if strided:
        case[strided] = case[strided].mT.contiguous().mT
    segments = torch.zeros(3, 1, 2, dtype=torch.int32, device=triton_device)
    with pytest.raises(ValueError, match=f"^{message}"):
        cached_attention(**case, segments=segments)


def test_the_kernel_records_nothing(triton_device):
    """It has no backward; a result without one would stop gradients in silence."""
    q, k, v = (x.to(triton_device) for x in random_case())
    segments = torch.zeros(3, 1, 2, dtype=torch.int32, device=triton_device)
    with pytest.raises(ValueError, match=r"^k_cache: requires a gradient"):
        cached_attention(q, k.requires_grad_(), v, segments)
    with torch.no_grad():
        assert not cached_attention(q, k, v, segments).any()
