"""Where the time of a training step goes: matrix products, attention, small operations, the rest.

Run as `python -m videoar.benchmarks.train_profile --preset videoar-l --layers 2`. torch's profiler
gives each operation its own time, without that of what it calls: on a CPU the time of the thread
that asks, on a GPU the kernels'. Prints a table; the last line is one JSON document. Issue 5 asks
for at most 35 % in attention and small operations together at the shapes of videoar-l.
"""

import argparse
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.arguments import at_least, check_device, check_preset

if TYPE_CHECKING:
    from videoar.benchmarks.train_parts import TrainingStep

PRODUCTS, ATTENTION, SMALL = "products", "attention", "small operations"
LOSS, UPDATE = "loss", "update"
CLASSES = (PRODUCTS, ATTENTION, SMALL, LOSS, UPDATE)
# Parts of the names of operations, in the order in which they are asked.
_NAMES = (
    (LOSS, ("BitwiseCrossEntropy", "mse_loss")),
    (ATTENTION, ("ChunkAttention", "scaled_dot_product")),
    (PRODUCTS, ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "convolution")),
)
METHOD = (
    "self times of torch.profiler over whole steps (forward, backward, clipping, AdamW, averages; "
    "no data), median over the repeats; update: everything in clipping, AdamW and averaging"
)


def class_of(name: str) -> str:
    """The class of an operation of forward or backward by its name in the profile."""
    if name.startswith("autograd::engine"):  # the engine's own time around a node
        return SMALL
    return next((kind for kind, words in _NAMES if any(w in name for w in words)), SMALL)


def shares(times: dict[str, float]) -> dict[str, float]:
    """Of the whole, by class; and "attention and small operations", as issue 5 counts."""
    total = sum(times.values())
    result = {name: times[name] / total for name in CLASSES}
    return {**result, "attention and small operations": result[ATTENTION] + result[SMALL]}


def profile_step(step: "TrainingStep", device: str) -> dict[str, float]:
    """Milliseconds of one step by class."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as passes:
        step.loss().backward()
    with profile(activities=activities) as update:
        step.learner.step(0)
    times = dict.fromkeys(CLASSES, 0.0)
    for name, milliseconds in _self_times(passes.key_averages(), device):
        times[class_of(name)] += milliseconds
    times[UPDATE] = sum(t for _, t in _self_times(update.key_averages(), device))
    return times


def _self_times(events: Iterable[Any], device: str) -> Iterable[tuple[str, float]]:
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    for event in events:
        # Kernels are listed by themselves, too; their time is that of the operation that asked.
        if device == "cpu" or "CPU" in str(event.device_type):
            yield event.key, getattr(event, field) / 1e3


def measure(
    preset: str, part: str, batch: int, layers: int | None, repeats: int, device: str
) -> dict[str, Any]:
    """Median milliseconds and shares by class."""
    import torch

    from videoar.benchmarks.train_parts import TokenizerStep, TransformerStep
    from videoar.runtime.presets import preset as find

    config = find(preset)
    if layers is not None:
        config = replace(config, transformer=replace(config.transformer, layers=layers))
    kind = {"transformer": TransformerStep, "tokenizer": TokenizerStep}[part]
    step = kind(config, batch, torch.device(device))
    for _ in range(2):
        step.step()
    runs = [profile_step(step, device) for _ in range(repeats)]
    times = {name: median(run[name] for run in runs) for name in CLASSES}
    return {"ms": times, "shares": shares(times), "runs": runs}


def table(times: dict[str, float], share: dict[str, float]) -> list[str]:
    """A line for every class."""
    line = "{:<34}{:>12}{:>10}"
    rows = [
        line.format(name, f"{times[name]:,.1f}" if name in times else "", f"{100 * part:.1f} %")
        for name, part in share.items()
    ]
    return [line.format("", "ms", "share"), *rows]


def main(arguments: list[str] | None = None) -> int:
    """Print table and JSON; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.train_profile", description=__doc__)
    parser.add_argument("--preset", default="videoar-l")
    parser.add_argument("--part", choices=("transformer", "tokenizer"), default="transformer")
    parser.add_argument("--batch", type=at_least(1), default=1, help="clips")
    parser.add_argument("--layers", type=at_least(1), help="of the transformer; default: all")
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--threads", type=at_least(1))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    import torch

    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernels import commit

    check_preset("train_profile", options.preset)
    check_device("train_profile", options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = measure(
        options.preset,
        options.part,
        options.batch,
        options.layers,
        options.repeats,
        options.device,
    )
    print("\n".join(table(found["ms"], found["shares"])))
    load = None
    with suppress(OSError):
        load = os.getloadavg()
    facts = {**environment(), "commit": commit(), "method": METHOD, "load_average": load}
    print(json.dumps({**facts, **vars(options), **found}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
