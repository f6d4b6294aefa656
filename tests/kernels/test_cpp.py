"""The C++ kernels against their references with every instruction set, and their common promise:
neither threads nor batch neighbours change a bit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.cached_attention import cached_attention, cached_attention_ref
from videoar.kernels.dispatch import use_backend
from videoar.kernels.qk_norm_rope import CacheWrite, qk_norm_rope, qk_norm_rope_ref, rope_sections
from videoar.kernels.rms_norm import rms_norm, rms_norm_ref
from videoar.kernels.swiglu import swiglu, swiglu_ref

CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.bfloat16]
ROTATED = ("q_BHLD", "k_BGLD", "q_weight", "k_weight")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda number: torch.set_num_threads(number)
    torch.set_num_threads(before)


def norm_case(rows, width, dtype):
    x, residual = torch.randn(2, rows, width + 3).to(dtype)[..., :width]
    return x, torch.randn(width).to(dtype), residual


def attention_case(batch, heads, groups, length, width, keys, dtype):
    """Fused projection's q, and segments that leave gaps, one of them empty."""
    q = torch.randn(batch, length, heads + 2 * groups, width)[:, :, :heads].transpose(1, 2)
    k_cache, v_cache = torch.randn(2, batch, groups, keys + 9, width)
    front = keys // 3
    pairs = [[keys // 2 + 5, keys - front], [3, 0], [0, front]]
    segments = torch.tensor([pairs] * batch, dtype=torch.int32)
    segments[:, 0, 0] = front + 5
    return q.to(dtype), k_cache.to(dtype), v_cache.to(dtype), segments


def rope_case(batch, heads, groups, length, width, dtype):
    """Views of one fused projection, weights, positions and a cache to write."""
    fused = torch.randn(batch, length, heads + 2 * groups, width).to(dtype).transpose(1, 2)
    q, k, v = fused.split([heads, groups, groups], dim=1)
    cache = torch.zeros(2, 3, batch, groups, length + 4, width, dtype=dtype)
    return {
        "q_BHLD": q,
        "k_BGLD": k,
        "positions": torch.randint(0, 300, (length, 3)),
        "sections": rope_sections(width),
        "theta": 100.0,
        "q_weight": torch.randn(width).to(dtype),
        "k_weight": torch.randn(width).to(dtype),
        "cache": CacheWrite(v, cache[0, 1], cache[1, 1], 2),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (17, 63), (63, 130), (2, 1536)])
def test_norm_equals_reference(rows, width, dtype, device, assert_near):
    x, weight, residual = norm_case(rows, width, dtype)
    y, s = rms_norm(x, weight, residual)
    expected, sums = rms_norm_ref(x, weight, residual)
    assert torch.equal(s, sums)
    assert_near(y, expected)
    assert_near(rms_norm(x, weight.float()), rms_norm_ref(x, weight.float()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (17, 63), (3, 5000)])
def test_swiglu_equals_reference(rows, width, dtype, device, assert_near):
    gate, up = (3 * torch.randn(rows, 2 * width)).to(dtype).chunk(2, dim=-1)
    assert_near(swiglu(gate, up), swiglu_ref(gate, up))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(1, 2),
        lambda x: x[:, ::2, 3:9],
        lambda x: x[:, :1].expand(-1, 4, -1),
        lambda x: x[1, 2, ::3],
        lambda x: x[:, :0],
    ],
    ids=["contiguous", "rows", "channels", "slice", "expanded", "one row", "nothing"],
)
def test_rows_of_any_layout(layout, device):
    x, up = (layout(t) for t in torch.randn(2, 3, 5, 16))
    weight = torch.randn(x.shape[-1])
    copies = x.contiguous(), up.contiguous()
    assert torch.equal(swiglu(x, up), swiglu(*copies))
    for got, expected in zip(
        rms_norm(x, weight, up), rms_norm(copies[0], weight, copies[1]), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "width", "keys"),
    [(1, 128, 1), (17, 63, 130), (63, 64, 17), (130, 80, 300), (9, 256, 129), (4, 1, 63)],
)
def test_attention_equals_reference(length, width, keys, dtype, device, assert_near):
    case = attention_case(2, 6, 2, length, width, keys, dtype)
    out = cached_attention(*case)
    assert out.transpose(1, 2).is_contiguous()
    expected = cached_attention_ref(*(x.double() for x in case[:3]), case[3])
    assert_near(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "width", "keys"), [(4, 64, 300), (2, 130, 17), (1, 2, 129)])
def test_few_queries_give_the_bits_of_many(groups, width, keys, dtype, on_every_cpu, assert_near):
    """Few queries read keys and values where they are, many pack them: the same sums."""
    q, *cache = attention_case(2, 4, groups, 17, width, keys, dtype)
    expected = cached_attention_ref(q.double(), *(x.double() for x in cache[:2]), cache[2])

    def run():
        whole = cached_attention(q, *cache)
        for length in range(1, 17):
            out = cached_attention(q[:, :, :length], *cache)
            assert torch.equal(out, whole[:, :, :length]), f"{length} queries"
        return whole

    for whole in on_every_cpu(run):
        assert_near(whole, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width"), [(1, 128), (17, 2), (63, 130), (5, 64)])
def test_rope_equals_reference(length, width, dtype, device, assert_near):
    case = rope_case(2, 4, 2, length, width, dtype)
    q, k = qk_norm_rope(**case)
    expected = qk_norm_rope_ref(**{**case, "cache": None})
    assert_near(q, expected[0])
    assert_near(k, expected[1])
    cache = case["cache"]
    assert torch.equal(cache.k_cache[:, :, 2 : 2 + length], k)
    assert torch.equal(cache.v_cache[:, :, 2 : 2 + length], cache.v_BGLD)
    assert (cache.k_cache[:, :, :2] == 0).all()
    assert (cache.v_cache[:, :, 2 + length :] == 0).all()


def test_rope_writes_bfloat16_into_a_float32_cache(device):
    case = rope_case(2, 4, 2, 5, 64, torch.bfloat16)
    cache = torch.zeros(2, 2, 2, 9, 64)
    case["cache"] = CacheWrite(case["cache"].v_BGLD, cache[0], cache[1], torch.tensor([4, 0]))
    _, k = qk_norm_rope(**case)
    assert torch.equal(cache[0, 0, :, 4:], k[0].float())
    assert torch.equal(cache[1, 1, :, :5], case["cache"].v_BGLD[1].float())


def big_calls(dtype):
    """Calls large enough to be shared out, as functions without arguments."""
    norm = norm_case(700, 1536, dtype)
    gate, up = torch.randn(2, 130, 6272).to(dtype)
    attention = attention_case(2, 12, 12, 17, 128, 500, dtype)
    rope = rope_case(2, 12, 12, 200, 128, dtype)
    return {
        "rms_norm": lambda: rms_norm(*norm)[0],
        "swiglu": lambda: swiglu(gate, up),
        "cached_attention": lambda: cached_attention(*attention),
        "qk_norm_rope": lambda: qk_norm_rope(**rope)[0],
    }


def big_gradients(dtype):
    """Calls whose backward pass is shared out, as functions that give all gradients."""
    norm = [t.clone().requires_grad_() for t in norm_case(700, 1536, dtype)]
    halves = [t.requires_grad_() for t in torch.randn(2, 130, 6272).to(dtype)]
    case = rope_case(2, 6, 6, 333, 128, dtype) | {"cache": None}
    turned = {name: t.requires_grad_() for name, t in case.items() if name in ROTATED}
    logits, bits = torch.randn(3000, 96).to(dtype).requires_grad_(), torch.rand(3000, 48) < 0.5
    return {
        "rms_norm": lambda: gradients(rms_norm(*norm), norm),
        "swiglu": lambda: gradients([swiglu(*halves)], halves),
        "qk_norm_rope": lambda: gradients(qk_norm_rope(**(case | turned)), turned.values()),
        "bitwise_cross_entropy": lambda: gradients([bitwise_cross_entropy(logits, bits)], [logits]),
    }


def gradients(outputs, leaves):
    """Of a sum of the squares, so that no two of a tensor's incoming gradients are equal."""
    loss = sum(out.float().square().sum() for out in outputs)
    return torch.autograd.grad(loss, list(leaves))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "qk_norm_rope", "bitwise_cross_entropy"])
def test_threads_change_no_gradient(op, dtype, two_threads):
    call = big_gradients(dtype)[op]
    two_threads(1)
    alone = call()
    for threads in (2, 3):
        two_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(call(), alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "qk_norm_rope", "bitwise_cross_entropy"])
def test_gradients_of_many_rows_equal_the_reference(op, dtype, assert_near):
    call = big_gradients(dtype)[op]
    with use_backend("cpp"):
        got = call()
    with use_backend("reference"):
        expected = call()
    for a, b in zip(got, expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "cached_attention", "qk_norm_rope"])
def test_threads_change_nothing(op, dtype, two_threads):
    call = big_calls(dtype)[op]
    two_threads(1)
    alone = call()
    for threads in (2, 3):
        two_threads(threads)
        assert torch.equal(call(), alone)


def test_python_threads_do_not_share_scratch():
    cases = [attention_case(2, 4, 2, 9 + i, 64, 300, torch.bfloat16) for i in range(4)]
    alone = [cached_attention(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            together = pool.map(lambda case: cached_attention(*case), cases)
            assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_rows_and_queries_do_not_see_their_neighbours(length, dtype, device):
    q, k_cache, v_cache, segments = attention_case(3, 4, 2, length, 64, 200, dtype)
    segments[0, 0, 1], segments[2, 0, 1] = 0, 50
    whole = cached_attention(q, k_cache, v_cache, segments)
    for row in range(3):
        part = slice(row, row + 1)
        alone = cached_attention(q[part], k_cache[part], v_cache[part], segments[part])
        assert torch.equal(alone, whole[part])
    last = cached_attention(q[:, :, -1:], k_cache, v_cache, segments)
    assert torch.equal(last, whole[:, :, -1:])


def test_no_keys_give_zeros(device):
    for dtype in DTYPES:
        q, k_cache, v_cache, segments = attention_case(2, 4, 2, 3, 65, 20, dtype)
        segments[1, :, 1] = 0
        out = cached_attention(q, k_cache, v_cache, segments)
        assert (out[1] == 0).all()
        assert (out[0] != 0).any()
        assert (cached_attention(q, k_cache, v_cache, segments[:, :0]) == 0).all()


def test_large_scores_neither_overflow_nor_vanish(device):
    """Whole numbers, so that scores of thousands are exact in any order of summation."""
    q, k_cache, v_cache, segments = attention_case(1, 2, 2, 4, 64, 200, torch.float32)
    q, k_cache = (100 * q).round(), k_cache.round()
    expected = cached_attention_ref(
        q.double(), k_cache.double(), v_cache.double(), segments, scale=1.0
    )
    out = cached_attention(q, k_cache, v_cache, segments, scale=1.0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_nan_stays_where_it_is(device):
    nan = float("nan")
    for dtype in DTYPES:
        x = torch.randn(4, 63).to(dtype)
        x[1, 5] = nan
        y = rms_norm(x, torch.ones(63, dtype=dtype))
        assert y[1].isnan().all()
        assert not y[[0, 2, 3]].isnan().any()
        assert swiglu(x, torch.ones_like(x)).isnan().nonzero().tolist() == [[1, 5]]
        q, k_cache, v_cache, segments = attention_case(1, 2, 1, 8, 64, 40, dtype)
        q[0, 1, 2, 3] = nan
        out = cached_attention(q, k_cache, v_cache, segments).isnan()
        assert out[0, 1, 2].all()
        assert out.sum() == 64


def test_rounding_to_bfloat16_is_that_of_torch(device):
    """Ties, neighbours of ties, infinities and every exponent of normal numbers, both signs."""
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x17FFF, 0x18000, 0x18001])
    exponents = torch.arange(1, 256)[:, None] << 23
    bits = torch.cat([(exponents + low).flatten(), torch.tensor([0])])
    bits = torch.cat([bits, bits - 2**31]).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[~x.isnan()]
    cache = torch.zeros(1, 1, len(x), 2, dtype=torch.bfloat16)
    v = torch.stack([x, x.flip(0)], dim=-1)[None, None]
    positions = torch.zeros(len(x), 3, dtype=torch.int64)
    write = CacheWrite(v, torch.zeros_like(cache), cache, 0)
    qk_norm_rope(
        torch.zeros_like(v), torch.zeros_like(v), positions, sections=(1, 0, 0), cache=write
    )
    assert torch.equal(cache.view(torch.int16), v.bfloat16().view(torch.int16))


def test_cpp_refuses_what_it_cannot_serve():
    case = rope_case(2, 4, 2, 5, 16, torch.float32)
    cache = case["cache"]
    strided = torch.zeros(2, 2, 9, 32)[..., ::2]
    changes = [
        (CacheWrite(cache.v_BGLD, strided, cache.v_cache, 0), "contiguous channels"),
        (CacheWrite(cache.v_BGLD.bfloat16(), cache.k_cache, cache.v_cache, 0), "cache.v_BGLD"),
        (CacheWrite(cache.v_BGLD, cache.k_cache, cache.v_cache.bfloat16(), 0), "cache.v_cache"),
    ]
    for write, message in changes:
        with pytest.raises(ValueError, match=message):
            qk_norm_rope(**{**case, "cache": write})
    with pytest.raises(ValueError, match="width 258, at most 256"):
        cached_attention(*attention_case(1, 1, 1, 1, 258, 3, torch.float32))
    with pytest.raises(ValueError, match="at most 1024"):
        qk_norm_rope(**{**rope_case(1, 1, 1, 1, 1026, torch.float32), "cache": None})
    q, _, _, segments = attention_case(1, 2, 2, 1, 16, 20, torch.float32)
    with pytest.raises(ValueError, match="elements apart"):
        cached_attention(q, *torch.randn(2, 1, 2, 29, 32)[..., ::2], segments)
