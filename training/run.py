"""What all training loops share: steps, resumable state, progress and log.

Everything random in a step is a function of (seed, step), so the state of a run is its tensors
and its step count, and a resumed run continues exactly.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from videoar.runtime.errors import CheckpointError
from videoar.training.learner import Learner, OptimConfig

__all__ = ["OptimConfig", "Run", "autocast", "draw_generator", "train"]


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 autocast where the processor multiplies bf16 in hardware, else float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def draw_generator(seed: int, draw: int) -> torch.Generator:
    """The random numbers of one batch. torch's CPU generator looks at 32 bits of a seed only."""
    (word,) = np.random.SeedSequence([seed, draw]).generate_state(1)
    return torch.Generator().manual_seed(int(word))


class Run:
    """One resumable training run of `model` in `folder`.

    Args:
        folder: receives `state.safetensors` and `log.jsonl`; resumed from where it has them.
        model: trained in place; float32 master weights.
        optim: optimiser settings.
        name: of the progress bar.
        save_every: steps between saved states.
        others: further networks that learn beside the model, such as a discriminator, by the
            name of their part of the state.

    Raises:
        CheckpointError: the folder's state is of another model, or has other parts.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optim: OptimConfig,
        name: str,
        save_every: int = 200,
        others: dict[str, Learner] | None = None,
    ) -> None:
        self.folder, self.model, self.optim, self.name = Path(folder), model, optim, name
        self.save_every, self.step = save_every, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(model, optim)
        self.others = others or {}
        if (self.folder / "state.safetensors").exists():
            self._restore()

    def save(self) -> None:
        """Write the whole state aside, then rename it."""
        state = self.learner.state()
        for name, other in self.others.items():
            state |= {f"{name}.{key}": value for key, value in other.state().items()}
        temporary = self.folder / "state.safetensors.tmp"
        save_file(state, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, self.folder / "state.safetensors")

    def _restore(self) -> None:
        path = self.folder / "state.safetensors"
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.step = int(file.metadata()["step"])
        parts: dict[str, dict[str, Tensor]] = {"": {}}
        for key, value in state.items():
            name, _, rest = key.partition(".")
            if name in ("model", "ema", "optimizer"):
                parts[""][key] = value
            else:
                parts.setdefault(name, {})[rest] = value
        saved, asked = sorted(parts.keys() - {""}), sorted(self.others)
        if saved != asked:
            message = f"learned beside the model: {saved}, this run has {asked}"
            raise CheckpointError(f"{path}: {message}")
        try:
            for name, learner in ({"": self.learner} | self.others).items():
                learner.load(parts[name])
        except RuntimeError as error:
            raise CheckpointError(f"{path}: of another model: {error}") from error

    def backward(self, loss: Tensor, draw: int) -> None:
        """Add the gradients of one batch's share of a step.

        Args:
            loss: of the batch, all learners' losses summed; divided by `accumulate` here.
            draw: number of the batch, for the message.

        Raises:
            FloatingPointError: the loss is not finite; the last saved state stays as it is.
        """
        if not torch.isfinite(loss):
            where = f"at step {self.step} (batch {draw})"
            raise FloatingPointError(f"{self.name}: loss is {loss.item()} {where}")
        (loss / self.optim.accumulate).backward()

    def update(self) -> dict[str, float]:
        """One optimiser step of every learner; gradient norms by name, the model's as "norm".

        Raises:
            FloatingPointError: a norm is not finite; the last saved state stays as it is.
        """
        learners = {"norm": self.learner} | {f"{k}_norm": v for k, v in self.others.items()}
        try:
            return {name: learner.step(self.step) for name, learner in learners.items()}
        except FloatingPointError as error:
            raise FloatingPointError(f"{self.name}: {error} at step {self.step}") from error

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

    def note(self, text: str) -> None:
        """Append a remark to `log.jsonl` and print it."""
        tqdm.write(f"{self.name}: {text}", file=sys.stderr)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "note": text}) + "\n")

    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights."""
        return self.learner.ema


def train(run: Run, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], log_every: int = 20):
    """The loop: `loss_of(draw)` gives the loss of a batch and values to log.

    Batches are counted over the whole run: step s takes the draws from `s * accumulate` on. The
    logged loss is their mean, the values are those of the last.
    """
    run.model.train()
    count = run.optim.accumulate
    for step in run.steps():
        total = 0.0
        for draw in range(step * count, (step + 1) * count):
            loss, values = loss_of(draw)
            run.backward(loss, draw)
            total += loss.item()
        norms = run.update()
        if step % log_every == 0:
            run.log(loss=total / count, rate=run.optim.rate(step), **norms, **values)
