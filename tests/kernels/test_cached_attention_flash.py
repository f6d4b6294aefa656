"""The adapter to flash-attn, on a CPU with a stand-in for the package's function."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoar.kernels.cached_attention import cached_attention, cached_attention_ref
from videoar.kernels.cached_attention_flash import attend_gathered, segment_rows

CAPACITY = 23
ROWS = [[[4, 9], [0, 4], [22, 1]], [[0, 0], [5, 0], [7, 0]], [[7, 16], [3, 0], [1, 1]]]


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, *, cache_seqlens=None, softmax_scale=None, causal=False
):
    """What the package documents: `[B,L,H,D]`, `[B,capacity,G,D]`, lengths int32 `[B]`.

    An empty row is NaN here, as nothing is said about it; keys behind the length must not count.
    """
    assert k is None
    assert v is None
    assert not causal
    assert cache_seqlens.dtype == torch.int32
    assert k_cache.shape == v_cache.shape
    assert all(x.stride(-1) == 1 for x in (q, k_cache, v_cache))
    batch, _, heads, width = q.shape
    assert k_cache.shape[0] == batch
    assert k_cache.shape[3] == width
    share = heads // k_cache.shape[2]
    scale = width**-0.5 if softmax_scale is None else softmax_scale
    out = torch.full_like(q, torch.nan)
    for b, n in enumerate(cache_seqlens.tolist()):
        if n:
            keys, values = (x[b, :n].repeat_interleave(share, 1) for x in (k_cache, v_cache))
            scores = torch.einsum("lhd,nhd->hln", q[b], keys) * scale
            out[b] = torch.einsum("hln,nhd->lhd", scores.softmax(-1), values)
    return out


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def random_case(heads=4, groups=2, length=5, width=16, rows=ROWS):
    q = torch.randn(len(rows), length, heads, width).transpose(1, 2)
    cache = torch.randn(2, 2, len(rows), groups, CAPACITY, width)
    return q, cache[0, 1], cache[1, 1], torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize(
    ("heads", "groups", "length", "width"), [(1, 1, 1, 8), (6, 2, 17, 64), (4, 4, 3, 80)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_same_result(heads, groups, length, width, scale, package, assert_near):
    """Segments in any order, rows of different lengths, one without keys."""
    case = random_case(heads, groups, length, width)
    out = attend_gathered(*case, scale)
    assert_near(out, cached_attention_ref(*(x.double() for x in case[:3]), case[3], scale=scale))
    assert (out[1] == 0).all()


def test_strided_queries_and_caches(package, assert_near):
    q, k_cache, v_cache, segments = random_case()
    q, k_cache, v_cache = (x.mT.contiguous().mT for x in (q, k_cache, v_cache))
    assert q.stride(-1) != 1
    out = attend_gathered(q, k_cache, v_cache, segments, None)
    assert_near(out, cached_attention_ref(q, k_cache, v_cache, segments))


@pytest.mark.parametrize("shape", [(3, 4, 0, 16), (3, 4, 5, 16)])
def test_nothing_to_attend(shape, package):
    """No queries, and no segments."""
    q, k_cache, v_cache, segments = random_case(length=shape[2])
    out = attend_gathered(q, k_cache, v_cache, segments[:, :0], None)
    assert out.shape == shape
    assert (out == 0).all()


@st.composite
def segment_lists(draw):
    """Disjoint segments in any order, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, CAPACITY), min_size=6, max_size=6)))
    return draw(st.permutations([(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]))


@given(st.lists(segment_lists(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_rows_of_segments(lists):
    rows, lengths = segment_rows(torch.tensor(lists, dtype=torch.int32), CAPACITY)
    assert rows.shape == (len(lists), CAPACITY)
    for pairs, found, count in zip(lists, rows.tolist(), lengths.tolist(), strict=True):
        expected = [row for start, n in pairs for row in range(start, start + n)]
        assert found == expected + [0] * (CAPACITY - len(expected))
        assert count == len(expected)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ImportError, match=r"pip install 'videoar\[flash\]'"):
        attend_gathered(*random_case(), None)


def test_refuses_a_cpu(package):
    with pytest.raises(ValueError, match=r"^q: impl 'flash' takes CUDA tensors, got one on cpu"):
        cached_attention(*random_case(), impl="flash")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.bfloat16, 20)])
def test_refuses_on_a_gpu(dtype, width, package):
    q, k_cache, v_cache, segments = (x.to("cuda") for x in random_case(width=width))
    q, k_cache, v_cache = (x.to(dtype) for x in (q, k_cache, v_cache))
    with pytest.raises(ValueError, match=r"^q: impl 'flash' takes .* got torch"):
        cached_attention(q, k_cache, v_cache, segments, impl="flash")


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "width"), [(1, 64), (64, 128), (17, 80)])
def test_the_package_itself(length, width, assert_near):
    pytest.importorskip("flash_attn")
    q, k_cache, v_cache, segments = (x.to("cuda") for x in random_case(length=length, width=width))
    case = [x.bfloat16() for x in (q, k_cache, v_cache)]
    out = cached_attention(*case, segments, impl="flash")
    assert_near(out, cached_attention_ref(*(x.double() for x in case), segments))
