"""Training the judge's digit network on the training digits, distorted as decoded video is."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.runtime.checkpoint import write_component
from videoar.training import digits
from videoar.training.judge import DigitNet, Judge, JudgeConfig, crop_digit
from videoar.training.run import MAX_SEED, OptimConfig, Run, draw_generator, train

HELD_OUT_CLIPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTraining:
    """Settings of one judge run.

    Attributes:
        steps: optimiser steps.
        batch: images a step.
        rate: top of the learning rate.
        seed: of the initial weights and every draw.
    """

    steps: int = 1500
    batch: int = 128
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch: at least 1, got {self.batch}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {self.seed}")


def distort(images_BHW: Tensor, generator: torch.Generator) -> Tensor:
    """Move, turn, scale, shear, thin or thicken, blur, dim and speckle; the brightest stays 1.

    Args:
        images_BHW: float32 `[B,28,28]` in [0,1].
    """
    count = len(images_BHW)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, size, shear = uniform(-0.2, 0.2), uniform(0.85, 1.15), uniform(-0.15, 0.15)
    down, right = uniform(-2, 2) * 2 / digits.DIGIT, uniform(-2, 2) * 2 / digits.DIGIT
    cos, sin = angle.cos() / size, angle.sin() / size
    theta = torch.stack([cos, shear - sin, right, sin, cos, down], dim=1).unflatten(1, (2, 3))
    x = images_BHW[:, None]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False).clamp(0, 1)
    x = x ** uniform(0.7, 1.4).view(-1, 1, 1, 1)
    for _ in range(2):
        blurred = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)
        blurred = F.avg_pool2d(F.pad(blurred, (1, 0, 1, 0)), 2, 1)
        x = x.lerp(blurred, uniform(0, 1).view(-1, 1, 1, 1))
    level = uniform(0, 0.08).view(-1, 1, 1, 1)
    x = x * uniform(0.7, 1).view(-1, 1, 1, 1) + level * torch.randn(x.shape, generator=generator)
    x = x[:, 0].clamp(0, 1)
    return x / x.amax(dim=(1, 2), keepdim=True).clamp(min=0.3)


def _labelled(split: str) -> tuple[Tensor, Tensor]:
    classes = digits.split_images(split)
    images = torch.from_numpy(np.concatenate(classes)).float() / 255
    labels = torch.arange(10).repeat_interleave(torch.tensor([len(c) for c in classes]))
    return images, labels


def measure(judge: Judge, num: int, seed: int = 0) -> tuple[float, float]:
    """Share of digits read rightly in `num` held-out clips, and in the held-out images."""
    right = 0
    for index in range(num):
        clip, _, scene = digits.clip("test", seed, index)
        right += judge(clip).digit == scene.digit
    images, labels = _labelled("test")
    middle = np.full(2, (digits.DIGIT - 1) / 2)
    read = [judge.read_digit(crop_digit(image, middle)[None]) for image in images.numpy()]
    return right / num, sum(np.equal(read, labels.numpy()).tolist()) / len(read)


def train_judge(folder: Path, config: JudgeTraining | None = None) -> Judge:
    """Train, measure and write `folder/judge`; resumed where `folder/run` holds a state.

    Raises:
        CheckpointError: the folder holds another model's state, or could not be written.
    """
    config = config or JudgeTraining()
    images, labels = _labelled("train")
    torch.manual_seed(config.seed)
    net = DigitNet(JudgeConfig())
    optim = OptimConfig(steps=config.steps, learning_rate=config.rate, ema=0.995)
    run = Run(Path(folder) / "run", net, optim, "judge")

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = draw_generator(config.seed, step)
        index = torch.randint(len(images), (config.batch,), generator=generator)
        logits = net(distort(images[index], generator))
        right = (logits.argmax(dim=-1) == labels[index]).float().mean()
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
        return loss, {"accuracy": right.item()}

    train(run, loss_of)
    net.load_state_dict(run.averaged())
    accuracy, image_accuracy = measure(Judge(JudgeConfig(), net), HELD_OUT_CLIPS)
    measured = replace(
        JudgeConfig(),
        accuracy=accuracy,
        num_held_out=HELD_OUT_CLIPS,
        image_accuracy=image_accuracy,
    )
    write_component(Path(folder) / "judge", "judge", measured, net.state_dict())
    return Judge(measured, net)
