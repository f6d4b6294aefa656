"""A network and what trains it: AdamW, its schedule, clipping and averaged weights."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoar.training.sharding import gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """What all stages of a run share of AdamW (arXiv 2601.05966, section 4).

    Attributes:
        final_ratio: share of the learning rate at the end of the cosine.
        weight_decay: on matrices only.
        betas: decay rates of the two moments.
        clip: largest gradient norm; 0: no clipping.
        ema: decay of the averaged weights, ramped up as (1 + step) / (10 + step); 0: no average.
    """

    final_ratio: float = 0.02
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.995

    def __post_init__(self) -> None:
        for name in ("final_ratio", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: at least 0, got {getattr(self, name)}")
        for name, value in (("ema", self.ema), *(("betas", beta) for beta in self.betas)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: at least 0 and below 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig(OptimSettings):
    """AdamW with a warmed-up cosine (arXiv 2601.05966, section 4).

    Attributes:
        steps: optimiser steps of the whole run.
        learning_rate: at the top of the cosine.
        warmup: steps of linear warm-up.
        accumulate: batches whose mean gradient makes one step.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    accumulate: int = 1

    def __post_init__(self) -> None:
        # Not super(): a class with slots is another one than the one that super() has seen.
        OptimSettings.__post_init__(self)
        for name in ("steps", "learning_rate", "accumulate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup: at least 0, got {self.warmup}")

    def rate(self, step: int) -> float:
        """Learning rate of `step` (from 0)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * warm * (self.final_ratio + (1 - self.final_ratio) * cosine)


class Learner:
    """Steps a module from the gradients that its parameters hold.

    Args:
        module: trained in place; its weights are the float32 master weights, lower precision is a
            matter of autocast around its forward pass. They may be shared out (`shard`).
        optim: optimiser settings.
        average: also keep an exponential moving average of the weights.

    Raises:
        ValueError: parameters that are not float32.
    """

    def __init__(self, module: nn.Module, optim: OptimConfig, *, average: bool = True) -> None:
        for name, parameter in module.named_parameters():
            if parameter.dtype != torch.float32:
                raise ValueError(f"{name}: master weights are float32, got {parameter.dtype}")
        self.module, self.optim = module, optim
        matrices = [p for p in module.parameters() if p.dim() > 1]
        vectors = [p for p in module.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optim.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=optim.learning_rate,
            betas=optim.betas,
            fused=True,
        )
        weights = module.state_dict() if average else {}
        self.ema = {key: value.detach().clone() for key, value in weights.items()}

    def step(self, step: int) -> float:
        """Clip, update and average; gradients are spent. Parameters without one stay as they are.

        Returns:
            The gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite; no weight has changed.
        """
        largest = self.optim.clip or math.inf
        norm = float(gathered(nn.utils.clip_grad_norm_(self.module.parameters(), largest)))
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.optim.ema, (1 + step) / (10 + step))
        weights = self.module.state_dict() if self.ema else {}
        for key, value in weights.items():
            self.ema[key].lerp_(value.detach(), 1 - decay)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything the next steps depend on: weights, buffers, averages and Adam's moments."""
        state = {f"model.{k}": v.contiguous() for k, v in self.module.state_dict().items()}
        state |= {f"ema.{k}": v.contiguous() for k, v in self.ema.items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        return state

    def blank(self, names: Collection[str]) -> dict[str, Tensor]:
        """Tensors to read a state into; moments for those parameters that have some in `names`."""
        state = {k: v for k, v in self.state().items() if not k.startswith("optimizer.")}
        for name, parameter in self.module.named_parameters():
            if f"optimizer.step.{name}" in names:
                state[f"optimizer.step.{name}"] = torch.zeros((), device=parameter.device)
                for key in ("exp_avg", "exp_avg_sq"):
                    state[f"optimizer.{key}.{name}"] = torch.zeros_like(parameter.detach())
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state()` gave."""
        model = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        self.module.load_state_dict(model)
        for key, value in self.ema.items():
            value.copy_(state[f"ema.{key}"])
        for name, parameter in self.module.named_parameters():
            if f"optimizer.step.{name}" in state:
                self.optimizer.state[parameter] = {
                    key: state[f"optimizer.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
