"""Scaling by simulation: cost and limit against frames, resolution, window, slots and model size.

Run as `python -m videoar.benchmarks.simulate`. Nothing is timed but with `--check`, which runs
small points on this machine and prints predicted over measured. The last line of stdout is one JSON
document. Exit status: 0; 2 for a bad argument. See docs/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.arguments import above_zero, at_least, output_folder, share

if TYPE_CHECKING:
    # torch takes seconds to import, and `--help` needs none of it.
    import torch

    from videoar.benchmarks.simulate_check import Checked
    from videoar.benchmarks.simulate_points import Fleet, Point, Prediction
    from videoar.runtime.cost import Limits

JSON, MARKDOWN, PLOT = "simulation.json", "simulation.md", "simulation.png"
METHOD = (
    "limits of the cost card over the shares reached: every weight, cached key and map once, the "
    "longer of bytes and FLOPs for each step's products, its attention and each convolution; text, "
    "steps and decoder one after the other; launches, norms and sampling are free"
)


def row_of(one: "Prediction") -> dict[str, Any]:
    """The numbers of a prediction, for tables and JSON."""
    return {
        **asdict(one.point),
        "window": one.point.seen,
        "text_s": one.text_s,
        "transformer_s": one.transformer_s,
        "decoder_s": one.decoder_s,
        "seconds": one.seconds,
        "clips_per_second": one.clips_per_second,
        "real_time": one.real_time,
        "bound": one.bound,
        "flops": one.flops,
        "memory": one.memory,
        "total_bytes": one.total_bytes,
        "fits": one.fits,
    }


def axis_table(predictions: Sequence["Prediction"]) -> list[str]:
    """A line for every point."""
    from videoar.benchmarks.report_tables import table

    heads = ("model", "frames", "pixels", "window", "slots", "steps s", "decoder s", "all s")
    heads = (*heads, "clips/s", "last step bound by", "GiB", "fits")
    rows = [
        (
            *(one.point.model, one.point.num_frames, f"{one.point.height}x{one.point.width}"),
            *(one.point.seen, one.point.slots, _digits(one.transformer_s)),
            *(_digits(one.decoder_s), _digits(one.seconds), _digits(one.clips_per_second)),
            *(one.bound, f"{one.total_bytes / 2**30:.1f}", "yes" if one.fits else "no"),
        )
        for one in predictions
    ]
    return table(heads, rows)


def fleet_table(fleets: Sequence["Fleet"], demand: float) -> list[str]:
    """Slots of a device, what it gives, and how many serve the demand."""
    from videoar.benchmarks.report_tables import table

    heads = ("slots", "GiB a device", "s until all have a clip", "clips/s a device")
    rows = [
        (
            one.prediction.point.slots,
            f"{one.prediction.total_bytes / 2**30:.1f}",
            _digits(one.prediction.seconds),
            _digits(one.prediction.clips_per_second),
            f"{one.prediction.real_time:.2f}",
            "does not fit" if one.devices is None else one.devices,
        )
        for one in fleets
    ]
    return table((*heads, "s of video a second", f"devices for {demand:g} clips/s"), rows)


def check_table(checked: Sequence["Checked"]) -> list[str]:
    """Predicted beside measured."""
    from videoar.benchmarks.report_tables import table

    heads = ("model", "layers", "frames", "pixels", "window", "part")
    rows = [
        (
            *(one.point.model, one.point.layers or "all", one.point.num_frames),
            *(f"{one.point.height}x{one.point.width}", one.point.seen, one.part),
            *(_digits(one.predicted_s), _digits(one.measured_s)),
            "calibrated here" if one.calibrates else f"{one.ratio:.2f}",
        )
        for one in checked
    ]
    return table((*heads, "predicted s", "measured s", "predicted / measured"), rows)


def _digits(value: float) -> str:
    return f"{value:.4g}"


def check_groups(
    names: Sequence[str], dtype: "torch.dtype", rounds: int
) -> tuple[list["Checked"], dict[str, Any]]:
    """All groups on this machine's CPU, and how far the predictions were from the measurements."""
    from statistics import median

    from videoar.benchmarks.simulate_check import GROUPS, run
    from videoar.runtime.limits import measure_limits

    limits = measure_limits("cpu", dtype)
    checked, fits = [], {}
    for name in dict.fromkeys(names):
        rows, found = run(GROUPS[name], limits, dtype, "cpu", rounds)
        checked += rows
        fits[name] = {part: asdict(fit) for part, fit in found.items()}
    errors = [abs(one.ratio - 1) for one in checked if not one.calibrates]
    return checked, {
        "limits": asdict(limits),
        "fits": fits,
        "rows": [{**asdict(one), "ratio": one.ratio} for one in checked],
        "largest_error": max(errors),
        "median_error": median(errors),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.simulate", description=__doc__)
    parser.add_argument("--preset", default="videoar-4b")
    parser.add_argument("--num-frames", type=at_least(1), help="default: the preset's")
    parser.add_argument("--height", type=at_least(1), help="default: the preset's")
    parser.add_argument("--width", type=at_least(1), help="default: the preset's")
    parser.add_argument(
        "--window", type=at_least(0), help="earlier latent frames seen (default: all)"
    )
    parser.add_argument("--slots", type=at_least(1), default=1, help="of the axes other than slots")
    parser.add_argument("--device", default="h200", help="h200, or cpu: this machine, measured")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    text = "of the limit that the {} reaches; 1: the limit itself"
    parser.add_argument("--transformer-share", type=share, default=1, help=text.format("steps"))
    parser.add_argument("--decoder-share", type=share, default=1, help=text.format("decoder"))
    text = "of the fleet (default: 10)"
    parser.add_argument("--clips-per-second", type=above_zero, default=10, help=text)
    text = "run small points here: digits, videoar-l with few layers; repeatable"
    choices = ("digits", "videoar-l")
    parser.add_argument("--check", action="append", choices=choices, help=text)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="of the check")
    parser.add_argument(
        "--out", type=output_folder, help=f"folder of {JSON}, {MARKDOWN} and {PLOT}"
    )
    return parser.parse_args(arguments)


def limits_of(device: str, dtype: "torch.dtype") -> "Limits":
    """Known ones, or those of this machine.

    Raises:
        ValueError: an unknown device.
    """
    from videoar.runtime.limits import KNOWN, known_limits, measure_limits

    if device == "cpu":
        return measure_limits("cpu", dtype)
    if device not in KNOWN:
        raise ValueError(f"--device: expected cpu or one of {', '.join(KNOWN)}, got {device!r}")
    return known_limits(device, dtype)


def simulate(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The document and its Markdown."""
    import torch

    from videoar.benchmarks.kernels import commit
    from videoar.benchmarks.simulate_points import Point, Shares, axes_of, fleet, predict

    dtype = getattr(torch, options.dtype)
    names = ("num_frames", "height", "width", "window", "slots")
    base = Point.of(options.preset, **{name: getattr(options, name) for name in names})
    limits = limits_of(options.device, dtype)
    shares = Shares(transformer=options.transformer_share, decoder=options.decoder_share)
    where = "cpu" if options.device == "cpu" else "cuda"

    def cost(point: "Point") -> "Prediction":
        return predict(point, limits, dtype=dtype, device=where, shares=shares)

    axes = {name: [cost(point) for point in points] for name, points in axes_of(base).items()}
    fleets = fleet(axes["slots"], options.clips_per_second)
    checked, facts = [], None
    if options.check:
        checked, facts = check_groups(options.check, dtype, options.rounds)
    document = {
        "limits": asdict(limits),
        "dtype": options.dtype,
        "shares": asdict(shares),
        "method": METHOD,
        "commit": commit(),
        "base": asdict(base),
        "axes": {name: [row_of(one) for one in found] for name, found in axes.items()},
        "demand": options.clips_per_second,
        "fleet": [{**row_of(one.prediction), "devices": one.devices} for one in fleets],
        "check": facts,
    }
    return document, lines_of(document, axes, fleets, checked)


def lines_of(
    document: Mapping[str, Any],
    axes: Mapping[str, Sequence["Prediction"]],
    fleets: Sequence["Fleet"],
    checked: Sequence["Checked"],
) -> list[str]:
    """The tables."""
    limits, shares = document["limits"], document["shares"]
    reached = "the limit itself, which nothing is faster than"
    if set(shares.values()) != {1.0}:
        reached = f"{shares['transformer']:g} of it by the steps, {shares['decoder']:g} by the rest"
    lines = [
        f"# Simulation: {limits['name']}, {document['dtype']}",
        "",
        f"{limits['bandwidth'] / 1e9:,.0f} GB/s, {limits['rate'] / 1e12:,.3f} TFLOP/s "
        f"({limits['source']}); computed, not measured: {reached}.",
    ]
    for name, found in axes.items():
        lines += ["", f"## {name}", "", *axis_table(found)]
    lines += ["", "## Fleet", "", *fleet_table(fleets, document["demand"])]
    if checked:
        worst, middle = (document["check"][name] for name in ("largest_error", "median_error"))
        text = f"Error of what was not calibrated: median {middle:.0%}, largest {worst:.0%}."
        lines += ["", "## Checked on this machine", "", *check_table(checked), "", text]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print tables and JSON; the exit status is that of the file's head."""
    options = parse(arguments)
    try:
        document, lines = simulate(options)
    except ValueError as error:
        print(f"videoar.benchmarks.simulate: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    if options.out is not None:
        write(options.out, document, lines)
    print(json.dumps(document))
    return 0


def write(folder: Path, document: Mapping[str, Any], lines: Sequence[str]) -> None:
    """The document, its tables and its plot."""
    from videoar.benchmarks.kernels import save
    from videoar.benchmarks.report_plots import MISSING, plot_simulation

    folder.mkdir(parents=True, exist_ok=True)
    save(folder / JSON, document)
    (folder / MARKDOWN).write_text("\n".join(lines) + "\n")
    if not plot_simulation(document, folder / PLOT):
        print(f"videoar.benchmarks.simulate: {MISSING}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
