"""The pictures of a report: time by step with the limit drawn in, and speed-ups by way.

matplotlib belongs to the extra `train`; it is imported when a picture is drawn, without a display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.benchmarks.report_document import entries_of
from videoar.benchmarks.report_measured import OURS, WAYS, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "plots need matplotlib: pip install matplotlib"
STEPS, SPEEDUPS = "steps.png", "speedups.png"
COLOURS = {OURS: "#1b6ca8", "compiled": "#d98c21", "eager": "#8c8c8c", "bare": "#3a8f5c"}
MOST_PANELS = 4
DRAWN_PARTS = ("transformer", "clip")


def draw(document: Mapping[str, Any], folder: Path) -> tuple[list[Path], list[str]]:
    """Write the pictures that the document has numbers for.

    Returns:
        The files, and for each that is missing the reason.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return [], [MISSING]
    made, reasons = [], []
    for name, plot in ((STEPS, plot_steps), (SPEEDUPS, plot_speedups)):
        figure = plot(document, Figure)
        if figure is None:
            reasons.append(f"{name}: nothing of it was measured")
            continue
        figure.savefig(folder / name, dpi=120)
        made.append(folder / name)
    return made, reasons


def plot_steps(document: Mapping[str, Any], make: type["Figure"]) -> "Figure | None":
    """Milliseconds of every decoding step, a panel a model, beside the limit of the device."""
    entries = [entry for entry in entries_of(document) if entry.step_s and entry.batch == 1]
    models = list(dict.fromkeys(entry.model for entry in entries))[:MOST_PANELS]
    if not models:
        return None
    figure = make(figsize=(4.6 * len(models), 3.8), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        _step_panel(axes, [entry for entry in entries if entry.model == model])
        axes.set_title(model)
    figure.suptitle(f"time by decoding step, batch 1, {document['hardware']}")
    return figure


def _step_panel(axes: "Axes", entries: Sequence[Measured]) -> None:
    for entry in entries:
        # A scaled run has gaps between its steps, so only whole ones are drawn as a line.
        style = "." if entry.scaled else "-"
        times = [1e3 * seconds for seconds in entry.step_s]
        places = entry.scaled or {"first": 0, "stride": 1}
        numbers = [1 + places["first"] + places["stride"] * i for i in range(len(times))]
        axes.plot(numbers, times, style, color=COLOURS.get(entry.way), label=entry.way)
    longest = max(entries, key=lambda entry: len(entry.step_limit_s))
    if longest.step_limit_s:
        limits = [1e3 * seconds for seconds in longest.step_limit_s]
        numbers = range(1, len(limits) + 1)
        axes.plot(numbers, limits, "--", color="black", linewidth=1, label="limit")
    axes.set(xlabel="step", ylabel="ms")
    axes.xaxis.get_major_locator().set_params(integer=True)
    # Room for the legend above the lines.
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=8, ncols=3, loc="upper left")


def plot_speedups(document: Mapping[str, Any], make: type["Figure"]) -> "Figure | None":
    """Left: VideoAR over PAR, each way for itself. Right: this runtime over the other ways."""
    ratios = {name: one for name, one in document["ratios"].items() if one["value"] is not None}
    names = {way: f"videoar_l_vs_par_4x{'' if way == OURS else f'_{way}'}" for way in WAYS}
    left = {way: _bar(ratios[name]) for way, name in names.items() if name in ratios}
    right = {
        f"{entry.model}\n{entry.part}\n{way}": _bar(_opponent(entry, way))
        for entry in entries_of(document)
        if entry.way == OURS and entry.part in DRAWN_PARTS and entry.batch == 1
        for way in WAYS[1:]
        if entry.opponents.get(way, {}).get("ratio") is not None
    }
    if not left and not right:
        return None
    figure = make(figsize=(6 + max(4, len(right)), 4.2), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1, max(1, len(right) / 4)))
    titles = ("VideoAR-L over PAR-4x, same way, steps only", "this runtime over another way")
    for axes, bars, title in zip(panels, (left, right), titles, strict=True):
        _bars(axes, bars)
        axes.set_title(title, fontsize=10)
    figure.suptitle(f"speed-ups, batch 1, {document['hardware']}")
    return figure


def _bar(ratio: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    """Height, and the extremes of the rounds where they are known."""
    return ratio["value"], ratio["low"], ratio["high"]


def _opponent(entry: Measured, way: str) -> dict[str, Any]:
    """Another way over ours."""
    other = entry.opponents[way]
    rounds = [a / b for a, b in zip(other.get("samples") or (), entry.samples, strict=False)]
    low, high = min(rounds, default=None), max(rounds, default=None)
    return {"value": other["ratio"], "low": low, "high": high}


def _bars(axes: "Axes", bars: Mapping[str, tuple[float, float | None, float | None]]) -> None:
    if not bars:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center")
        axes.set_axis_off()
        return
    names, values = list(bars), [value for value, _, _ in bars.values()]
    colours = [COLOURS[name.splitlines()[-1]] for name in names]
    axes.bar(range(len(names)), values, color=colours)
    for place, (value, low, high) in enumerate(bars.values()):
        if low is not None:
            axes.plot([place, place], [low, high], color="black")
        top = max(value, high or 0)
        axes.text(place, top, f"{value:.2f}x", ha="center", va="bottom")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.margins(y=0.15)


def plot_simulation(document: Mapping[str, Any], path: Path) -> bool:
    """Seconds a clip over every axis of a simulation, parts stacked; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    axes_rows = document["axes"]
    figure = Figure(figsize=(13, 7), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(2, 3).flat, axes_rows.items(), strict=True):
        _stacked(axes, name, rows)
    figure.suptitle(
        f"{document['base']['model']}, seconds a clip at the limit of {document['limits']['name']}"
        if set(document["shares"].values()) == {1.0}
        else f"{document['base']['model']}, predicted seconds a clip, {document['limits']['name']}"
    )
    figure.savefig(path, dpi=110)
    return True


def _stacked(axes: "Axes", name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    labels = [_label(name, row) for row in rows]
    bottoms = [0.0] * len(rows)
    for part, colour in (("text", "#8c8c8c"), ("transformer", "#1b6ca8"), ("decoder", "#d98c21")):
        heights = [row[f"{part}_s"] / row["slots"] for row in rows]
        axes.bar(range(len(rows)), heights, bottom=bottoms, color=colour, label=part)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    for place, row in enumerate(rows):
        large = "" if row["fits"] else ", too large"
        note = f"{row['total_bytes'] / 2**30:.0f} GiB{large}"
        axes.text(place, bottoms[place], note, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set(title=name, ylabel="s a clip")
    axes.margins(y=0.35)
    axes.legend(fontsize=7, loc="upper left")


def _label(name: str, row: Mapping[str, Any]) -> str:
    if name.startswith("frames"):
        return str(row["num_frames"])
    if name == "resolution":
        return f"{row['height']}x{row['width']}"
    return str(row[name])
