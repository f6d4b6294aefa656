"""`next_scale` against a loop over tokens and bits written from the paper."""

import math

import pytest
import torch

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.dispatch import use_backend
from videoar.kernels.next_scale import NextScale, next_scale, next_scale_ref
from videoar.kernels.next_scale_triton import next_scale_tiles
from videoar.kernels.philox import philox_uniform

TRITON = CPP = True
pytestmark = pytest.mark.usefixtures("poisoned")
SIZES = ((1, 1), (2, 3), (3, 3), (4, 5))
GUIDED = {"logits_uncond": torch.zeros(3, 6, 10)}
DRAWN = {"noise": None, "seeds": torch.zeros(3).long()}


def bilinear(grid, size):
    """One float64 map `[H][W]` at another size; half-pixel centres, edges repeated."""
    height, width = grid.shape
    out = torch.empty(size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * height / size[0] - 0.5, 0.0)
            x = max((j + 0.5) * width / size[1] - 0.5, 0.0)
            top, left = min(int(y), height - 1), min(int(x), width - 1)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def brute(logits, accumulator, scale, uncond, guidance, temperature, noise):
    """One row in float64; returns bits `[n,d]`, accumulator `[d,H,W]`, inputs `[n_next,d]`."""
    height, width = SIZES[scale]
    d = accumulator.shape[0]
    bits = torch.zeros(height * width, d, dtype=torch.bool)
    for n in range(height * width):
        for j in range(d):
            delta = float(logits[n, 2 * j + 1] - logits[n, 2 * j])
            if uncond is not None:
                base = float(uncond[n, 2 * j + 1] - uncond[n, 2 * j])
                delta = base + guidance * (delta - base)
            if temperature == 0:
                bits[n, j] = delta > 0
            else:
                bits[n, j] = float(noise[n, j]) < 1 / (1 + math.exp(-delta / temperature))
    codes = torch.where(bits, 1.0, -1.0).double() / math.sqrt(d)
    total, inputs = [], []
    for j in range(d):
        up = codes[:, j].view(height, width)
        total.append(accumulator[j].double() + (up if scale == 3 else bilinear(up, SIZES[-1])))
        following = SIZES[(scale + 1) % 4]
        last = following == SIZES[-1]
        inputs.append((total[j] if last else bilinear(total[j], following)).flatten())
    return bits, torch.stack(total), torch.stack(inputs, dim=1)


def random_case(scale, rows=3, num_bits=5):
    tokens = SIZES[scale][0] * SIZES[scale][1]
    logits, uncond = 3 * torch.randn(2, rows, tokens, 2 * num_bits)
    accumulator = torch.randn(rows, num_bits, *SIZES[-1])
    return logits, uncond, accumulator, torch.rand(rows, tokens, num_bits)


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize("guided", [False, True])
def test_matches_paper_loop(scale, guided, device):
    logits, uncond, accumulator, noise = random_case(scale)
    uncond = uncond if guided else None
    guidance, temperature = torch.tensor([0.0, 1.0, 4.5]), torch.tensor([1.0, 0.0, 0.7])
    before = accumulator.clone()
    placed = accumulator.to(device)
    got = next_scale(
        logits.to(device),
        placed,
        SIZES,
        scale,
        logits_uncond=None if uncond is None else uncond.to(device),
        guidance=guidance.to(device) if guided else 1.0,
        temperature=temperature.to(device),
        noise=noise.to(device),
    )
    assert torch.equal(placed.cpu(), before)
    for r in range(3):
        bits, total, inputs = brute(
            logits[r],
            accumulator[r],
            scale,
            None if uncond is None else uncond[r],
            float(guidance[r]),
            float(temperature[r]),
            noise[r],
        )
        assert torch.equal(got.bits[r].cpu(), bits), f"row {r}"
        torch.testing.assert_close(got.accumulator[r].cpu().double(), total, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.inputs[r].cpu().double(), inputs, rtol=0, atol=1e-5)


def test_replays_the_quantizer(device):
    """Certain logits of a quantised frame must rebuild its reconstruction and inputs."""
    latents = torch.randn(2, 6, 2, *SIZES[-1]).to(device)
    quantized = bsq_quantize(latents, SIZES, return_inputs=True)
    counts = [h * w for h, w in SIZES]
    bits_of = [part.split(counts, dim=1) for part in quantized.targets.unbind(1)]
    inputs_of = [part.split(counts, dim=1) for part in quantized.inputs.unbind(1)]
    for frame in range(2):
        accumulator = torch.zeros(2, 6, *SIZES[-1], device=device)
        for scale in range(4):
            sign = bits_of[frame][scale].float() * 2 - 1
            logits = torch.stack([-sign, sign], dim=-1).flatten(2)
            step = next_scale(logits, accumulator, SIZES, scale, temperature=0.0)
            accumulator = step.accumulator
            if (frame, scale) != (1, 3):
                ahead = inputs_of[frame + (scale == 3)][(scale + 1) % 4]
                torch.testing.assert_close(step.inputs, ahead, rtol=0, atol=1e-6)
        expected = quantized.reconstruction[:, :, frame]
        torch.testing.assert_close(accumulator, expected, rtol=0, atol=1e-6)


def test_seeds_give_the_philox_noise(device):
    logits, _, accumulator, _ = (x.to(device) for x in random_case(2))
    seeds = torch.tensor([5, -7, 5], device=device)
    frames = torch.tensor([0, 3, 2], device=device)
    drawn = next_scale(logits, accumulator, SIZES, 2, seeds=seeds, frames=frames)
    noise = philox_uniform(seeds, frames, 2, 9, 5)
    assert torch.equal(drawn.bits, next_scale(logits, accumulator, SIZES, 2, noise=noise).bits)
    other = next_scale(logits, accumulator, SIZES, 2, seeds=seeds + 1, frames=frames)
    assert not torch.equal(drawn.bits, other.bits)


LARGE = ((1, 3), (17, 9), (64, 33))


@pytest.mark.parametrize("scale", range(3))
def test_large_grid_equals_the_reference(scale, device):
    """Bits by seed equal where the probability is not the uniform; everything strided or odd."""
    tokens, num_bits = LARGE[scale][0] * LARGE[scale][1], 5
    logits, uncond = 3 * torch.randn(2, tokens, 2, 2 * num_bits).transpose(1, 2)
    accumulator = torch.randn(2, *LARGE[-1], num_bits).permute(0, 3, 1, 2)
    seeds, guidance = torch.tensor([2**62 + 5, -9]), 2.5
    got = next_scale(
        logits.to(device),
        accumulator.to(device),
        LARGE,
        scale,
        logits_uncond=uncond.to(device),
        guidance=guidance,
        temperature=0.7,
        seeds=seeds.to(device),
        frames=3,
    )
    delta, base = ((x[..., 1::2] - x[..., ::2]).double() for x in (logits, uncond))
    probability = torch.sigmoid((base + guidance * (delta - base)) / 0.7)
    uniform = philox_uniform(seeds, 3, scale, tokens, num_bits).double()
    decided = (probability - uniform).abs() > 1e-6
    assert decided.double().mean() > 0.999
    wrong = (decided & (got.bits.cpu() != (uniform < probability))).nonzero().tolist()
    assert not wrong, f"first difference at [row, token, bit] {wrong[0]}"
    sign = got.bits.cpu().float() * 2 - 1
    replay = next_scale_ref(
        torch.stack([-sign, sign], -1).flatten(2), accumulator, LARGE, scale, temperature=0.0
    )
    torch.testing.assert_close(got.accumulator.cpu(), replay.accumulator, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.inputs.cpu(), replay.inputs, rtol=0, atol=1e-5)


def test_greedy_is_exact(device):
    """Greedy bits equal the reference's, ties included, and need no uniforms."""
    logits, _, accumulator, _ = random_case(2, num_bits=33)
    logits[0, :, :8] = 1.5
    got = next_scale(logits.to(device), accumulator.to(device), SIZES, 2, temperature=0)
    expected = next_scale_ref(logits, accumulator, SIZES, 2, temperature=0)
    assert torch.equal(got.bits.cpu(), expected.bits)
    assert not got.bits[0, :, :4].any()


@pytest.mark.parametrize("num_cells", [1, 20, 64, 1008, 4096])
def test_tiles(num_cells):
    block_n, block_d, num_warps = next_scale_tiles(num_cells)
    assert block_n & (block_n - 1) == block_d & (block_d - 1) == num_warps & (num_warps - 1) == 0
    assert block_n * block_d // (32 * num_warps) <= 4


@pytest.mark.parametrize("scale", range(4))
def test_a_row_does_not_depend_on_its_neighbours(scale, device):
    logits, uncond, accumulator, _ = (x.to(device) for x in random_case(scale, num_bits=48))
    seeds, frames = torch.arange(3, device=device), torch.tensor([4, 0, 2], device=device)
    guidance = torch.tensor([1.0, 2.0, 3.0], device=device)
    temperature = torch.tensor([1.0, 0.5, 0.0], device=device)

    def run(rows):
        return next_scale(
            logits[rows],
            accumulator[rows],
            SIZES,
            scale,
            logits_uncond=uncond[rows],
            guidance=guidance[rows],
            temperature=temperature[rows],
            seeds=seeds[rows],
            frames=frames[rows],
        )

    together = run(slice(0, 3))
    for r in range(3):
        for whole, alone in zip(together, run(slice(r, r + 1)), strict=True):
            assert torch.equal(whole[r], alone[0])


@pytest.mark.parametrize(("delta", "temperature"), [(0.0, 1.0), (1.5, 1.0), (-2.0, 0.5)])
def test_frequencies(delta, temperature, device):
    rows, num_bits = 25, 50
    logits = torch.tensor([0.3, 0.3 + delta]).repeat(num_bits).expand(rows, 20, -1).to(device)
    accumulator = torch.zeros(rows, num_bits, *SIZES[-1], device=device)
    bits = next_scale(
        logits,
        accumulator,
        SIZES,
        3,
        temperature=temperature,
        seeds=torch.arange(rows, device=device),
    ).bits
    p = 1 / (1 + math.exp(-delta / temperature))
    deviation = math.sqrt(p * (1 - p) / bits.numel())
    assert abs(float(bits.float().mean()) - p) < 4 * deviation


def test_float_options_equal_tensors_of_them(device):
    logits, uncond, accumulator, noise = (x.to(device) for x in random_case(1))
    for guidance, temperature in ((2.0, 0.8), (3.0, 0.0)):
        single, per_row = (
            next_scale(
                logits,
                accumulator,
                SIZES,
                1,
                logits_uncond=uncond,
                guidance=g,
                temperature=t,
                noise=noise,
            )
            for g, t in (
                (guidance, temperature),
                torch.tensor([[guidance], [temperature]], device=device).expand(2, 3),
            )
        )
        assert torch.equal(single.bits, per_row.bits)
        assert torch.equal(single.inputs, per_row.inputs)


def test_bfloat16_logits_are_widened(device):
    logits, uncond, accumulator, noise = (x.to(device) for x in random_case(1))
    logits, uncond = logits.bfloat16(), uncond.bfloat16()
    options = {"guidance": 3.0, "noise": noise}
    narrow = next_scale(logits, accumulator, SIZES, 1, logits_uncond=uncond, **options)
    wide = next_scale(
        logits.float(), accumulator, SIZES, 1, logits_uncond=uncond.float(), **options
    )
    assert torch.equal(narrow.bits, wide.bits)
    assert narrow.inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"scale": 4}, "scale"),
        ({"logits": torch.zeros(3, 5, 10)}, "logits"),
        ({"logits": torch.zeros(3, 6, 9)}, "logits"),
        ({"logits": torch.zeros(3, 6, 10).int()}, "logits"),
        ({"logits": torch.zeros(3, 6, 0)}, "logits"),
        ({"accumulator": torch.zeros(3, 5, 4, 4)}, "accumulator"),
        ({"accumulator": torch.zeros(3, 5, 4, 5).double()}, "accumulator"),
        ({"accumulator": torch.zeros(3, 5, 4, 5, device="meta")}, "accumulator"),
        ({"logits_uncond": torch.zeros(3, 6, 8)}, "logits_uncond"),
        ({"logits_uncond": torch.zeros(3, 6, 10).double()}, "logits_uncond"),
        ({"logits_uncond": torch.zeros(3, 6, 10, device="meta")}, "logits_uncond"),
        ({"guidance": 2.0}, "guidance"),
        ({"guidance": torch.ones(2)}, "guidance"),
        ({"guidance": torch.ones(3)}, "guidance"),
        ({"guidance": math.nan}, "guidance"),
        ({**GUIDED, "guidance": math.nan}, "guidance"),
        ({**GUIDED, "guidance": math.inf}, "guidance"),
        ({**GUIDED, "guidance": [1.0, 1.0, 1.0]}, "guidance"),
        ({**GUIDED, "guidance": torch.tensor([1.0, math.nan, 2.0])}, "guidance"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": [1.0, 1.0, 1.0]}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"temperature": torch.ones(3).to(torch.complex64)}, "temperature"),
        ({"temperature": torch.ones(3, 1)}, "temperature"),
        ({"temperature": torch.tensor([1.0, -1.0, 0.0])}, "temperature"),
        ({"temperature": torch.ones(3, device="meta")}, "temperature"),
        ({"noise": torch.ones(3, 6, 4)}, "noise"),
        ({"noise": torch.ones(3, 6, 5).double()}, "noise"),
        ({"noise": torch.ones(3, 6, 5, device="meta")}, "noise"),
        ({"noise": None}, "seeds"),
        ({"noise": None, "seeds": torch.zeros(2).long()}, "seeds"),
        ({**DRAWN, "frames": 1.5}, "frames"),
        ({**DRAWN, "frames": [0, 1, 2]}, "frames"),
        ({**DRAWN, "frames": torch.zeros(2).long()}, "frames"),
        ({**DRAWN, "frames": torch.zeros(3).long().to("meta")}, "frames"),
        ({"scale": 1.0}, "scale"),
        ({"sizes": ((1, 1), (2.0, 3), (4, 5))}, "sizes"),
        ({"sizes": ((1, 1), (-2, -3), (4, 5))}, "sizes"),
        ({"sizes": ((1, 1), (2, 3), (4, 0))}, "sizes"),
        ({"sizes": ((5, 1), (2, 3), (4, 5))}, "sizes"),
        ({"sizes": ()}, "sizes"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_refuses(change, name, backend, monkeypatch):
    monkeypatch.setenv("VIDEOAR_DEBUG", "1")  # values that Triton's tensors hold are read, too
    logits, _, accumulator, noise = random_case(1)
    arguments = {"logits": logits, "accumulator": accumulator, "scale": 1, "noise": noise}
    with use_backend(backend), pytest.raises(ValueError, match=f"^{name}: expected"):
        next_scale(**{"sizes": SIZES, **arguments, **change})


def test_an_integer_of_equal_value_is_no_size():
    """What was accepted before does not let a float pass: 1.0 == 1."""
    logits, _, accumulator, noise = random_case(0)
    next_scale(logits, accumulator, SIZES, 0, noise=noise)
    with pytest.raises(ValueError, match=r"^sizes: expected"):
        next_scale(logits, accumulator, ((1.0, 1.0), *SIZES[1:]), 0, noise=noise)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_writes_into_given_tensors(scale, in_place, device):
    logits, uncond, accumulator, noise = (x.to(device) for x in random_case(scale))
    arguments = {"logits_uncond": uncond, "guidance": 2.5, "temperature": 0.7, "noise": noise}
    expected = next_scale(logits, accumulator, SIZES, scale, **arguments)
    before = accumulator.clone()
    out = NextScale(*(torch.empty(x.shape, dtype=x.dtype, device=device) for x in expected))
    if in_place:
        out = out._replace(accumulator=accumulator)
    got = next_scale(logits, accumulator, SIZES, scale, **arguments, out=out)
    for one, place, value in zip(got, out, expected, strict=True):
        assert one.data_ptr() == place.data_ptr()
        assert torch.equal(one, value)
    assert in_place or torch.equal(accumulator, before)


def test_rows_of_bits_may_lie_apart(device):
    logits, _, accumulator, noise = (x.to(device) for x in random_case(2))
    expected = next_scale(logits, accumulator, SIZES, 2, noise=noise)
    tokens = logits.shape[1]
    whole = torch.ones(3, tokens + 7, 5, dtype=torch.bool, device=device)
    out = NextScale(whole[:, 4 : 4 + tokens], accumulator, torch.empty_like(expected.inputs))
    got = next_scale(logits, accumulator, SIZES, 2, noise=noise, out=out)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert whole[:, :4].all()
    assert whole[:, 4 + tokens :].all()


def test_refuses_rows_of_bits_that_overlap():
    logits, _, accumulator, noise = random_case(1)
    out = next_scale(logits, accumulator, SIZES, 1, noise=noise)
    out = out._replace(bits=out.bits[:1].expand(3, -1, -1))
    with pytest.raises(ValueError, match=r"^out\.bits: expected contiguous"):
        next_scale(logits, accumulator, SIZES, 1, noise=noise, out=out)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["conditional", "unconditional"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_marks_rows_whose_logits_are_not_finite(value, part, dtype, device):
    logits, uncond, accumulator, noise = random_case(3, rows=4)
    wrong = {"conditional": logits, "unconditional": uncond}[part]
    # One behind the other of a pair, so that none hides in a difference or in another lane.
    wrong[1, 5, 9] = value
    wrong[2, 0, 0:2] = value
    failed = torch.tensor([False, False, False, True]).to(device)
    logits, uncond = (x.to(device, dtype) for x in (logits, uncond))
    accumulator, noise = accumulator.to(device), noise.to(device)
    options = {"logits_uncond": uncond, "guidance": 3.0, "noise": noise}
    got = next_scale(logits, accumulator, SIZES, 3, **options, failed=failed)
    assert failed.tolist() == [False, True, True, True]
    expected = next_scale(logits, accumulator, SIZES, 3, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_large_logits_are_finite(device):
    """Their difference is not, in float32; the row is none that failed."""
    logits, _, accumulator, noise = (x.to(device) for x in random_case(1))
    logits[0, 0, :2] = torch.tensor([-3e38, 3e38])
    failed = torch.zeros(3, dtype=torch.bool, device=device)
    next_scale(logits, accumulator, SIZES, 1, noise=noise, failed=failed)
    assert not failed.any()


@pytest.mark.parametrize(
    "failed",
    [torch.zeros(2).bool(), torch.zeros(3), torch.zeros(6).bool()[::2], torch.zeros(3, 1).bool()],
)
def test_refuses_failed_that_does_not_fit(failed):
    logits, _, accumulator, noise = random_case(1)
    with pytest.raises(ValueError, match=r"^failed: expected contiguous torch.bool \[3\], got"):
        next_scale(logits, accumulator, SIZES, 1, noise=noise, failed=failed)


def test_reference_writes_into_given_tensors():
    logits, _, accumulator, noise = random_case(1)
    expected = next_scale_ref(logits, accumulator, SIZES, 1, noise=noise)
    bits, inputs = torch.empty(expected.bits.shape).bool(), torch.empty(expected.inputs.shape)
    out = NextScale(bits, accumulator, inputs)
    with use_backend("reference"):
        got = next_scale(logits, accumulator, SIZES, 1, noise=noise, out=out)
    assert got.accumulator is accumulator
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", NextScale._fields)
@pytest.mark.parametrize(
    "wrong", [lambda x: x[:2], lambda x: x.double(), lambda x: x.repeat_interleave(2, 2)[:, :, ::2]]
)
def test_refuses_out_that_does_not_fit(name, wrong):
    logits, _, accumulator, noise = random_case(1)
    out = next_scale(logits, accumulator, SIZES, 1, noise=noise)
    out = out._replace(**{name: wrong(getattr(out, name))})
    with pytest.raises(ValueError, match=rf"^out\.{name}: expected contiguous"):
        next_scale(logits, accumulator, SIZES, 1, noise=noise, out=out)
