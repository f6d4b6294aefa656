"""Training steps beside the bare products or convolutions inside of them, forward and backward."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from videoar.benchmarks.suite import Suite
from videoar.benchmarks.suite_entry import Entry, part_clock
from videoar.benchmarks.train_floor import STEP, contenders
from videoar.benchmarks.train_parts import TEXT, TokenizerStep, TransformerStep, step_dtype
from videoar.runtime.cli_cost_training import training_memory, training_step
from videoar.runtime.config import ModelConfig
from videoar.runtime.cost_training import TrainingWork
from videoar.runtime.presets import PRESETS

pytestmark = pytest.mark.benchmark(timer=part_clock)

# Of videoar-l on a CPU; its embeddings and head are there in full.
_LAYERS = 2
_CLIPS = {"cpu": 1, "cuda": 16}
# The bare products have inputs, weights and gradients of their own, which the card does not know.
_BESIDE = 3
_TIMED = "forward, loss, backward, clipping, AdamW and averaged weights of one step; no data"
_NOTE = "products, attention and update, each the longer of its FLOPs and its bytes, added up"


def bench_train_digits_transformer(benchmark, suite: Suite) -> None:
    """The shipped model's transformer at the batch of its recipe."""
    _train(benchmark, suite, "digits", PRESETS["digits"], "transformer", 64, "digits")


def bench_train_digits_tokenizer(benchmark, suite: Suite) -> None:
    """The shipped model's tokenizer at the batch of its recipe."""
    _train(benchmark, suite, "digits tokenizer", PRESETS["digits"], "tokenizer", 4, "digits")


def bench_train_videoar_l(benchmark, suite: Suite) -> None:
    """videoar-l: a few layers of it on a CPU, all on a GPU."""
    config, name = PRESETS["videoar-l"], "videoar-l"
    if suite.device == "cpu":
        config = replace(config, transformer=replace(config.transformer, layers=_LAYERS))
        whole = f"on a CPU {_LAYERS} of 24 layers are timed"
        suite.note(name, "train", whole, batch=1, way="videoar", requested=False)
        name = f"{name}, {_LAYERS} layers"
    _train(benchmark, suite, name, config, "transformer", _CLIPS[suite.device], "videoar-l")


def _train(
    benchmark,
    suite: Suite,
    name: str,
    config: ModelConfig,
    part: str,
    batch: int,
    preset: str,
) -> None:
    if preset not in suite.selection.models:
        why = f"not selected: --presets {preset}"
        suite.cannot_run(name, "train", why, batch=batch, requested=False)
    device = torch.device(suite.device)
    work = TrainingWork(
        batch=batch,
        latent_frames=config.transformer.max_frames,
        text=TEXT if config.transformer.condition == "text" else 1,
        itemsize=step_dtype(device).itemsize,
    )
    needed = _BESIDE * training_memory(config, part, work).peak
    suite.require(name, "train", needed=needed, batch=batch)
    step = {"transformer": TransformerStep, "tokenizer": TokenizerStep}[part](config, batch, device)
    samples = suite.race(benchmark, _runs(contenders(step)))
    costs = training_step(config, part, work)
    entry = Entry(
        model=name,
        way="videoar",
        part="train",
        batch=batch,
        steps=1,
        timed=_TIMED,
        num_bytes=sum(cost.num_bytes for cost in costs),
        flops=sum(cost.flops for cost in costs),
        limit_s=sum(cost.seconds(suite.limits) for cost in costs),
        limit_note=_NOTE,
    )
    suite.describe(benchmark, entry, samples, dtype=str(step_dtype(device))[6:])


def _runs(forms: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The step first; of several bare forms the report takes the faster."""
    return {"videoar": forms[STEP]} | {k: run for k, run in forms.items() if k.startswith("bare")}
