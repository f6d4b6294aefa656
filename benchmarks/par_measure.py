"""The command line of `videoar.benchmarks.par`: a step's time against its bare matrix products."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

import torch

from videoar.benchmarks.arguments import at_least, check_device, end, not_negative, output_file
from videoar.benchmarks.environment import environment
from videoar.benchmarks.floor import ratio
from videoar.benchmarks.kernels import commit, publish
from videoar.benchmarks.par import PAR_PRESETS, Par, describe
from videoar.benchmarks.par_cost import clip_steps
from videoar.benchmarks.par_floor import BareSteps, fused_products, own_products
from videoar.benchmarks.par_sampling import ParSampling
from videoar.benchmarks.par_state import ParState
from videoar.benchmarks.timing import interleave
from videoar.runtime.cost import StepCost
from videoar.runtime.errors import CapacityError
from videoar.runtime.modules import DTYPES

Samples = dict[str, list[float]]
"""Milliseconds a step by name, a sample a round."""

OURS, OWN, FUSED = FORMS = ("par, ours", "gemms, model's own", "gemms, fused")
METHOD = {
    "clock": "perf_counter around all steps of a round, divided by their number; on a GPU the host "
    "waits for the device at both ends",
    "ratios": "median over the rounds of the two times of one round",
    OURS: "embedding, layers, head, guidance, sampling; on a GPU, as the products, replayed graphs",
    OWN: "the products of the same steps in their order, by the model's own linear layers",
    FUSED: "the same with other weights, products of one input as one (on a CPU: packed)",
    "floor_ratio": "ours over the faster form of the products",
    "cache_floor_ratio": "ours over that form and the cached keys and values read and written at "
    "the rate of its weights, an estimate",
}


def measure(par: Par, steps: Sequence[int], rounds: int, sampling: ParSampling) -> Samples:
    """Rounds over our steps and their bare products."""
    weight = par.transformer.embed_tokens.weight
    device, dtype, config = weight.device, weight.dtype, par.config

    def begin() -> ParState:
        return par.start([0] * par.slots, range(par.slots), sampling, first_step=steps[0])

    state = begin()
    graphs = None if par.graphs is None else par.graphs.graphs
    bare = [
        BareSteps(products, config.step_lengths, len(state.classes), dtype, device, graphs)
        for products in (own_products(par.transformer), fused_products(config, dtype, device))
    ]
    runs = {OURS: lambda step: par.step(state, step)}
    runs |= {name: one.step for name, one in zip((OWN, FUSED), bare, strict=True)}
    for run in runs.values():
        run(steps[0])
    samplers = {name: _sampler(run, steps, begin, device) for name, run in runs.items()}
    return interleave(samplers, rounds)


def _sampler(
    run: Callable[[int], None],
    steps: Sequence[int],
    begin: Callable[[], object],
    device: torch.device,
) -> Callable[[], float]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample() -> float:
        begin()
        wait()
        start = time.perf_counter()
        for step in steps:
            run(step)
        wait()
        return 1e3 * (time.perf_counter() - start) / len(steps)

    return sample


def table(samples: Samples, costs: Sequence[StepCost]) -> list[str]:
    """A line for every form: time of a step, rates, and time over ours."""
    line = "{:<22}{:>8}{:>10}{:>10}{:>10}{:>8}{:>10}{:>10}"
    lines = [
        line.format("", "rounds", "ms/step", "lowest", "highest", "GB/s", "GFLOP/s", "vs ours")
    ]
    for name in FORMS:
        times = samples[name]
        products = name != OURS
        moved = [cost.weight_bytes if products else cost.num_bytes for cost in costs]
        flops = [cost.gemm_flops if products else cost.flops for cost in costs]
        rates = (sum(each) / len(costs) / median(times) / 1e6 for each in (moved, flops))
        numbers = [f"{x:,.2f}" for x in (median(times), min(times), max(times))]
        numbers += [f"{x:,.1f}" for x in rates]
        lines.append(line.format(name, len(times), *numbers, f"{ratio(samples, name, OURS):.3f}x"))
    return lines


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.par", description=__doc__)
    parser.add_argument("--preset", choices=PAR_PRESETS, default="par-4x")
    parser.add_argument("--steps", type=at_least(1), help="default: all from the first on")
    text = "where the steps begin; later ones see more keys (default: 0)"
    parser.add_argument("--first-step", type=at_least(0), default=0, help=text)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=at_least(1), help="default: torch's choice")
    parser.add_argument("--slots", type=at_least(1), default=1, help="clips at a time")
    parser.add_argument("--guidance", type=not_negative, default=1.5, help="1: one row a clip")
    parser.add_argument("--top-k", type=at_least(0), default=0, help="0: all codes")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="rounds")
    parser.add_argument("--json-out", type=output_file, help="also write the JSON here")
    options = parser.parse_args(arguments)
    total, codes = PAR_PRESETS[options.preset].num_steps, PAR_PRESETS[options.preset].codebook
    if options.first_step >= total:
        parser.error(f"--first-step: expected 0 .. {total - 1}, got {options.first_step}")
    if options.top_k > codes:
        parser.error(f"--top-k: expected 0 .. {codes}, got {options.top_k}")
    left = total - options.first_step
    options.steps = left if options.steps is None else options.steps
    if options.steps > left:
        parser.error(f"--steps: expected 1 .. {left}, got {options.steps}")
    return options


def run(arguments: list[str] | None = None) -> int:
    """Print table and JSON; the exit status is 0, or 2 where it cannot run."""
    options = parse(arguments)
    check_device("par", options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    config, dtype = PAR_PRESETS[options.preset], DTYPES[options.dtype]
    sampling = ParSampling(guidance=options.guidance, top_k=options.top_k)
    steps = range(options.first_step, options.first_step + options.steps)
    sequences = options.slots * (1 + sampling.guided)
    costs = clip_steps(config, sequences=sequences, itemsize=dtype.itemsize)
    sizes = describe(config)
    print(
        f"{options.preset}, {sizes['parameters'] / 1e6:,.1f} M parameters, {options.dtype}, "
        f"steps {steps[0]} .. {steps[-1]} of {config.num_steps}, {sequences} rows a token",
        flush=True,
    )
    try:
        par = Par.random(config, dtype, options.device, slots=options.slots)
    except CapacityError as error:
        end("par", f"--slots {options.slots}: {error}")
    samples = measure(par, steps, options.repeats, sampling)
    par.close()
    part = costs[steps.start : steps.stop]
    print("\n".join(table(samples, part)))
    floor = min((OWN, FUSED), key=lambda name: median(samples[name]))
    floor_ratio = ratio(samples, OURS, floor)
    with_cache = sum(cost.num_bytes for cost in part) / sum(cost.weight_bytes for cost in part)
    document = {
        **environment(),
        "device": options.device,
        "commit": commit(),
        "preset": options.preset,
        "config": asdict(config),
        "sizes": sizes,
        "dtype": options.dtype,
        "slots": options.slots,
        "sampling": asdict(sampling),
        "steps": [steps.start, steps.stop],
        "rounds": options.repeats,
        "method": METHOD,
        "step_ms": median(samples[OURS]),
        "floor": floor,
        "floor_ratio": floor_ratio,
        "cache_floor_ratio": floor_ratio / with_cache,
        "flops_per_step": sum(cost.flops for cost in part) / len(part),
        "weight_bytes_per_step": part[0].weight_bytes,
        "cache_bytes_per_step": sum(c.num_bytes - c.weight_bytes for c in part) / len(part),
        "samples_ms": samples,
    }
    publish(document, options.json_out)
    return 0
