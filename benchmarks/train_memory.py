"""Peak memory of training steps in a process of its own, beside what the cost card predicts.

Run as `python -m videoar.benchmarks.train_memory --preset NAME`. On a CPU the peak is that of the
resident size, above the size that the process had once torch and its libraries had run a small
step; on a GPU it is that of torch's allocator. `measured_peak` makes the process, and lets malloc
give large blocks back at once: by default glibc keeps up to 32 MB of freed ones for reuse, which
are then counted as if they were needed. The last line is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from videoar.benchmarks.arguments import at_least, check_preset

PARTS = ("transformer", "tokenizer")
# Blocks from this size on are mapped and unmapped by themselves; one arena for all threads.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_ARENA_MAX": "1"}


def measured_peak(*options: str) -> dict[str, Any]:
    """Run this module with `options` and read its JSON.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "videoar.benchmarks.train_memory", *options]
    environment = os.environ | MALLOC
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(output.stdout.splitlines()[-1])


def measure(
    preset: str, part: str, batch: int, layers: int | None, checkpointing: bool
) -> dict[str, Any]:
    """Bytes: the peak above the resident size before the model is there, and the prediction."""
    from videoar.benchmarks.train_parts import TEXT, TokenizerStep, TransformerStep, step_dtype
    from videoar.runtime.cli_cost_training import training_memory
    from videoar.runtime.cost_training import TrainingWork
    from videoar.runtime.presets import preset as find

    config = find(preset)
    if layers is not None:
        config = replace(config, transformer=replace(config.transformer, layers=layers))
    kind = {"transformer": TransformerStep, "tokenizer": TokenizerStep}[part]
    kind(find("digits"), 1).step()
    before = _status("VmRSS")
    step = kind(config, batch)
    if part == "transformer":
        step.model.gradient_checkpointing = checkpointing
    # The first step's peak is lower, its moments come last; making the model had a peak of its own.
    _reset_peak()
    for _ in range(2):
        step.step()
    work = TrainingWork(
        batch=batch,
        latent_frames=config.transformer.max_frames,
        text=TEXT if config.transformer.condition == "text" else 1,
        checkpointing=checkpointing,
        itemsize=step_dtype().itemsize,
    )
    predicted = training_memory(config, part, work)
    peak = _status("VmHWM") - before
    return {
        "preset": preset,
        "part": part,
        "batch": batch,
        "layers": layers,
        "checkpointing": checkpointing,
        "before": before,
        "peak": peak,
        "predicted": predicted.peak,
        "ratio": predicted.peak / peak,
        "parts": predicted.parts(),
    }


def _reset_peak() -> None:
    """Forget the largest resident size so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(f"{field}:")).split()[1])


def main(arguments: list[str] | None = None) -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.train_memory", description=__doc__)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--part", choices=PARTS, default=PARTS[0])
    parser.add_argument("--batch", type=at_least(1), default=1, help="clips")
    parser.add_argument("--layers", type=at_least(1), help="of the transformer; default: all")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=at_least(1))
    options = parser.parse_args(arguments)
    import torch

    check_preset("train_memory", options.preset)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts = measure(
        options.preset, options.part, options.batch, options.layers, options.checkpointing
    )
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
