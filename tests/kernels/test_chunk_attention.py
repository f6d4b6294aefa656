"""Chunk attention and its mask against loops over single tokens."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoar.kernels import chunk_attention_backward, chunk_attention_triton
from videoar.kernels.chunk_attention import (
    chunk_attention,
    chunk_attention_ref,
    chunk_mask,
    masked_attention,
)
from videoar.kernels.chunk_attention_backward import backward_tiles
from videoar.kernels.chunk_attention_triton import chunk_attention_tiles
from videoar.kernels.chunk_blocks import SHARED_LIMITS, block_lists, token_table, visibility
from videoar.kernels.dispatch import forced_backend, use_backend
from videoar.runtime.schedule import Chunk, ChunkSchedule

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
GRIDS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=3)
VIDEOS = st.builds(ChunkSchedule.video, st.integers(1, 4), GRIDS.map(tuple))
GROUPS = st.builds(
    ChunkSchedule.grouped, st.integers(1, 2), st.just((2, 2)), st.sampled_from([1, 4])
)
SMALL = ChunkSchedule.video(3, ((1, 1), (2, 2)))


def sees(schedule, query, key, text_len, real, visible):
    """Whether one token attends to another, in the words of the paper; `visible` is F x F."""
    if query < text_len:
        return key <= query and key < real
    if key < text_len:
        return key < real
    query, key = (
        next(
            (index, chunk.frame)
            for index, chunk in enumerate(schedule.chunks)
            if chunk.offset <= token - text_len < chunk.offset + chunk.length
        )
        for token in (query, key)
    )
    if query[1] == key[1]:
        return key[0] <= query[0]
    return key[1] < query[1] and visible[query[1]][key[1]]


def brute_mask(schedule, text_len, text_lengths, visible):
    length = range(text_len + schedule.num_tokens)
    rows = zip(text_lengths.tolist(), visible.tolist(), strict=True)
    return torch.tensor(
        [[[sees(schedule, i, j, text_len, n, v) for j in length] for i in length] for n, v in rows]
    )


def brute_attention(q, k, v, mask, scale):
    """One query at a time in float64; also the log denominators."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64)
    share = q.shape[1] // k.shape[1]
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = mask[b, i].nonzero().flatten()
        if len(keys):
            scores = k[b, h // share, keys].double() @ q[b, h, i].double() * scale
            lse[b, h, i] = scores.exp().sum().log()
            out[b, h, i] = (scores - lse[b, h, i]).exp() @ v[b, h // share, keys].double()
    return out, lse


def random_qkv(batch, length, heads=4, groups=2, width=16, device="cpu", dtype=torch.float32):
    """Transposed views, as projections give them."""
    return tuple(
        torch.randn(batch, length, n, width, device=device).to(dtype).transpose(1, 2)
        for n in (heads, groups, groups)
    )


def random_visibility(batch, frames, text_len):
    return torch.randint(text_len + 1, (batch,)), torch.rand(batch, frames, frames) < 0.5


@settings(max_examples=40, deadline=None)
@given(VIDEOS | GROUPS, st.integers(0, 4), st.data())
def test_mask_matches_the_rules(schedule, text_len, data):
    frames = schedule.num_frames
    text_lengths = torch.tensor(
        data.draw(st.lists(st.integers(0, text_len), min_size=2, max_size=2))
    )
    flags = st.lists(st.booleans(), min_size=2 * frames**2, max_size=2 * frames**2)
    visible = torch.tensor(data.draw(flags)).view(2, frames, frames)
    expected = brute_mask(schedule, text_len, text_lengths, visible)
    mask = chunk_mask(schedule, text_len, text_lengths, visible)
    assert torch.equal(mask, expected[:, None])


@given(VIDEOS, st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_mask_by_default_hides_nothing(schedule, text_len):
    everything = torch.ones(1, schedule.num_frames, schedule.num_frames, dtype=torch.bool)
    expected = brute_mask(schedule, text_len, torch.tensor([text_len]), everything)
    assert torch.equal(chunk_mask(schedule, text_len), expected[:, None])
    assert torch.equal(chunk_mask(schedule, text_len, None, everything[0]), expected[:, None])


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("text_len", "width"), [(0, 8), (5, 17), (2, 63)])
def test_matches_token_loop(heads, groups, text_len, width, device):
    text_lengths, visible = random_visibility(3, 3, text_len)
    text_lengths[0] = 0
    q, k, v = random_qkv(3, text_len + SMALL.num_tokens, heads, groups, width)
    mask = brute_mask(SMALL, text_len, text_lengths, visible)
    expected, expected_lse = brute_attention(q, k, v, mask, width**-0.5)
    qkv = [x.to(device) for x in (q, k, v)]
    options = {
        "text_len": text_len,
        "text_lengths": text_lengths.to(device),
        "frame_visible": visible.to(device),
    }
    out = chunk_attention(*qkv, SMALL, **options)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    out, lse = chunk_attention(*qkv, SMALL, return_lse=True, **options)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "scale"), [(64, 0.3), (80, 0.3), (128, 0.3), (64, -0.3), (64, 0.0)]
)
def test_longer_sequence_and_scale(width, scale, device):
    schedule = ChunkSchedule.video(2, ((1, 1), (3, 5), (7, 7)))
    q, k, v = random_qkv(2, 130, 2, 1, width)
    mask = chunk_mask(schedule)[0].expand(2, 130, 130)
    expected, expected_lse = brute_attention(q, k, v, mask, scale)
    qkv = [x.to(device) for x in (q, k, v)]
    out, lse = chunk_attention(*qkv, schedule, scale=scale, return_lse=True)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_negative_scale(device, assert_near):
    qkv = [x.double().requires_grad_() for x in random_qkv(1, SMALL.num_tokens)]
    wanted = chunk_attention_ref(*qkv, SMALL, scale=-0.2)
    g = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, qkv, g)
    narrow = [x.detach().float().to(device).requires_grad_() for x in qkv]
    out = chunk_attention(*narrow, SMALL, scale=-0.2)
    for got, want in zip(
        torch.autograd.grad(out, narrow, g.float().to(device)), expected, strict=True
    ):
        assert_near(got, want)


def test_precomputed_mask_gives_the_same(device):
    text_lengths, visible = (x.to(device) for x in random_visibility(2, 3, 4))
    qkv = random_qkv(2, 4 + SMALL.num_tokens, device=device)
    options = {"text_len": 4, "text_lengths": text_lengths, "frame_visible": visible}
    mask = chunk_mask(SMALL, 4, text_lengths, visible, device)
    without = chunk_attention(*qkv, SMALL, **options)
    assert torch.equal(chunk_attention(*qkv, SMALL, mask=mask, **options), without)


def test_hidden_keys_change_nothing(device):
    visible = torch.ones(3, 3, dtype=torch.bool, device=device)
    visible[2, 0] = False
    q, k, v = random_qkv(2, 4 + SMALL.num_tokens, device=device)
    options = {
        "text_len": 4,
        "text_lengths": torch.full((2,), 3, device=device),
        "frame_visible": visible,
    }
    before = chunk_attention(q, k, v, SMALL, **options)
    # Token 3 is padding, 4..8 are frame 0, 14.. frame 2, which does not see frame 0.
    for x in (k, v):
        x[:, :, 3:9] = torch.randn_like(x[:, :, 3:9])
    after = chunk_attention(q, k, v, SMALL, **options)
    assert torch.equal(after[:, :, 14:], before[:, :, 14:])
    assert not torch.equal(after[:, :, 9:14], before[:, :, 9:14])


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("return_lse", [False, True])
def test_padding_in_front_of_no_text(full, return_lse, half, device):
    dtype = torch.float32 if full else half
    leaves = [
        x.requires_grad_() for x in random_qkv(2, 3 + SMALL.num_tokens, device=device, dtype=dtype)
    ]
    out = chunk_attention(
        *leaves,
        SMALL,
        text_len=3,
        text_lengths=torch.tensor([0, 2], device=device),
        return_lse=return_lse,
    )
    if return_lse:
        out, lse = out
        assert (lse[0, :, :3] == -math.inf).all()
        assert lse[0, :, 3:].isfinite().all()
    assert (out[0, :, :3] == 0).all()
    assert (out[1, :, :3] != 0).any(-1).all()
    out.float().square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert all((leaf.grad[0, :, :3] == 0).all() for leaf in leaves)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_half(heads, groups, half, device):
    text_lengths, visible = random_visibility(2, 3, 4)
    qkv = random_qkv(2, 4 + SMALL.num_tokens, heads, groups, 64, dtype=half)
    mask = brute_mask(SMALL, 4, text_lengths, visible)
    expected, _ = brute_attention(*qkv, mask, 64**-0.5)
    out = chunk_attention(
        *(x.to(device) for x in qkv),
        SMALL,
        text_len=4,
        text_lengths=text_lengths.to(device),
        frame_visible=visible.to(device),
    )
    assert out.dtype == half
    error = out.cpu().double() - expected
    assert error.abs().max() < 3e-2
    assert error.square().mean().sqrt() < 8e-3 * expected.square().mean().sqrt()


@pytest.mark.parametrize("return_lse", [False, True])
def test_gradcheck(return_lse):
    schedule = ChunkSchedule.video(2, ((1, 1), (1, 2)))
    leaves = [x.double().requires_grad_() for x in random_qkv(2, 9, 2, 1, 4)]

    def run(q, k, v):
        return chunk_attention_ref(
            q,
            k,
            v,
            schedule,
            text_len=3,
            text_lengths=torch.tensor([2, 3]),
            frame_visible=torch.tensor([[[True, True], [False, True]], [[True] * 2] * 2]),
            return_lse=return_lse,
        )

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(("full", "tolerance"), [(True, 1e-5), (False, 2e-2)])
def test_gradients_match_float64(full, tolerance, half, device):
    dtype = torch.float32 if full else half
    text_lengths, visible = (x.to(device) for x in random_visibility(2, 3, 4))
    options = {"text_len": 4, "text_lengths": text_lengths, "frame_visible": visible}
    leaves = random_qkv(2, 4 + SMALL.num_tokens, width=64, device=device, dtype=dtype)
    grad = torch.randn_like(leaves[0])

    def gradients(function, cast):
        inputs = [leaf.to(cast).requires_grad_() for leaf in leaves]
        out = function(*inputs, SMALL, **options)
        return [g.double() for g in torch.autograd.grad((out * grad.to(cast)).sum(), inputs)]

    expected = gradients(chunk_attention_ref, torch.float64)
    for a, b in zip(gradients(chunk_attention, dtype), expected, strict=True):
        assert (a - b).square().mean().sqrt() < tolerance * b.square().mean().sqrt()


@pytest.mark.parametrize(("text_len", "width"), [(0, 64), (17, 80), (80, 128)])
def test_many_blocks_and_all_gradients(text_len, width, assert_near, device):
    """Text and frames that end inside blocks; the log-sum-exp takes part in the loss."""
    schedule = ChunkSchedule.video(3, ((1, 1), (3, 3), (5, 6)))
    text_lengths, visible = random_visibility(2, 3, text_len)
    text_lengths[0] = 0
    leaves = random_qkv(2, text_len + schedule.num_tokens, 2, 1, width, device)
    weights = torch.randn_like(leaves[0])
    options = {
        "text_len": text_len,
        "text_lengths": text_lengths.to(device),
        "frame_visible": visible.to(device),
        "return_lse": True,
    }

    def run(function, dtype):
        inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        out, lse = function(*inputs, schedule, **options)
        seen = lse.isfinite()
        loss = (out * weights).sum() + (lse[seen] * weights[..., 0][seen]).sum()
        return out, lse[seen], *torch.autograd.grad(loss, inputs)

    expected = run(chunk_attention_ref, torch.float64)
    for a, b in zip(run(chunk_attention, torch.float32), expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize(
    ("width", "target"), [(64, "sm_90"), (80, "sm_90"), (128, "sm_90"), (128, "sm_80")]
)
def test_half_precision_at_the_tiles_of_a_gpu(
    width, target, assert_near, triton_device, monkeypatch
):
    """Several tiles of keys and of queries, whole and mixed ones; a GPU takes its own tiles."""
    half = torch.bfloat16 if triton_device.type == "cuda" else torch.float16
    limit = next(limit for targets, limit in SHARED_LIMITS.items() if target in targets)
    if triton_device.type != "cuda":
        for module in (chunk_attention_triton, chunk_attention_backward):
            monkeypatch.setattr(module, "shared_limit", lambda device: limit)
    schedule = ChunkSchedule.video(3, ((1, 1), (4, 4), (7, 7)))
    text_lengths, visible = random_visibility(2, 3, 7)
    visible |= torch.eye(3, dtype=torch.bool)
    options = {"text_len": 7, "text_lengths": text_lengths, "frame_visible": visible}
    qkv = random_qkv(2, 7 + schedule.num_tokens, 2, 1, width, dtype=half)
    weight = torch.randn(2, 2, 7 + schedule.num_tokens, width).to(half)

    def run(function, place, dtype):
        leaves = [x.to(place, dtype).detach().requires_grad_() for x in qkv]
        placed = {k: v.to(place) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        out = function(*leaves, schedule, **placed)
        (out * weight.to(place, dtype)).sum().backward()
        return [out.detach(), *(x.grad for x in leaves)]

    expected = run(chunk_attention_ref, torch.device("cpu"), torch.float64)
    for got, wanted in zip(run(chunk_attention, triton_device, half), expected, strict=True):
        assert got.dtype == half
        assert_near(got, wanted)


def test_repeated_gradients_are_equal(device):
    text_lengths, visible = (x.to(device) for x in random_visibility(2, 3, 4))
    leaves = [x.requires_grad_() for x in random_qkv(2, 4 + SMALL.num_tokens, device=device)]

    def gradients():
        options = {"text_lengths": text_lengths, "frame_visible": visible}
        out = chunk_attention(*leaves, SMALL, text_len=4, **options)
        return torch.autograd.grad(out.square().sum(), leaves)

    for a, b in zip(gradients(), gradients(), strict=True):
        assert torch.equal(a, b)


def test_the_same_bits_from_any_number_of_threads(on_every_cpu):
    """A key head is one thread's, so neither a result nor a gradient depends on who shares it."""
    schedule = ChunkSchedule.video(3, ((1, 1), (5, 5), (7, 10)))
    text_lengths, visible = random_visibility(3, 3, 70)
    leaves = [x.requires_grad_() for x in random_qkv(3, 70 + schedule.num_tokens, width=72)]
    options = {"text_len": 70, "text_lengths": text_lengths, "frame_visible": visible}

    def run():
        out, lse = chunk_attention(*leaves, schedule, return_lse=True, **options)
        loss = out.square().sum() + lse[lse.isfinite()].sum()
        return [out, lse, *torch.autograd.grad(loss, leaves)]

    results = on_every_cpu(run)
    for first in range(0, len(results), 3):
        for other in results[first + 1 : first + 3]:
            assert all(torch.equal(a, b) for a, b in zip(results[first], other, strict=True))


def test_hidden_frames_are_not_read():
    """NaN in a frame that nobody sees, and in padding, reaches no other frame."""
    visible = torch.ones(2, 3, 3, dtype=torch.bool)
    visible[1, 1:, 0] = False
    leaves = random_qkv(2, 4 + SMALL.num_tokens)
    for x in leaves:
        x[1, :, 2:9] = math.nan  # padding, then frame 0
        x.requires_grad_()
    options = {"text_lengths": torch.tensor([4, 2]), "frame_visible": visible}
    out = chunk_attention(*leaves, SMALL, text_len=4, **options)
    assert out[0].isfinite().all()
    assert out[1, :, 9:].isfinite().all()
    # Only the frames that are in order take part.
    loss = out[0].square().sum() + out[1, :, 9:].square().sum()
    for grad in torch.autograd.grad(loss, leaves[1:]):
        assert grad[1, :, 9:].isfinite().all()


def test_a_frame_visible_to_nobody_has_no_gradient(device):
    visible = torch.ones(3, 3, dtype=torch.bool, device=device)
    visible[:, 0] = False
    leaves = [x.requires_grad_() for x in random_qkv(1, SMALL.num_tokens, device=device)]
    out = chunk_attention(*leaves, SMALL, frame_visible=visible)
    for grad in torch.autograd.grad(out[:, :, 5:].square().sum(), leaves):
        assert (grad[:, :, :5] == 0).all()
        assert (grad[:, :, 5:] != 0).any()


def test_no_second_derivative():
    leaves = [x.requires_grad_() for x in random_qkv(1, SMALL.num_tokens)]
    out = chunk_attention(*leaves, SMALL)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_cpp_kernel_refuses():
    qkv = random_qkv(1, SMALL.num_tokens, width=257)
    with pytest.raises(ValueError, match="width 257, at most 256"):
        chunk_attention(*qkv, SMALL)


@pytest.mark.parametrize("text_len", [0, 21])
@pytest.mark.parametrize("transposed", [False, True])
def test_block_lists(text_len, transposed, triton_device):
    """Exactly the tiles without a hidden pair are full, and no tile with a visible one is left out.

    Blocks that hold text and video are judged by their extremes, so a hidden tile may be listed.
    """
    block_m, block_n = 16, 8
    schedule = ChunkSchedule.video(4, ((1, 1), (3, 4)))
    text_lengths, visible = random_visibility(3, 4, text_len)
    length = text_len + schedule.num_tokens
    table = token_table(schedule, text_len, block_m, block_n, triton_device)
    seen = visibility(table, text_lengths.to(triton_device), visible.to(triton_device))
    lists, counts = (x.cpu() for x in block_lists(seen, 3, text_len, block_n, transposed))
    mask = chunk_mask(schedule, text_len, text_lengths, visible)[:, 0]
    for b, m, n in itertools.product(
        range(3), range(0, length, block_m), range(0, length, block_n)
    ):
        tile = mask[b, m : m + block_m, n : n + block_n]
        own, other = (n // block_n, m // block_m) if transposed else (m // block_m, n // block_n)
        full, mixed = (
            other in lists[b, own, kind, : counts[b, own, kind]].tolist() for kind in (0, 1)
        )
        whole = bool(tile.all()) and tile.shape[1] == block_n
        assert full == whole, (b, m, n)
        if text_len == 0:
            assert mixed == (bool(tile.any()) and not whole), (b, m, n)
        else:
            assert mixed or full or not tile.any(), (b, m, n)
        assert not (mixed and full), (b, m, n)


@pytest.mark.parametrize("width", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("limit", [0, 65536, 99 * 1024, 227 * 1024])
def test_tiles(width, itemsize, limit):
    width_padded = 1 << (width - 1).bit_length()
    block_m, block_n, _, stages = chunk_attention_tiles(650, width, itemsize, limit)
    if stages == 3:
        assert (block_m + 6 * block_n) * width_padded * itemsize <= limit
    for tiles in backward_tiles(width, itemsize, limit):
        assert tiles.block_m % 16 == 0
        assert tiles.block_n % 16 == 0


def test_unmasked_attention_is_full_attention(device):
    q, k, v = random_qkv(2, 17)
    expected, _ = brute_attention(q, k, v, torch.ones(2, 17, 17, dtype=torch.bool), 0.25)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        qkv = [x.to(device, dtype) for x in (q, k, v)]
        out = masked_attention(*qkv, None, 0.25).cpu().double()
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"q_BHLD": torch.zeros(2, 4, 16, 8)}, "q"),
        ({"q_BHLD": torch.zeros(2, 4, 18, 8).int()}, "q"),
        ({"q_BHLD": torch.zeros(2, 4, 18, 0)}, "q"),
        ({"q_BHLD": torch.zeros(2, 0, 18, 8)}, "q"),
        ({"schedule": ChunkSchedule.video(2, ((1, 1), (2, 2)))}, "q"),
        ({"text_len": 4}, "q"),
        ({"k_BGLD": torch.zeros(2, 3, 18, 8)}, "k"),
        ({"k_BGLD": torch.zeros(2, 0, 18, 8)}, "k"),
        ({"k_BGLD": torch.zeros(2, 2, 18, 8, device="meta")}, "k"),
        ({"v_BGLD": torch.zeros(2, 4, 18, 8)}, "v"),
        ({"v_BGLD": torch.zeros(2, 2, 18, 8).double()}, "v"),
        ({"v_BGLD": torch.zeros(2, 2, 18, 8, device="meta")}, "v"),
        ({"text_lengths": torch.tensor([1, 2, 3])}, "text_lengths"),
        ({"text_lengths": torch.tensor([1, 4])}, "text_lengths"),
        ({"text_lengths": torch.tensor([1.0, 2.0])}, "text_lengths"),
        ({"text_lengths": torch.tensor([True, True])}, "text_lengths"),
        ({"text_lengths": torch.tensor(1)}, "text_lengths"),
        ({"frame_visible": torch.tensor(True)}, "frame_visible"),
        ({"frame_visible": torch.ones(3, 4).bool()}, "frame_visible"),
        ({"frame_visible": torch.ones(2, 2).bool()}, "frame_visible"),
        ({"frame_visible": torch.ones(3, 3, 3).bool()}, "frame_visible"),
        ({"frame_visible": torch.ones(3, 3)}, "frame_visible"),
        ({"text_len": 3.0}, "text_len"),
        ({"scale": math.nan}, "scale"),
        ({"mask": torch.ones(2, 4, 18, 18).bool()}, "mask"),
        ({"mask": torch.ones(2, 1, 18, 18)}, "mask"),
        ({"mask": torch.ones(2, 1, 18, 18, device="meta").bool()}, "mask"),
    ],
)
def test_refuses(change, name):
    with pytest.raises(ValueError, match=r"^text_len: expected"):
        chunk_mask(SMALL, -1)
    q, k, v = random_qkv(2, 18, width=8)
    arguments = {"q_BHLD": q, "k_BGLD": k, "v_BGLD": v, "schedule": SMALL, "text_len": 3}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        chunk_attention(**{**arguments, **change})


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 16), (torch.float32, 264)])
def test_the_kernel_refuses(dtype, width, triton_device):
    qkv = random_qkv(2, SMALL.num_tokens, width=width, device=triton_device, dtype=dtype)
    with pytest.raises(ValueError, match=r"^q: the Triton kernel takes .*, got"):
        chunk_attention(*qkv, SMALL)


def test_the_kernel_refuses_too_many_frames_in_a_block(triton_device):
    """Where they may be hidden; what only the backward could not do is refused by the forward."""
    schedule = ChunkSchedule.video(40, ((1, 1),))
    qkv = random_qkv(1, schedule.num_tokens, device=triton_device)
    visible = torch.ones(40, 40, dtype=torch.bool, device=triton_device)
    message = "^schedule: with frame_visible .* up to 30 frames in a block of keys, got 32"
    with pytest.raises(ValueError, match=message):
        chunk_attention(*qkv, schedule, frame_visible=visible)
    assert chunk_attention(*qkv, schedule).isfinite().all()
    pairs = ChunkSchedule.video(40, ((1, 2),))
    qkv = [x.requires_grad_() for x in random_qkv(1, pairs.num_tokens, device=triton_device)]
    with pytest.raises(ValueError, match=message):
        chunk_attention(*qkv, pairs, frame_visible=visible)
    with torch.no_grad():
        assert chunk_attention(*qkv, pairs, frame_visible=visible).isfinite().all()
    chunk_attention(*qkv, pairs).sum().backward()


@pytest.mark.parametrize("frames", [(3, 3, 5), (1, 2, 3), (0, 0, 2)])
@pytest.mark.parametrize("hidden", [False, True])
def test_frames_may_begin_late_and_leave_gaps(frames, hidden, device, assert_near):
    chunks = tuple(
        Chunk(offset=2 * i, length=2, frame=frame, scale=0, grid=(1, 2))
        for i, frame in enumerate(frames)
    )
    schedule = ChunkSchedule(chunks=chunks)
    visible = torch.rand(6, 6, device=device) < 0.5 if hidden else None
    options = {"text_len": 3, "frame_visible": visible}
    qkv = random_qkv(2, 3 + schedule.num_tokens, device=device)
    results = []
    for backend in (None, "reference"):
        leaves = [x.clone().requires_grad_() for x in qkv]
        with use_backend(backend or forced_backend()):
            out = chunk_attention(*leaves, schedule, **options)
            out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected)


def test_frames_do_not_come_back():
    chunk = Chunk(offset=0, length=1, frame=1, scale=0, grid=(1, 1))
    with pytest.raises(ValueError, match=r"^chunks\[1\]: expected frame 1 or later, got 0"):
        ChunkSchedule(chunks=(chunk, replace(chunk, offset=1, frame=0)))

    class Strange:
        num_tokens = 2

        def chunk_ids(self):
            return torch.arange(2)

        def frame_ids(self):
            return torch.tensor([1, 0])

    qkv = random_qkv(1, 2)
    with pytest.raises(ValueError, match=r"^schedule: expected frames"):
        chunk_attention(*qkv, Strange())
