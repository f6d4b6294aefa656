"""The training loops: history corruption, exact resume, and that they learn."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.errors import CheckpointError
from videoar.runtime.presets import DIGITS_TOKENIZER, DIGITS_TRANSFORMER
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.corruption import FlipConfig, draw_flips, flip_probabilities
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.run import OptimConfig, Run, train
from videoar.training.train_tokenizer import TokenizerTraining, train_tokenizer
from videoar.training.train_transformer import (
    TransformerTraining,
    cache_latents,
    make_batch,
    train_transformer,
)

SIZES = DIGITS_TRANSFORMER.sizes
SMALL_TOKENIZER = replace(DIGITS_TOKENIZER, channels=16, norm_groups=8, latent_dim=8)
SMALL_TRANSFORMER = replace(
    DIGITS_TRANSFORMER, layers=1, width=32, heads=1, kv_heads=1, mlp_width=64, latent_dim=8
)


def test_flip_probabilities_follow_the_paper() -> None:
    config = FlipConfig(p_min=0.1, p_max=0.3, delta=0.05)
    p = flip_probabilities(config, 4000, 4, 3, torch.Generator().manual_seed(0))
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
    with pytest.raises(ValueError, match="p_min, p_max"):
        FlipConfig(p_min=0.5, p_max=0.2)


def test_flips_have_their_rate_by_scale() -> None:
    p = torch.tensor([0.0, 1.0, 0.25, 0.5]).expand(8, 2, 4)
    flips = draw_flips(p, SIZES, 16, torch.Generator().manual_seed(0))
    assert flips.shape == (8, 2, 30, 16)
    rates = [part.float().mean().item() for part in flips.split([1, 4, 9, 16], dim=2)]
    assert rates[:2] == [0.0, 1.0]
    assert rates[2:] == pytest.approx([0.25, 0.5], abs=0.02)


def test_batches_hold_requantised_targets() -> None:
    latents = torch.randn(6, 32, 2, 4, 4)
    captions = ["a red 3 moving left"] * 6
    generator = torch.Generator().manual_seed(0)
    config = TransformerTraining(dropout=0.5, flip=FlipConfig(p_min=0.2, p_max=0.3))
    batch = make_batch(
        latents, captions, digits_text_tokenizer(), DIGITS_TRANSFORMER, config, generator
    )
    assert set(batch.text_lengths.tolist()) == {1, 6}
    clean = bsq_quantize(latents, SIZES, return_inputs=True)
    assert torch.equal(batch.targets[:, :, 0], clean.targets[:, :, 0])
    assert not torch.equal(batch.targets, clean.targets)
    assert not torch.allclose(batch.inputs, clean.inputs)
    plain = TransformerTraining(dropout=0.0, flip=FlipConfig(p_max=0.0, delta=0.0))
    batch = make_batch(
        latents, captions, digits_text_tokenizer(), DIGITS_TRANSFORMER, plain, generator
    )
    assert torch.equal(batch.targets, clean.targets)
    assert torch.equal(batch.inputs, clean.inputs)


def fit_line(folder: Path, steps: int, stop: int | None = None) -> dict[str, torch.Tensor]:
    """A run on a linear layer; `stop` kills it before that step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    run = Run(folder, model, OptimConfig(steps=steps, warmup=2), "line", save_every=4)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
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

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
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


def test_both_loops_learn_a_little(tmp_path: Path) -> None:
    config = TokenizerTraining(
        image_steps=24, continuous_steps=8, image_batch=8, clip_steps=4, clip_batch=1
    )
    tokenizer = train_tokenizer(tmp_path / "tokenizer", SMALL_TOKENIZER, SIZES, config)
    assert isinstance(tokenizer, VideoTokenizer)
    config = TransformerTraining(
        images=16, clips=4, image_steps=40, image_batch=8, clip_steps=4, clip_batch=2
    )
    model = train_transformer(tmp_path / "transformer", tokenizer, SMALL_TRANSFORMER, config)
    lines = (tmp_path / "transformer" / "image" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    assert model.config == SMALL_TRANSFORMER
    latents = cache_latents(tmp_path / "transformer", tokenizer, 2, 4, 17)
    assert latents.shape == (4, 8, 5, 4, 4)
    assert latents.dtype == torch.float16
