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
from videoar.runtime.model_folder import load_tokenizer
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

    def test_inflated_weights(self, folders: dict[str, Path]):
        flat, deep = (load_tokenizer(folders[form]).state_dict() for form in ("2d", "3d"))
        assert flat.keys() == deep.keys()
        kernels = 0
        for name, tensor in deep.items():
            if tensor.dim() == 5:
                kernels += 1
                assert not tensor[:, :, :-1].any(), name
                tensor = tensor[:, :, -1]
            assert torch.equal(tensor, flat[name]), name
        # All convolutions but the 1x1 shortcuts.
        shapes = public_shapes(D, CHANNELS).values()
        assert kernels == sum(shape[2:] == (3, 3) for shape in shapes)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_frame_of_the_inflated_model_is_the_2d_model(
        self, folders: dict[str, Path], dtype: torch.dtype
    ):
        """Bit for bit: the padding in front takes no part in the sums."""
        flat, deep = (load_tokenizer(folders[form], dtype=dtype) for form in ("2d", "3d"))
        image = picture().to(dtype)
        latents = flat.encode(image)
        assert torch.equal(deep.encode(image), latents)
        pixels = flat.decode(latents)
        assert torch.equal(deep.decode(latents), pixels)
        # A stream starts in the same way.
        assert torch.equal(deep.encoder.step(image, None)[0], latents)
        assert torch.equal(deep.decoder.step(latents, None)[0], pixels)

    def test_a_stream_goes_on_as_the_whole_clip(self, folders: dict[str, Path]):
        model, image = load_tokenizer(folders["3d"]).double(), picture().double()
        # 4 frames to a latent frame, and back.
        clip = torch.cat([image, image.flip(-1).expand(-1, -1, 4, -1, -1)], dim=2)
        whole = model.encode(clip)
        first, state = model.encoder.step(image, None)
        second, _ = model.encoder.step(clip[:, :, 1:], state)
        close = {"atol": 1e-12, "rtol": 1e-12}
        torch.testing.assert_close(torch.cat([first, second], 2), whole, **close)
        pixels, state = model.decoder.step(first, None)
        others, _ = model.decoder.step(second, state)
        decoded = torch.cat([pixels, others], 2)
        assert decoded.shape == clip.shape
        torch.testing.assert_close(decoded, model.decode(whole), **close)


class RunsCode:
    """Unpickled by `pickle`, this makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def refuses(source: Path, *words: str) -> None:
    """Conversion fails, names the file and `words`, and leaves nothing behind."""
    folder = source.parent / "refused"
    with pytest.raises(CheckpointError) as caught:
        convert_infinity_vae(source, folder)
    for word in (str(source), *words):
        assert word in str(caught.value)
    assert not folder.exists()
    assert not list(source.parent.glob(".*"))


class TestPickles:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("place", ["vae", "beside"])
    def test_code_in_a_pickle_is_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, place: str
    ):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        run, evil = tmp_path / "run", RunsCode(tmp_path / "run")
        content = {"vae": public_state()} | {"beside": evil}
        if place == "vae":
            content = {"vae": {"x": torch.ones(2), "y": evil}}
        source = tmp_path / "vae.pth"
        torch.save(content, source, _use_new_zipfile_serialization=zipped)
        refuses(source, "its pickle asks for posix.mkdir", "no code is run")
        assert not run.exists()
        # The file does what it is feared to do where it is trusted.
        torch.load(source, weights_only=False)
        assert run.exists()

    def test_a_bare_pickle(self, tmp_path: Path):
        source = tmp_path / "vae.pth"
        source.write_bytes(pickle.dumps(RunsCode(tmp_path / "run")))
        refuses(source, "no readable torch file")
        assert not (tmp_path / "run").exists()

    def test_no_module_of_the_current_folder_is_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        code = f"import os; os.mkdir({str(tmp_path / 'run')!r}); raise SystemExit"
        (tmp_path / "torch.py").write_text(code)
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        refuses(save(tmp_path / "vae.pth", {}), "encoder.conv_in.conv.weight: missing")
        assert not (tmp_path / "run").exists()

    def test_a_killed_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(convert_pickle, "_START", "import os; os.kill(os.getpid(), 9)")
        refuses(save(tmp_path / "vae.pth", {}), "ended with status -9")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "no readable torch file"),
            (b"no checkpoint", "no readable torch file"),
            ([1], "holds no dict with a dict 'vae'"),
            ({"ema": {}}, "holds no dict with a dict 'vae'"),
            ({"vae": [1]}, "holds no dict with a dict 'vae'"),
            ({"vae": {"x": "text"}}, "vae: x: a plain tensor is needed"),
            ({"vae": {"x": torch.eye(2).to_sparse()}}, "vae: x: a plain tensor is needed"),
            ({"vae": {"x": torch.ones(2, device="meta")}}, "vae: x: a plain tensor is needed"),
            ({"vae": {"x": torch.ones(2) * 1j}}, "vae: x: a plain tensor is needed"),
            ({"vae": {3: torch.ones(2)}}, "vae: 3: a name is needed"),
            ({"vae": {"x": torch.ones(1).expand(10**6, 10**6)}}, "tensors of 4000000000000 bytes"),
        ],
    )
    def test_other_contents(self, tmp_path: Path, capsys, content: object, words: str):
        """What the reading process says, without starting it."""
        source, target = tmp_path / "vae.pth", tmp_path / "tensors"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            torch.save(content, source)
        assert convert_pickle.main([str(source), "vae", str(target)]) == convert_pickle._REFUSED
        assert words in capsys.readouterr().out
        assert not target.exists()

    def test_a_truncated_file(self, tmp_path: Path, capsys):
        source = save(tmp_path / "vae.pth", {"x": torch.ones(5000)})
        content = source.read_bytes()
        for length in range(0, len(content), len(content) // 20):
            source.write_bytes(content[:length])
            assert convert_pickle.main([str(source), "vae", str(tmp_path / "tensors")])
            assert "no readable torch file" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
class TestContents:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"decoder.up.3.block.1.norm1.norm.bias": None}, ["1 missing keys", "up.3.block.1"]),
            ({"encoder.mid.attn_1.q.weight": torch.ones(2)}, ["1 unexpected keys", "attn_1.q"]),
            ({"encoder.conv_in.conv.weight": None}, ["conv_in.conv.weight: missing"]),
            (
                {"encoder.conv_in.weight": torch.ones(2)},
                ["encoder.conv_in.conv.weight: there twice, also as encoder.conv_in.weight"],
            ),
            (
                {"decoder.conv_in.conv.weight": torch.ones(128, 24, 3, 3)},
                ["decoder.conv_in.conv.weight: shape [128, 16, 3, 3] is needed", "[128, 24, 3, 3]"],
            ),
            (
                {"encoder.norm_out.norm.bias": torch.ones(128).double()},
                ["encoder.norm_out.norm.bias: F32, F16 or BF16 is needed, got F64"],
            ),
            (
                {"encoder.norm_out.norm.bias": torch.full((128,), torch.nan)},
                ["encoder.norm_out.norm.bias: has NaN or Inf"],
            ),
            (
                {"quantizer.lfq.mask": torch.ones(D)},
                ["quantizer.lfq.mask: 16 whole numbers are needed, got F32 [16]"],
            ),
            ({"quantizer.lfq.mask": torch.ones(D + 1).long()}, ["got I64 [17]"]),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, change: dict, words: list[str]):
        state = {k: v for k, v in (public_state() | change).items() if v is not None}
        refuses(save(tmp_path / "vae.pth", state), *words)

    def test_a_missing_block_is_no_other_architecture(self, tmp_path: Path):
        block = "encoder.down.4.block.1."
        state = {k: v for k, v in public_state().items() if not k.startswith(block)}
        refuses(save(tmp_path / "vae.pth", state), "8 missing keys", block, "and 3 more")

    def test_the_mask_may_be_missing(self, tmp_path: Path):
        state = public_state()
        del state["quantizer.lfq.mask"]
        convert_infinity_vae(save(tmp_path / "vae.pth", state), tmp_path / "out")
        assert "encoder.conv_in.conv.weight" in load_tokenizer(tmp_path / "out").state_dict()

    def test_old_and_new_names_and_half_precision(self, tmp_path: Path):
        """The same bytes come from both, and 16-bit weights become float32 ones."""
        for name, state in (("new", public_state()), ("old", old_state())):
            halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            convert_infinity_vae(save(tmp_path / f"{name}.pth", halves), tmp_path / name)
        files = [
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in ("new", "old")
        ]
        assert files[0].keys() == {"config.json", "model.safetensors"}
        assert files[0] == files[1]
        loaded = load_tokenizer(tmp_path / "old").state_dict()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, public_state()[name].half().float()), name


class TestFolder:
    def test_a_used_folder_is_left_alone(self, folders: dict[str, Path], tmp_path: Path):
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(CheckpointError, match="is not empty"):
            convert_infinity_vae(folders["new"], tmp_path)
        with pytest.raises(CheckpointError, match=r"thesis\.txt: is not a folder"):
            convert_infinity_vae(folders["new"], tmp_path / "thesis.txt")
        with pytest.raises(CheckpointError, match="is not empty"):
            convert_infinity_vae(folders["new"], folders["2d"])
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.usefixtures("in_process")
    def test_an_empty_folder_is_filled(self, folders: dict[str, Path], tmp_path: Path):
        (tmp_path / "out").mkdir()
        convert_infinity_vae(folders["new"], tmp_path / "out")
        assert load_tokenizer(tmp_path / "out").config.latent_dim == D
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.usefixtures("in_process")
    def test_a_failed_write_leaves_nothing(
        self, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_, **__):
            raise OSError("disk full")

        monkeypatch.setattr("videoar.runtime.checkpoint_write.save_file", fail)
        with pytest.raises(CheckpointError, match="disk full"):
            convert_infinity_vae(folders["new"], tmp_path / "out")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("name", "words"), [("no.pth", "does not exist"), ("", "not a file")])
    def test_no_source(self, tmp_path: Path, name: str, words: str):
        with pytest.raises(CheckpointError, match=words):
            convert_infinity_vae(tmp_path / name, tmp_path / "out")


def moving_bar(num_frames: int, height: int, width: int) -> np.ndarray:
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[4:20, 2 * i : 2 * i + 10] = (250, 120, 30)
    return frames


@pytest.mark.usefixtures("in_process")
class TestCommands:
    def test_convert_then_reconstruct(self, folders: dict[str, Path], tmp_path: Path, capsys):
        source, out, target = tmp_path / "in.mp4", tmp_path / "out", tmp_path / "back.mp4"
        write_video(source, moving_bar(6, 36, 50), fps=12)
        words = ["convert", "infinity-vae", str(folders["new"]), str(out), "--inflate", "--json"]
        assert main(words) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["latent_dim"], facts["channels"], facts["inflated"]) == (D, CHANNELS, True)
        assert (facts["spatial_compression"], facts["temporal_compression"]) == (16, 4)
        loaded = load_tokenizer(out)
        assert loaded.config == TokenizerConfig(latent_dim=D, channels=CHANNELS)
        assert facts["parameters"] == sum(p.numel() for p in loaded.parameters())
        assert main(["reconstruct", "--model", str(out), str(source), "-o", str(target)]) == 0
        printed, err = capsys.readouterr()
        assert "the first 5 of 6 frames are used (1 + 4n)" in err
        # The input's size, down to multiples of 16.
        assert printed.startswith(f"{target}: 5 frames of 48x32, PSNR ")
        decoded, fps = read_video(target)
        assert (decoded.shape, fps) == ((5, 32, 48, 3), 12)

    def test_scales_and_frame_size(self, folders: dict[str, Path], tmp_path: Path, capsys):
        source = write_video(tmp_path / "in.png", moving_bar(1, 70, 70))
        words = ["reconstruct", source, "-o", tmp_path / "a.png", "--model", folders["2d"]]
        # By default 64x64 pixels are 4x4 cells in the scales 1, 2, 3, 4.
        options = ("--size=64", "--size=64x64 --sizes=1,2,3x3,4x4", "--size=64 --sizes=4")
        for option, tokens in zip(options, (30, 30, 16), strict=True):
            assert main([str(word) for word in [*words, *option.split(), "--json"]]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert (facts["height"], facts["width"]) == (64, 64)
            assert facts["bits_per_pixel"] == pytest.approx(tokens * D / 64**2)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ("--size 44", "height: must be a multiple of 16, got 44; nearest: 48"),
            ("--size 4x", "argument --size: a size such as 64x96 is needed, got '4x'"),
            ("--sizes 1,2", "sizes: must end with the latent grid 1x2 and fit in it"),
            ("--size 32 --sizes 1,3,2", "sizes: must end with the latent grid 2x2 and fit in it"),
        ],
    )
    def test_bad_sizes(self, folders: dict[str, Path], tmp_path: Path, capsys, more, message):
        source = write_video(tmp_path / "in.png", moving_bar(1, 16, 32))
        words = ["reconstruct", source, "-o", tmp_path / "a.png", "--model", folders["2d"]]
        assert main([*map(str, words), *more.split()]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "a.png").exists()

    def test_a_whole_model_at_another_size(self, tiny_folder: Path, tmp_path: Path, capsys):
        source = write_video(tmp_path / "in.png", moving_bar(1, 40, 40))
        words = ["reconstruct", source, "-o", tmp_path / "a.png", "--model", tiny_folder, "--json"]
        # 8 bits a token; 16x16 pixels are 2x2 cells: the model's scales, given ones, the default.
        for more, side, tokens in (("16", 16, 5), ("16 --sizes=2", 16, 4), ("32", 32, 30)):
            assert main([*map(str, words), "--size", *more.split()]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert (facts["height"], facts["width"]) == (side, side)
            assert facts["bits_per_pixel"] == pytest.approx(tokens * 8 / side**2)

    def test_no_tokenizer_folder(self, tiny_folder: Path, tmp_path: Path, capsys):
        source = write_video(tmp_path / "in.png", moving_bar(1, 16, 16))
        words = ["reconstruct", source, "-o", tmp_path / "a.png", "--model"]
        assert main([*map(str, words), str(tiny_folder / "transformer")]) == 1
        assert 'format: "videoar-video_tokenizer-1" is needed' in capsys.readouterr().err
        assert main([*map(str, words), str(tmp_path)]) == 1
        assert "model_index.json: does not exist" in capsys.readouterr().err

    def test_errors_are_one_line(self, tmp_path: Path, capsys):
        words = ["convert", "infinity-vae", str(tmp_path / "no.pth"), str(tmp_path / "out")]
        assert main(words) == 1
        assert capsys.readouterr().err == f"videoar: error: {tmp_path}/no.pth: does not exist\n"
        assert main(["convert", "sora", "a", "b"]) == 2
        assert "invalid choice: 'sora'" in capsys.readouterr().err
