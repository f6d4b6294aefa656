"""Public 2D checkpoints: read without running them, refused by name, and the same network after.

No public file is here, so the tests write files of the published names and shapes.
"""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.runtime import convert, convert_pickle
from videoar.runtime.cli import main
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.convert import convert_infinity_vae, infinity_config, match_keys
from videoar.runtime.errors import CheckpointError
from videoar.runtime.media import read_video, write_video
from videoar.runtime.model_folder import load_tokenizer, read_config
from videoar.runtime.schedule import default_sizes
from videoar.runtime.video_tokenizer import VideoTokenizer

# The narrowest network that GroupNorm's 32 groups allow; d is a public one.
CHANNELS, D = 32, 16
MULTIPLIERS = (1, 2, 4, 4, 4)
SOURCE = Path("vae.pth")


def public_shapes(latent_dim: int, channels: int = 128) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public 2D tokenizers, written down apart from our modules."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, width_in: int, width_out: int, kernel: int = 3) -> None:
        shapes[f"{name}.conv.weight"] = (width_out, width_in, kernel, kernel)
        shapes[f"{name}.conv.bias"] = (width_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (width,)

    def block(name: str, width_in: int, width_out: int) -> None:
        norm(f"{name}.norm1", width_in)
        conv(f"{name}.conv1", width_in, width_out)
        norm(f"{name}.norm2", width_out)
        conv(f"{name}.conv2", width_out, width_out)
        if width_in != width_out:
            conv(f"{name}.nin_shortcut", width_in, width_out, 1)

    widths = [channels * multiplier for multiplier in MULTIPLIERS]
    conv("encoder.conv_in", 3, channels)
    width_in = channels
    for i, width in enumerate(widths):
        for j in range(2):
            block(f"encoder.down.{i}.block.{j}", width_in, width)
            width_in = width
        if i < 4:
            conv(f"encoder.down.{i}.downsample.conv", width, width)
    conv("decoder.conv_in", latent_dim, widths[4])
    for part in ("encoder", "decoder"):
        block(f"{part}.mid.block_1", widths[4], widths[4])
        block(f"{part}.mid.block_2", widths[4], widths[4])
    for i in (4, 3, 2, 1, 0):
        for j in range(3):
            block(f"decoder.up.{i}.block.{j}", width_in, widths[i])
            width_in = widths[i]
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", widths[i], widths[i])
    norm("encoder.norm_out", widths[4])
    conv("encoder.conv_out", widths[4], latent_dim)
    norm("decoder.norm_out", widths[0])
    conv("decoder.conv_out", widths[0], 3)
    return shapes


def public_state() -> dict[str, Tensor]:
    """A small tokenizer of the public layout, with weights that keep maps of order one."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in public_shapes(D, CHANNELS).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            state[name] = noise / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 0.1 * noise + float(name.endswith("norm.weight"))
    state["quantizer.lfq.mask"] = 2 ** torch.arange(D - 1, -1, -1)
    return state


def old_name(name: str) -> str:
    return (
        name.replace(".conv.weight", ".weight")
        .replace(".conv.bias", ".bias")
        .replace(".norm.weight", ".weight")
        .replace(".norm.bias", ".bias")
    )


def old_state() -> dict[str, Tensor]:
    """The same network under the older names."""
    state = {old_name(name): tensor for name, tensor in public_state().items()}
    state["quantize.lfq.mask"] = state["quantizer.lfq.mask"].int()
    return state


class Plain:
    """The 2D network as arXiv 2601.05966, section 3 describes it, on `[B,C,H,W]` maps."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: t.double() for name, t in state.items() if t.is_floating_point()}

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.conv.weight"], self.state[f"{name}.conv.bias"]
        return F.conv2d(x, weight, bias, stride, padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (32, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        weight, bias = self.state[f"{name}.norm.weight"], self.state[f"{name}.norm.bias"]
        x = x * weight[:, None, None] + bias[:, None, None]
        return x * torch.sigmoid(x)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", self.norm(f"{name}.norm1", x))
        h = self.conv(f"{name}.conv2", self.norm(f"{name}.norm2", h))
        if f"{name}.nin_shortcut.conv.weight" in self.state:
            x = self.conv(f"{name}.nin_shortcut", x, padding=0)
        return x + h

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", x)
        for i in range(5):
            for j in range(2):
                x = self.block(f"encoder.down.{i}.block.{j}", x)
            if i < 4:
                x = torch.cat([x, torch.zeros_like(x[..., :1])], dim=3)
                x = torch.cat([x, torch.zeros_like(x[..., :1, :])], dim=2)
                x = self.conv(f"encoder.down.{i}.downsample.conv", x, stride=2, padding=0)
        x = self.block("encoder.mid.block_2", self.block("encoder.mid.block_1", x))
        return self.conv("encoder.conv_out", self.norm("encoder.norm_out", x))

    def decode(self, x: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", x)
        x = self.block("decoder.mid.block_2", self.block("decoder.mid.block_1", x))
        for i in (4, 3, 2, 1, 0):
            for j in range(3):
                x = self.block(f"decoder.up.{i}.block.{j}", x)
            if i > 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"decoder.up.{i}.upsample.conv", x)
        return self.conv("decoder.conv_out", self.norm("decoder.norm_out", x))


def save(path: Path, state: object, **options) -> Path:
    torch.save({"vae": state}, path, **options)
    return path


def picture(height: int = 32, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 1, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted folders by form; the 3D one comes from the older names."""
    root = tmp_path_factory.mktemp("convert")
    new, old = save(root / "new.pth", public_state()), save(root / "old.pth", old_state())
    convert_infinity_vae(new, root / "2d")
    convert_infinity_vae(old, root / "3d", inflated=True)
    return {"2d": root / "2d", "3d": root / "3d", "new": new, "old": old}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads harmless files with the same code but without starting a process, which takes 2 s."""

    def extract(source: Path, entry: str, target: Path) -> None:
        assert convert_pickle.main([str(source), entry, str(target)]) == 0

    monkeypatch.setattr(convert, "extract_tensors", extract)


class TestLayout:
    @pytest.mark.parametrize("latent_dim", [16, 24, 32, 64])
    @pytest.mark.parametrize("rename", [str, old_name])
    def test_public_shapes(self, latent_dim: int, rename: Callable[[str], str]):
        """The true shapes, without their 440 MB."""
        shapes = public_shapes(latent_dim)
        stored = {rename(name): shape for name, shape in shapes.items()}
        assert len(stored) == len(shapes)
        config = infinity_config(stored, SOURCE)
        assert config == TokenizerConfig(latent_dim=latent_dim)
        with torch.device("meta"):
            model = VideoTokenizer(config.as_2d()).state_dict()
        expected = {name: tuple(tensor.shape) for name, tensor in model.items()}
        places = match_keys(stored, expected, SOURCE)
        assert places == {name: rename(name) for name in shapes}
        if latent_dim == 32:
            assert round(sum(map(math.prod, shapes.values())) / 1e6, 1) == 110.1

    def test_the_width_is_inferred_too(self):
        config = infinity_config(public_shapes(24, 96), SOURCE)
        assert (config.latent_dim, config.channels) == (24, 96)

    def test_a_width_without_groups(self):
        with pytest.raises(CheckpointError, match=r"vae\.pth: norm_groups: 32 does not divide"):
            infinity_config(public_shapes(16, 40), SOURCE)

    @pytest.mark.parametrize("shape", [(16,), (0, 512, 3, 3), (16, 512, 3, 3, 3)])
    def test_no_convolution(self, shape: tuple[int, ...]):
        shapes = public_shapes(16) | {"encoder.conv_out.conv.weight": shape}
        with pytest.raises(CheckpointError, match=r"encoder\.conv_out\.conv\.weight: a 2D conv"):
            infinity_config(shapes, SOURCE)


class TestNumerics:
    def test_the_network_is_that_of_the_paper(self, folders: dict[str, Path]):
        image, plain = picture(), Plain(public_state())
        model = load_tokenizer(folders["2d"]).double()
        latents = model.encode(image.double())
        assert latents.shape == (2, D, 1, 2, 3)
        assert latents.std() > 0.1
        torch.testing.assert_close(latents[:, :, 0], plain.encode(image[:, :, 0].double()))
        decoded = model.decode(latents)
        torch.testing.assert_close(decoded[:, :, 0], plain.decode(latents[:, :, 0]))

    def test_one_frame_of_the_inflated_model_is_the_2d_model(self, folders: dict[str, Path]):
        flat, deep = load_tokenizer(folders["2d"]), load_tokenizer(folders["3d"])
        image = picture()
        latents = flat.encode(image)
        assert torch.equal(deep.encode(image), latents)
        assert torch.equal(deep.decode(latents), flat.decode(latents))
        sizes = default_sizes(2, 3)
        bits = [model.quantize(model.encode(image), sizes).bits for model in (flat, deep)]
        assert torch.equal(*bits)

    def test_streaming_starts_with_the_2d_model(self, folders: dict[str, Path]):
        flat, deep = load_tokenizer(folders["2d"]), load_tokenizer(folders["3d"])
        image = picture()
        latents, state = deep.encoder.step(image, None)
        assert torch.equal(latents, flat.encode(image))
        pixels, decoder_state = deep.decoder.step(latents, None)
        assert torch.equal(pixels, flat.decode(latents))
        # And goes on as the whole clip does: 4 frames to a latent frame, and back.
        clip = torch.cat([image, picture().flip(-1).expand(-1, -1, 4, -1, -1)], dim=2)
        following, _ = deep.encoder.step(clip[:, :, 1:], state)
        whole = deep.encode(clip)
        torch.testing.assert_close(torch.cat([latents, following], 2), whole, atol=1e-5, rtol=1e-4)
        pixels_4, _ = deep.decoder.step(whole[:, :, 1:], decoder_state)
        assert pixels_4.shape == (2, 3, 4, 32, 48)
        decoded = torch.cat([pixels, pixels_4], 2)
        torch.testing.assert_close(decoded, deep.decode(whole), atol=1e-5, rtol=1e-4)
