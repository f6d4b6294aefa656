"""Training curves as PNG: everything that the stages of a run have logged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoar.training.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG = "log.jsonl"
COLOUR = "#1b4f7e"
# Points of a curve that its smooth line averages, as a share of all.
_SMOOTH = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram of a training's log.

    Attributes:
        title, unit: what it shows.
        keys: of the log; one that ends in "_" stands for all that go on with a number.
        log: logarithmic axis.
    """

    title: str
    unit: str
    keys: tuple[str, ...]
    log: bool = False


PANELS = (
    Panel(title="loss", unit="training loss", keys=("loss",)),
    Panel(title="reconstruction of a batch", unit="PSNR, dB", keys=("psnr",)),
    Panel(title="perceptual distance", unit="LPIPS", keys=("lpips",)),
    Panel(title="bit accuracy by scale", unit="share of bits right", keys=("bits_",)),
    Panel(title="bit accuracy by latent frame", unit="share of bits right", keys=("frame_",)),
    Panel(title="discriminator", unit="share of patches right", keys=("disc_real", "disc_fake")),
    Panel(title="gradient norm", unit="before clipping", keys=("norm", "adversary_norm"), log=True),
    Panel(title="learning rate", unit="AdamW's rate", keys=("rate",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The log of one stage: its lines by step, each step once, remarks left out."""

    name: str
    lines: tuple[Mapping[str, Any], ...]

    @property
    def steps(self) -> int:
        """Steps up to its last line."""
        return self.lines[-1]["step"] + 1


def read_stages(run: str | Path) -> list[Stage]:
    """The logs in a run's folder and below, in the order in which they were begun.

    Raises:
        ValueError: no such folder, no log in it, or one that cannot be read; names the line.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder")
    found = []
    for path in sorted(run.rglob(LOG)):
        lines = {line["step"]: line for line in _read_log(path) if "note" not in line}
        if lines:
            name = path.parent.relative_to(run).as_posix()
            stage = Stage(name="" if name == "." else name, lines=tuple(lines.values()))
            found.append((stage.lines[0].get("time", 0), stage))
    if not found:
        raise ValueError(f"{run}: no {LOG} with a line in it")
    return [stage for _, stage in sorted(found, key=lambda pair: pair[0])]


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = []
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            lines.append(line | {"step": int(line["step"])})
        except (ValueError, KeyError, TypeError) as error:
            # The last line of a running or killed training may be cut off.
            if number < len(texts):
                raise ValueError(f"{path}: line {number} is no line of a log") from error
    return sorted(lines, key=lambda line: line["step"])


def plot_curves(run: str | Path, output: str | Path) -> dict[str, Any]:
    """Draw everything that a run has logged, its stages one behind the other.

    Returns:
        `output`, `panels` (their titles) and `stages`: the last line of each.

    Raises:
        ValueError: no log, or `output` is no .png.
        MediaError: matplotlib is missing, or the file cannot be written.
    """
    stages = read_stages(run)
    panels = [panel for panel in PANELS if any(_keys(panel, stages))]
    figure = new_figure(10, 2.6 * -(-len(panels) // 2))
    grid = figure.subplots(-(-len(panels) // 2), 2 if len(panels) > 1 else 1, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, stages)
    save_figure(figure, output)
    last = {stage.name: dict(stage.lines[-1]) for stage in stages}
    return {"output": str(output), "panels": [panel.title for panel in panels], "stages": last}


def _keys(panel: Panel, stages: Sequence[Stage]) -> list[str]:
    """The panel's keys that were logged, in numeric order where they are numbered."""
    logged = {key for stage in stages for line in stage.lines for key in line}
    keys: list[str] = []
    for key in panel.keys:
        numbers = [name[len(key) :] for name in logged if key[-1] == "_" and name.startswith(key)]
        keys += [f"{key}{n}" for n in sorted(map(int, filter(str.isdigit, numbers)))]
        keys += [key] * (key in logged)
    return keys


def _draw_panel(axes: "Axes", panel: Panel, stages: Sequence[Stage]) -> None:
    keys = _keys(panel, stages)
    colours = [COLOUR] if len(keys) == 1 else _colours(len(keys))
    offset = 0
    for stage in stages:
        for key, colour in zip(keys, colours, strict=True):
            points = [(line["step"] + offset, line[key]) for line in stage.lines if key in line]
            if points:
                steps, values = np.array(points, dtype=float).T
                axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
                axes.plot(steps, smooth(values), color=colour, linewidth=1.6)
        if offset:
            axes.axvline(offset, color="#777777", linewidth=0.8, linestyle=":")
        if len(stages) > 1:
            place = {"xy": (offset, 1), "xycoords": ("data", "axes fraction")}
            shift = {"xytext": (3, -3), "textcoords": "offset points", "va": "top"}
            axes.annotate(stage.name, **place, **shift, fontsize=8, color="#555555")
        offset += stage.steps
    if len(keys) > 1:
        names = [key.split("_")[-1] if panel.keys[0][-1] == "_" else key for key in keys]
        handles = [axes.plot([], [], color=colour)[0] for colour in colours]
        title = panel.title.split()[-1] if panel.keys[0][-1] == "_" else None
        axes.legend(
            handles, names, title=title, title_fontsize=8, fontsize=8, ncols=4, loc="lower right"
        )
    if panel.log:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    # A transformer's loss has a unit; a tokenizer's is a weighted sum.
    bits = panel.title == "loss" and any("bits_1" in line for line in stages[-1].lines)
    axes.set(title=panel.title, xlabel="step", ylabel="nats a bit" if bits else panel.unit)
    axes.grid(alpha=0.3)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean of up to 3 % of the points, of fewer at the ends."""
    half = max(1, round(_SMOOTH * len(values) / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    # The same reach to both sides, so that the ends of a slope are not bent.
    reach = np.minimum(half, np.minimum(places, len(values) - 1 - places))
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.88, count)))
