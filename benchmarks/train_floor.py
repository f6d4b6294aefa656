"""How fast a model trains on a CPU, beside its bare matrix products or convolutions.

Run as `python -m videoar.benchmarks.train_floor --preset digits`. The floor is what the linear
layers (transformer) or convolutions (tokenizer) of one training step cost by themselves, forward
and backward, in the dtype the step uses; attention's products are not in it. Step and floor are
interleaved. Prints a table, and as the last line one JSON document.
"""

import argparse
import os
import sys
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.arguments import at_least, check_preset, output_file
from videoar.benchmarks.floor import Samples, disturbed, lowest_of, timed

if TYPE_CHECKING:
    from videoar.benchmarks.train_parts import TrainingStep

PARTS = ("transformer", "tokenizer")
STEP, BACKWARD = "step", "forward and backward"
METHOD = {
    STEP: "forward, loss, backward, gradient clipping, AdamW and the averaged weights; no data",
    BACKWARD: "the same without clipping, AdamW and averaging",
    "bare": "the products of that step's linear layers or convolutions, forward, input and weight "
    "gradient, each with tensors of its own; of the memory formats tried the faster one counts",
    "ratios": "median over the rounds of the two times of one round",
}


def training_step(preset: str, part: str, batch: int) -> "TrainingStep":
    """One training step of a preset's part on random data.

    Raises:
        ValueError: no such preset or part.
    """
    from videoar.benchmarks import train_parts
    from videoar.runtime.presets import preset as find

    if part not in PARTS:
        raise ValueError(f"part: one of {PARTS}, got {part!r}")
    kind = {"transformer": train_parts.TransformerStep, "tokenizer": train_parts.TokenizerStep}
    return kind[part](find(preset), batch)


def contenders(step: "TrainingStep") -> dict[str, Callable[[], object]]:
    """The step, its forward and backward, and its floors, by name; what a benchmark interleaves."""
    bare = step.floors()
    return {STEP: step.step, BACKWARD: step.backward} | {
        f"bare, {name}": run for name, run in bare.items()
    }


def measure(step: "TrainingStep", rounds: int, warm_up: int = 2) -> Samples:
    """Milliseconds of `contenders(step)`, interleaved, behind `warm_up` untimed rounds."""
    from videoar.benchmarks.timing import interleave

    samplers = {name: timed(run) for name, run in contenders(step).items()}
    interleave(samplers, warm_up)
    return interleave(samplers, rounds)


def floor_of(samples: Samples) -> str:
    """The bare form with the lowest median."""
    return min((n for n in samples if n.startswith("bare")), key=lambda n: median(samples[n]))


def shares(samples: Samples) -> dict[str, float]:
    """Speed of the step, and of its forward and backward, as a share of the floor's."""
    floor = samples[floor_of(samples)]
    return {
        name: median(b / own for b, own in zip(floor, samples[name], strict=True))
        for name in (STEP, BACKWARD)
    }


def table(samples: Samples, flops: int) -> list[str]:
    """A line for every form: median, lowest and highest time, and its products' rate."""
    line = "{:<24}{:>12}{:>12}{:>12}{:>10}"
    lines = [line.format("", "ms", "lowest", "highest", "GFLOP/s")]
    for name, times in samples.items():
        middle = median(times)
        numbers = (f"{x:,.1f}" for x in (middle, min(times), max(times), flops / middle / 1e6))
        lines.append(line.format(name, *numbers))
    return lines


def result(preset: str, part: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure one part; print its table."""
    step = training_step(preset, part, batch)
    samples = measure(step, rounds)
    share = shares(samples)
    print(f"\n{preset} {part}, batch {batch}, {rounds} rounds")
    print("\n".join(table(samples, step.flops)))
    for name, value in share.items():
        print(f"{name}: {value:.3f} of the speed of {floor_of(samples)}")
    return {
        "batch": batch,
        "share_of_bare": share,
        "of_lowest": shares(lowest_of(samples)),
        "floor": floor_of(samples),
        "flops": step.flops,
        "disturbed": disturbed(samples),
        "samples_ms": samples,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.train_floor", description=__doc__)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: both")
    parser.add_argument("--batch", type=at_least(1), default=64, help="clips of a transformer step")
    parser.add_argument("--clips", type=at_least(1), default=4, help="clips of a tokenizer step")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(1), help="default: torch's choice")
    parser.add_argument("--json-out", type=output_file, help="also write the JSON here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print tables and JSON; the exit status is 0."""
    options = parse(arguments)
    import torch

    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernels import commit, publish

    check_preset("train_floor", options.preset)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    batches = {"transformer": options.batch, "tokenizer": options.clips}
    parts = {
        part: result(options.preset, part, batches[part], options.rounds)
        for part in options.part or PARTS
    }
    document = {
        **environment(),
        "device": "cpu",
        "commit": commit(),
        "preset": options.preset,
        "method": METHOD,
        "load_average": os.getloadavg(),
        **parts,
    }
    publish(document, options.json_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
