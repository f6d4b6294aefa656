"""The perceptual distance: against a plain VGG16 and by hand, and what its loader refuses."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from videoar.runtime.errors import CheckpointError
from videoar.training.perceptual import PerceptualConfig, _shapes, load_perceptual

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in _shapes().items():
        scale = (2 / (9 * shape[1])) ** 0.5 if len(shape) == 4 else 0.1
        values[name] = torch.randn(shape, generator=generator) * scale
        if name.startswith("lin"):
            values[name] = torch.rand(shape, generator=generator)
    return values


@pytest.fixture(scope="module")
def files(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("vgg")
    heads = {name: value for name, value in weights.items() if name.startswith("lin")}
    features = {name: value for name, value in weights.items() if name not in heads}
    # What a classifier's file has behind the features is left out.
    save_file(features | {"classifier.6.bias": torch.zeros(1000)}, folder / "vgg.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return folder / "vgg.safetensors", folder / "heads.safetensors"


def plain_distance(weights: Weights, x: Tensor, y: Tensor) -> float:
    """The published recipe, layer by layer from the network's table, float64, for one image."""
    table = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512]
    layers: list[nn.Module] = []
    for width in table:
        if not width:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        number = len(layers)
        kernel = weights[f"features.{number}.weight"].double()
        conv = nn.Conv2d(kernel.shape[1], width, 3, padding=1).double()
        conv.weight.data.copy_(kernel)
        conv.bias.data.copy_(weights[f"features.{number}.bias"])
        layers += [conv, nn.ReLU()]
    features: list[list[Tensor]] = [[], []]
    for image, found in zip((x, y), features, strict=True):
        shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(1, 3, 1, 1)
        h = (image.double() - shift) / torch.tensor([0.458, 0.448, 0.450]).double().view(1, 3, 1, 1)
        for number, layer in enumerate(layers):
            h = layer(h)
            if number in (3, 8, 15, 22, 29):
                found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
    total = 0.0
    for stage, (a, b) in enumerate(zip(*features, strict=True)):
        head = weights[f"lin{stage}.model.1.weight"].double()
        total += F.conv2d((a - b) ** 2, head).mean().item()
    return total


def test_against_the_plain_network(weights: Weights, files: tuple[Path, Path]) -> None:
    perceptual = load_perceptual(*files)
    x, y = torch.rand(2, 2, 3, 2, 32, 48) * 2 - 1
    frames = [(x[b, :, t][None], y[b, :, t][None]) for b in range(2) for t in range(2)]
    with torch.no_grad():
        each = [plain_distance(weights, *pair) for pair in frames]
        assert perceptual(x, y).item() == pytest.approx(sum(each) / 4, rel=1e-5)
        assert perceptual(x, x).item() == 0
        assert perceptual(x, y).item() == pytest.approx(perceptual(y, x).item(), rel=1e-6)


def test_by_hand(tmp_path: Path) -> None:
    """Convolutions that hand channels 0 and 1 on: a unit vector (r, g) at every position."""
    weights = {name: torch.zeros(shape) for name, shape in _shapes().items()}
    for name, value in weights.items():
        if name.startswith("features") and name.endswith("weight"):
            value[0, 0, 1, 1] = value[1, 1, 1, 1] = 1
        if name.startswith("lin"):
            value[:] = 10.0 ** int(name[3])
    save_file(weights, tmp_path / "all.safetensors")
    perceptual = load_perceptual(tmp_path / "all.safetensors")
    scaled = torch.tensor([[0.3, 0.4, 9.0], [0.8, 0.6, -9.0]])
    pixels = scaled * torch.tensor([0.458, 0.448, 0.450]) - torch.tensor([0.030, 0.088, 0.188])
    x, y = pixels.view(2, 1, 3, 1, 1, 1).expand(2, 1, 3, 1, 16, 16)
    # Unit vectors (0.6, 0.8) and (0.8, 0.6): 2 * 0.2^2 in every stage, heads 1, 10, ... 10000.
    assert perceptual(x, y).item() == pytest.approx(0.08 * 11111, rel=1e-5)


def test_gradient_reaches_the_reconstruction_only(files: tuple[Path, Path]) -> None:
    perceptual = load_perceptual(*files)
    assert not list(perceptual.parameters())
    x, y = (torch.rand(2, 1, 3, 1, 16, 16) * 2 - 1).unbind()
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    before = perceptual(x, y)
    before.backward()
    assert y.grad is None
    with torch.no_grad():
        after = perceptual(x - 0.01 * x.grad / x.grad.abs().max(), y)
    assert after < before


def test_positions_without_features_have_a_gradient(weights: Weights, tmp_path: Path) -> None:
    silent = {n: v.clone() for n, v in weights.items()}
    silent["features.0.bias"] -= 100
    save_file(silent, tmp_path / "silent.safetensors")
    x = torch.zeros(1, 3, 1, 16, 16, requires_grad=True)
    load_perceptual(tmp_path / "silent.safetensors")(x, torch.ones(1, 3, 1, 16, 16)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("features.7.bias"), "missing keys: features.7.bias"),
        (lambda w: w.pop("lin3.model.1.weight"), "missing keys: lin3.model.1.weight"),
        (lambda w: w.update({"net.slice1.0.weight": torch.ones(1)}), "unknown keys: net.slice1"),
        (lambda w: w.update({"features.0.bias": torch.ones(3)}), r"features.0.bias.*\[64\].*\[3\]"),
        (lambda w: w["features.2.bias"].fill_(float("nan")), "features.2.bias: not finite"),
    ],
)
def test_bad_weights(weights: Weights, tmp_path: Path, change, message: str) -> None:
    # Shared storage would be refused by the writer, so that only what is changed is copied.
    changed = dict(weights) | {"features.2.bias": weights["features.2.bias"].clone()}
    change(changed)
    save_file(changed, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_perceptual(tmp_path / "bad.safetensors")


def test_bad_arguments(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for path in (tmp_path / "torn.safetensors", tmp_path / "nowhere.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            load_perceptual(path)
    with pytest.raises(CheckpointError, match="missing keys: lin0"):
        load_perceptual(files[0])
    perceptual = load_perceptual(*files)
    with pytest.raises(ValueError, match="at least 16"):
        perceptual(torch.zeros(1, 3, 1, 8, 32), torch.zeros(1, 3, 1, 8, 32))
    with pytest.raises(ValueError, match=r"^weight: "):
        PerceptualConfig(weight=-1)
    with pytest.raises(ValueError, match=r"^heads: "):
        PerceptualConfig(heads="heads.safetensors")
