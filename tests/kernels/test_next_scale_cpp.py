"""The C++ kernel of `next_scale`: reference, instruction sets, threads, strides, quantiser."""

import pytest
import torch

from videoar import _C
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.dispatch import use_backend
from videoar.kernels.next_scale import next_scale, next_scale_ref
from videoar.kernels.philox import philox_uniform_ref
from videoar.runtime.schedule import default_sizes

pytestmark = pytest.mark.usefixtures("poisoned")
GRIDS = [(1, 1), (4, 4), (8, 8), (5, 7), (24, 42), (64, 3), (64, 64)]


@pytest.fixture(autouse=True)
def cpp():
    with use_backend("cpp"):
        yield


def random_step(sizes, scale, num_bits, rows=2, dtype=torch.float32):
    """Positional and keyword arguments of a guided step; both logits are rows of one tensor."""
    tokens = sizes[scale][0] * sizes[scale][1]
    logits = 3 * torch.randn(2 * rows, tokens, 2 * num_bits).to(dtype)
    options = {
        "logits_uncond": logits[1::2],
        "guidance": torch.linspace(1, 4, rows),
        "temperature": torch.tensor([0.7, 0.0]).repeat(rows)[:rows],
        "seeds": torch.arange(rows) - 2**62,
        "frames": torch.arange(rows) + 3,
    }
    return (logits[::2], torch.randn(rows, num_bits, *sizes[-1]), sizes, scale), options


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_bits", [1, 33, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(grid, num_bits, dtype, assert_near):
    sizes = default_sizes(*grid)
    for scale in sorted({0, len(sizes) // 2, len(sizes) - 1}):
        positional, options = random_step(sizes, scale, num_bits, dtype=dtype)
        got = next_scale(*positional, **options)
        expected = next_scale_ref(*positional, **options)
        delta, base = (
            x[..., 1::2].double() - x[..., ::2].double()
            for x in (positional[0], options["logits_uncond"])
        )
        delta = base + options["guidance"].double()[:, None, None] * (delta - base)
        uniform = philox_uniform_ref(
            options["seeds"], options["frames"], scale, *delta.shape[1:]
        ).double()
        decided = (torch.sigmoid(delta[0] / 0.7) - uniform[0]).abs() > 1e-6
        wrong = ((got.bits[0] != expected.bits[0]) & decided).nonzero().tolist()
        assert not wrong, f"scale {scale}: first difference at [token, bit] {wrong[0]}"
        assert torch.equal(got.bits[1], expected.bits[1]), "greedy row"
        # Given the bits, the rest is arithmetic.
        noise = 2.0 - 3.0 * got.bits.float()
        replay = next_scale_ref(*positional, noise=noise)
        assert_near(got.accumulator, replay.accumulator)
        assert_near(got.inputs, replay.inputs)


@pytest.mark.parametrize("num_bits", [1, 7, 16, 17, 48])
def test_draws_the_philox_uniforms(num_bits):
    """A bit at even odds is one where its uniform is under 1/2; exact for every coordinate."""
    sizes = ((3, 5),)
    seeds, frames = torch.tensor([0, -1, 2**63 - 1]), torch.tensor([0, 2**32 - 1, 7])
    logits, accumulator = torch.zeros(3, 15, 2 * num_bits), torch.zeros(3, num_bits, 3, 5)
    uniforms = philox_uniform_ref(seeds, frames, 0, 15, num_bits)
    bits = next_scale(logits, accumulator, sizes, 0, seeds=seeds, frames=frames).bits
    assert torch.equal(bits, uniforms < 0.5)


@pytest.mark.parametrize("grid", [(8, 8), (64, 64)])
def test_every_instruction_set_and_thread_count_agree(grid, on_every_cpu):
    """The larger grid is enough work for several threads."""
    sizes = default_sizes(*grid)
    for scale in (1, len(sizes) - 1):
        positional, options = random_step(sizes, scale, 40, dtype=torch.bfloat16)
        first, *others = on_every_cpu(lambda p=positional, o=options: next_scale(*p, **o))
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_rebuilds_the_quantizer_exactly():
    """Both kernels resample alike, so decoding rebuilds reconstruction and inputs bit for bit."""
    sizes = default_sizes(6, 9)
    quantized = bsq_quantize(torch.randn(1, 20, 2, 6, 9), sizes, return_inputs=True)
    counts = [h * w for h, w in sizes]
    targets = quantized.targets[0].split(counts, dim=1)
    inputs = quantized.inputs[0].split(counts, dim=1)
    for frame in range(2):
        accumulator = torch.zeros(1, 20, 6, 9)
        for scale in range(len(sizes)):
            noise = 2.0 - 3.0 * targets[scale][frame, None].float()
            logits = torch.zeros(1, counts[scale], 40)
            step = next_scale(logits, accumulator, sizes, scale, noise=noise)
            accumulator, last = step.accumulator, scale == len(sizes) - 1
            if not (last and frame == 1):
                ahead = inputs[0][frame + 1] if last else inputs[scale + 1][frame]
                assert torch.equal(step.inputs[0], ahead), (frame, scale)
        assert torch.equal(accumulator[0], quantized.reconstruction[0, :, frame])


def test_strided_arguments():
    positional, options = random_step(((3, 5),), 0, 6)
    expected = next_scale(*positional, **options)
    logits, accumulator, *rest = positional
    names = ("guidance", "temperature", "seeds", "frames")
    strided = {name: options[name].repeat_interleave(2)[::2] for name in names}
    transposed = options["logits_uncond"].transpose(1, 2).contiguous().transpose(1, 2)
    got = next_scale(
        logits.repeat_interleave(2, 1)[:, ::2],
        accumulator.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        *rest,
        **{**options, **strided, "logits_uncond": transposed},
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_nan_logits_give_a_zero_bit_and_harm_no_other():
    positional, options = random_step(((4, 4),), 0, 6)
    clean = next_scale(*positional, **options).bits
    positional[0][0, 3, 4] = torch.nan
    bits = next_scale(*positional, **options).bits
    assert not bits[0, 3, 2]
    bits[0, 3, 2] = clean[0, 3, 2]
    assert torch.equal(bits, clean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "rows -1"),
        ({"height": 0}, "grid 0 x 1"),
        ({"scale": 2**32}, "scale 4294967296"),
        ({"frame": -1}, r"frames\[0\] = -1"),
        ({"temperature": -1.0}, r"temperature\[0\] = -1"),
        ({"temperature": 1.0}, "seeds 0"),
        ({"logits": 0}, "logits 0"),
        ({"dtype": 9}, "dtype 9"),
    ],
)
def test_extension_names_file_line_and_values(change, message):
    logits, cell = torch.zeros(1, 1, 2), torch.zeros(1)
    bits, total, inputs = torch.zeros(1, dtype=torch.bool), torch.zeros(1), torch.zeros(1)
    arguments = {
        **dict.fromkeys(("uncond", "noise", "seeds", "frames", "guidances", "temperatures"), 0),
        **dict.fromkeys(("failed", "bits_stride_row"), 0),
        **dict.fromkeys(("height", "width", "full_height", "full_width", "next_height"), 1),
        **dict.fromkeys(("next_width", "rows", "num_bits"), 1),
        **dict.fromkeys(("scale", "frame", "guidance", "temperature", "dtype"), 0),
        **dict.fromkeys(("logits_stride_row", "logits_stride_token"), 2),
        **dict.fromkeys(("uncond_stride_row", "uncond_stride_token"), 2),
        "logits": logits.data_ptr(),
        "accumulator": cell.data_ptr(),
        "bits": bits.data_ptr(),
        "sum": total.data_ptr(),
        "inputs": inputs.data_ptr(),
        "code": 1.0,
    }
    _C.next_scale(**arguments)
    with pytest.raises(ValueError, match=rf"\.(cpp|h):\d+: .*{message}"):
        _C.next_scale(**{**arguments, **change})
