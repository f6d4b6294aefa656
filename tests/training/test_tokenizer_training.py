"""The tokenizer's loss, term by term, and both of its stages with everything on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_folder import save_tokenizer
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER, preset
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_tokenizer as module
from videoar.training.adversarial import Adversary, GanConfig
from videoar.training.perceptual import PerceptualConfig, _shapes
from videoar.training.recipes import TokenizerStage, TokenizerTraining
from videoar.training.sources import Shape
from videoar.training.stages import check_resumed, note_config
from videoar.training.state import read_state
from videoar.training.tokenizer_loss import (
    ERRORS,
    adversarial_loss,
    quantizer_loss,
    tokenizer_loss,
)
from videoar.training.train_tokenizer import train_tokenizer

SIZES = DIGITS_TRANSFORMER.sizes
SMALL = replace(DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=8, decoder_blocks=(1,) * 4)
GAN = GanConfig(weight=0.1, adaptive=True, start=1, channels=16, layers=2)
MODEL = replace(
    preset("digits"),
    tokenizer=SMALL,
    transformer=replace(DIGITS_TRANSFORMER, latent_dim=8, max_frames=2),
)
IMAGE = TokenizerStage(
    name="image",
    form="2d",
    steps=3,
    continuous_steps=1,
    learning_rate=1e-3,
    shapes=(Shape(frames=1, batch=2),),
)
CLIP = TokenizerStage(name="clip", steps=6, learning_rate=6e-4, shapes=(Shape(batch=1),))
MIXED = replace(CLIP, shapes=(Shape(frames=1, batch=2, share=0.5), Shape(batch=1, share=0.5)))
PLAIN = TokenizerTraining(stages=(replace(IMAGE, steps=1), replace(CLIP, steps=1)))
EVERYTHING = TokenizerTraining(
    stages=(IMAGE, MIXED),
    save_every=3,
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
    config = replace(PLAIN, commitment=0.2, entropy=3.0)
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
    config = replace(PLAIN, commitment=0.0, reconstruction_weight=2.0)
    loss, values = tokenizer_loss(model, video, SIZES, config)
    assert loss.item() == pytest.approx(2 * 10 ** (-values["psnr"] / 10), rel=1e-5)
    assert set(values) == {"psnr", "commitment", "sample_entropy", "batch_entropy"}
    continuous, values = tokenizer_loss(model, video, None, config)
    assert set(values) == {"psnr"}
    assert continuous.item() != loss.item()


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
    files = {name: read_state(folder / name) for name in names}
    return {f"{name}/{key}": value for name in names for key, value in files[name].items()}


TWICE = replace(EVERYTHING, stages=tuple(replace(x, accumulate=2) for x in EVERYTHING.stages))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The state of an uninterrupted run, two batches a step."""
    folder = tmp_path_factory.mktemp("whole")
    train_tokenizer(folder, MODEL, TWICE)
    return states(folder)


# Calls of the image stage: 6; of the clip stage: 12. States are written every third step.
@pytest.mark.parametrize("calls", [6 + 6, 6 + 9])
def test_resume_is_exact(
    whole: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenizer_loss", kill_at(calls))
        with pytest.raises(Killed):
            train_tokenizer(tmp_path, MODEL, TWICE)
    train_tokenizer(tmp_path, MODEL, TWICE)
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
    stages = (replace(IMAGE, steps=1), replace(CLIP, steps=2, shapes=IMAGE.shapes))
    config = replace(EVERYTHING, stages=stages, gan=replace(GAN, start=2))
    train_tokenizer(tmp_path, MODEL, config)
    saved = states(tmp_path)
    assert saved["clip/adversary.model.lecam.total"] == 0
    assert not any(name.startswith("clip/adversary.optimizer") for name in saved)


def test_the_discriminator_learns_on_in_the_next_stage(tmp_path: Path) -> None:
    """Here it learns in the first stage alone: the second one is over before its step."""
    stages = (replace(IMAGE, continuous_steps=0), replace(CLIP, steps=1, shapes=IMAGE.shapes))
    train_tokenizer(tmp_path, MODEL, replace(EVERYTHING, stages=stages))
    saved = states(tmp_path)
    learned = [key for key in saved if key.startswith("image/adversary.model.")]
    assert saved["image/adversary.model.lecam.total"] > 0
    for key in learned:
        assert torch.equal(saved[key], saved[key.replace("image/", "clip/")]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: the run in .* began with 0, now it is 1"),
        ({"gan": replace(GAN, weight=0.2)}, r"gan.weight: .* began with 0.1, now it is 0.2"),
        (
            {"stages": (replace(IMAGE, shapes=(Shape(frames=1, batch=3),)), CLIP)},
            r"stages\[0\].shapes\[0\].batch: .* began with 2, now it is 3",
        ),
        ({"stages": (CLIP,)}, None),
        ({"stages": (IMAGE, replace(CLIP, steps=1)), "save_every": 7, "workers": 0}, None),
    ],
)
def test_a_run_goes_on_as_it_began(
    tmp_path: Path, change: dict[str, object], message: str | None
) -> None:
    """But stages that have not begun may change."""
    config, model = replace(EVERYTHING, stages=(IMAGE, CLIP)), {"height": 32}
    note_config(tmp_path, config, model)
    check_resumed(tmp_path, replace(config, **change), model)
    (tmp_path / "image" / "state-00000003").mkdir(parents=True)
    if message is None:
        check_resumed(tmp_path, replace(config, **change), model)
        return
    with pytest.raises(ValueError, match=message) as error:
        check_resumed(tmp_path, replace(config, **change), model)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_config_of_a_run_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "image" / "state-00000003").mkdir(parents=True)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        check_resumed(tmp_path, PLAIN, {})


def test_a_run_goes_on_with_the_model_it_began_with(tmp_path: Path) -> None:
    """What has the same name and shapes may still be another one."""
    train_tokenizer(tmp_path, MODEL, PLAIN)
    train_tokenizer(tmp_path, replace(MODEL, temperature=0.5), PLAIN)
    with pytest.raises(ValueError, match=r"model\.fps: .* began with 8, now it is 12"):
        train_tokenizer(tmp_path, replace(MODEL, fps=12), PLAIN)
    path = tmp_path / "config.json"
    noted = json.loads(path.read_text())
    del noted["model"]
    path.write_text(json.dumps(noted))
    train_tokenizer(tmp_path, replace(MODEL, fps=12), PLAIN)


def test_a_changed_config_is_refused_before_the_first_step(tmp_path: Path) -> None:
    train_tokenizer(tmp_path, MODEL, PLAIN)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=r"commitment: .*; choose another folder"):
        train_tokenizer(tmp_path, MODEL, replace(PLAIN, commitment=1.0))
    assert (tmp_path / "config.json").read_text() == before


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
        stages=(
            replace(IMAGE, steps=2, shapes=(Shape(frames=1, batch=1),)),
            replace(CLIP, steps=2),
        ),
        perceptual=PerceptualConfig(path=str(network)),
        gan=replace(GAN, start=0),
    )
    trained = train_tokenizer(tmp_path, MODEL, config)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    line = json.loads((tmp_path / "clip" / "log.jsonl").read_text().splitlines()[0])
    terms = {"psnr", "lpips", "gan", "gan_weight", "disc", "lecam", "commitment", "adversary_norm"}
    assert terms <= line.keys()
    assert line["lpips"] > 0
    # The inflated model starts as the 2D one: it has moved, but from there.
    image = read_state(tmp_path / "image")["ema.decoder.conv_in.conv.weight"]
    moved = trained.state_dict()["decoder.conv_in.conv.weight"] - image
    assert 0 < moved.abs().max() < 0.01


def test_the_log_says_what_is_off(tmp_path: Path) -> None:
    train_tokenizer(tmp_path, MODEL, PLAIN)
    lines = [json.loads(x) for x in (tmp_path / "clip" / "log.jsonl").read_text().splitlines()]
    assert "perceptual term off" in lines[0]["note"]
    assert not any(name.startswith("adversary") for name in states(tmp_path))


def test_a_run_starts_from_another_ones_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(5)
    flat, solid = VideoTokenizer(SMALL.as_2d()), VideoTokenizer(SMALL)
    for name, model in (("flat", flat), ("solid", solid)):
        save_tokenizer(tmp_path / name / "video_tokenizer", model)
    # A learning rate of next to nothing: the weights stay where they start.
    clip = replace(CLIP, steps=1, learning_rate=1e-12, shapes=(Shape(frames=5, batch=1),))
    config = replace(PLAIN, stages=(clip,), start=str(tmp_path / "flat"))
    trained = train_tokenizer(tmp_path / "a", MODEL, config)
    weight = "decoder.conv_in.conv.weight"
    torch.testing.assert_close(
        trained.state_dict()["encoder.conv_in.conv.weight"],
        flat.state_dict()["encoder.conv_in.conv.weight"],
    )
    image = torch.rand(1, 3, 1, 64, 64)
    torch.testing.assert_close(
        trained.encode(image), flat.eval().encode(image), rtol=1e-4, atol=1e-4
    )
    trained = train_tokenizer(tmp_path / "b", MODEL, replace(config, start=str(tmp_path / "solid")))
    torch.testing.assert_close(trained.state_dict()[weight], solid.state_dict()[weight])
    with pytest.raises(ValueError, match=r"stages\[0\]\.form: 3d is needed"):
        train_tokenizer(tmp_path / "c", MODEL, replace(PLAIN, start=str(tmp_path / "solid")))
    wide = replace(MODEL, tokenizer=replace(SMALL, channels=32))
    with pytest.raises(CheckpointError, match=r"start: .*flat: channels: 16, this run's has 32"):
        train_tokenizer(tmp_path / "d", wide, config)
    assert not (tmp_path / "c").exists()


def test_images_alone_give_an_inflated_tokenizer(tmp_path: Path) -> None:
    config = replace(PLAIN, stages=(replace(IMAGE, steps=1),))
    assert train_tokenizer(tmp_path, MODEL, config).config == SMALL
