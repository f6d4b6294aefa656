"""The C++ kernel of `bsq_quantize`: reference, instruction sets, threads, strides."""

from dataclasses import fields

import pytest
import torch

from videoar import _C
from videoar.kernels.bsq_quantize import bsq_quantize, bsq_quantize_ref, dequantize
from videoar.kernels.dispatch import use_backend
from videoar.runtime.schedule import default_sizes

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def cpp():
    with use_backend("cpp"):
        yield


def flips_for(x, sizes):
    tokens = sum(h * w for h, w in sizes)
    return torch.rand(x.shape[0], x.shape[2], tokens, x.shape[1]) < 0.2


def assert_same(got, expected):
    for field in fields(got):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("num_bits", [1, 4, 16, 64])
@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (4, 16), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_exactly(grid, num_bits, dtype):
    """Grids that halve and powers of 4 as widths: every weight and code is exact in float32."""
    sizes = [(max(1, grid[0] >> k), max(1, grid[1] >> k)) for k in range(6, -1, -1)]
    x = (torch.randn(2, num_bits, 3, *grid) * 64).round().div(64).to(dtype)
    flips = flips_for(x, sizes)
    got = bsq_quantize(x, sizes, flips=flips, return_inputs=True)
    assert_same(got, bsq_quantize_ref(x, sizes, flips=flips, return_inputs=True))


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 9)])
@pytest.mark.parametrize("num_bits", [3, 48])
def test_equals_the_reference(grid, num_bits, assert_near):
    torch.manual_seed(0)
    sizes = default_sizes(*grid)
    x = torch.randn(2, num_bits, 3, *grid)
    got = bsq_quantize(x, sizes, return_inputs=True, return_losses=True)
    expected = bsq_quantize_ref(x, sizes, return_inputs=True, return_losses=True)
    different = (got.targets != expected.targets).nonzero().tolist()
    assert not different, f"first difference at [clip, frame, token, bit] {different[0]}"
    assert torch.equal(got.bits, expected.bits)
    assert_near(got.reconstruction, expected.reconstruction)
    assert_near(got.inputs, expected.inputs)
    for name, value in expected.losses.items():
        torch.testing.assert_close(got.losses[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 8), (32, 32)])
def test_every_instruction_set_and_thread_count_agree(grid, on_every_cpu):
    """The larger grid is enough work for several threads."""
    sizes = default_sizes(*grid)
    x = torch.randn(2, 40, 2, *grid)
    flips = flips_for(x, sizes)
    first, *others = on_every_cpu(lambda: bsq_quantize(x, sizes, flips=flips, return_inputs=True))
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("num_bits", [3, 40])
def test_strided_latents(num_bits):
    sizes = default_sizes(5, 7)
    x = torch.randn(2, num_bits, 3, 5, 7)
    expected = bsq_quantize(x, sizes, return_inputs=True)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    spread = x.repeat_interleave(2, -1)[..., ::2]
    rows = torch.nn.functional.pad(x, (0, 3))[..., :7]
    for strided in (channels_last, spread, rows):
        assert strided.stride() != x.stride()
        assert_same(bsq_quantize(strided, sizes, return_inputs=True), expected)


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 9)])
def test_dequantize_gives_the_reconstruction_exactly(grid):
    sizes = default_sizes(*grid)
    x = torch.randn(2, 33, 2, *grid)
    quantized = bsq_quantize(x, sizes, flips=flips_for(x, sizes))
    assert torch.equal(dequantize(quantized.bits, sizes), quantized.reconstruction)


def test_no_clips():
    quantized = bsq_quantize(torch.zeros(0, 3, 2, 4, 4), default_sizes(4, 4), return_inputs=True)
    assert quantized.bits.shape == (0, 2, 30, 3)
    assert quantized.inputs.shape == (0, 2, 30, 3)


def test_gradients_are_refused_when_forced():
    x = torch.zeros(1, 3, 1, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="'cpp' backend has no backward"):
        bsq_quantize(x, default_sizes(4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": -1}, "frames -1"),
        ({"sizes": []}, "no grid"),
        ({"sizes": [(1, 0)]}, "grid 1 x 0"),
        ({"targets": 0}, "targets 0"),
        ({"dtype": 9}, "dtype 9"),
    ],
)
def test_extension_names_file_line_and_values(change, message):
    x, total, targets, bits = torch.ones(1), torch.ones(1), torch.ones(1).bool(), torch.ones(1)
    arguments = {
        **dict.fromkeys(("flips", "inputs", "scale_inputs", "dtype"), 0),
        **dict.fromkeys(("batch", "frames", "num_bits", "code"), 1),
        **dict.fromkeys((f"stride_{axis}" for axis in ("batch", "bit", "frame")), 1),
        **dict.fromkeys((f"stride_{axis}" for axis in ("row", "column")), 1),
        "x": x.data_ptr(),
        "targets": targets.data_ptr(),
        "bits": bits.data_ptr(),
        "reconstruction": total.data_ptr(),
        "sizes": [(1, 1)],
    }
    _C.bsq_quantize(**arguments)
    with pytest.raises(ValueError, match=rf"\.(cpp|h):\d+: .*{message}"):
        _C.bsq_quantize(**{**arguments, **change})
