"""The tokenizer's loss, term by term, and both of its stages with everything on."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_tokenizer as module
from videoar.training.adversarial import Adversary, GanConfig
from videoar.training.perceptual import PerceptualConfig, _shapes
from videoar.training.train_tokenizer import (
    ERRORS,
    TokenizerTraining,
    adversarial_loss,
    quantizer_loss,
    takes_images,
    tokenizer_loss,
    train_tokenizer,
)

SIZES = DIGITS_TRANSFORMER.sizes
SMALL = replace(DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=8, decoder_blocks=(1,) * 4)
GAN = GanConfig(weight=0.1, adaptive=True, start=1, channels=16, layers=2)
EVERYTHING = TokenizerTraining(
    image_steps=3,
    continuous_steps=1,
    image_batch=2,
    clip_steps=6,
    clip_batch=1,
    image_share=0.5,
    reconstruction="charbonnier",
    reconstruction_weight=1.0,
    entropy=0.1,
    gan=GAN,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", (0.2 + 0.6) / 2),
        ("l2", (0.04 + 0.36) / 2),
        ("charbonnier", (0.040001**0.5 + 0.360001**0.5) / 2),
    ],
)
def test_reconstruction_errors_by_hand(name: str, expected: float) -> None:
    x, y = torch.tensor([0.4, -0.2]), torch.tensor([0.0, 1.0])
    # Differences in [0,1] units: 0.2 and 0.6.
    assert ERRORS[name](x, y).item() == pytest.approx(expected, rel=1e-6)
    x.requires_grad_()
    ERRORS[name](x, y).backward()
    assert x.grad[0] > 0 > x.grad[1]


def test_charbonnier_is_smooth_at_zero() -> None:
    x = torch.zeros(3, requires_grad=True)
    ERRORS["charbonnier"](x, torch.zeros(3)).backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_quantizer_terms_by_hand() -> None:
    terms = {"commitment": 0.5, "sample_entropy": 0.6, "batch_entropy": 0.4}
    terms = {name: torch.tensor(value) for name, value in terms.items()}
    config = TokenizerTraining(commitment=0.2, entropy=3.0)
    assert quantizer_loss(terms, config).item() == pytest.approx(0.1 + 0.6)


@pytest.fixture(scope="module")
def small() -> tuple[VideoTokenizer, Tensor]:
    torch.manual_seed(0)
    return VideoTokenizer(SMALL), torch.rand(1, 3, 5, 64, 64) * 2 - 1


def gradients(loss: Tensor, network: torch.nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [torch.zeros(()) if grad is None else grad for grad in found]


def test_the_two_graphs_do_not_meet(small: tuple[VideoTokenizer, Tensor]) -> None:
    """The discriminator's loss moves the discriminator alone, and the tokenizer's term it not."""
    model, video = small
    torch.manual_seed(1)
    adversary = Adversary(replace(GAN, adaptive=False, lecam=0.0))
    output = model.decode(model.encode(video))
    loss = (output - video).square().mean()
    total, _ = adversarial_loss(model, video, output, loss, adversary)
    total.backward(retain_graph=True)
    own, _ = adversary.discriminator_loss(video, output)
    for expected, p in zip(gradients(own, adversary), adversary.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected)
    term = 0.1 * adversary.generator_loss(output)
    for expected, p in zip(gradients(term, model.decoder), model.decoder.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected)
    model.zero_grad(set_to_none=True)


def test_adaptive_weight_makes_the_slopes_equal(small: tuple[VideoTokenizer, Tensor]) -> None:
    model, video = small
    adversary = Adversary(replace(GAN, weight=0.25))
    output = model.decode(model.encode(video))
    loss = (output - video).square().mean()
    _, values = adversarial_loss(model, video, output, loss, adversary)
    last = model.decoder.conv_out.conv.weight
    slopes = [
        torch.autograd.grad(term, last, retain_graph=True)[0].norm().item()
        for term in (loss, adversary.generator_loss(output))
    ]
    assert values["gan_weight"] * slopes[1] == pytest.approx(0.25 * slopes[0], rel=1e-2)


def test_terms_that_are_off_cost_nothing(small: tuple[VideoTokenizer, Tensor]) -> None:
    model, video = small
    config = TokenizerTraining(commitment=0.0, reconstruction_weight=2.0)
    loss, values = tokenizer_loss(model, video, SIZES, config)
    assert loss.item() == pytest.approx(2 * 10 ** (-values["psnr"] / 10), rel=1e-5)
    assert set(values) == {"psnr", "commitment", "sample_entropy", "batch_entropy"}
    continuous, values = tokenizer_loss(model, video, None, config)
    assert set(values) == {"psnr"}
    assert continuous.item() != loss.item()


def test_frames_are_mixed_in_by_seed_and_step() -> None:
    drawn = [takes_images(3, draw, 0.25) for draw in range(2000)]
    assert drawn == [takes_images(3, draw, 0.25) for draw in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.25, abs=0.03)
    assert drawn != [takes_images(4, draw, 0.25) for draw in range(2000)]
    assert not any(takes_images(3, draw, 0.0) for draw in range(100))
    assert all(takes_images(3, draw, 1.0) for draw in range(100))


class Killed(BaseException):
    """The process is gone."""


def kill_at(call: int) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """`tokenizer_loss` that ends the process instead of its n-th call."""
    count = 0

    def loss(*args: object) -> tuple[Tensor, dict[str, float]]:
        nonlocal count
        count += 1
        if count > call:
            raise Killed
        return tokenizer_loss(*args)

    return loss


def states(folder: Path) -> dict[str, Tensor]:
    names = ("image", "clip")
    files = {name: load_file(folder / name / "state.safetensors") for name in names}
    return {f"{name}/{key}": value for name in names for key, value in files[name].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The state of an uninterrupted run, two batches a step."""
    folder = tmp_path_factory.mktemp("whole")
    train_tokenizer(folder, SMALL, SIZES, replace(EVERYTHING, optim={"accumulate": 2}))
    return states(folder)


# Calls of the image stage: 6; of the clip stage: 12. States are written every third step.
@pytest.mark.parametrize("calls", [6 + 6, 6 + 9])
def test_resume_is_exact(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    config = replace(EVERYTHING, optim={"accumulate": 2})
    monkeypatch.setattr(module, "Run", partial(module.Run, save_every=3))
    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenizer_loss", kill_at(calls))
        with pytest.raises(Killed):
            train_tokenizer(tmp_path, SMALL, SIZES, config)
    train_tokenizer(tmp_path, SMALL, SIZES, config)
    resumed = states(tmp_path)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    parts = ("model.encoder", "ema.decoder", "optimizer.exp_avg_sq.decoder")
    parts += ("adversary.model.discriminator", "adversary.model.lecam.real")
    parts += ("adversary.optimizer.exp_avg.discriminator",)
    for part in parts:
        assert any(name.startswith(f"clip/{part}") for name in whole), part
    assert whole["clip/adversary.model.lecam.total"] > 0


def test_the_discriminator_waits_for_its_step(tmp_path: Path) -> None:
    gan = replace(GAN, start=2)
    config = replace(EVERYTHING, image_steps=1, clip_steps=2, image_share=1.0, gan=gan)
    train_tokenizer(tmp_path, SMALL, SIZES, config)
    saved = states(tmp_path)
    assert saved["clip/adversary.model.lecam.total"] == 0
    assert not any(name.startswith("clip/adversary.optimizer") for name in saved)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature network of random weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(shape, generator=generator) / (9 * shape[-3 if len(shape) == 4 else 0])
        for name, shape in _shapes().items()
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(weights, path)
    return path


def test_both_stages_with_every_term(tmp_path: Path, network: Path) -> None:
    config = replace(
        EVERYTHING,
        image_steps=2,
        image_batch=1,
        clip_steps=2,
        image_share=0.0,
        perceptual=PerceptualConfig(path=str(network)),
        gan=replace(GAN, start=0),
    )
    trained = train_tokenizer(tmp_path, SMALL, SIZES, config)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    line = json.loads((tmp_path / "clip" / "log.jsonl").read_text().splitlines()[0])
    terms = {"psnr", "lpips", "gan", "gan_weight", "disc", "lecam", "commitment", "adversary_norm"}
    assert terms <= line.keys()
    assert line["lpips"] > 0
    # The inflated model starts as the 2D one: it has moved, but from there.
    image = load_file(tmp_path / "image" / "state.safetensors")["ema.decoder.conv_in.conv.weight"]
    moved = trained.state_dict()["decoder.conv_in.conv.weight"] - image
    assert 0 < moved.abs().max() < 0.01


def test_the_log_says_what_is_off(tmp_path: Path) -> None:
    config = TokenizerTraining(image_steps=1, image_batch=1, clip_steps=1, clip_batch=1)
    train_tokenizer(tmp_path, SMALL, SIZES, config)
    lines = [json.loads(x) for x in (tmp_path / "clip" / "log.jsonl").read_text().splitlines()]
    assert "perceptual term off" in lines[0]["note"]
    assert not any(name.startswith("adversary") for name in states(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reconstruction": "l3"}, "reconstruction"),
        ({"image_share": 1.5}, "image_share"),
        ({"entropy": -1.0}, "entropy"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight"),
    ],
)
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerTraining(**values)
