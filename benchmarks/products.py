"""The matrix products of decoding steps on a CPU by number of rows, packed in different ways.

Run as `python -m videoar.benchmarks.products --preset videoar-l`. Forms are interleaved; weights
are those of several layers, so that with the larger presets they come from memory. Prints a table,
and as the last line one JSON document. See docs/benchmarks.md.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from videoar.benchmarks.arguments import at_least, integers, output_file
from videoar.benchmarks.floor import DTYPES, Samples, disturbed, ratio, timed

OURS, ONEDNN, PLAIN = FORMS = ("panels", "oneDNN's order", "plain weights")
# Weights of this size are in no cache of a small machine.
WEIGHT_BYTES = 1 << 28
METHOD = {
    "clock": "perf_counter around the products of `layers` layers, each with weights of its own, "
    "products of one input as one product; a round asks every form once, for every number of rows",
    "ratios": "median over the rounds of the two times of one round",
    OURS: "what the model's linear layers are where they can be: kernels/packed_linear.py",
    ONEDNN: "weights packed by oneDNN; not where it packs none of the dtype",
    PLAIN: "torch.nn.functional.linear",
}


def measure(preset: str, dtype: str, rows: Sequence[int], rounds: int) -> tuple[Samples, int]:
    """Milliseconds by "form, N rows", and of how many layers.

    Raises:
        ValueError: the preset's layers have no whole panels, or this processor has none.
    """
    import torch
    import torch.nn.functional as F

    from videoar.benchmarks.floor_parts import onednn_linear
    from videoar.benchmarks.timing import interleave
    from videoar.kernels.packed_linear import can_pack_panels, pack_panels, packed_linear
    from videoar.runtime.cost import layer_gemms
    from videoar.runtime.packed import can_pack
    from videoar.runtime.presets import preset as find

    config, kind = find(preset).transformer, getattr(torch, dtype)
    gemms = layer_gemms(config, 1)
    layers = min(config.layers, -(-WEIGHT_BYTES // work(preset, 1, kind.itemsize)[0]))
    forms: dict[str, list[Callable]] = {OURS: [], PLAIN: []}
    if can_pack(kind):
        forms[ONEDNN] = []
    inputs = {gemm.width_in: torch.randn(max(rows), gemm.width_in, dtype=kind) for gemm in gemms}
    widths = [gemm.width_in for _ in range(layers) for gemm in gemms]
    for gemm in [gemm for _ in range(layers) for gemm in gemms]:
        weight = torch.randn(gemm.width_out, gemm.width_in, dtype=kind)
        if not can_pack_panels(weight):
            raise ValueError(f"preset: {preset} has no panels here, {dtype} {tuple(weight.shape)}")
        forms[OURS].append(partial(packed_linear, packed=pack_panels(weight)))
        forms[PLAIN].append(partial(F.linear, weight=weight))
        if ONEDNN in forms:
            forms[ONEDNN].append(onednn_linear(weight))

    @torch.inference_mode()
    def multiply(products: Sequence[Callable], count: int) -> None:
        for width, product in zip(widths, products, strict=True):
            product(inputs[width][:count])

    samplers = {
        f"{name}, {count} rows": timed(partial(multiply, forms[name], count))
        for count in rows
        for name in FORMS
        if name in forms
    }
    interleave(samplers, 1)
    return interleave(samplers, rounds), layers


def work(preset: str, layers: int, itemsize: int) -> tuple[int, int]:
    """Bytes of the weights, and FLOPs of one row."""
    from videoar.runtime.cost import layer_gemms
    from videoar.runtime.presets import preset as find

    gemms = layer_gemms(find(preset).transformer, 1)
    weights = layers * sum(gemm.width_in * gemm.width_out for gemm in gemms)
    return weights * itemsize, 2 * weights


def ratios(samples: Samples, rows: Sequence[int]) -> dict[str, dict[str, float | None]]:
    """How many times as long as ours the other forms take, by number of rows."""
    return {
        name: {
            str(count): ratio(samples, f"{name}, {count} rows", f"{OURS}, {count} rows")
            for count in rows
        }
        for name in FORMS[1:]
    }


def table(samples: Samples, rows: Sequence[int], num_bytes: int, flops: int) -> list[str]:
    """A line for every number of rows; rates are those of our least time."""
    line = "{:>6}{:>12}{:>12}{:>10}{:>10}{:>18}{:>18}"
    heads = ("rows", "ms", "lowest", "GB/s", "GFLOP/s", *(f"{name} x" for name in FORMS[1:]))
    lines, others = [line.format(*heads)], ratios(samples, rows)
    for count in rows:
        times = samples[f"{OURS}, {count} rows"]
        rates = (num_bytes / min(times) / 1e6, flops * count / min(times) / 1e6)
        numbers = [f"{x:,.2f}" for x in (median(times), min(times))]
        numbers += [f"{x:,.1f}" for x in rates]
        values = [others[name][str(count)] for name in FORMS[1:]]
        numbers += ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append(line.format(count, *numbers))
    return lines


def step_rows(preset: str) -> list[int]:
    """Rows of the steps of one request, with guidance where the preset has it."""
    from videoar.benchmarks.floor_parts import rows_per_token
    from videoar.runtime.presets import preset as find

    config = find(preset)
    tokens = {height * width for height, width in config.transformer.sizes}
    return sorted(rows_per_token(config) * count for count in tokens)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m videoar.benchmarks.products", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--preset", default="videoar-l", help="whose layers (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument(
        "--rows", type=integers, help="such as 1,8,128; default: those of the preset's steps"
    )
    parser.add_argument("--isa", help="instruction set of ours (default: the widest)")
    parser.add_argument("--rounds", type=at_least(1), default=15)
    parser.add_argument("--threads", type=at_least(1), help="default: torch's choice")
    parser.add_argument("--json-out", type=output_file, help="also write the JSON here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print table and JSON; the exit status is 2 where there is nothing to compare."""
    options = parse(arguments)
    import torch

    from videoar import _C
    from videoar.benchmarks.environment import environment
    from videoar.benchmarks.kernels import commit, publish

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        if options.isa is not None:
            _C.set_isa(options.isa)
        rows = options.rows or step_rows(options.preset)
        samples, layers = measure(options.preset, options.dtype, rows, options.rounds)
    except ValueError as error:
        print(f"videoar.benchmarks.products: {error}", file=sys.stderr)
        return 2
    num_bytes, flops = work(options.preset, layers, getattr(torch, options.dtype).itemsize)
    print(
        f"{options.preset}, {layers} layers, {options.dtype}, {num_bytes / 1e6:,.0f} MB, "
        f"{torch.get_num_threads()} threads, {_C.isa()}"
    )
    print("\n".join(table(samples, rows, num_bytes, flops)))
    document = {
        **environment(),
        "device": "cpu",
        "commit": commit(),
        "preset": options.preset,
        "dtype": options.dtype,
        "isa": _C.isa(),
        "layers": layers,
        "rows": rows,
        "rounds": options.rounds,
        "load_average": os.getloadavg(),
        "method": METHOD,
        "weight_bytes": num_bytes,
        "flops_per_row": flops,
        "ratios": ratios(samples, rows),
        "disturbed": disturbed(samples),
        "samples_ms": samples,
    }
    publish(document, options.json_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
