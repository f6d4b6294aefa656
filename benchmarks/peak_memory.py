"""Peak memory of making clips in a process of its own, beside what was planned for it.

Run as `python -m videoar.benchmarks.peak_memory --preset NAME`. The last line is one JSON document.
"""

import argparse
import json
import resource
import subprocess
import sys

DTYPES = ("bfloat16", "float32")


def peak_memory(preset: str, dtype: str, threads: int) -> dict[str, int]:
    """Run this module and read its numbers.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    options = ("--preset", preset, "--dtype", dtype, "--threads", str(threads))
    command = [sys.executable, "-m", "videoar.benchmarks.peak_memory", *options]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(preset: str, dtype: str) -> dict[str, int]:
    """Bytes: resident before the model is there, the most ever, the plan and its weights."""
    from videoar.benchmarks.floor_parts import OurClip
    from videoar.runtime.modules import DTYPES
    from videoar.runtime.pipeline import VideoAR
    from videoar.runtime.plan import EngineSettings, MemoryPlan

    imported = _peak()
    model = VideoAR.preset(preset, dtype=dtype)
    clip = OurClip(model)
    first = _peak()
    clip.run()
    plan = MemoryPlan.of(EngineSettings(config=model.config, dtype=DTYPES[dtype]))
    return {
        "imported": imported,
        "after_warm_up": first,
        "peak": _peak(),
        "planned": plan.total,
        "weights": plan.weights,
        "above_plan": _peak() - plan.total,
    }


def _peak() -> int:
    """The largest resident size so far; Linux counts it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str] | None = None) -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.peak_memory", description=__doc__)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.preset, options.dtype)))


if __name__ == "__main__":
    main()
