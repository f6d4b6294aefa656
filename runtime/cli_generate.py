"""`videoar generate`: prompts or classes to files."""

import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from videoar.runtime.cli_models import (
    load_model,
    model_config,
    print_json,
    text_tokenizer,
    use_compute,
)
from videoar.runtime.media import check_writable, write_video
from videoar.runtime.pipeline import VideoAR, VideoResult
from videoar.runtime.requests import make_job


def run(args: Namespace) -> None:
    """Make and write one video after the other.

    Raises:
        ValueError: a bad argument; before any weights are loaded.
        CheckpointError: the model cannot be loaded.
        MediaError: a file cannot be read or written; before anything is made, as far as can be
            known.
    """
    begin = time.perf_counter()
    requests = _requests(args)
    paths = numbered(args.output, len(requests))
    for path in paths:
        check_writable(path)
    use_compute(args)
    num_given = _check(args, requests)
    model = load_model(args)
    timings = Counter(load=time.perf_counter() - begin)
    outputs = []
    for path, request in zip(paths, requests, strict=True):
        start = time.perf_counter()
        result = make_video(model, path.name, only_new=args.only_new, **request)
        made = time.perf_counter()
        write_video(path, result.frames[0], result.fps, scale=args.scale)
        timings.update(result.timings | {"write": time.perf_counter() - made})
        output = describe_output(path, request, result, args.scale)
        if num_given:
            output["given_frames"] = 0 if args.only_new else num_given
        outputs.append(output | {"seconds": time.perf_counter() - start})
        if not args.json:
            print(output_line(outputs[-1]), flush=True)
    timings["total"] = time.perf_counter() - begin
    if args.json:
        model_name = args.model if args.preset is None else args.preset
        print_json({"model": model_name, "outputs": outputs, "timings": timings})


def make_video(
    model: VideoAR, title: str, *, only_new: bool = False, **request: Any
) -> VideoResult:
    """`model.generate(**request)` of one video, with a progress bar on a terminal's stderr."""
    job = make_job(model.config, model.text_tokenizer, **request)
    steps = sum(shot.num_latent_frames for shot in job.shots) * len(model.config.transformer.sizes)
    with tqdm(total=steps, desc=title, unit="step", disable=None, leave=False) as bar:
        return model.generate(**request, only_new=only_new, on_step=lambda *step: bar.update())


def describe_output(
    path: Path, request: dict[str, Any], result: VideoResult, scale: int
) -> dict[str, Any]:
    """What a written file holds; height and width are those of a frame in it."""
    num_frames, height, width, _ = result.frames[0].shape
    output = {
        "path": str(path),
        "prompt": request.get("prompt"),
        "class_id": request.get("class_id"),
        "seed": result.seed,
        "num_frames": num_frames,
        "height": height * scale,
        "width": width * scale,
        "fps": result.fps,
    }
    # A number, or the prompt or class of each.
    return output | {"shots": request["shots"]} if "shots" in request else output


def output_line(output: dict[str, Any]) -> str:
    """`describe_output` and `seconds` as a line of text."""
    return (
        f"{output['path']}: {output['num_frames']} frames of {output['width']}x{output['height']}, "
        f"{output['seconds']:.1f} s"
    )


def numbered(path: Path, count: int) -> list[Path]:
    """`path` for one file; for several `name-1.mp4`, `name-2.mp4`, ..."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]


def _requests(args: Namespace) -> list[dict[str, Any]]:
    """Arguments of `VideoAR.generate`, one dict a video; what was not asked for is left out."""
    if bool(args.prompt) == bool(args.class_id):
        raise ValueError("prompt: give at least one PROMPT or --class-id, and not both")
    name, values = ("prompt", args.prompt) if args.prompt else ("class_id", args.class_id)
    options = {
        "num_frames": args.num_frames,
        "guidance": args.guidance,
        "temperature": args.temperature,
        "context": args.context,
        "image": args.image,
        "video": args.video,
    }
    common = {name: value for name, value in options.items() if value is not None}
    if args.shots > 1:
        common["shots"] = args.shots
    further = args.then or []
    if name == "class_id":
        further = [_class_id(text) for text in further]
    return [
        ({"shots": [value, *further]} if further else {name: value})
        | common
        | {"seed": args.seed + i}
        for i, value in enumerate(values)
    ]


def _class_id(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"then: a class is expected, got {text!r}") from None


def _check(args: Namespace, requests: list[dict[str, Any]]) -> int:
    """Check what needs no weights, and put frames in the place of `image` and `video`.

    Returns:
        How many frames are in front of every video.
    """
    config = model_config(args)
    tokenizer = text_tokenizer(args, config)
    given: dict[str, np.ndarray] = {}
    count = 0
    for request in requests:
        # The first request's frames are everyone's, so that a file is read once.
        request |= given
        history = make_job(config, tokenizer, **request).history
        if history is not None:
            count = len(history)
            given = {"image": history[0]} if "image" in request else {"video": history}
            request |= given
    check_writable(args.output, config.fps)
    if args.only_new and not count:
        raise ValueError("only_new: goes with --image or --video")
    return count
