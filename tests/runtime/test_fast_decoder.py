"""The fast decoder equals the plain one; streams do not meet; memory is as planned and constant."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.kernels.dispatch import use_backend
from videoar.runtime import folded_conv
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.errors import CapacityError
from videoar.runtime.fast_decoder import DecoderState, FastDecoder, decoder_memory
from videoar.runtime.folded_conv import ConvShape, PackedConv, fold_upsample, interleave
from videoar.runtime.pixels import to_pixels
from videoar.runtime.presets import DIGITS_TOKENIZER
from videoar.runtime.video_tokenizer import Decoder

# Time and space mixed in every way: 2D blocks, 2D and 3D upsamples, one or two temporal levels.
MIXED = TokenizerConfig(
    latent_dim=5,
    channels=8,
    multipliers=(1, 2, 2),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 2, 1),
    norm_groups=4,
    temporal_levels=(1,),
    block_kernel_time=((3, 3), (1, 3), (3, 1)),
    mid_kernel_time=(1, 3),
    resample_kernel_time=(1, 3),
    io_kernel_time=3,
)
IMAGE = MIXED.as_2d()
# The published network with a quarter of its channels.
PUBLISHED = replace(TokenizerConfig(), channels=32)
CONFIGS = {"mixed": MIXED, "image": IMAGE, "published": PUBLISHED, "digits": DIGITS_TOKENIZER}


def randomised(config: TokenizerConfig) -> Decoder:
    """Random weights everywhere: the zero-initialised convolutions would hide mistakes."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        decoder = Decoder(config)
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder.eval().requires_grad_(False)


def fast(
    decoder: Decoder,
    latents: Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> FastDecoder:
    height, width = latents.shape[-2:]
    return FastDecoder(decoder, dtype=dtype, device=device, height=height, width=width)


def decode(decoder: FastDecoder, latents: Tensor, state: DecoderState | None = None) -> Tensor:
    """`[d,t,h,w]` -> float32 `[T,H,W,3]`, frame by frame."""
    state = decoder.new_state() if state is None else state
    frames = [decoder.decode(latent, state).clone() for latent in latents.unbind(1)]
    return torch.cat(frames)


def plain(decoder: Decoder, latents: Tensor) -> Tensor:
    """The same from the whole clip at once."""
    return decoder(latents[None])[0].permute(1, 2, 3, 0)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got.float() - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def exact_float32():
    """A GPU's convolutions would round their float32 inputs to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("frames", "size"), [(1, (2, 3)), (4, (3, 2)), (3, (1, 1)), (2, (1, 5))])
def test_equals_the_plain_decoder(
    name: str, frames: int, size: tuple[int, int], device: torch.device, exact_float32: None
) -> None:
    config = CONFIGS[name]
    decoder, latents = randomised(config), torch.randn(config.latent_dim, frames, *size)
    got = decode(fast(decoder, latents, device=device), latents.to(device)).cpu()
    assert relative_error(got, plain(decoder, latents)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 2)])
def test_equals_the_plain_decoder_at_full_width(size: tuple[int, int]) -> None:
    config = TokenizerConfig()
    decoder, latents = randomised(config), torch.randn(config.latent_dim, 2, *size)
    assert relative_error(decode(fast(decoder, latents), latents), plain(decoder, latents)) < 1e-5


@pytest.mark.parametrize("name", ["published", "digits"])
def test_bfloat16_is_as_near_as_the_plain_form(name: str, device: torch.device) -> None:
    config = CONFIGS[name]
    decoder, latents = randomised(config), torch.randn(config.latent_dim, 3, 3, 2)
    expected = plain(decoder, latents)
    got = decode(fast(decoder, latents, torch.bfloat16, device), latents.to(device)).cpu()
    rounded = plain(decoder.to(torch.bfloat16), latents.to(torch.bfloat16)).float()
    error, allowed = ((x - expected).square().mean().sqrt() for x in (got, rounded))
    assert error < 1.1 * allowed
    assert error < 0.03 * expected.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_gives_the_pixels_of_the_float_form(dtype: torch.dtype) -> None:
    config = DIGITS_TOKENIZER
    decoder, latents = randomised(config), torch.randn(config.latent_dim, 3, 2, 2)
    model = fast(decoder, latents, dtype)
    floats, state = decode(model, latents), model.new_state()
    steps = [model.step(latent, state).clone() for latent in latents.unbind(1)]
    assert [len(frames) for frames in steps] == [1, 4, 4]
    assert (floats.abs() > 1).any(), "nothing to clamp"
    expected = to_pixels(floats.permute(3, 0, 1, 2))
    assert torch.equal(torch.cat(steps), torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_do_not_meet(dtype: torch.dtype) -> None:
    """Two streams in turn, one of them at its third frame when the other begins, bit for bit."""
    decoder, latents = randomised(MIXED), torch.randn(2, MIXED.latent_dim, 5, 3, 2)
    model = fast(decoder, latents, dtype)
    alone = [decode(model, x) for x in latents]
    states = [model.new_state(), model.new_state()]
    parts: list[list[Tensor]] = [[], []]
    for turn in range(7):
        for i, start in enumerate((0, 2)):
            if 0 <= turn - start < 5:
                latent = latents[i, :, turn - start]
                parts[i].append(model.decode(latent, states[i]).clone())
    assert torch.equal(torch.cat(parts[0]), alone[0])
    assert torch.equal(torch.cat(parts[1]), alone[1])


def test_reset_forgets_everything() -> None:
    decoder, latents = randomised(MIXED), torch.randn(MIXED.latent_dim, 3, 3, 2)
    model = fast(decoder, latents)
    expected, state = decode(model, latents), model.new_state()
    decode(model, torch.full_like(latents, float("nan")), state)
    assert any(frames.isnan().any() for frames in state.carried)
    model.reset(state)
    assert torch.equal(decode(model, latents, state), expected)


def test_latents_of_any_layout() -> None:
    decoder, latents = randomised(MIXED), torch.randn(MIXED.latent_dim, 2, 3, 2)
    model = fast(decoder, latents)
    strided = torch.empty(3, 2, 2, MIXED.latent_dim).permute(3, 2, 0, 1).copy_(latents)
    assert torch.equal(decode(model, latents), decode(model, strided))
    assert torch.equal(decode(model, latents.double()), decode(model, latents))


@pytest.mark.parametrize("name", ["mixed", "image"])
def test_what_serves_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolutions of torch, which return new tensors, and the norm in Triton's interpreter."""
    if torch.cuda.is_available():
        pytest.skip("Triton runs on the GPU here, and not in its interpreter")
    monkeypatch.setattr(folded_conv, "packs_on", lambda device, dtype: False)
    decoder = randomised(CONFIGS[name])
    latents = torch.randn(decoder.config.latent_dim, 3, 2, 3)
    with use_backend("triton"):
        got = decode(fast(decoder, latents), latents)
    assert relative_error(got, plain(decoder, latents)) < 1e-5


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_200_frames_in_constant_memory() -> None:
    decoder, latents = randomised(MIXED), torch.randn(MIXED.latent_dim, 200, 6, 6)
    model = fast(decoder, latents)
    state = model.new_state()
    addresses = [x.data_ptr() for x in state.carried]
    last = MIXED.temporal_compression
    for t, latent in enumerate(latents.unbind(1)):
        pixels = model.decode(latent, state)
        if t == 20:
            before = resident_bytes()
    grown = resident_bytes() - before
    assert grown < 180 * model.memory.state / 4, f"{grown} bytes more than at frame 20"
    assert addresses == [x.data_ptr() for x in state.carried]
    assert relative_error(pixels, plain(decoder, latents)[-last:]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_known_before(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    memory = decoder_memory(config, 3, 2, dtype)
    decoder = Decoder(config)
    model = FastDecoder(decoder, dtype=dtype, device="cpu", height=3, width=2)
    assert model.memory == memory
    assert model.workspace_bytes == memory.workspace
    assert model.new_state().num_bytes == memory.state
    plain = sum(p.numel() for n, p in decoder.named_parameters() if n.endswith("conv.weight"))
    assert memory.weights > dtype.itemsize * plain


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("taps", [1, 3])
def test_folded_kernel_is_the_upsampled_convolution(taps: int, temporal: bool) -> None:
    if temporal and taps == 1:
        pytest.skip("a temporal upsample has three taps")
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    weight = torch.randn(7, 2, taps, 3, 3, dtype=torch.float64)
    # In front of x stand the zeros of a stream's start; a repeated frame is padded by one less.
    large = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0).transpose(0, 1)[None]
    large = large.repeat_interleave(2, dim=2) if temporal else large
    front = taps - 1 - temporal
    expected = F.conv3d(F.pad(large, (1, 1, 1, 1, front, 0)), weight)[0].permute(1, 2, 3, 0)

    folded = fold_upsample(weight, temporal)
    time, _, _, _, _, kept = folded.shape[:6]
    small = F.pad(x.permute(3, 0, 1, 2), (1, 1, 1, 1, kept - 1, 0))[None]
    phases = F.conv3d(small, folded.flatten(0, 3))[0].permute(1, 2, 3, 0).contiguous()
    got = interleave(phases, time, torch.empty(4 * time, 6, 10, 7, dtype=torch.float64))
    if temporal:
        got = got[1:]  # the first frame of a stream is the second of its pair
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("first", [True, False])
def test_shapes_are_those_that_run(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fast(randomised(PUBLISHED), torch.empty(3, 2))
    seen, run = [], PackedConv.__call__

    def recorded(conv: PackedConv, x: Tensor, out: Tensor, add: bool) -> Tensor:
        y = run(conv, x, out, add)
        seen.append((tuple(x.shape), tuple(y.shape), conv.shape.weight))
        return y

    monkeypatch.setattr(PackedConv, "__call__", recorded)
    state = model.new_state()
    state.started = not first
    model.decode(torch.randn(model.latent_shape), state)
    shapes = model.convs(first)
    assert seen == [(shape.input, shape.output, shape.weight) for shape in shapes]
    # In and out, two middle blocks, 15 blocks, two shortcuts, four upsamples.
    assert len(shapes) == 2 + 4 + 30 + 2 + 4


def test_flops_of_a_shape() -> None:
    shape = ConvShape(weight=(8, 4, 3, 3, 3), input=(6, 5, 7, 4))
    assert shape.output == (4, 5, 7, 8)
    assert shape.flops == 2 * 4 * 5 * 7 * 8 * 4 * 27
    assert ConvShape(weight=(8, 4, 2, 2), input=(1, 5, 7, 4)).output == (1, 6, 8, 8)


def test_refuses() -> None:
    decoder = Decoder(MIXED)
    options = {"dtype": torch.float32, "device": "cpu", "height": 2, "width": 3}
    with pytest.raises(ValueError, match="width: at least 1"):
        FastDecoder(decoder, **options | {"width": 0})
    with pytest.raises(ValueError, match=r"dtype: .*float64"):
        FastDecoder(decoder, **options | {"dtype": torch.float64})
    with pytest.raises(CapacityError, match="decoder"):
        FastDecoder(decoder, **options | {"height": 10**5, "width": 10**5})
    model = FastDecoder(decoder, **options)
    with pytest.raises(ValueError, match=r"latent_frame: expected \(5, 2, 3\), got \(5, 3, 2\)"):
        model.step(torch.zeros(5, 3, 2), model.new_state())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graph_equals_eager(dtype: torch.dtype) -> None:
    """One graph for the first step of a stream and one for the others, bit for bit."""
    latents = torch.randn(PUBLISHED.latent_dim, 5, 3, 2, device="cuda")
    model = fast(randomised(PUBLISHED), latents, dtype, "cuda")
    state, expected = model.new_state(), decode(model, latents)
    latent, graphs, frames = torch.zeros(model.latent_shape, device="cuda"), {}, {}
    for started in (False, True):
        state.started = started
        graphs[started] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[started]):
            frames[started] = model.decode(latent, state)
    parts = []
    for t in range(5):
        latent.copy_(latents[:, t])
        graphs[t > 0].replay()
        parts.append(frames[t > 0].clone())
    assert torch.equal(torch.cat(parts), expected)
