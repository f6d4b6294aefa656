"""What the stages of both models' runs share: their settings, and checks before the first step.

A run is a list of stages (arXiv 2601.05966, section 4); each starts from the averaged weights of
the one before and is resumable in a folder of its own.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from videoar.runtime.aside import written_aside
from videoar.runtime.checkpoint_json import read_json
from videoar.runtime.config import ModelConfig
from videoar.runtime.errors import CheckpointError
from videoar.runtime.schedule import Sizes, default_sizes
from videoar.training.folder_config import DataConfig
from videoar.training.learner import OptimConfig, OptimSettings
from videoar.training.run import MAX_SEED
from videoar.training.sources import Shape
from videoar.training.state import latest_state

CONFIG_NAME = "config.json"

# What no weight depends on; a preset is told by its model.
_UNTRAINED = {"save_every", "workers", "preset"}
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: of its folder below the run's.
        steps: optimiser steps.
        learning_rate: at the top of the cosine.
        warmup: steps of linear warm-up.
        accumulate: batches whose mean gradient makes one step.
        shapes: of its batches. Those of the same number of frames and another size share a
            folder's files: each file goes into the shape nearest in aspect ratio.
        data: what it is trained on (default: the run's).
    """

    name: str
    steps: int
    learning_rate: float
    warmup: int = 200
    accumulate: int = 1
    shapes: tuple[Shape, ...]
    data: tuple[DataConfig, ...] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: letters, digits, - and _ are needed, got {self.name!r}")
        if not self.shapes:
            raise ValueError("shapes: at least one")
        if self.data is not None and not self.data:
            raise ValueError("data: at least one source; leave it out for the run's")
        self.optim(OptimSettings())

    def optim(self, settings: OptimSettings) -> OptimConfig:
        """The optimiser of this stage."""
        names = ("steps", "learning_rate", "warmup", "accumulate")
        return OptimConfig(**{name: getattr(self, name) for name in names}, **asdict(settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run, but for its stages.

    Attributes:
        preset: architecture and frame size.
        seed: of the data, the initial weights and every draw.
        start: folder of a model to start from (default: random weights).
        save_every: steps between saved states.
        workers: processes that decode videos.
        data: what stages are trained on that do not say it themselves.
        optim: what the optimisers of all stages share.
    """

    preset: str = "digits"
    seed: int = 0
    start: str | None = None
    save_every: int = 200
    workers: int = 2
    data: tuple[DataConfig, ...] = (DataConfig(),)
    optim: OptimSettings = field(default_factory=OptimSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {self.seed}")
        if self.save_every < 1:
            raise ValueError(f"save_every: at least 1, got {self.save_every}")
        if self.workers < 0:
            raise ValueError(f"workers: at least 0, got {self.workers}")
        if not self.data:
            raise ValueError("data: at least one source")


def check_names(stages: Sequence[Stage]) -> None:
    """ValueError where there is no stage, or two of a name."""
    if not stages:
        raise ValueError("stages: at least one")
    names = [stage.name for stage in stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"stages[{index}].name: {name!r} is taken by another stage")


def note_config(folder: Path, config: Training, model: dict[str, Any]) -> None:
    """Write what a run is trained with, and what it trains, to its folder, as `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_noted(config, model), indent=2, allow_nan=False)
    with written_aside(folder / CONFIG_NAME) as unfinished:
        unfinished.write_text(text + "\n")


def _noted(config: Training, model: dict[str, Any]) -> dict[str, Any]:
    """As a JSON file gives it."""
    return json.loads(json.dumps(asdict(config) | {"model": model}))


def check_resumed(folder: Path, config: Training, model: dict[str, Any]) -> None:
    """Check that a run goes on as it began; stages that have not begun may change.

    Args:
        model: what is trained, which a preset's name or a model file's does not tell for ever.

    Raises:
        ValueError: the config that the folder's states were trained with has another value of what
            decides about their weights. Names file, field and both.
        CheckpointError: the config there is damaged.
    """
    path = folder / CONFIG_NAME
    begun = [n for n, stage in enumerate(config.stages) if latest_state(folder / stage.name)]
    if not begun or not path.exists():
        return
    asked, found = _noted(config, model), read_json(path)
    if not isinstance(found.get("stages"), list):
        raise CheckpointError(f"{path}: stages: missing, not a run's config")
    if "model" not in found:  # of a version that did not note it
        del asked["model"]
    for values in (asked, found):
        values["stages"] = values["stages"][: begun[-1] + 1]
    if difference := next(_differences(found, asked, ""), None):
        field_name, theirs, ours = difference
        text = f"the run in {folder} began with {theirs}, now it is {ours}"
        raise ValueError(f"{path}: {field_name}: {text}; choose another folder or the old value")


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Fields of two configs that differ, by their name in the file."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted((theirs.keys() | ours.keys()) - _UNTRAINED):
            values = (theirs.get(key, "nothing"), ours.get(key, "nothing"))
            yield from _differences(*values, f"{name}.{key}".lstrip("."))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, values in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(*values, f"{name}[{index}]")
    elif theirs != ours:
        yield name, theirs, ours


def stage_seed(seed: int, index: int) -> int:
    """Seed of all draws of stage `index`."""
    (word,) = np.random.SeedSequence([seed, index]).generate_state(1)
    return int(word)


def fitted(stage: Stage, model: ModelConfig) -> tuple[Shape, ...]:
    """The stage's shapes with nothing left open."""

    def fit(shape: Shape) -> Shape:
        frames = model.num_frames if shape.frames is None else shape.frames
        size = {"height": shape.height or model.height, "width": shape.width or model.width}
        return replace(shape, frames=frames, **size)

    return tuple(fit(shape) for shape in stage.shapes)


def shape_grids(
    stage: Stage, number: int, model: ModelConfig
) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Where in the config each shape of stage `number` is, its latent frames and its grid.

    Raises:
        ValueError: frames or a size that the tokenizer cannot compress, or a shape that is there
            twice; names the field.
    """
    shapes = fitted(stage, model)
    for index, shape in enumerate(shapes):
        where = f"stages[{number}].shapes[{index}]"
        if any(replace(shape, batch=s.batch, share=s.share) == s for s in shapes[:index]):
            raise ValueError(f"{where}: of the frames and size of another one")
        try:
            frames = model.tokenizer.latent_frames(shape.frames)
        except ValueError as error:
            reason = str(error).removeprefix("num_frames: ")
            raise ValueError(f"{where}.frames: {reason}") from error
        try:
            grid = model.tokenizer.latent_size(shape.height, shape.width)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error
        yield where, frames, grid


def sizes_of(grid: tuple[int, int], sizes: Sizes) -> Sizes:
    """The scales of a grid: the model's own for the model's own grid, else `default_sizes`."""
    return sizes if grid == sizes[-1] else default_sizes(*grid)
