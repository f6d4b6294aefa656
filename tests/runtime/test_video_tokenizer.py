"""The causal tokenizer: stream equals whole clip, inflation, causality, public names, overfit."""

import pytest
import torch

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.presets import DIGITS_TOKENIZER
from videoar.runtime.video_tokenizer import Decoder, Encoder, VideoTokenizer, inflate

SMALL = TokenizerConfig(
    latent_dim=5,
    channels=8,
    multipliers=(1, 2, 2),
    encoder_blocks=(1, 1, 2),
    decoder_blocks=(1, 2, 1),
    norm_groups=4,
    temporal_levels=(0, 1),
    block_kernel_time=((3, 3), (1, 3), (3, 1)),
    mid_kernel_time=(3, 3),
    resample_kernel_time=(3, 3),
    io_kernel_time=3,
)
ONE_TEMPORAL = TokenizerConfig(
    latent_dim=4,
    channels=8,
    multipliers=(1, 1),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    norm_groups=2,
    temporal_levels=(0,),
    block_kernel_time=((1, 1), (3, 1)),
    mid_kernel_time=(1, 3),
    resample_kernel_time=(3,),
    io_kernel_time=1,
    patch_size=2,
    latent_scale=1.5,
)
CONFIGS = {"small": SMALL, "one_temporal": ONE_TEMPORAL, "digits": DIGITS_TOKENIZER}


def randomised(config: TokenizerConfig) -> VideoTokenizer:
    """Random weights everywhere: the zero-initialised convolutions would hide mistakes."""
    torch.manual_seed(0)
    model = VideoTokenizer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval().requires_grad_(False)


def video_for(config: TokenizerConfig, latent_frames: int, batch: int = 2) -> torch.Tensor:
    side = 2 * config.spatial_compression
    frames = 1 + config.temporal_compression * (latent_frames - 1)
    return torch.rand(batch, 3, frames, side, side + config.spatial_compression) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_stream_equals_whole_clip(name: str, latent_frames: int) -> None:
    config = CONFIGS[name]
    model, video = randomised(config), video_for(config, latent_frames)
    latents = model.encode(video)
    assert latents.shape[2] == latent_frames
    decoded = model.decode(latents)
    assert decoded.shape == video.shape

    tau, state, parts = config.temporal_compression, None, []
    for i in range(latent_frames):
        chunk = video[:, :, :1] if i == 0 else video[:, :, 1 + tau * (i - 1) : 1 + tau * i]
        part, state = model.encoder.step(chunk, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), latents, atol=1e-5, rtol=1e-5)

    state, parts = None, []
    for i in range(latent_frames):
        before = None if state is None else {k: v.clone() for k, v in state.items()}
        part, following = model.decoder.step(latents[:, :, i : i + 1], state)
        if before is not None:
            assert all(torch.equal(before[k], state[k]) for k in before), "step changed its input"
        state = following
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), decoded, atol=1e-5, rtol=1e-5)


def test_future_frames_change_nothing_before_them() -> None:
    model, video = randomised(SMALL), video_for(SMALL, 3, batch=1)
    changed = video.clone()
    changed[:, :, 5:] = torch.rand_like(changed[:, :, 5:])
    one, other = model.encode(video), model.encode(changed)
    assert torch.equal(one[:, :, :2], other[:, :, :2])
    assert not torch.allclose(one[:, :, 2], other[:, :, 2])
    past, mixed = model.decode(one), model.decode(other)
    assert torch.equal(past[:, :, :5], mixed[:, :, :5])


@pytest.mark.parametrize("name", CONFIGS)
def test_inflated_equals_2d_on_one_frame(name: str) -> None:
    config = CONFIGS[name]
    image_model = randomised(config.as_2d())
    model, video = inflate(image_model, config), video_for(config, 1)
    torch.testing.assert_close(model.encode(video), image_model.encode(video))
    latents = image_model.encode(video)
    torch.testing.assert_close(model.decode(latents), image_model.decode(latents))


def test_inflated_decoder_repeats_frames() -> None:
    """With only the last tap at work, frame j of the latents gives frames of that image alone."""
    image_model = randomised(SMALL.as_2d())
    latents = torch.randn(1, SMALL.latent_dim, 3, 2, 2)
    video = inflate(image_model, SMALL).decode(latents)
    images = image_model.decode(latents)
    for t, source in enumerate([0, 1, 1, 1, 1, 2, 2, 2, 2]):
        torch.testing.assert_close(video[:, :, t], images[:, :, source], atol=1e-5, rtol=1e-4)


def test_inflate_refuses_another_architecture() -> None:
    from dataclasses import replace

    other = VideoTokenizer(replace(SMALL, encoder_blocks=(1, 1, 1)).as_2d())
    with pytest.raises(ValueError, match=r"encoder\.down\.2\.block\.1"):
        inflate(other, SMALL)


def test_public_2d_layout() -> None:
    """Names, shapes and the parameter count of the public d = 32 tokenizer."""
    from dataclasses import replace

    config = replace(TokenizerConfig(), latent_dim=32).as_2d()
    with torch.device("meta"):
        state = VideoTokenizer(config).state_dict()
    assert round(sum(v.numel() for v in state.values()) / 1e6, 1) == 110.1
    shapes = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3),
        "encoder.down.0.downsample.conv.conv.bias": (128,),
        "encoder.down.1.block.0.nin_shortcut.conv.weight": (256, 128, 1, 1),
        "encoder.mid.block_2.conv2.conv.weight": (512, 512, 3, 3),
        "encoder.norm_out.norm.weight": (512,),
        "encoder.conv_out.conv.weight": (32, 512, 3, 3),
        "decoder.up.4.upsample.conv.conv.weight": (512, 512, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.conv.weight": (128, 256, 1, 1),
        "decoder.up.1.block.2.norm2.norm.bias": (256,),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3),
    }
    for name, shape in shapes.items():
        assert tuple(state[name].shape) == shape, name
    assert not any(name.startswith("decoder.up.0.upsample") for name in state)
    assert not any(name.startswith("encoder.down.4.downsample") for name in state)


def test_digits_preset_compression() -> None:
    assert (DIGITS_TOKENIZER.spatial_compression, DIGITS_TOKENIZER.temporal_compression) == (16, 4)


@pytest.mark.parametrize(("frames", "near"), [(16, "13 or 17"), (0, "1"), (2, "1 or 5"), (-3, "1")])
def test_frame_counts_that_do_not_fit(frames: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"num_frames: .*{near}"):
        SMALL_TAU4.latent_frames(frames)


SMALL_TAU4 = DIGITS_TOKENIZER


def test_bad_sizes_and_steps() -> None:
    model = randomised(SMALL)
    with pytest.raises(ValueError, match="width: must be a multiple of 4, got 9; nearest: 8"):
        model.encode(torch.zeros(1, 3, 1, 8, 9))
    with pytest.raises(ValueError, match="height"):
        model.encode(torch.zeros(1, 3, 1, 2, 8))
    with pytest.raises(ValueError, match="frames: expected 1"):
        Encoder(SMALL).step(torch.zeros(1, 3, 4, 8, 8), None)
    with pytest.raises(ValueError, match="latent_frame: expected 1"):
        Decoder(SMALL).step(torch.zeros(1, 5, 2, 2, 2), None)


def test_config_refuses_what_cannot_be_built() -> None:
    from dataclasses import replace

    for field, value in {
        "norm_groups": 3,
        "temporal_levels": (2,),
        "encoder_blocks": (1, 1),
        "block_kernel_time": ((2, 1), (1, 1), (1, 1)),
        "resample_kernel_time": (1, 3),
        "patch_size": 0,
        "latent_dim": 0,
        "latent_scale": -1.0,
    }.items():
        with pytest.raises(ValueError, match=field):
            replace(SMALL, **{field: value})


def test_overfits_one_clip() -> None:
    """Every part gets useful gradients through the quantiser."""
    torch.manual_seed(0)
    model = VideoTokenizer(ONE_TEMPORAL)
    sizes = ((1, 1), (2, 2))
    video = torch.zeros(1, 3, 3, 8, 8) - 1
    video[:, 0, :, 2:6, 3:5] = 1
    video[:, 1, 1:, 4:, :4] = 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(250):
        latents = bsq_quantize(model.encode(video), sizes).reconstruction
        loss = torch.nn.functional.mse_loss(model.decode(latents), video)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert loss < 0.01
