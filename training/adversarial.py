"""The adversarial term of tokenizer training and LeCAM (arXiv 2601.05966, Eq. 4: l_GAN).

With D's logits r on real and f on reconstructed patches, means over all patches:

    hinge, arXiv 1705.02894:            L_D = mean max(0, 1 - r) + mean max(0, 1 + f)
                                        L_G = -mean f
    non-saturating, arXiv 1406.2661:    L_D = mean sp(-r) + mean sp(f)
                                        L_G = mean sp(-f)
    LeCAM, arXiv 2104.03310, sec. 3:    L_D += w (mean max(0, r - a_F)^2 + mean max(0, a_R - f)^2)

sp = softplus. The anchors a_R, a_F are averages of mean r and mean f over the steps so far; the
penalty is one-sided, as in its authors' code: only logits further apart than the anchors pay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.training.discriminator import Discriminator
from videoar.training.learner import Learner, OptimConfig
from videoar.training.run import autocast
from videoar.training.world import ALONE, World

LOSSES = ("hinge", "nonsaturating")


@dataclass(frozen=True, slots=True, kw_only=True)
class GanConfig:
    """The adversarial term and its discriminator.

    Attributes:
        weight: of the term in the tokenizer's loss; 0: no discriminator.
        loss: "hinge" or "nonsaturating".
        start: quantised steps of each stage before the discriminator joins.
        adaptive: also scale the term by the ratio of gradient norms at the last layer.
        lecam: weight of the LeCAM penalty; 0: off.
        lecam_decay: of the anchors' averages.
        channels: width of the discriminator, a multiple of 16.
        layers: halvings of the discriminator.
        rate: top of the discriminator's learning rate.
        betas: decay rates of the two moments of its AdamW.
    """

    weight: float = 0.0
    loss: str = "hinge"
    start: int = 0
    adaptive: bool = False
    lecam: float = 0.001
    lecam_decay: float = 0.99
    channels: int = 64
    layers: int = 3
    rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: one of {LOSSES}, got {self.loss!r}")
        for name in ("weight", "start", "lecam"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: at least 0, got {getattr(self, name)}")
        decays = [("lecam_decay", self.lecam_decay), *(("betas", beta) for beta in self.betas)]
        for name, value in decays:
            if not 0 <= value < 1:
                raise ValueError(f"{name}: at least 0 and below 1, got {value}")
        if self.channels < 16 or self.channels % 16:
            raise ValueError(f"channels: a multiple of 16 is needed, got {self.channels}")
        if self.layers < 1:
            raise ValueError(f"layers: at least 1, got {self.layers}")
        if self.rate <= 0:
            raise ValueError(f"rate: must be above 0, got {self.rate}")


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """L_D of the module's docstring from logits of any shape."""
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """L_G of the module's docstring from logits of any shape."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def adaptive_weight(
    loss: Tensor, adversarial: Tensor, last: Tensor, world: World = ALONE
) -> Tensor:
    """How much steeper `loss` is than `adversarial` at the last layer (arXiv 2012.09841, Eq. 7).

    |d loss / d last| / (|d adversarial / d last| + 1e-6), 1e4 at most, without a gradient. Costs a
    second backward pass through what lies behind the layer.

    Args:
        last: the weight of the generator's last layer.
        world: the processes whose rows are one batch.
    """
    gradients = [
        torch.autograd.grad(term, last, retain_graph=True)[0] for term in (loss, adversarial)
    ]
    norms = [world.mean(gradient).norm() for gradient in gradients]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)


class LeCam(nn.Module):
    """LeCAM's anchors and penalty; the averages are buffers and so part of a run's state.

    Args:
        decay: of the averages, which are corrected for having started at 0.
        world: the processes whose rows are one batch.
    """

    def __init__(self, decay: float, world: World = ALONE) -> None:
        super().__init__()
        self.decay, self.world = decay, world
        for name in ("real", "fake", "total"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take a step's logits into the averages."""
        self.real.lerp_(self.world.mean(real.mean()), 1 - self.decay)
        self.fake.lerp_(self.world.mean(fake.mean()), 1 - self.decay)
        self.total.lerp_(torch.ones_like(self.total), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty, against anchors that have seen at least one step."""
        above = F.relu(real - self.fake / self.total).square().mean()
        return above + F.relu(self.real / self.total - fake).square().mean()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module, its parameters collect none."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


class Adversary(nn.Module):
    """The discriminator with its losses: all of the adversarial term that has a state.

    Args:
        config: the term's settings.
        world: the processes whose rows are one batch.
    """

    def __init__(self, config: GanConfig, world: World = ALONE) -> None:
        super().__init__()
        self.config, self.world = config, world
        self.discriminator = Discriminator(config.channels, config.layers)
        self.lecam = LeCam(config.lecam_decay, world)

    def learner(self, optim: OptimConfig) -> Learner:
        """What trains it: as the tokenizer with `optim`, but for the rate and the moments."""
        config = self.config
        own = {"learning_rate": config.rate, "betas": config.betas, "weight_decay": 0.0}
        return Learner(self, replace(optim, **own), average=False)

    def generator_loss(self, fake: Tensor) -> Tensor:
        """L_G of a reconstruction; the discriminator's weights receive no gradient.

        Args:
            fake: `[B,3,T,H,W]` in [-1,1], with its graph.
        """
        with _frozen(self), autocast(fake.device):
            logits = self.discriminator(fake)
        return generator_loss(logits, self.config.loss)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, float]]:
        """L_D with LeCAM; the reconstruction receives no gradient.

        Args:
            real, fake: `[B,3,T,H,W]` in [-1,1].

        Returns:
            The loss, and to log: it, the shares of patches taken rightly for real and for
            reconstructed, and the penalty where it is on.
        """
        with autocast(real.device):
            logits = [self.discriminator(video.detach()) for video in (real, fake)]
        loss = discriminator_loss(*logits, self.config.loss)
        values = {
            "disc": loss.item(),
            "disc_real": (logits[0] > 0).float().mean().item(),
            "disc_fake": (logits[1] < 0).float().mean().item(),
        }
        if self.config.lecam:
            self.lecam.update(*logits)
            penalty = self.lecam(*logits)
            loss = loss + self.config.lecam * penalty
            values["lecam"] = penalty.item()
        return loss, values
