"""The multi-scale residual quantiser against a loop written from the paper."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from videoar.kernels import bsq_quantize_lanes, bsq_quantize_triton
from videoar.kernels.bsq_quantize import (
    bits_to_codes,
    bsq_quantize,
    bsq_quantize_ref,
    dequantize,
)
from videoar.kernels.bsq_quantize_triton import bsq_quantize_tiles
from videoar.kernels.dispatch import use_backend
from videoar.kernels.resample import resample_ref

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
SIZES = ((1, 1), (2, 2), (3, 3), (4, 4))
WIDE = ((1, 2), (2, 3), (3, 5))
VIDEOAR_L = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))


def up(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    same = tuple(x.shape[-2:]) == tuple(size)
    return x if same else F.interpolate(x, size, mode="bilinear", align_corners=False)


def by_hand(
    frame: torch.Tensor, sizes: tuple, flips: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """One frame `[d,H,W]`, token by token: targets, seen bits, x_hat, inputs from scale 2."""
    d, (height, width) = frame.shape[0], sizes[-1]
    residual, total = frame[None].clone(), torch.zeros(1, *frame.shape)
    targets, seen, inputs, offset = [], [], [], 0
    for h, w in sizes:
        if offset:
            inputs.append(up(total, (h, w))[0].flatten(1).T)
        y = residual if (h, w) == (height, width) else F.adaptive_avg_pool2d(residual, (h, w))
        code = torch.empty(1, d, h, w)
        for n in range(h * w):
            row, column = divmod(n, w)
            target = y[0, :, row, column] > 0
            flip = torch.zeros(d, dtype=torch.bool) if flips is None else flips[offset + n]
            bit = target != flip
            targets.append(target)
            seen.append(bit)
            code[0, :, row, column] = torch.where(bit, 1.0, -1.0) / d**0.5
        offset += h * w
        residual = residual - up(code, (height, width))
        total = total + up(code, (height, width))
    return torch.stack(targets), torch.stack(seen), total[0], inputs


@pytest.mark.parametrize("sizes", [SIZES, WIDE, ((2, 2),)])
@pytest.mark.parametrize("flipped", [False, True])
def test_matches_the_paper(sizes: tuple, flipped: bool, device: str) -> None:
    torch.manual_seed(0)
    batch, d, frames = 2, 7, 3
    x = torch.randn(batch, d, frames, *sizes[-1])
    tokens = sum(h * w for h, w in sizes)
    flips = torch.rand(batch, frames, tokens, d) < 0.2 if flipped else None
    got = bsq_quantize(
        x.to(device),
        sizes,
        flips=None if flips is None else flips.to(device),
        return_inputs=True,
    )
    for b in range(batch):
        previous = None
        for t in range(frames):
            flip = None if flips is None else flips[b, t]
            targets, seen, total, inputs = by_hand(x[b, :, t], sizes, flip)
            assert torch.equal(got.targets[b, t].cpu(), targets), (b, t)
            assert torch.equal(got.bits[b, t].cpu(), seen), (b, t)
            torch.testing.assert_close(got.reconstruction[b, :, t].cpu(), total)
            first = torch.zeros(sizes[0][0] * sizes[0][1], d)
            if previous is not None:
                first = F.interpolate(previous[None], sizes[0], mode="bilinear")[0].flatten(1).T
            expected = torch.cat([first, *inputs])
            torch.testing.assert_close(got.inputs[b, t].cpu(), expected, atol=1e-5, rtol=1e-5)
            previous = total


def test_targets_correct_the_flips(device: str) -> None:
    """A flipped coarse bit changes finer targets, so that the frame still comes out close."""
    torch.manual_seed(1)
    x = torch.randn(4, 8, 1, 4, 4, device=device) * 0.5
    clean = bsq_quantize(x, SIZES)
    flips = torch.zeros(4, 1, 30, 8, dtype=torch.bool, device=device)
    flips[:, :, 0] = True
    corrected = bsq_quantize(x, SIZES, flips=flips)
    assert torch.equal(corrected.targets[:, :, 0], clean.targets[:, :, 0])
    assert not torch.equal(corrected.targets[:, :, 1:], clean.targets[:, :, 1:])
    uncorrected = dequantize(clean.bits ^ flips, SIZES)
    error = (corrected.reconstruction - x).square().mean()
    assert error < (uncorrected - x).square().mean()


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([SIZES, WIDE]), st.integers(0, 99))
def test_dequantize_is_the_reconstruction(d: int, frames: int, sizes: tuple, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, d, frames, *sizes[-1], generator=generator)
    quantized = bsq_quantize(x, sizes)
    assert torch.equal(dequantize(quantized.bits, sizes), quantized.reconstruction)


@pytest.mark.parametrize("dim", [6, 7])
def test_frames_and_rows_do_not_mix(dim: int, device: str) -> None:
    x = torch.randn(3, dim, 4, 4, 4, device=device)
    whole = bsq_quantize(x, SIZES)
    one = bsq_quantize(x[1:2, :, 2:3], SIZES)
    assert torch.equal(whole.bits[1:2, 2:3], one.bits)
    assert torch.equal(whole.reconstruction[1:2, :, 2:3], one.reconstruction)


def test_straight_through_gradient(device: str) -> None:
    x = torch.randn(1, 4, 2, 4, 4, device=device, requires_grad=True)
    g = torch.randn(1, 4, 2, 4, 4, device=device)
    (bsq_quantize(x, SIZES).reconstruction * g).sum().backward()
    torch.testing.assert_close(x.grad, g)


@pytest.mark.parametrize("amplitude", [1.0, 1e8, torch.inf])
def test_recording_changes_no_value(amplitude: float) -> None:
    """The reconstruction is the sum of the codes, however large the latents."""
    x = torch.randn(1, 4, 2, 4, 4)
    x[0, 0] *= amplitude
    plain = bsq_quantize_ref(x, SIZES).reconstruction
    assert plain.isfinite().all()
    leaf = x.requires_grad_()
    recorded = bsq_quantize_ref(leaf, SIZES).reconstruction
    assert torch.equal(recorded, plain)
    assert (torch.autograd.grad(recorded.sum(), leaf)[0] == 1).all()
    with torch.no_grad():
        assert torch.equal(bsq_quantize_ref(leaf, SIZES).reconstruction, plain)


@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 4), (2, 3, 0, 4, 4)])
def test_no_clips_and_no_frames(shape: tuple, device: torch.device) -> None:
    x = torch.zeros(shape, device=device)
    tokens = (shape[0], shape[2], 30, 3)
    for function in (bsq_quantize, bsq_quantize_ref):
        quantized = function(x, SIZES, return_inputs=True)
        assert quantized.bits.shape == quantized.inputs.shape == tokens
        assert quantized.reconstruction.shape == shape


def test_losses_on_known_numbers(device: str) -> None:
    """One cell at a code of the sphere commits for free; half the bits set is full entropy."""
    d = 4
    codes = bits_to_codes(torch.tensor([[True, False, True, False], [False, True, False, True]]))
    x = codes.T.reshape(1, d, 1, 1, 2).to(device)
    losses = bsq_quantize(x, ((1, 2),), return_losses=True).losses
    assert losses["commitment"].item() == pytest.approx(0, abs=1e-6)
    assert losses["batch_entropy"].item() == pytest.approx(0.6931, abs=1e-3)
    assert losses["sample_entropy"].item() < 0.45
    x = torch.tensor([1.0, 0, 0, 0], device=device).reshape(1, d, 1, 1, 1)
    off = bsq_quantize(x, ((1, 1),), return_losses=True).losses
    assert off["commitment"].item() == pytest.approx(2 - 2 * 0.5, abs=1e-5)


def test_zero_is_a_zero_bit(device: str) -> None:
    bits = bsq_quantize(torch.zeros(1, 3, 1, 1, 1, device=device), ((1, 1),)).bits
    assert not bits.any()


def test_bad_arguments() -> None:
    x = torch.zeros(1, 3, 1, 4, 4)
    with pytest.raises(ValueError, match="x: expected floating"):
        bsq_quantize(x[0], SIZES)
    with pytest.raises(ValueError, match="x: expected floating"):
        bsq_quantize(x[:, :0], SIZES)
    with pytest.raises(ValueError, match=r"^sizes: expected grids, the last \(4, 4\), got"):
        bsq_quantize(x, WIDE)
    with pytest.raises(ValueError, match="flips: expected on cpu as x, got on meta"):
        bsq_quantize(x, SIZES, flips=torch.zeros(1, 1, 30, 3, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="flips: expected bool"):
        bsq_quantize(x, SIZES, flips=torch.zeros(1, 1, 29, 3, dtype=torch.bool))
    bits = torch.zeros(1, 1, 30, 3, dtype=torch.bool)
    for wrong in (bits[:, :, :29], bits[..., :0], bits[0], bits.float(), bits.byte() + 7):
        with pytest.raises(ValueError, match=r"^bits: expected bool \[B,t,30,d\], got"):
            dequantize(wrong, SIZES)


# Beyond the last grid Triton's scratch would be too small. 1.0 and True equal 1, yet are no sizes.
WRONG_SIZES = [(), ((0, 1), (4, 4)), ((-2, -2), (4, 4)), ((1.5, 2), (4, 4)), ((1.0, 1), (4, 4))]
WRONG_SIZES += [((True, 1), (4, 4)), ((1,), (4, 4)), (1, (4, 4)), ((5, 1), (4, 4))]
WRONG_SIZES += [((1, 5), (4, 4)), 4, None]


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize("sizes", WRONG_SIZES)
def test_wrong_sizes(sizes: tuple, backend: str) -> None:
    x, bits = torch.zeros(1, 3, 1, 4, 4), torch.zeros(1, 1, 17, 3, dtype=torch.bool)
    with use_backend(backend):
        for call in (lambda: bsq_quantize(x, sizes), lambda: dequantize(bits, sizes)):
            with pytest.raises(ValueError, match=r"^sizes: expected grids \(h, w\)"):
                call()


def test_sizes_as_lists(device: torch.device) -> None:
    x = torch.randn(1, 3, 1, 4, 4, device=device)
    got = bsq_quantize(x, [list(size) for size in SIZES])
    assert torch.equal(got.bits, bsq_quantize(x, SIZES).bits)


LARGE = ((1, 1), (3, 5), (17, 9), (64, 33))


@pytest.mark.parametrize("sizes", [((1, 3), (4, 3), (5, 7)), VIDEOAR_L, LARGE])
@pytest.mark.parametrize("flipped", [False, True])
def test_bits_are_the_signs_of_the_exact_residual(
    sizes: tuple, flipped: bool, device: torch.device, assert_near
) -> None:
    """Against float64, scale by scale, given the bits of the coarser scales.

    A bit is compared where |y| is over 1e-6 of the scale's RMS: below, rounding decides it.
    """
    torch.manual_seed(2)
    (height, width), frames, d = sizes[-1], 2, {LARGE: 3, VIDEOAR_L: 18}.get(sizes, 17)
    x = torch.randn(1, height, frames, width, d).permute(0, 4, 2, 1, 3)
    counts = [h * w for h, w in sizes]
    flips = torch.rand(1, frames, sum(counts), d) < 0.2 if flipped else None
    placed = None if flips is None else flips.to(device)
    got = bsq_quantize(x.to(device), sizes, flips=placed, return_inputs=True)
    seen = got.bits.cpu() if flips is None else got.bits.cpu() ^ flips
    assert torch.equal(seen, got.targets.cpu())
    total, compared, inputs = torch.zeros(frames, d, height, width).double(), 0, []
    targets = got.targets.cpu()[0].split(counts, dim=1)
    for k, bits in enumerate(got.bits.cpu()[0].split(counts, dim=1)):
        inputs.append(resample_ref(total, sizes[k], "bilinear").flatten(2).transpose(1, 2))
        y = resample_ref(x[0].transpose(0, 1).double() - total, sizes[k], "area")
        y = y.flatten(2).transpose(1, 2)
        decided = y.abs() > 1e-6 * y.square().mean().sqrt()
        compared += decided.sum().item()
        wrong = (decided & (targets[k] != (y > 0))).nonzero().tolist()
        assert not wrong, f"scale {k}: first difference at [frame, token, bit] {wrong[0]}"
        codes = bits_to_codes(bits).double().transpose(1, 2).unflatten(2, sizes[k])
        total = total + resample_ref(codes, sizes[-1], "bilinear")
    assert compared > 0.999 * frames * sum(counts) * d
    first = resample_ref(total, sizes[0], "bilinear").flatten(2).transpose(1, 2)
    inputs[0] = torch.cat([torch.zeros_like(first[:1]), first[:-1]])
    assert_near(got.reconstruction[0].transpose(0, 1), total)
    assert_near(got.inputs[0], torch.cat(inputs, dim=1))


def test_gradients_of_losses_and_reconstruction(device: torch.device) -> None:
    torch.manual_seed(3)
    x, g = torch.randn(2, 2, 5, 3, 3, 5).transpose(2, 3)
    grads = []
    for function, place in ((bsq_quantize_ref, torch.device("cpu")), (bsq_quantize, device)):
        leaf = x.to(place).requires_grad_()
        out = function(leaf, WIDE, return_losses=True)
        losses = out.losses["commitment"] + out.losses["sample_entropy"]
        total = losses - out.losses["batch_entropy"] + (out.reconstruction * g.to(place)).sum()
        grads.append(torch.autograd.grad(total, leaf)[0].cpu() - g)
    scale = grads[0].square().mean().sqrt()
    assert scale > 0
    # What is left of the larger reconstruction gradient is known to its rounding only.
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=2e-5 * max(1.0, float(scale)))


@pytest.mark.parametrize(("sizes", "dim"), [(WIDE, 6), (SIZES, 18)])
def test_narrow_latents(sizes: tuple, dim: int, device: torch.device, half: torch.dtype) -> None:
    """16-bit latents quantise as their float32 values; what is returned is rounded once."""
    x = torch.randn(1, dim, 2, *sizes[-1], device=device).to(half)
    narrow = bsq_quantize(x, sizes, return_inputs=True)
    wide = bsq_quantize(x.float(), sizes, return_inputs=True)
    assert torch.equal(narrow.bits, wide.bits)
    assert torch.equal(narrow.reconstruction, wide.reconstruction.to(half))
    assert torch.equal(narrow.inputs, wide.inputs.to(half))


@pytest.mark.parametrize("sizes", [((1, 1), (2, 3), (5, 6)), WIDE, ((3, 7),)])
def test_the_tile_changes_nothing(
    sizes: tuple, monkeypatch: pytest.MonkeyPatch, triton_device
) -> None:
    """Many frames take another tile than few."""
    x = torch.randn(2, 18, 3, *sizes[-1], device=triton_device)
    shape = (2, 3, sum(h * w for h, w in sizes), 18)
    flips = (torch.rand(shape) < 0.2).to(triton_device)
    few = bsq_quantize(x, sizes, flips=flips, return_inputs=True)
    tiles = bsq_quantize_tiles(sizes[-1][0] * sizes[-1][1], 1000)
    monkeypatch.setattr(bsq_quantize_triton, "bsq_quantize_tiles", lambda *_: tiles)
    many = bsq_quantize(x, sizes, flips=flips, return_inputs=True)
    for name in ("targets", "bits", "reconstruction", "inputs"):
        assert torch.equal(getattr(few, name), getattr(many, name)), name


@pytest.mark.parametrize(
    ("sizes", "dim", "contiguous"),
    [
        (VIDEOAR_L, 10, True),
        (SIZES, 6, True),
        (SIZES, 6, False),
        (((1, 2), (3, 5), (4, 8)), 12, True),
        (((8, 2),) * 2, 10, False),
        (((1, 1), (3, 1), (5, 2), (7, 4)), 8, True),
        (((2, 1), (2, 16)), 16, True),
        (((4, 4),), 8, True),
    ],
)
def test_lanes_give_what_sums_give(
    sizes: tuple, dim: int, contiguous: bool, monkeypatch, triton_device, assert_near
) -> None:
    """Maps of up to 64 cells are quantised in registers, by another kernel than all others."""
    x = torch.randn(2, 3, *sizes[-1], dim, device=triton_device).permute(0, 4, 1, 2, 3)
    x = x.contiguous() if contiguous else x
    flips = torch.rand(2, 3, sum(h * w for h, w in sizes), dim, device=triton_device) < 0.2
    options = {"flips": flips, "return_inputs": True, "return_losses": True}
    assert bsq_quantize_lanes.serves(sizes, dim)
    lanes = bsq_quantize(x, sizes, **options)
    alone = bsq_quantize(x, sizes)
    monkeypatch.setattr(bsq_quantize_triton, "serves", lambda *_: False)
    sums = bsq_quantize(x, sizes, **options)
    assert torch.equal(lanes.bits, sums.bits)
    assert torch.equal(lanes.targets, sums.targets)
    assert torch.equal(alone.targets, bsq_quantize(x, sizes).targets)
    assert torch.equal(alone.targets, alone.bits)
    assert_near(lanes.reconstruction, sums.reconstruction)
    torch.testing.assert_close(lanes.inputs[:, 0], sums.inputs[:, 0])
    assert_near(lanes.inputs, sums.inputs)
    for name, loss in sums.losses.items():
        torch.testing.assert_close(lanes.losses[name], loss)


def test_what_lanes_serve() -> None:
    """Maps that fit into registers, in rows of a power of two, and pairs of bits."""
    for grid in ((8, 8), (3, 16), (7, 4), (2, 32), (1, 1)):
        assert bsq_quantize_lanes.serves((grid,), 64)
    for grid in ((8, 6), (16, 8), (9, 8), (5, 5)):
        assert not bsq_quantize_lanes.serves(((1, 1), grid), 64)
    assert not bsq_quantize_lanes.serves(VIDEOAR_L, 49)
    assert not bsq_quantize_lanes.serves(((8, 8),) * 9, 64)


def test_a_bad_map_stays_alone(triton_device: torch.device) -> None:
    """A lane has a map to itself, and the last program shares maps with the one before."""
    x = torch.randn(1, 10, 4, 4, 4, device=triton_device)
    plain = bsq_quantize(x, SIZES, return_inputs=True)
    x[0, 9, 2, 1, 3] = torch.nan
    bad = bsq_quantize(x, SIZES, return_inputs=True)
    for one, other in ((plain.bits, bad.bits), (plain.inputs, bad.inputs)):
        assert torch.equal(one[..., :9], other[..., :9])
        assert torch.equal(one[:, :2], other[:, :2])
    assert torch.equal(plain.reconstruction[:, :9], bad.reconstruction[:, :9])


def test_channels_too_far_apart() -> None:
    """Within a frame the kernel counts in 32 bits; meta tensors, since real ones would be 8 GB."""
    x = torch.empty(1, 2, 2**31, 1, 1, device="meta")
    with pytest.raises(ValueError, match=r"^x: expected a frame within 2\*\*31 values of memory"):
        bsq_quantize_triton._launch(x, None, ((1, 1),), False, False)


@pytest.mark.parametrize("num_cells", [1, 20, 64, 1008, 4096])
@pytest.mark.parametrize("num_frames", [1, 320])
def test_tiles(num_cells: int, num_frames: int) -> None:
    block_n, block_d, num_warps = bsq_quantize_tiles(num_cells, num_frames)
    assert block_n & (block_n - 1) == block_d & (block_d - 1) == num_warps & (num_warps - 1) == 0
    assert block_n * block_d // (32 * num_warps) == 4
