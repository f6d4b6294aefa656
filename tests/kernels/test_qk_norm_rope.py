"""QK norm and multi-scale temporal RoPE against complex rotations, one pair at a time."""

import cmath

import pytest
import torch

from videoar.kernels.qk_norm_rope import CacheWrite, qk_norm_rope, qk_norm_rope_ref, rope_sections

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
META = torch.zeros(2, 2, 5, 16, device="meta")


def brute(x_BHLD, positions, sections, theta, weight=None, eps=1e-6):
    """The pair (i, i + D/2) is a complex number turned by position * theta^(-2i/D)."""
    batch, heads, length, width = x_BHLD.shape
    axis_of = [axis for axis, n in enumerate(sections) for _ in range(n)]
    positions = positions.expand(batch, length, 3).tolist()
    out = torch.empty(x_BHLD.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for l in range(length):  # noqa: E741
                x = x_BHLD[b, h, l].double()
                if weight is not None:
                    x = x / (x.square().mean() + eps).sqrt() * weight.double()
                for i, axis in enumerate(axis_of):
                    angle = positions[b][l][axis] * theta ** (-2 * i / width)
                    turned = complex(x[i], x[i + width // 2]) * cmath.exp(1j * angle)
                    out[b, h, l, i], out[b, h, l, i + width // 2] = turned.real, turned.imag
    return out


def random_case(batch=2, heads=4, groups=2, length=5, width=16):
    q = torch.randn(batch, length, heads, width).transpose(1, 2)
    k = torch.randn(batch, length, groups, width).transpose(1, 2)
    positions = torch.randint(40, (batch, length, 3))
    return q, k, positions


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("head_dim", "sections"),
    [(128, (16, 24, 24)), (80, (10, 15, 15)), (64, (8, 12, 12)), (2, (1, 0, 0)), (36, (6, 6, 6))],
)
def test_sections(head_dim, sections):
    assert rope_sections(head_dim) == sections
    assert sum(sections) == head_dim // 2


@pytest.mark.parametrize(("length", "width"), [(1, 2), (17, 16), (3, 80), (2, 130)])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_matches_complex_rotation(length, width, per_row, norm, device):
    q, k, positions = random_case(length=length, width=width)
    positions = positions if per_row else positions[0]
    sections = rope_sections(width)
    weights = torch.randn(2, width) if norm else (None, None)
    placed = [None if w is None else w.to(device) for w in weights]
    got = qk_norm_rope(
        q.to(device),
        k.to(device),
        positions.to(device),
        sections=sections,
        theta=500.0,
        q_weight=placed[0],
        k_weight=placed[1],
    )
    close(got[0], brute(q, positions, sections, 500.0, weights[0]))
    close(got[1], brute(k, positions, sections, 500.0, weights[1]))


def test_equal_positions_are_ordinary_rope(device):
    q, k, _ = random_case(width=80)
    positions = torch.arange(5)[:, None].expand(5, 3)
    split = qk_norm_rope(
        q.to(device), k.to(device), positions.to(device), sections=rope_sections(80)
    )
    close(split[0], brute(q, positions, (40, 0, 0), 10000.0))
    close(split[1], brute(k, positions, (40, 0, 0), 10000.0))


def test_scores_depend_on_position_differences_only(device):
    q, k, positions = (t.to(device) for t in random_case(groups=4, width=64))
    sections = rope_sections(64)
    q0, k0 = qk_norm_rope(q, k, positions, sections=sections)
    shift = torch.tensor([3, 11, 5], device=device)
    q1, k1 = qk_norm_rope(q, k, positions + shift, sections=sections)
    torch.testing.assert_close(q0 @ k0.mT, q1 @ k1.mT, rtol=1e-4, atol=1e-4)


def test_half_is_rounded_once(half, device):
    q, k, positions = random_case(width=64)
    q, k, weight = (t.to(half) for t in (q, k, torch.randn(64)))
    sections = rope_sections(64)
    got, _ = qk_norm_rope(
        *(t.to(device) for t in (q, k, positions)),
        sections=sections,
        q_weight=weight.to(device),
        k_weight=weight.to(device),
    )
    expected = brute(q, positions, sections, 10000.0, weight)
    assert got.dtype == half
    once = expected.to(half)
    # Where float32 errs across a tie the result is one unit off; that is rare.
    close(got, once.double(), tolerance=torch.finfo(half).eps)
    assert (got.cpu() != once).float().mean() < 0.01


def test_gradcheck():
    q, k, positions = random_case(length=3, width=8)
    leaves = [t.double().requires_grad_() for t in (q, k, torch.randn(8), torch.randn(8))]

    def run(q, k, q_weight, k_weight):
        return qk_norm_rope_ref(
            q, k, positions, sections=(2, 1, 1), q_weight=q_weight, k_weight=k_weight
        )

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(("length", "width"), [(17, 64), (130, 80), (1, 128)])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_match_float64(length, width, norm, assert_near, device):
    q, k, positions = random_case(heads=2, groups=1, length=length, width=width)
    leaves = [t.to(device) for t in (q, k, torch.randn(width), torch.randn(width))]
    grads = torch.randn_like(leaves[0]), torch.randn_like(leaves[1])

    def gradients(function, dtype):
        inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        out = function(
            *inputs[:2],
            positions.to(device),
            sections=rope_sections(width),
            q_weight=inputs[2] if norm else None,
            k_weight=inputs[3] if norm else None,
        )
        inputs = inputs if norm else inputs[:2]
        loss = sum((o * g).sum() for o, g in zip(out, grads, strict=True))
        return torch.autograd.grad(loss, inputs)

    expected = gradients(qk_norm_rope_ref, torch.float64)
    for a, b in zip(gradients(qk_norm_rope, torch.float32), expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_of_any_layout(per_row, assert_near, device):
    """Channels of the incoming gradients, or all of a gradient, lie apart or on each other."""
    q, k, positions = (t.to(device) for t in random_case(length=17))
    positions = (positions if per_row else positions[0]).int()
    grads = torch.randn(2, 4, 16, 17, device=device).mT, torch.ones(1, device=device)

    def run(function, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (q, k)]
        out = function(*inputs, positions, sections=(2, 3, 3))
        incoming = [g.to(dtype).expand_as(o) for g, o in zip(grads, out, strict=True)]
        return torch.autograd.grad(out, inputs, incoming)

    expected = run(qk_norm_rope_ref, torch.float64)
    for a, b in zip(run(qk_norm_rope, torch.float32), expected, strict=True):
        assert_near(a, b)


def test_gradient_through_the_keys_alone(assert_near, device):
    q, k, positions = (t.to(device) for t in random_case())
    weights = torch.randn(2, 16, device=device)

    def run(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (q, k, *weights)]
        options = {"q_weight": leaves[2], "k_weight": leaves[3], "sections": (2, 3, 3)}
        out = function(*leaves[:2], positions, **options)[1]
        return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)

    got, expected = run(qk_norm_rope, torch.float32), run(qk_norm_rope_ref, torch.float64)
    assert all((got[i] == 0).all() and expected[i] is None for i in (0, 2))
    assert_near(got[1], expected[1])
    assert_near(got[3], expected[3])


def test_far_positions(device):
    """Angles of thousands of turns, each frequency and angle rounded once."""
    q, k, _ = random_case(length=17, width=64)
    positions = torch.randint(15000, 16000, (17, 3))
    case = [t.to(device) for t in (q, k, positions)]
    got, _ = qk_norm_rope(*case, sections=rope_sections(64))
    expected, _ = qk_norm_rope_ref(*case, sections=rope_sections(64))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_positions_of_any_layout(device):
    q, k, positions = (t.to(device) for t in random_case(length=17))
    whole = qk_norm_rope(q, k, positions, sections=(2, 3, 3))
    strided = torch.empty(3, 17, 2, dtype=torch.int32, device=device).permute(2, 1, 0)
    strided.copy_(positions)
    assert torch.equal(qk_norm_rope(q, k, strided, sections=(2, 3, 3))[0], whole[0])


@pytest.mark.parametrize("start", [0, 4, torch.tensor([1, 3])])
def test_cache_write_touches_its_rows_only(start, device):
    q, k, positions = (t.to(device) for t in random_case())
    v = torch.randn_like(k)
    layers = torch.full((2, 2, 2, 2, 9, 16), 7.0, device=device)
    k_cache, v_cache = layers[0, 1], layers[1, 1]
    start = start.to(device) if isinstance(start, torch.Tensor) else start
    cache = CacheWrite(v, k_cache, v_cache, start)
    rotated = qk_norm_rope(q, k.requires_grad_(), positions, sections=(2, 3, 3), cache=cache)[1]
    assert not k_cache.requires_grad
    for b in range(2):
        first = start if isinstance(start, int) else int(start[b])
        expected = torch.full((2, 2, 9, 16), 7.0, device=device)
        expected[0, :, first : first + 5], expected[1, :, first : first + 5] = rotated[b], v[b]
        assert torch.equal(k_cache[b], expected[0])
        assert torch.equal(v_cache[b], expected[1])
    assert (layers[:, 0] == 7).all()


@pytest.mark.parametrize("start", [-1, 5])
def test_refuses_cache_overflow(start):
    q, k, positions = random_case()
    rows = torch.zeros(2, 2, 9, 16)
    cache = CacheWrite(k, rows, rows.clone(), start)
    with pytest.raises(ValueError, match=r"^cache.start: expected 0 .. 4"):
        qk_norm_rope(q, k, positions, sections=(2, 3, 3), cache=cache)
    assert (rows == 0).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sections": (2, 3, 4)}, "sections"),
        ({"q_weight": torch.ones(16)}, "k_weight"),
        ({"q_weight": torch.ones(16), "k_weight": torch.ones(8)}, "k_weight"),
        ({"positions": torch.zeros(4, 3).long()}, "positions"),
        ({"positions": torch.zeros(5, 3)}, "positions"),
        ({"k_BGLD": torch.zeros(2, 2, 5, 16).double()}, "k"),
        ({"q_BHLD": torch.zeros(2, 2, 5, 15)}, "q"),
        ({"q_BHLD": torch.zeros(2, 2, 5, 0)}, "q"),
        ({"k_BGLD": torch.zeros(2, 0, 5, 16)}, "k"),
        ({"k_BGLD": torch.zeros(2, 2, 5, 16, device="meta")}, "k"),
        ({"positions": torch.zeros(5, 3, device="meta").long()}, "positions"),
        ({"q_weight": torch.ones(16).int(), "k_weight": torch.ones(16)}, "q_weight"),
        ({"q_weight": torch.ones(16), "k_weight": torch.ones(16, device="meta")}, "k_weight"),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16), torch.zeros(2))}, "cache.start"),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16), torch.tensor([0, 1]))}, "cache.start"),
        (
            {"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16), META[0, 0, 0, :2].long())},
            "cache.start",
        ),
        ({"cache": CacheWrite(*torch.zeros(2, 2, 2, 5, 16), META[..., :8], 0)}, "cache.v_cache"),
        ({"cache": CacheWrite(*torch.zeros(2, 2, 2, 5, 16), META, 0)}, "cache.v_cache"),
        ({"positions": torch.zeros(5, 3).bool()}, "positions"),
        ({"positions": torch.zeros(5, 3).to(torch.complex64)}, "positions"),
        ({"sections": (2.5, 2.5, 3)}, "sections"),
        ({"theta": 0.0}, "theta"),
        ({"theta": float("nan")}, "theta"),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16).int(), 0)}, "cache.v_BGLD"),
        (
            {"cache": CacheWrite(torch.zeros(2, 2, 5, 16), *torch.zeros(2, 2, 2, 5, 16).int(), 0)},
            "cache.k_cache",
        ),
        (
            {
                "cache": CacheWrite(
                    *torch.zeros(2, 2, 2, 5, 16), torch.zeros(2, 1, 5, 16).expand(-1, 2, -1, -1), 0
                )
            },
            "cache.v_cache",
        ),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16), 0.0)}, "cache.start"),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 2, 5, 16), torch.zeros(3).int())}, "cache.start"),
        ({"cache": CacheWrite(*torch.zeros(3, 2, 1, 5, 16), 0)}, "cache.v_BGLD"),
    ],
)
def test_refuses(change, name):
    q, k, positions = random_case()
    arguments = {"q_BHLD": q, "k_BGLD": k, "positions": positions, "sections": (2, 3, 3)}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        qk_norm_rope(**{**arguments, **change})
