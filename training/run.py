"""What both training loops share: optimiser, schedule, EMA, resumable state, progress and log.

Everything random in a step is a function of (seed, step), so the state of a run is its tensors
and its step count, and a resumed run continues exactly.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from videoar.runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW with a warmed-up cosine (arXiv 2601.05966, section 4).

    Attributes:
        steps: optimiser steps of the whole run.
        learning_rate: at the top of the cosine.
        final_ratio: share of it at the end.
        warmup: steps of linear warm-up.
        weight_decay: on matrices only.
        clip: largest gradient norm.
        ema: decay of the averaged weights, ramped up as (1 + step) / (10 + step).
    """

    steps: int
    learning_rate: float = 1e-3
    final_ratio: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.995

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """Learning rate of `step` (from 0)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return self.learning_rate * warm * (self.final_ratio + (1 - self.final_ratio) * cosine)


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 autocast where the processor multiplies bf16 in hardware, else float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Run:
    """One resumable training run of `model` in `folder`.

    Args:
        folder: receives `state.safetensors` and `log.jsonl`; resumed from where it has them.
        model: trained in place; float32 master weights.
        optim: optimiser settings.
        name: of the progress bar.
        save_every: steps between saved states.
    """

    def __init__(
        self, folder: Path, model: nn.Module, optim: OptimConfig, name: str, save_every: int = 200
    ) -> None:
        self.folder, self.model, self.optim, self.name = Path(folder), model, optim, name
        self.save_every, self.step = save_every, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optim.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=optim.learning_rate,
            betas=optim.betas,
            fused=True,
        )
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if (self.folder / "state.safetensors").exists():
            self._restore()

    def _moments(self) -> dict[str, Tensor]:
        state = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{key}.{name}"] = value
        return state

    def save(self) -> None:
        """Write the whole state aside, then rename it."""
        state = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        state |= {f"ema.{k}": v.contiguous() for k, v in self.ema.items()} | self._moments()
        temporary = self.folder / "state.safetensors.tmp"
        save_file(state, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, self.folder / "state.safetensors")

    def _restore(self) -> None:
        path = self.folder / "state.safetensors"
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.step = int(file.metadata()["step"])
        try:
            self.model.load_state_dict(
                {k[6:]: v for k, v in state.items() if k.startswith("model.")}
            )
        except RuntimeError as error:
            raise CheckpointError(f"{path}: of another model: {error}") from error
        self.ema = {k[4:]: v for k, v in state.items() if k.startswith("ema.")}
        for name, parameter in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.step.{name}" in state:
                self.optimizer.state[parameter] = {
                    key: state[f"optimizer.{key}.{name}"] for key in keys
                }

    def update(self, loss: Tensor) -> float:
        """One optimiser step on `loss`; returns the gradient norm.

        Raises:
            FloatingPointError: the loss is not finite; the last saved state stays as it is.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.name}: loss is {loss.item()} at step {self.step}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        self.optimizer.step()
        decay = min(self.optim.ema, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            self.ema[key].lerp_(value.detach(), 1 - decay)
        return float(norm)

    def steps(self) -> Iterator[int]:
        """Step numbers still to do, with a progress bar on a terminal and saves in between."""
        with tqdm(
            total=self.optim.steps, initial=self.step, desc=self.name, unit="step", disable=None
        ) as self.bar:
            while self.step < self.optim.steps:
                yield self.step
                self.step += 1
                self.bar.update()
                if self.step % self.save_every == 0 or self.step == self.optim.steps:
                    self.save()

    def log(self, **values: float) -> None:
        """Append a line to `log.jsonl` and show it in the bar."""
        rounded = {k: round(float(v), 6) for k, v in values.items()}
        self.bar.set_postfix(rounded)
        line = {"step": self.step, "time": round(time.time(), 1), **rounded}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights."""
        return self.ema


def train(run: Run, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], log_every: int = 20):
    """The loop: `loss_of(step)` gives the loss of a step and values to log."""
    run.model.train()
    for step in run.steps():
        loss, values = loss_of(step)
        norm = run.update(loss)
        if step % log_every == 0:
            run.log(loss=loss.item(), norm=norm, rate=run.optim.rate(step), **values)
