"""What a CPU gains by decoding several slots together: the same clips together and one by one.

Run as `python -m videoar.benchmarks.slots --preset NAME --slots 2,4,8`. The last line is one JSON
document. Exit status: 0; 2 for a bad argument or where slots are not decoded together.
See docs/engine.md.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.arguments import at_least, check_preset, end, integers, output_file
from videoar.benchmarks.floor import DTYPES, Samples, ratio

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it.
    from videoar.runtime.executor import ModelExecutor
    from videoar.runtime.job import Job

FORMS = ("together", "one by one")
METHOD = {
    "clock": "seconds of the executor's results: steps, and steps with the decoder; no prefill",
    "forms": "the same requests in the same slots of one executor, in batches as large as an "
    "engine's, and in batches of one slot; interleaved, each round the other one first",
    "ratio": "median over the rounds of the two times of one round, one by one over together",
}


def clips(executor: "ModelExecutor", jobs: "list[Job]", together: int) -> tuple[float, float]:
    """Seconds of the decoding steps of one clip a slot, and of steps and decoder."""
    executor.together = together
    for slot, job in enumerate(jobs):
        executor.start(slot, job, 0, None, 0)
    steps = decoder = 0.0
    for _ in range(jobs[0].shots[0].num_latent_frames):
        results = executor.frame(range(len(jobs)), lambda *step: None).wait()
        steps += sum(one.seconds["transformer"] for one in results.values())
        decoder += sum(one.seconds["decoder"] for one in results.values())
    for slot in range(len(jobs)):
        executor.clear(slot)
    return steps, steps + decoder


def measure(preset: str, dtype: str, slots: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of the steps and of whole clips, by form, and the ratios."""
    from videoar.benchmarks.floor_parts import job_of
    from videoar.benchmarks.timing import interleave
    from videoar.runtime.executor import make_executor
    from videoar.runtime.pipeline import VideoAR

    model = VideoAR.preset(preset, dtype=dtype)
    executor = make_executor(model, slots=slots)
    together = executor.together
    if slots > 1 and together == 1:
        end("slots", f"{preset} in {dtype}: slots are decoded one by one here")
    jobs = [job_of(model, number) for number in range(slots)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}

    def sample(name: str, batch: int) -> float:
        found[name].append(clips(executor, jobs, batch))
        return found[name][-1][1]

    forms: dict[str, Callable[[], float]] = {
        name: partial(sample, name, batch) for name, batch in zip(FORMS, (together, 1), strict=True)
    }
    for run in forms.values():
        run()
    for times in found.values():
        times.clear()
    interleave(forms, rounds)
    parts: dict[str, Samples] = {
        part: {name: [1e3 * pair[i] for pair in pairs] for name, pairs in found.items()}
        for i, part in enumerate(("steps", "clip"))
    }
    ratios = {part: ratio(samples, FORMS[1], FORMS[0]) for part, samples in parts.items()}
    return {"slots": slots, "together": together, "ratios": ratios, "samples_ms": parts}


def main(arguments: list[str] | None = None) -> int:
    """Print table and JSON."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.slots", description=__doc__)
    parser.add_argument("--preset", default="digits", help="random weights of these sizes")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--slots", type=integers, default=[2, 4, 8, 16], help="default: 2,4,8,16")
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument("--threads", type=at_least(1), help="default: torch's choice")
    parser.add_argument("--json-out", type=output_file, help="also write the JSON here")
    options = parser.parse_args(arguments)
    import torch

    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernels import commit, publish

    check_preset("slots", options.preset)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = []
    line = "{:>6}{:>10}{:>12}{:>12}{:>10}{:>12}{:>12}{:>10}"
    heads = (
        "slots",
        "together",
        "steps ms",
        "one by one",
        "ratio",
        "clips ms",
        "one by one",
        "ratio",
    )
    print(line.format(*heads))
    for slots in options.slots:
        row = measure(options.preset, options.dtype, slots, options.rounds)
        cells: list[str] = []
        for part, samples in row["samples_ms"].items():
            cells += [f"{median(samples[name]):.1f}" for name in FORMS]
            cells.append(f"{row['ratios'][part]:.2f}")
        print(line.format(slots, row["together"], *cells), flush=True)
        rows.append(row)
    facts = {**environment(), "device": "cpu", "commit": commit(), "method": METHOD}
    settings = {"preset": options.preset, "dtype": options.dtype, "rounds": options.rounds}
    publish({**facts, **settings, "rows": rows}, options.json_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
