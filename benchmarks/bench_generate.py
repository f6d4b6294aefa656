"""Clips and their parts, of VideoAR and PAR, by this runtime and the other ways, interleaved.

The entries of one model and batch come from the same clips: see `videoar.benchmarks.suite_race`.
"""

import pytest

from videoar.benchmarks.floor_parts import rows_per_token
from videoar.benchmarks.par_config import PAR_PRESETS
from videoar.benchmarks.suite import Recorded, Suite
from videoar.benchmarks.suite_contenders import Run
from videoar.benchmarks.suite_costs import Cost, par_costs, video_costs
from videoar.benchmarks.suite_entry import Entry, part_clock, replay
from videoar.benchmarks.suite_par import SAMPLING, sampled_steps
from videoar.benchmarks.suite_select import Case
from videoar.runtime.plan import EngineSettings
from videoar.runtime.presets import PRESETS

pytestmark = pytest.mark.benchmark(timer=part_clock)

_TIMED = {
    "transformer": "all decoding steps: embedding, layers, head, guidance, sampling; no prefill",
    "decoder": "the tokenizer's decoder, latents to uint8 frames",
    "clip": "request to last pixel frame: prefill, all steps, decoder",
    "first_frame": "request to first pixel frame: prefill, the first latent frame, its decoding",
    "steady_frame": "median from the pixels of one latent frame to those of the next",
}
_BARE = {
    "transformer": "the matrix products of all decoding steps, in their order, and nothing else",
    "decoder": "the streaming decoder's convolutions in their order, and nothing else",
}
_CLOCK = {"cpu": "host clock", "cuda": "CUDA events; first_frame and steady_frame by the host"}


def bench_generate(benchmark, suite: Suite, case: Case) -> None:
    recorded = suite.recorded(case.model, case.batch)
    own, reason = (case.model, case.way), recorded.reasons.get((case.model, case.way))
    if reason is not None:
        suite.cannot_run(case.model, case.part, reason, batch=case.batch, way=case.way)
    samples = _samples(recorded, case)
    if case.way not in samples:
        reason = "this way does not have the part"
        suite.cannot_run(case.model, case.part, reason, batch=case.batch, way=case.way)
    cost = _costs(suite, case)[case.part]
    entry = Entry(
        model=case.model,
        way=case.way,
        part=case.part,
        timed=f"{(_BARE if case.way == 'bare' else _TIMED)[case.part]} ({_CLOCK[suite.device]})",
        batch=case.batch,
        steps=cost.steps or None,
        num_bytes=cost.num_bytes,
        flops=cost.flops,
        limit_s=cost.seconds,
        limit_note=suite.limit_note,
        compile_s=recorded.compile_s.get(own),
        **(_steps(suite, recorded.runs[own][-1], cost) if case.part == "transformer" else {}),
    )
    replay(benchmark, samples[case.way])
    suite.describe(benchmark, entry, samples)


def _steps(suite: Suite, run: Run, cost: Cost) -> dict[str, object]:
    """Seconds and limit of every timed step, and how many stand for how many."""
    timed, limits = len(run.step_s), cost.step_s
    if timed == run.steps:
        return {"step_s": run.step_s, "step_limit_s": limits}
    places = sampled_steps(run.steps, suite.stride)
    return {
        "step_s": run.step_s,
        "step_limit_s": [limits[place] for place in places],
        "scaled": {
            "timed": timed,
            "of": run.steps,
            "first": places.start,
            "stride": places.step,
        },
    }


def _samples(recorded: Recorded, case: Case) -> dict[str, list[float]]:
    """Seconds of the rounds of the entry's own way, then of all others that have the part.

    Another way of the same model is named by the way, another model run in the same way by the
    model, all else by both.
    """
    found = {}
    for model, way in sorted(recorded.runs, key=lambda key: key != (case.model, case.way)):
        seconds = [run.part(case.part) for run in recorded.runs[model, way]]
        if seconds and None not in seconds:
            name = model if way == case.way else f"{model} {way}"
            found[way if model == case.model else name] = seconds
    return found


def _costs(suite: Suite, case: Case) -> dict[str, Cost]:
    batch, size = case.batch, suite.dtype.itemsize
    if case.model in PAR_PRESETS:
        rows = batch * (1 + SAMPLING.guided)
        return par_costs(PAR_PRESETS[case.model], suite.limits, sequences=rows, itemsize=size)
    config, together = PRESETS[case.model], batch
    if case.way in ("videoar", "bare"):
        memory = {"dtype": suite.dtype, "device": suite.device}
        together = EngineSettings(config=config, slots=batch, **memory).together
    return video_costs(
        config,
        suite.limits,
        sequences=rows_per_token(config),
        itemsize=size,
        batch=together,
        times=batch / together,
    )
