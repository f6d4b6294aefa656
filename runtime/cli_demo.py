"""`videoar demo`: a few prompts with the shipped model, as one video and one sheet of frames."""

import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from videoar.runtime.cli_generate import make_video
from videoar.runtime.cli_models import load_model, print_json, use_compute
from videoar.runtime.media import check_writable, contact_sheet, write_png, write_video

PROMPTS = (
    "a red 3 moving right quickly",
    "a green 7 moving down slowly",
    "a blue 0 moving left quickly",
    "a yellow 5 moving up slowly",
    "a magenta 8 standing still",
    "a cyan 2 moving up quickly",
)
_COLUMNS = 3
_VIDEO_SCALE, _SHEET_SCALE = 3, 2
# Every second frame, so that a row of the sheet fits a screen.
_SHEET_STEP = 2


def run(args: Namespace) -> None:
    """Make all prompts and write `demo.mp4`, `demo.gif` and `demo.png`.

    Raises:
        CheckpointError: the model cannot be loaded.
        MediaError: a file cannot be written; before anything is made, as far as can be known.
    """
    begin = time.perf_counter()
    paths = [args.out / f"demo.{suffix}" for suffix in ("mp4", "gif", "png")]
    for path in paths:
        check_writable(path)
    use_compute(args)
    model = load_model(args)
    loaded = time.perf_counter()
    requests = [{"prompt": text, "seed": args.seed + i} for i, text in enumerate(PROMPTS)]
    clips, videos = [], []
    for request in requests:
        result = make_video(model, request["prompt"], **request)
        clips.append(result.frames[0])
        videos.append({**request, "seconds": result.timings["total"]})
        if not args.json:
            print(f"{request['prompt']}: {result.timings['total']:.1f} s", flush=True)
    grid = tile(clips, _COLUMNS)
    for path in paths[:2]:
        write_video(path, grid, model.config.fps, scale=_VIDEO_SCALE)
    rows = [clip[::_SHEET_STEP] for clip in clips]
    write_png(paths[2], contact_sheet(rows, scale=_SHEET_SCALE, labels=PROMPTS))
    total = time.perf_counter() - begin
    if args.json:
        timings = {"load": loaded - begin, "total": total}
        names = [str(path) for path in paths]
        print_json({"outputs": names, "videos": videos, "timings": timings})
    else:
        print(*paths, f"{total:.1f} s in all", sep="\n")


def tile(clips: Sequence[np.ndarray], columns: int, gap: int = 1) -> np.ndarray:
    """Clips side by side, row by row, with `gap` dark pixels around each.

    Args:
        clips: uint8 `[T,H,W,3]`, all of one shape.

    Returns:
        uint8 `[T,H',W',3]`.
    """
    frames, height, width, _ = clips[0].shape
    step_y, step_x = height + gap, width + gap
    rows = -(-len(clips) // columns)
    grid = np.full((frames, rows * step_y + gap, columns * step_x + gap, 3), 24, np.uint8)
    for index, clip in enumerate(clips):
        top, left = gap + index // columns * step_y, gap + index % columns * step_x
        grid[:, top : top + height, left : left + width] = clip
    return grid
