"""Pictures of evaluation as PNG: bit accuracy as a heat map, samples of several checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videoar.training.curves import read_stages
from videoar.training.figures import new_figure, save_figure


def read_bits(source: str | Path) -> dict[str, Any]:
    """Bit accuracies `bits` [F][K] from the JSON of `videoar eval bits` or from a run's logs.

    Returns:
        `bits`, `sizes` where it is known, and `title`.

    Raises:
        ValueError: no such file or folder, or no bit accuracies in it.
    """
    source = Path(source)
    if source.is_dir():
        for stage in reversed(read_stages(source)):
            for line in reversed(stage.lines):
                if "bits" in line:
                    title = f"{stage.name}, step {line['step']}".removeprefix(", ")
                    return _checked_bits(source, line) | {"title": title}
        raise ValueError(f"{source}: no line of its logs has bit accuracies (`bits`)")
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no JSON that can be read ({error})") from error
    title = f"{document['num']} clips" if isinstance(document, dict) and "num" in document else ""
    return _checked_bits(source, document) | {"title": title}


def _checked_bits(source: Path, document: Any) -> dict[str, Any]:
    try:
        bits = np.array(document["bits"], dtype=float)
        if bits.ndim != 2 or not bits.size or not ((bits >= 0) & (bits <= 1)).all():
            raise ValueError(f"shares [F][K] expected, got the shape {list(bits.shape)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: bits: {error}") from error
    return {"bits": bits, "sizes": document.get("sizes")}


def plot_bits(source: str | Path, output: str | Path) -> dict[str, Any]:
    """Draw bit accuracy by latent frame and scale as a heat map, the numbers written in.

    Raises:
        ValueError: nothing to draw, or `output` is no .png.
        MediaError: matplotlib is missing, or the file cannot be written.
    """
    found = read_bits(source)
    bits, sizes = found["bits"], found["sizes"]
    frames, scales = bits.shape
    figure = new_figure(max(4.5, 1.2 + 0.8 * scales), 1.5 + 0.5 * frames)
    axes = figure.subplots()
    # The colours begin at chance, so that those of several pictures mean the same.
    image = axes.imshow(100 * bits, vmin=50, vmax=100, cmap="viridis", aspect="auto")
    for (frame, scale), share in np.ndenumerate(bits):
        ink = "black" if share > 0.8 else "white"
        axes.text(scale, frame, f"{100 * share:.1f}", ha="center", va="center", color=ink)
    grids = sizes or [None] * scales
    names = [f"{k + 1}\n{g[0]}x{g[1]}" if g else str(k + 1) for k, g in enumerate(grids)]
    axes.set_xticks(range(scales), names)
    axes.set_yticks(range(frames), range(1, frames + 1))
    axes.set(xlabel="scale" + (" and its grid" if sizes else ""), ylabel="latent frame")
    axes.set_title(f"bit accuracy, {found['title']}".removesuffix(", "))
    figure.colorbar(image, label="bits right, % (50: chance)")
    save_figure(figure, output)
    return {"output": str(output), "bits": bits.tolist(), "title": found["title"]}


def plot_samples(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    prompts: Sequence[str],
    output: str | Path,
    *,
    frames: int = 6,
) -> dict[str, Any]:
    """Draw samples as strips of frames: a row for each checkpoint, a column for each prompt.

    Args:
        rows: a name, and a clip uint8 `[T,H,W,3]` for each prompt.
        prompts: titles of the columns.
        frames: of a strip, evenly spaced, the first and the last among them.

    Raises:
        ValueError: no rows, another number of clips than of prompts, `frames` below 1, or `output`
            is no .png.
        MediaError: matplotlib is missing, or the file cannot be written.
    """
    if not rows or any(len(clips) != len(prompts) for _, clips in rows):
        raise ValueError(f"rows: at least one, with a clip for each of {len(prompts)} prompts")
    if frames < 1:
        raise ValueError(f"frames: at least 1, got {frames}")
    strips = [[strip(clip, frames) for clip in clips] for _, clips in rows]
    widths = [part.shape[1] / part.shape[0] for part in strips[0]]
    inches = 10 / sum(widths)
    figure = new_figure(10.6, len(rows) * inches + 0.45 + 0.06 * len(rows))
    grid = figure.subplots(len(rows), len(prompts), squeeze=False, width_ratios=widths)
    for line, (name, _), parts in zip(grid, rows, strips, strict=True):
        for axes, part in zip(line, parts, strict=True):
            axes.imshow(part, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axes, prompt in zip(grid[0], prompts, strict=True):
        axes.set_title(prompt, fontsize=9)
    save_figure(figure, output)
    return {"output": str(output), "rows": [name for name, _ in rows], "prompts": list(prompts)}


def strip(clip: np.ndarray, frames: int) -> np.ndarray:
    """Evenly spaced frames of a clip side by side, uint8 `[H,n(W+1)-1,3]`, white lines between."""
    chosen = clip[np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)]
    padded = np.pad(chosen, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-1]
