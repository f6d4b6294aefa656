"""How far decoding on a CPU is from its bare matrix products and convolutions.

Run as `python -m videoar.benchmarks.floor --preset NAME`. What is compared is interleaved. Prints a
table, and as the last line one JSON document. See docs/benchmarks.md.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from videoar.benchmarks.arguments import at_least, check_preset, output_file

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it.
    from videoar.runtime.config import ModelConfig
    from videoar.runtime.pipeline import VideoAR

Samples = dict[str, list[float]]
"""Milliseconds by name, a sample a round."""

BF16, FP32 = DTYPES = ("bfloat16", "float32")
SECTIONS = ("memory", "parts", "clips")
OURS = {part: f"{part}, ours" for part in ("transformer", "decoder", "clip")}
GEMMS = ("gemms, model's own", "gemms, packed", "gemms, plain")
CONVS = "convs, packed"
METHOD = {
    "clock": "perf_counter on the host; every form runs some frames first, untimed",
    "ratios": "median over the rounds of the two times of one round",
    OURS["transformer"]: "all steps of generate(): embedding, layers, head, sampling",
    OURS["decoder"]: "a latent frame at a time to uint8 frames, as generate() does it",
    OURS["clip"]: "generate(): a prompt not seen before, its prefill, all steps and frames",
    "gemms": "the products of the same steps in their order, every layer with weights of its own: "
    "the model's own linear layers, packed weights, plain weights; in the last two, products of "
    "one input are one product",
    "convs": "the streaming decoder's convolutions in their order, each with weights of its own",
    "decoder, plain": "VideoTokenizer.decode() of the whole clip",
    "clip, eager": "the same prompts by videoar.benchmarks.eager, to uint8 frames",
}


def plain(dtype: str) -> str:
    """Name of the plain decoder."""
    return f"decoder, plain, {dtype}"


def eager(dtype: str) -> str:
    """Name of the eager baseline."""
    return f"clip, eager, {dtype}"


def ratio(samples: Samples, name: str, base: str) -> float | None:
    """How many times as long `name` takes as `base`: the median over the rounds that have both.

    None if one of them was not timed.
    """
    if not samples.get(name) or not samples.get(base):
        return None
    pairs = zip(samples[name], samples[base], strict=False)
    return median([own / other for own, other in pairs])


def floor_of(samples: Samples) -> str | None:
    """The form of the bare products with the lowest median; None if none was timed."""
    names = [name for name in GEMMS if samples.get(name)]
    return min(names, key=lambda name: median(samples[name]), default=None)


def ratios(samples: Samples) -> dict[str, float | None]:
    """The five numbers of a run; None for what was not timed."""
    floor = floor_of(samples)
    return {
        "transformer_ratio": floor and ratio(samples, OURS["transformer"], floor),
        "decoder_ratio": ratio(samples, OURS["decoder"], CONVS),
        "decoder_vs_plain_fp32": ratio(samples, plain(FP32), OURS["decoder"]),
        "clip_vs_eager_bf16": ratio(samples, eager(BF16), OURS["clip"]),
        "clip_vs_eager_fp32": ratio(samples, eager(FP32), OURS["clip"]),
    }


def lowest_of(samples: Samples) -> Samples:
    """The lowest time of each: what a machine with other work on it comes nearest to at best."""
    return {name: [min(times)] for name, times in samples.items() if times}


def disturbed(samples: Samples, factor: float = 1.5) -> list[str]:
    """The forms of which one round took more than `factor` times as long as another."""
    return [name for name, times in samples.items() if max(times) > factor * min(times)]


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """A sampler in milliseconds."""

    def sample() -> float:
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)

    return sample


def announced(samplers: Mapping[str, Callable[[], float]]) -> dict[str, Callable[[], float]]:
    """The same samplers; each sample also goes to stderr, so that a run cut short is not lost."""

    def announce(name: str, sample: Callable[[], float]) -> float:
        milliseconds = sample()
        print(f"{name}: {milliseconds:,.1f} ms", file=sys.stderr, flush=True)
        return milliseconds

    return {name: partial(announce, name, sample) for name, sample in samplers.items()}


def measure_parts(model: "VideoAR", dtype: str, rounds: int) -> Samples:
    """Rounds over the transformer's and the decoder's forms."""
    import torch

    from videoar.benchmarks import floor_parts as parts
    from videoar.benchmarks.timing import interleave

    config, kind = model.config, getattr(torch, dtype)
    ours, own = parts.OurClip(model), []

    def clip() -> float:
        own.append(ours.run())
        return own[-1]["total"]

    # Ours has packed its layers by now, so the first form has them as they are used.
    forms = (
        parts.own_products(model.transformer),
        parts.packed_products(config.transformer, kind),
        parts.plain_products(config.transformer, kind),
    )
    samplers = {OURS["clip"]: clip}
    for name, products in zip(GEMMS, forms, strict=True):
        samplers[name] = timed(parts.BareGemms(products, config, kind).run)
    samplers[CONVS] = timed(parts.BareConvs(config, kind).run)
    for name in dict.fromkeys((dtype, FP32)):
        other = getattr(torch, name)
        decoder = parts.PlainDecoder(model.tokenizer, config.transformer, other)
        samplers[plain(name)] = timed(decoder.run)
    samples = interleave(announced(samplers), rounds)
    # Whole clips are compared in rounds of their own.
    del samples[OURS["clip"]]
    for part in ("transformer", "decoder"):
        samples[OURS[part]] = [times[part] for times in own]
    return samples


def measure_clips(model: "VideoAR", dtype: str, rounds: int, quick: bool) -> Samples:
    """Rounds over whole clips; the eager baseline in another dtype than ours in the first only."""
    import torch

    from videoar.benchmarks import floor_parts as parts
    from videoar.benchmarks.timing import interleave

    ours = parts.OurClip(model)
    samplers = {OURS["clip"]: lambda: ours.run()["total"]}
    for name in dict.fromkeys((dtype,) if quick else (dtype, FP32)):
        samplers[eager(name)] = timed(parts.EagerClip(model, getattr(torch, name)).run)
    samplers = announced(samplers)
    samples = interleave(samplers, 1)
    often = {name: run for name, run in samplers.items() if name in (OURS["clip"], eager(dtype))}
    for name, more in interleave(often, rounds - 1).items():
        samples[name] += more
    return samples


def flops_of(config: "ModelConfig", names: Sequence[str]) -> dict[str, int]:
    """FLOPs of matrix products and convolutions in a clip, as each form runs them."""
    from videoar.benchmarks import floor_parts as parts
    from videoar.runtime.cost_decoder import clip_convs, conv_flops

    grid, frames = config.transformer.sizes[-1], config.transformer.max_frames
    gemms, streamed = parts.gemm_flops(config), parts.conv_flops(config)
    whole = conv_flops(clip_convs(config.tokenizer, grid, frames, folded=False))
    flops = dict.fromkeys((OURS["transformer"], *GEMMS), gemms)
    flops |= {OURS["decoder"]: streamed, CONVS: streamed, OURS["clip"]: gemms + streamed}
    for dtype in DTYPES:
        flops |= {plain(dtype): whole, eager(dtype): gemms + whole}
    return {name: flops[name] for name in names}


def table(samples: Samples, flops: Mapping[str, int]) -> list[str]:
    """A line for every form: median, lowest and highest time, rate, and time over ours."""
    line = "{:<24}{:>8}{:>12}{:>12}{:>12}{:>10}{:>10}"
    heads = ("", "rounds", "ms", "lowest", "highest", "GFLOP/s", "vs ours")
    lines = [line.format(*heads)]
    for part in OURS.values():
        group = part.split(",")[0]
        kin = {"transformer": GEMMS, "decoder": (CONVS, *map(plain, DTYPES))}
        for name in (part, *kin.get(group, map(eager, DTYPES))):
            if not samples.get(name):
                continue
            times, over = samples[name], ratio(samples, name, part)
            rate = flops[name] / median(times) / 1e6
            numbers = (f"{x:,.1f}" for x in (median(times), min(times), max(times), rate))
            lines.append(line.format(name, len(times), *numbers, f"{over:.3f}x"))
    return lines


def memory_line(memory: Mapping[str, int]) -> str:
    """Peak beside plan."""
    mib = {name: f"{count / 2**20:,.0f} MiB" for name, count in memory.items()}
    return (
        f"peak memory {mib['peak']}, planned {mib['planned']} (weights {mib['weights']}), above "
        f"the plan {mib['above_plan']}, of which Python and torch {mib['imported']}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.floor", description=__doc__)
    parser.add_argument("--preset", default="videoar-l", help="random weights of these sizes")
    parser.add_argument("--dtype", choices=DTYPES, default=BF16)
    parser.add_argument("--threads", type=at_least(1), help="default: torch's choice")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="rounds")
    text = "repeatable; else all: peak memory, parts against their floors, whole clips"
    parser.add_argument("--section", action="append", choices=SECTIONS, help=text)
    parser.add_argument("--quick", action="store_true", help="no eager clip in float32")
    parser.add_argument("--json-out", type=output_file, help="also write the JSON here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print table and JSON; the exit status is 0."""
    options = parse(arguments)
    import torch

    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernels import commit, publish
    from videoar.benchmarks.peak_memory import peak_memory
    from videoar.runtime.packed import can_pack
    from videoar.runtime.pipeline import VideoAR

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    preset, dtype, sections = options.preset, options.dtype, options.section or SECTIONS
    check_preset("floor", preset)
    if not can_pack(getattr(torch, dtype)):
        print(f"videoar.benchmarks.floor: this CPU has no packed {dtype}", file=sys.stderr)
        return 2
    memory, samples = None, {}
    threads = torch.get_num_threads()
    print(f"{preset}, {dtype}, {threads} threads, {options.repeats} rounds", flush=True)
    if "memory" in sections:
        # Before this process holds a model, too.
        memory = peak_memory(preset, dtype, threads)
        print(memory_line(memory), flush=True)
    model = VideoAR.preset(preset, dtype=dtype)
    if "parts" in sections:
        samples |= measure_parts(model, dtype, options.repeats)
    if "clips" in sections:
        samples |= measure_clips(model, dtype, options.repeats, options.quick)
    flops, numbers = flops_of(model.config, samples), ratios(samples)
    print("\n".join(table(samples, flops)))
    lowest = ratios(lowest_of(samples))
    skipped = [name for name, value in numbers.items() if value is None]
    for name, value in numbers.items():
        text = "not measured" if value is None else f"{value:.3f}"
        print(f"{name:<24}{text}{'' if value is None else f'  (lowest times: {lowest[name]:.3f})'}")
    if uneven := disturbed(samples):
        print(f"the machine was not quiet: rounds differ by more than half in {'; '.join(uneven)}")
    document = {
        **environment(),
        "device": "cpu",
        "commit": commit(),
        "preset": preset,
        "dtype": dtype,
        "rounds": options.repeats,
        "method": METHOD,
        **numbers,
        "of_lowest": lowest,
        "disturbed": uneven,
        "load_average": os.getloadavg(),
        "floor": floor_of(samples),
        "not_measured": skipped,
        "memory": memory,
        "flops": flops,
        "samples_ms": samples,
    }
    publish(document, options.json_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
