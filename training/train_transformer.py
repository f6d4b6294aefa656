"""Training the transformer on latents, stage by stage, from images to long clips.

Section 4 of arXiv 2601.05966. What happens in a step is in `teacher_forcing.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from videoar.runtime.config import ModelConfig, TransformerConfig
from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_folder import load_transformer
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training import digits
from videoar.training.config_file import within
from videoar.training.recipes import TransformerStage, TransformerTraining
from videoar.training.run import LOG_EVERY, Run, logged, row_generators, train
from videoar.training.sources import Source
from videoar.training.stage_data import StageData
from videoar.training.stages import (
    Stage,
    check_resumed,
    note_config,
    shape_grids,
    sizes_of,
    stage_seed,
)
from videoar.training.teacher_forcing import (
    accuracy_values,
    bit_accuracy,
    make_batch,
    transformer_loss,
)
from videoar.training.token_cache import tokenizer_hash
from videoar.training.video_folder import VideoFolder
from videoar.training.world import ALONE, World

__all__ = ["TransformerStage", "TransformerTraining", "train_transformer"]

# Lines of the log for each table of bit accuracy by frame and scale.
TABLE_EVERY = 10


def check_stages(
    stages: Sequence[TransformerStage],
    model: ModelConfig,
    bits: Callable[[Stage, int], str | None],
) -> None:
    """Check the stages of a run against the model, before anything is trained.

    Args:
        bits: gives the path of a cache without latents among the data of a stage, by its number.

    Raises:
        ValueError: frames or a size that the tokenizer cannot compress, that the model has too few
            scales for or that it would not look back on; flips without latents. Names the field.
    """
    own, scales = model.transformer.sizes[-1], len(model.transformer.sizes)
    grids: list[tuple[int, int]] = []
    for number, stage in enumerate(stages):
        grids = []
        for where, frames, grid in shape_grids(stage, number, model):
            grids.append(grid)
            needed = len(sizes_of(grid, model.transformer.sizes))
            if needed > scales:
                text = f"a grid of {grid} has {needed} scales, the model {scales}"
                raise ValueError(f"{where}.height, width: {text}")
            most, window = model.transformer.max_frames - 1, stage.mask.window
            if frames > most + 1 and (window is None or window > most):
                text = f"at most {most} for clips of {frames} latent frames, got {window}"
                more = f"the model is made to look back on {most}"
                raise ValueError(f"stages[{number}].mask.window: {text}; {more}")
        path = bits(stage, number) if stage.flip.enabled else None
        if path is not None:
            text = f"must be 0 for {path}, a cache of bits alone; write it with latents for flips"
            raise ValueError(f"stages[{number}].flip.p_max, delta: {text}")
    if own not in grids:
        text = f"the last stage needs the model's own size, {model.height}x{model.width}"
        raise ValueError(f"stages[{len(stages) - 1}].shapes: {text}")


def start_weights(folder: str, architecture: TransformerConfig) -> dict[str, Tensor]:
    """The weights to start from, of the same architecture with as many scales and frames or fewer.

    Raises:
        CheckpointError: of another one, naming folder and field; what `load_transformer` refuses.
    """
    found = load_transformer(folder)
    fewer = {"max_frames": int, "sizes": len}
    for name in (f.name for f in fields(TransformerConfig)):
        theirs, ours = getattr(found.config, name), getattr(architecture, name)
        count = fewer.get(name)
        if theirs != ours and (count is None or count(theirs) > count(ours)):
            raise CheckpointError(f"{folder}: {name}: {theirs}, this run's model has {ours}")
    return found.state_dict()


def start_model(config: TransformerTraining, architecture: TransformerConfig) -> Transformer:
    """The model of a run's first step."""
    torch.manual_seed(config.seed)
    model = Transformer(architecture)
    if config.start is not None:
        with within("start"):
            weights = start_weights(config.start, architecture)
        table = model.embed_scale.weight.detach()
        known = weights["embed_scale.weight"]
        # Scales that it did not have keep their random rows.
        weights["embed_scale.weight"] = torch.cat([known, table[len(known) :]])
        model.load_state_dict(weights)
    model.gradient_checkpointing = config.checkpointing
    return model


def train_transformer(
    folder: Path,
    tokenizer: VideoTokenizer,
    architecture: TransformerConfig,
    config: TransformerTraining,
    *,
    text_tokenizer: Tokenizer | None = None,
    fps: int = 8,
    report: Callable[[VideoFolder], None] = lambda folder: None,
    world: World = ALONE,
) -> Transformer:
    """All stages, each resumable in its own folder below `folder`; returns the EMA model.

    Args:
        text_tokenizer: of the captions. Default: the digits' words.
        fps: frames a second of clips from folders that do not say it.
        report: called with each folder that was scanned.
        world: the processes that train together.

    Raises:
        ValueError, MediaError, CheckpointError: the config, the data or the model to start from
            cannot be used, or the folder's run began otherwise; before the first step.
    """
    if text_tokenizer is None and architecture.condition == "text":
        text_tokenizer = digits.text_tokenizer()
    height, width = (side * tokenizer.config.spatial_compression for side in architecture.sizes[-1])
    model_config = ModelConfig(
        tokenizer=tokenizer.config, transformer=architecture, height=height, width=width, fps=fps
    )
    data = StageData(
        model=model_config,
        folder=folder,
        tokenizer=tokenizer.to(world.device),
        text_tokenizer=text_tokenizer,
        report=report,
        world=world,
    )
    trained = {"fps": fps, "transformer": asdict(architecture)}
    trained["video_tokenizer"] = tokenizer_hash(tokenizer)
    if text_tokenizer is not None:
        trained["text_tokenizer"] = sha256(text_tokenizer.to_str().encode()).hexdigest()
    check_resumed(folder, config, trained)
    check_stages(config.stages, model_config, partial(data.bits_alone, config))
    sources = [data.open(config, stage, number) for number, stage in enumerate(config.stages)]
    model = start_model(config, architecture)
    if world.main:
        note_config(folder, config, trained)
    for number, source in enumerate(sources):
        with closing(source):
            model = _train_stage(folder, model, config, number, source, text_tokenizer, world)
    return model.eval()


def _train_stage(
    folder: Path,
    model: Transformer,
    config: TransformerTraining,
    number: int,
    source: Source,
    text_tokenizer: Tokenizer | None,
    world: World,
) -> Transformer:
    """Train one stage, resumed where its folder holds a state; returns the averaged model."""
    stage, architecture = config.stages[number], model.config
    seed, optim = stage_seed(config.seed, number), stage.optim(config.optim)
    source.prepare()
    run = Run(
        folder / stage.name,
        model,
        optim,
        f"transformer {stage.name}",
        save_every=config.save_every,
        world=world,
    )

    def loss_of(draw: int) -> tuple[Tensor, dict[str, Any]]:
        sample = world.place(source.batch(draw))
        rows = world.rows(len(sample["captions"]) * world.size)
        generators = row_generators(seed, draw, rows)
        batch = make_batch(sample, text_tokenizer, architecture, stage, generators)
        batch = batch.to(world.device)
        loss, logits = transformer_loss(run.model, batch)
        step, part = divmod(draw, optim.accumulate)
        if not logged(step) or part < optim.accumulate - 1:
            return loss, {}
        table = bit_accuracy(logits, batch.targets, batch.sizes)
        values: dict[str, Any] = accuracy_values(table, batch.sizes)
        if step // LOG_EVERY % TABLE_EVERY == 0:
            values["bits"] = table.tolist()
        return loss, values

    train(run, loss_of)
    trained = run.finish()
    trained.gradient_checkpointing = config.checkpointing
    return trained
