"""What all training loops share: steps, resumable state, progress and log.

Everything random in a step is a function of (seed, step), so the state of a run is its tensors
and its step count, and a resumed run continues exactly.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from videoar.runtime.aside import written_aside
from videoar.runtime.errors import CheckpointError
from videoar.training.learner import Learner, OptimConfig
from videoar.training.sharding import filled, outline, shard
from videoar.training.state import (
    clean,
    latest_state,
    load_state,
    save_state,
    state_shapes,
    state_step,
)
from videoar.training.world import ALONE, World

# What torch's generators and TOML files take.
MAX_SEED = 2**63 - 1
# Steps for each line of the log.
LOG_EVERY = 20
LOG_NAME = "log.jsonl"

# The loss of a batch by its number, and values to log: numbers and lists of them.
LossOf = Callable[[int], tuple[Tensor, dict[str, Any]]]

__all__ = [
    "LOG_EVERY",
    "MAX_SEED",
    "OptimConfig",
    "Run",
    "autocast",
    "draw_generator",
    "logged",
    "row_generators",
    "train",
]


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 autocast where the processor multiplies bf16 in hardware, else float32."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def draw_generator(seed: int, draw: int) -> torch.Generator:
    """The random numbers of one batch. torch's CPU generator looks at 32 bits of a seed only."""
    (word,) = np.random.SeedSequence([seed, draw]).generate_state(1)
    return torch.Generator().manual_seed(int(word))


def row_generators(seed: int, draw: int, rows: Iterable[int]) -> list[torch.Generator]:
    """The random numbers of a batch's rows, one generator each: whoever has a row draws the same.

    Args:
        rows: numbers of the rows in the batch that all ranks share.
    """
    words = [np.random.SeedSequence([seed, draw, row]).generate_state(1) for row in rows]
    return [torch.Generator().manual_seed(int(word)) for (word,) in words]


class Run:
    """One resumable training run of `model` in `folder`.

    Args:
        folder: receives states (`state.py`) and `log.jsonl`; resumed from where it has them. All
            processes of a run must see it.
        model: trained in place; float32 master weights, the same on every rank.
        optim: optimiser settings.
        name: of the progress bar.
        save_every: steps between saved states.
        others: further networks that learn beside the model, such as a discriminator, by the
            name of their part of the state. Every rank holds them whole.
        world: the processes that share the run. With several, the model's weights are shared out
            among them and may be used in `loss` alone.

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
        world: World = ALONE,
    ) -> None:
        self.folder, self.model, self.optim, self.name = Path(folder), model, optim, name
        self.save_every, self.step, self.world = save_every, 0, world
        self.others = others or {}
        self._outline = outline(model) if world.size > 1 else None
        self._step = shard(model, world)
        self.learner = Learner(model, optim)
        for other in self.others.values():
            other.module.to(world.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        if state := latest_state(self.folder):
            self._restore(state)
        if world.main:
            clean(self.folder)
            drop_lines(self.folder / LOG_NAME, self.step)
        world.barrier()

    def _learners(self) -> dict[str, Learner]:
        """All that learns, by the prefix of its part of the state."""
        return {"": self.learner} | {f"{name}.": other for name, other in self.others.items()}

    def save(self) -> None:
        """Write the whole state aside, then rename it; all ranks together."""
        state = {
            prefix + key: value
            for prefix, learner in self._learners().items()
            for key, value in learner.state().items()
        }
        save_state(self.folder, self.step, state, self.world)

    def _restore(self, path: Path) -> None:
        self.step, names = state_step(path), state_shapes(path).keys()
        own = ("model", "ema", "optimizer")
        saved, asked = {name.partition(".")[0] for name in names}.difference(own), set(self.others)
        if saved != asked:
            message = f"learned beside the model: {sorted(saved)}, this run has {sorted(asked)}"
            raise CheckpointError(f"{path}: {message}")
        states = {
            prefix: learner.blank({n.removeprefix(prefix) for n in names if n.startswith(prefix)})
            for prefix, learner in self._learners().items()
        }
        everything = {p + key: value for p, state in states.items() for key, value in state.items()}
        load_state(path, everything, self.world)
        for prefix, learner in self._learners().items():
            learner.load(states[prefix])

    def loss(self, loss_of: LossOf, draw: int) -> tuple[Tensor, dict[str, Any]]:
        """What `loss_of(draw)` gives, the model's weights being whole meanwhile."""
        return self._step(loss_of, draw)

    def backward(self, loss: Tensor, draw: int) -> float:
        """Add the gradients of one batch's share of a step.

        Args:
            loss: of this rank's rows of the batch, all learners' losses summed; divided by
                `accumulate` here.
            draw: number of the batch, for the message.

        Returns:
            The mean loss over ranks.

        Raises:
            FloatingPointError: the loss of any rank is not finite, on all of them; the last saved
                state stays as it is.
        """
        mean = self.world.mean(loss).item()
        if not math.isfinite(mean):
            where = f"at step {self.step} (batch {draw})"
            raise FloatingPointError(f"{self.name}: loss is {mean} {where}")
        (loss / self.optim.accumulate).backward()
        return mean

    def update(self) -> dict[str, float]:
        """One optimiser step of every learner; gradient norms by name, the model's as "norm".

        Raises:
            FloatingPointError: a norm is not finite; the last saved state stays as it is.
        """
        for other in self.others.values():
            self.world.mean_gradients(other.module)
        learners = {"norm": self.learner} | {f"{k}_norm": v for k, v in self.others.items()}
        try:
            return {name: learner.step(self.step) for name, learner in learners.items()}
        except FloatingPointError as error:
            raise FloatingPointError(f"{self.name}: {error} at step {self.step}") from error

    def steps(self) -> Iterator[int]:
        """Step numbers still to do, with a progress bar on a terminal and saves in between."""
        hidden = None if self.world.main else True
        with tqdm(
            total=self.optim.steps, initial=self.step, desc=self.name, unit="step", disable=hidden
        ) as self.bar:
            while self.step < self.optim.steps:
                yield self.step
                self.step += 1
                self.bar.update()
                if self.step % self.save_every == 0 or self.step == self.optim.steps:
                    self.save()

    def log(self, **values: Any) -> None:
        """Append the ranks' means of numbers, and of lists of them, to `log.jsonl`.

        Numbers show in the bar, too.
        """
        rounded = {k: _rounded(v) for k, v in self.world.means(values).items()}
        self.bar.set_postfix({k: v for k, v in rounded.items() if isinstance(v, float)})
        self._write({"step": self.step, "time": round(time.time(), 1), **rounded})

    def note(self, text: str) -> None:
        """Append a remark to `log.jsonl` and print it."""
        if self.world.main:
            tqdm.write(f"{self.name}: {text}", file=sys.stderr)
        self._write({"step": self.step, "note": text})

    def _write(self, line: dict[str, Any]) -> None:
        if self.world.main:
            with (self.folder / LOG_NAME).open("a") as file:
                file.write(json.dumps(line) + "\n")

    def averaged(self) -> dict[str, Tensor]:
        """The EMA weights, as they are shared out."""
        return self.learner.ema

    def finish(self) -> nn.Module:
        """The model with its averaged weights, whole, on the CPU, on every rank.

        It is the model itself where its weights are not shared out, else another one.
        """
        if self._outline is not None:
            return filled(self._outline, self.averaged())
        self.model.load_state_dict(self.averaged())
        return self.model.cpu()


def drop_lines(path: Path, step: int) -> None:
    """Drop the lines of a log from `step` on, whose steps are done again, and a torn one."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    if kept != lines:
        with written_aside(path) as unfinished:
            unfinished.write_text("".join(kept))


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list) else round(float(value), 6)


def logged(step: int, every: int = LOG_EVERY) -> bool:
    """Whether a step has a line in the log: the first, and one of each further `every`.

    Which one is drawn, so that all shapes and sources have lines, however they take turns.
    """
    turn, place = divmod(step, every)
    (word,) = np.random.SeedSequence(turn).generate_state(1)
    return place == (int(word) % every if turn else 0)


def train(run: Run, loss_of: LossOf, log_every: int = LOG_EVERY) -> None:
    """The loop: `loss_of(draw)` gives the loss of a batch and values to log.

    Batches are counted over the whole run: step s takes the draws from `s * accumulate` on. Each
    rank computes the loss of its own rows. The logged loss is the mean over batches and ranks, the
    values are the ranks' means for the last batch.
    """
    run.model.train()
    count = run.optim.accumulate
    for step in run.steps():
        total = 0.0
        for draw in range(step * count, (step + 1) * count):
            loss, values = run.loss(loss_of, draw)
            total += run.backward(loss, draw)
        norms = run.update()
        if logged(step, log_every):
            run.log(loss=total / count, rate=run.optim.rate(step), **norms, **values)
