"""Training does not depend on the backend: the same loss curve from Triton and the references."""

from dataclasses import replace

import pytest
import torch

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.dispatch import use_backend
from videoar.runtime.config import TransformerConfig
from videoar.runtime.presets import DIGITS_TRANSFORMER
from videoar.runtime.transformer import Transformer, teacher_forced_logits
from videoar.training.corruption import FlipConfig
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.recipes import TransformerStage
from videoar.training.run import row_generators
from videoar.training.sources import Shape
from videoar.training.teacher_forcing import make_batch

SMALL = replace(DIGITS_TRANSFORMER, layers=2, width=64, heads=2, kv_heads=1, mlp_width=96)


def loss_curve(
    architecture: TransformerConfig, backend: str, steps: int, clips: int, frames: int
) -> list[float]:
    """Losses of float32 steps on `clips` clips of `frames` frames, all from fixed seeds."""
    torch.manual_seed(0)
    model = Transformer(architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(clips, architecture.latent_dim, frames, 4, 4, generator=generator)
    captions = ["a red 3 moving left", "cyan two standing still"][:clips]
    sample = {"latents": latents, "captions": captions}
    flip = FlipConfig(p_max=0.2)
    stage = TransformerStage(
        name="clip", steps=1, learning_rate=1e-3, shapes=(Shape(batch=clips),), flip=flip
    )
    tokenizer = digits_text_tokenizer()
    losses = []
    with use_backend(backend):
        for step in range(steps):
            generators = row_generators(1, step, range(clips))
            batch = make_batch(sample, tokenizer, architecture, stage, generators)
            logits = teacher_forced_logits(model, batch.tokens, batch.text_lengths, batch.inputs)
            loss = bitwise_cross_entropy(logits, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "steps", "clips", "frames"),
    [(SMALL, 3, 2, 2), pytest.param(DIGITS_TRANSFORMER, 20, 1, 1, marks=pytest.mark.slow)],
    ids=["small", "digits"],
)
def test_triton_and_reference_learn_alike(
    architecture: TransformerConfig, steps: int, clips: int, frames: int
) -> None:
    reference = loss_curve(architecture, "reference", steps, clips, frames)
    kernels = loss_curve(architecture, "triton", steps, clips, frames)
    assert kernels == pytest.approx(reference, abs=1e-4)
    assert reference[-1] < reference[0]


def test_cpp_and_reference_learn_alike() -> None:
    cpp = loss_curve(SMALL, "cpp", 6, 2, 2)
    assert cpp[-1] < cpp[0]
    assert cpp == pytest.approx(loss_curve(SMALL, "reference", 6, 2, 2), rel=1e-5)
