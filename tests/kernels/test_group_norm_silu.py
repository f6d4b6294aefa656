"""GroupNorm + SiLU against its formula in float64; its buffers and strides."""

import math

import pytest
import torch

from videoar.kernels.dispatch import use_backend
from videoar.kernels.group_norm_silu import _affine_tiles, _tiles, group_norm_silu

TRITON = True
CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
# Frames, height, width, channels, groups; the larger ones are several chunks and tiles long.
SHAPES = [
    (1, 1, 1, 4, 2),
    (2, 3, 5, 17, 1),
    (1, 2, 2, 6, 6),
    (3, 7, 1, 63, 9),
    (2, 9, 15, 130, 13),
    (1, 24, 25, 144, 3),
]


def brute(x, weight, bias, groups, eps):
    y = torch.empty(x.shape, dtype=torch.float64)
    members = x.shape[3] // groups
    for frame, out in zip(x.double().cpu(), y, strict=True):
        for group in range(groups):
            channels = slice(group * members, (group + 1) * members)
            values = frame[..., channels].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            n = (frame[..., channels] - mean) / math.sqrt(variance + eps)
            n = n * weight[channels].double().cpu() + bias[channels].double().cpu()
            out[..., channels] = n / (1 + (-n).exp())
    return y


def inputs(shape, device, dtype=torch.float32, mean=0.0):
    x = torch.randn(*shape[:4]) * 2 + mean
    weight, bias = 1 + torch.randn(shape[3]) / 2, torch.randn(shape[3])
    return x.to(device, dtype), weight.to(device), bias.to(device), shape[4]


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_formula(shape, device, assert_near):
    arguments = inputs(shape, device)
    assert_near(group_norm_silu(*arguments, eps=1e-3), brute(*arguments, 1e-3))


@pytest.mark.parametrize("shape", SHAPES[-2:])
def test_half_is_rounded_once(shape, device, half):
    arguments = inputs(shape, device, half)
    y = group_norm_silu(*arguments)
    assert y.dtype == half
    expected = brute(*arguments, 1e-6)
    # Half a unit in the last place, and a little where float32 and float64 fall on two sides.
    unit = 2.0 ** -(8 if half == torch.bfloat16 else 11)
    error = (y.double().cpu() - expected).abs()
    assert (error <= 1.01 * unit * expected.abs() + 1e-6).all()


def test_half_weights(device, half, assert_near):
    x, weight, bias, groups = inputs((2, 3, 5, 12, 4), device)
    weight, bias = weight.to(half), bias.to(half)
    got = group_norm_silu(x, weight, bias, groups)
    assert_near(got, brute(x, weight.float(), bias.float(), groups, 1e-6))


# Cells outside of the map may overflow on their way to nowhere.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_mean_far_from_zero(device):
    """Sums of squares of the values themselves would have no digit of the variance left."""
    arguments = inputs((2, 24, 25, 144, 3), device, mean=3e3)
    expected = brute(*arguments, 1e-6)
    error = (group_norm_silu(*arguments).cpu() - expected).abs()
    # The values themselves have a resolution of 2e-4, a ten-thousandth of their deviation.
    assert error.max() < 2e-3
    assert error.mean() < 2e-4


# Cells outside of the map may overflow on their way to nowhere.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_constant_map(device):
    x = torch.full((2, 3, 3, 4), 7.0, device=device)
    bias = torch.tensor([1.0, -1.0, 0.0, 2.0], device=device)
    y = group_norm_silu(x, torch.ones(4, device=device), bias, 2)
    torch.testing.assert_close(y, torch.nn.functional.silu(bias).expand(2, 3, 3, 4))


def test_frames_are_independent(device):
    x, weight, bias, groups = inputs((4, 24, 25, 144, 3), device)
    together = group_norm_silu(x, weight, bias, groups)
    for t in range(4):
        assert torch.equal(group_norm_silu(x[t : t + 1], weight, bias, groups)[0], together[t])


def test_nan_stays_in_its_frame_and_group(device):
    x, weight, bias, groups = inputs((3, 4, 4, 12, 4), device)
    x[1, 2, 3, 4] = math.nan
    y = group_norm_silu(x, weight, bias, groups)
    assert y[1, ..., 3:6].isnan().all()
    y[1, ..., 3:6] = 0
    assert y.isfinite().all()


@pytest.mark.parametrize("cell", [0, 31 * 64 + 32, -1])
def test_an_outlier_costs_no_digit(cell, device, assert_near):
    """Also where it is one of the cells that tell where the values of a channel are."""
    x, weight, bias, groups = inputs((1, 64, 64, 32, 8), device)
    x.flatten(1, 2)[0, cell] += 300
    got = group_norm_silu(x, weight, bias, groups)
    expected = brute(x, weight, bias, groups, 1e-6)
    for y in (got, expected):
        y.flatten(1, 2)[0, cell] = 0
    assert_near(got, expected)


def test_output_buffer(device):
    """Behind other frames in a larger buffer, which stay as they were; and in place."""
    x, weight, bias, groups = inputs((2, 3, 5, 12, 4), device)
    expected = group_norm_silu(x, weight, bias, groups)
    buffer = torch.full((6, 3, 5, 12), 9.0, device=device)
    out = buffer[2::2]
    assert group_norm_silu(x, weight, bias, groups, out=out) is out
    assert torch.equal(out, expected)
    assert (buffer[[0, 1, 3, 5]] == 9).all()
    assert torch.equal(group_norm_silu(x, weight, bias, groups, out=x), expected)
    assert torch.equal(x, expected)


def test_strided_inputs(device):
    wide = torch.randn(4, 3, 5, 24, device=device)
    weight, bias = torch.randn(2, 24, device=device)[:, ::2]
    for x in (wide[..., :12].contiguous()[::2], wide[1::2, ..., ::2], wide[..., 12:][::3]):
        assert torch.equal(
            group_norm_silu(x, weight, bias, 4), group_norm_silu(x.clone(), weight, bias, 4)
        )


def test_no_frames(device):
    ones = torch.ones(4, device=device)
    assert group_norm_silu(torch.ones(0, 2, 3, 4, device=device), ones, ones, 2).shape[0] == 0
    assert group_norm_silu(torch.ones(2, 0, 3, 4, device=device), ones, ones, 2).numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_does_not_depend_on_the_number_of_threads(dtype):
    """Enough values for threads to be used, in chunks that do not divide among them."""
    arguments = inputs((3, 65, 67, 96, 32), "cpu", dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend("cpp"):
                results.append(group_norm_silu(*arguments))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gradients_are_those_of_the_reference():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 4, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda *t: group_norm_silu(*t, 2), (x, weight, bias))


@pytest.mark.parametrize("channels", [1, 4, 17, 128, 512])
@pytest.mark.parametrize("pixels", [1, 63, 4096])
def test_tiles_cover_the_map(pixels, channels):
    BLOCK_P, BLOCK_C = _tiles(channels)
    assert BLOCK_P * BLOCK_C == 4096
    assert BLOCK_C <= 128
    blocks = -(-pixels // BLOCK_P)
    assert (blocks - 1) * BLOCK_P < pixels <= blocks * BLOCK_P
    BLOCK_K, BLOCK_M = _affine_tiles(channels)
    assert channels <= BLOCK_M
    assert BLOCK_K >= 1


def test_refuses(triton_device):
    x, weight, bias, _ = inputs((1, 2, 2, 6, 3), triton_device)
    with pytest.raises(ValueError, match=r"^x: expected"):
        group_norm_silu(x[0], weight, bias, 3)
    with pytest.raises(ValueError, match=r"^groups: expected a divisor of 6 channels, got 4"):
        group_norm_silu(x, weight, bias, 4)
    with pytest.raises(ValueError, match=r"^groups: expected a divisor of 6 channels, got 3.0"):
        group_norm_silu(x, weight, bias, 3.0)
    with pytest.raises(ValueError, match=r"^weight: requires a gradient"):
        group_norm_silu(x, weight.clone().requires_grad_(), bias, 3)
    with pytest.raises(ValueError, match=r"^out: frames overlap"):
        group_norm_silu(x.expand(2, -1, -1, -1), weight, bias, 3, out=x.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match=r"^bias: expected"):
        group_norm_silu(x, weight, bias[:3], 3)
    with pytest.raises(ValueError, match=r"^out: expected torch.float32"):
        group_norm_silu(x, weight, bias, 3, out=x.bfloat16())
    with pytest.raises(ValueError, match=r"^out: expected contiguous frames"):
        group_norm_silu(x, weight, bias, 3, out=torch.empty(1, 2, 6, 2).transpose(2, 3))
    with pytest.raises(ValueError, match=r"^x: .*float64"):
        group_norm_silu(x.double(), weight, bias, 3)
    with pytest.raises(ValueError, match=r"^out: expected on .* as x, got on meta"):
        group_norm_silu(x, weight, bias, 3, out=torch.empty_like(x, device="meta"))
