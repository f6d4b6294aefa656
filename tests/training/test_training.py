"""The transformer's training: history corruption, batches, bit accuracy, and that it learns."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.errors import CheckpointError
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER
from videoar.runtime.schedule import default_sizes
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import train_transformer as module
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.digit_sources import DigitFrames, DigitLatents, cached_latents
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.folder_config import DataConfig
from videoar.training.frame_mask import FrameMaskConfig
from videoar.training.learner import OptimSettings
from videoar.training.recipes import TransformerStage, TransformerTraining
from videoar.training.run import LOG_EVERY, OptimConfig, Run, logged, row_generators, train
from videoar.training.sources import Shape
from videoar.training.teacher_forcing import (
    Batch,
    accuracy_values,
    bit_accuracy,
    make_batch,
    transformer_loss,
)
from videoar.training.train_transformer import train_transformer
from videoar.training.world import World

SIZES = DIGITS_TRANSFORMER.sizes
TEXT = digits_text_tokenizer()
CAPTION = "a red 3 moving left"
SMALL_TOKENIZER = replace(
    DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=8, decoder_blocks=(1,) * 4
)
SMALL_TRANSFORMER = replace(
    DIGITS_TRANSFORMER, layers=1, width=32, heads=1, kv_heads=1, mlp_width=64, latent_dim=8
)
PLAIN = FlipConfig(p_max=0.0, delta=0.0)
STAGE = TransformerStage(
    name="clip", steps=2, learning_rate=1e-3, warmup=0, shapes=(Shape(batch=2),), flip=PLAIN
)


def probabilities(frames: int = 4, **changes: object) -> Tensor:
    config = FlipConfig(**({"p_min": 0.1, "p_max": 0.3, "delta": 0.05} | changes))
    return flip_probabilities(config, 4000, frames, 3, torch.Generator().manual_seed(0))


def test_flip_probabilities_follow_the_paper() -> None:
    p = probabilities()
    for t in range(4):
        low, high = 0.1 + 0.05 * t, 0.3 + 0.05 * t
        for k in range(3):
            values = p[:, t, k]
            if k > 0 or t == 0:
                assert values.min() >= low
                assert values.max() <= high
                assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01)
            else:
                inherited = p[:, t - 1, -1]
                assert (values >= inherited).all()
                assert (values <= high).all()
                share = ((values - inherited) / (high - inherited)).mean()
                assert share.item() == pytest.approx(0.5, abs=0.02)


def test_without_inheritance_first_scales_are_like_the_others() -> None:
    p, inherited = probabilities(inherit=False), probabilities()
    # The same draws: nothing else changes.
    assert torch.equal(p[:, :, 1:], inherited[:, :, 1:])
    for t in range(1, 4):
        first = p[:, t, 0]
        assert first.mean().item() == pytest.approx(0.2 + 0.05 * t, abs=0.01)
        assert (first < p[:, t - 1, -1]).any()
        assert first.min() >= 0.1 + 0.05 * t


def test_one_scale_passes_on_what_it_has_inherited() -> None:
    config = FlipConfig(p_min=0.1, p_max=0.3, delta=0.05)
    p = flip_probabilities(config, 4000, 4, 1, torch.Generator().manual_seed(0))[..., 0]
    assert (p.diff(dim=1) >= 0).all()


def test_without_a_ramp_all_frames_are_alike() -> None:
    p = probabilities(delta=0.0, inherit=False)
    assert p.mean(dim=(0, 2)).tolist() == pytest.approx([0.2] * 4, abs=0.01)
    # A long ramp ends at certainty.
    assert probabilities(frames=30)[:, -1].eq(1).all()


def test_flip_settings() -> None:
    assert FlipConfig().enabled
    assert FlipConfig(p_max=0.0).enabled
    assert not PLAIN.enabled
    for values, name in (
        ({"p_min": -0.1}, "p_min"),
        ({"p_min": 0.5, "p_max": 0.2}, "p_max"),
        ({"p_max": 1.5}, "p_max"),
        ({"delta": -1.0}, "delta"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            FlipConfig(**values)


def test_flips_have_their_rate_by_scale() -> None:
    p = torch.tensor([0.0, 1.0, 0.25, 0.5]).expand(8, 2, 4)
    flips = draw_flips(p, SIZES, 16, torch.Generator().manual_seed(0))
    assert flips.shape == (8, 2, 30, 16)
    rates = [part.float().mean().item() for part in flips.split([1, 4, 9, 16], dim=2)]
    assert rates[:2] == [0.0, 1.0]
    assert rates[2:] == pytest.approx([0.25, 0.5], abs=0.02)


def batch_of(latents: Tensor, stage: TransformerStage = STAGE) -> Batch:
    sample = {"latents": latents, "captions": [CAPTION] * len(latents)}
    generators = row_generators(0, 1, range(len(latents)))
    return make_batch(sample, TEXT, DIGITS_TRANSFORMER, stage, generators)


def test_batches_hold_requantised_targets() -> None:
    latents = torch.randn(6, 32, 2, 4, 4)
    flip = FlipConfig(p_min=0.2, p_max=0.3)
    batch = batch_of(latents, replace(STAGE, dropout=0.5, flip=flip))
    assert set(batch.text_lengths.tolist()) == {1, 6}
    clean = bsq_quantize(latents, SIZES, return_inputs=True)
    assert torch.equal(batch.targets[:, :, 0], clean.targets[:, :, 0])
    assert not torch.equal(batch.targets, clean.targets)
    assert not torch.allclose(batch.inputs, clean.inputs)
    # Switched off, the history is the same and the targets are those of the clip itself.
    kept = batch_of(latents, replace(STAGE, dropout=0.5, flip=replace(flip, requantize=False)))
    assert torch.equal(kept.inputs, batch.inputs)
    assert torch.equal(kept.targets, clean.bits)
    batch = batch_of(latents, replace(STAGE, dropout=0.0))
    assert batch.text_lengths.tolist() == [6] * 6
    assert torch.equal(batch.targets, clean.targets)
    assert torch.equal(batch.inputs, clean.inputs)
    assert batch.frame_visible is None


def test_requantised_targets_by_hand() -> None:
    """One cell, two scales, one bit: Eq. 8 with numbers that can be followed."""
    latents, sizes = torch.full((1, 1, 1, 1, 1), 0.5), ((1, 1), (1, 1))
    clean = bsq_quantize(latents, sizes)
    # r = 0.5 gives bit 1; r = 0.5 - 1 = -0.5 gives bit 0.
    assert clean.targets.flatten().tolist() == [True, False]
    flips = torch.tensor([True, False]).view(1, 1, 2, 1)
    flipped = bsq_quantize(latents, sizes, flips=flips, return_inputs=True)
    # The model sees 0, so r = 0.5 + 1 = 1.5: the next bit repairs it.
    assert flipped.targets.flatten().tolist() == [True, True]
    assert flipped.inputs.flatten().tolist() == [0.0, -1.0]


def test_a_row_draws_the_same_in_any_batch() -> None:
    stage = replace(STAGE, dropout=0.5, flip=FlipConfig(), mask=FrameMaskConfig(p_mask=0.5))
    latents = torch.randn(6, 32, 3, 4, 4)
    whole = batch_of(latents, stage)
    sample = {"latents": latents[4:], "captions": [CAPTION] * 2}
    part = make_batch(sample, TEXT, DIGITS_TRANSFORMER, stage, row_generators(0, 1, range(4, 6)))
    for name in ("inputs", "targets", "frame_visible", "text_lengths"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[4:]), name


def test_masked_frames_are_not_seen() -> None:
    torch.manual_seed(0)
    model = Transformer(DIGITS_TRANSFORMER).eval()
    latents = torch.randn(2, 32, 3, 4, 4)
    hidden = batch_of(latents, replace(STAGE, dropout=0.0, mask=FrameMaskConfig(p_mask=1.0)))
    other = latents.clone()
    other[:, :, 0] = torch.randn_like(other[:, :, 0])
    changed = batch_of(other, replace(STAGE, dropout=0.0, mask=FrameMaskConfig(p_mask=1.0)))
    with torch.no_grad():
        (_, first), (_, second) = transformer_loss(model, hidden), transformer_loss(model, changed)
        _, plain = transformer_loss(model, batch_of(latents, replace(STAGE, dropout=0.0)))
    assert torch.equal(first[:, 2], second[:, 2])
    # Frame 1 is fed frame 0's accumulated features, whether it may look at it or not.
    assert not torch.equal(first[:, 1, 0], second[:, 1, 0])
    assert not torch.equal(first[:, 2], plain[:, 2])


def test_bit_accuracy_by_frame_and_scale() -> None:
    torch.manual_seed(0)
    targets = torch.rand(3, 2, 30, 8) < 0.5
    wrong = torch.zeros_like(targets)
    wrong[:, 0, 0] = True
    wrong[:, 1, 1:5, :2] = True
    wrong[0, 1, 14:] = True
    one = torch.where(targets ^ wrong, 1.0, -1.0)
    logits = torch.stack([-one, one], dim=-1).flatten(-2).bfloat16()
    table = bit_accuracy(logits, targets, SIZES)
    torch.testing.assert_close(table, torch.tensor([[0, 1, 1, 1], [1, 0.75, 1, 2 / 3]]))
    values = accuracy_values(table, SIZES)
    assert [values[f"bits_{k}"] for k in (1, 2, 3, 4)] == pytest.approx([0.5, 0.875, 1, 5 / 6])
    frames = [29 / 30, (1 + 3 + 9 + 16 * 2 / 3) / 30]
    assert [values["frame_1"], values["frame_2"]] == pytest.approx(frames)


def test_other_sizes_are_a_part_of_the_model() -> None:
    """A grid with fewer scales gives what a model made for it gives with the same weights."""
    torch.manual_seed(0)
    model = Transformer(DIGITS_TRANSFORMER).eval()
    batch = batch_of(torch.randn(2, 32, 2, 2, 2))
    assert batch.sizes == default_sizes(2, 2)
    small = Transformer(replace(DIGITS_TRANSFORMER, sizes=batch.sizes)).eval()
    weights = model.state_dict()
    weights["embed_scale.weight"] = weights["embed_scale.weight"][: len(batch.sizes)]
    small.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(transformer_loss(model, batch)[1], transformer_loss(small, batch)[1])


def test_digit_sources(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(SMALL_TOKENIZER).eval()
    whole = DigitFrames(5, 4, seed=7).batch(3)
    parts = [DigitFrames(5, 4, 7, World(rank=rank, size=2)).batch(3) for rank in range(2)]
    assert torch.equal(whole["frames"], torch.cat([part["frames"] for part in parts]))
    assert whole["captions"] == parts[0]["captions"] + parts[1]["captions"]
    source = DigitLatents(tmp_path, tokenizer, 3, 5, 8, seed=7)
    source.prepare()
    (path,) = tmp_path.iterdir()
    first = source.batch(0)
    assert first["latents"].shape == (8, 8, 2, 4, 4)
    assert first["latents"].dtype == torch.float16
    latents = cached_latents(tmp_path, tokenizer, 7, 3, 5)
    assert {x.numpy().tobytes() for x in first["latents"]} == {x.numpy().tobytes() for x in latents}
    # Another tokenizer's latents are other ones.
    cached_latents(tmp_path, VideoTokenizer(SMALL_TOKENIZER), 7, 3, 5)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.exists()


@pytest.mark.parametrize("period", range(1, 11))
def test_whatever_takes_turns_is_logged(period: int) -> None:
    lines = [step for step in range(1000) if logged(step)]
    assert {step % period for step in lines} == set(range(period))
    assert [step // LOG_EVERY for step in lines] == list(range(1000 // LOG_EVERY))
    assert [step for step in range(5) if logged(step, every=1)] == list(range(5))


def fit_line(folder: Path, steps: int, stop: int | None = None) -> dict[str, Tensor]:
    """A run on a linear layer; `stop` kills it before that step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    run = Run(folder, model, OptimConfig(steps=steps, warmup=2), "line", save_every=4)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :2]).square().mean(), {}

    train(run, loss_of, log_every=1)
    return {**model.state_dict(), **{f"ema.{k}": v for k, v in run.averaged().items()}}


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
def test_resume_is_exact(tmp_path: Path, stop: int) -> None:
    whole = fit_line(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "killed", 12, stop)
    resumed = fit_line(tmp_path / "killed", 12)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = {
        name: {
            line["step"]: line["loss"]
            for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        }
        for name in ("whole", "killed")
    }
    assert losses["whole"] == losses["killed"]


def test_not_a_number_stops_the_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    run = Run(tmp_path, model, OptimConfig(steps=5), "nan", save_every=1)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        return model(torch.full((1, 2), float("nan") if step == 3 else 1.0)).sum(), {}

    with pytest.raises(FloatingPointError, match="step 3"):
        train(run, loss_of)
    assert Run(tmp_path, nn.Linear(2, 1), OptimConfig(steps=5), "nan").step == 3
    with pytest.raises(CheckpointError, match="another model"):
        Run(tmp_path, nn.Linear(3, 1), OptimConfig(steps=5), "nan")


def test_learning_rate_warms_up_and_falls() -> None:
    optim = OptimConfig(steps=100, learning_rate=1.0, warmup=10, final_ratio=0.1)
    assert optim.rate(0) == pytest.approx(0.1, rel=0.01)
    assert optim.rate(100) == pytest.approx(0.1)
    assert optim.rate(50) == pytest.approx(0.55)
    with pytest.raises(ValueError, match="steps"):
        OptimConfig(steps=0)


def fit_once(folder: Path, **settings: float) -> tuple[Tensor, Run]:
    """The change of a weight of 0 whose gradient is (3, 4), by one step without Adam's scaling."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    run = Run(folder, model, OptimConfig(steps=1, warmup=0, weight_decay=0.0, **settings), "once")
    (model(torch.tensor([[3.0, 4.0]]))).sum().backward()
    assert run.update()["norm"] == pytest.approx(5)
    return run.learner.optimizer.state[model.weight]["exp_avg"], run


def test_clipping_and_averages_can_be_switched_off(tmp_path: Path) -> None:
    clipped, run = fit_once(tmp_path / "a")
    torch.testing.assert_close(clipped, torch.tensor([[0.06, 0.08]]))
    assert not torch.equal(run.averaged()["weight"], run.model.weight)
    plain, run = fit_once(tmp_path / "b", clip=0.0, ema=0.0)
    torch.testing.assert_close(plain, torch.tensor([[0.3, 0.4]]))
    assert torch.equal(run.averaged()["weight"], run.model.weight)
    for name, value in (("ema", 1.0), ("clip", -1.0), ("betas", (0.9, 1.0))):
        with pytest.raises(ValueError, match=f"^{name}: "):
            OptimSettings(**{name: value})


@pytest.fixture(scope="module")
def tokenizer() -> VideoTokenizer:
    torch.manual_seed(0)
    return VideoTokenizer(SMALL_TOKENIZER).eval()


def run_of(*stages: TransformerStage, **changes: object) -> TransformerTraining:
    return TransformerTraining(stages=stages, **changes)


IMAGES = replace(STAGE, name="image", shapes=(Shape(frames=1, batch=8),))
SIXTEEN = (DataConfig(count=16),)


def test_the_loop_learns_a_little(
    tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TABLE_EVERY", 2)
    image = replace(IMAGES, steps=60, warmup=10, data=SIXTEEN)
    clip = replace(STAGE, mask=FrameMaskConfig(p_mask=0.2, window=2), data=(DataConfig(count=4),))
    model = train_transformer(tmp_path, tokenizer, SMALL_TRANSFORMER, run_of(image, clip))
    lines = [json.loads(x) for x in (tmp_path / "image" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 27, 47]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert ["bits" in line for line in lines] == [True, False, True]
    assert model.config == SMALL_TRANSFORMER
    (line,) = map(json.loads, (tmp_path / "clip" / "log.jsonl").read_text().splitlines())
    assert [len(row) for row in line["bits"]] == [4] * 5
    mean = sum(row[1] for row in line["bits"]) / 5
    assert line["bits_2"] == pytest.approx(mean, abs=1e-5)
    assert {"frame_1", "frame_5", "norm", "rate"} <= line.keys()
    # More frames than the preset's, which the window allows.
    long = replace(clip, name="long", steps=1, shapes=(Shape(frames=21, batch=1),))
    again = train_transformer(tmp_path, tokenizer, SMALL_TRANSFORMER, run_of(image, clip, long))
    assert again.config.max_frames == 5
    assert not torch.equal(again.sos, model.sos)
    (line,) = map(json.loads, (tmp_path / "long" / "log.jsonl").read_text().splitlines())
    assert len(line["bits"]) == 6


def test_checkpointing_changes_memory_alone(
    tokenizer: VideoTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    loss_of = transformer_loss

    def spy(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        used.append(model.gradient_checkpointing)
        return loss_of(model, batch)

    monkeypatch.setattr(module, "transformer_loss", spy)
    config = run_of(replace(STAGE, data=SIXTEEN, dropout=0.5, flip=FlipConfig()))
    plain = train_transformer(tmp_path / "a", tokenizer, SMALL_TRANSFORMER, config)
    config = replace(config, checkpointing=True)
    again = train_transformer(tmp_path / "b", tokenizer, SMALL_TRANSFORMER, config)
    assert used == [False, False, True, True]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-5, atol=1e-7)
