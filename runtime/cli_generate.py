"""`videoar generate`: prompts or classes to files."""

import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videoar.runtime.cli_models import load_model, model_config, print_json, use_compute
from videoar.runtime.config import ModelConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.media import check_writable, write_video
from videoar.runtime.pipeline import VideoAR, VideoResult
from videoar.runtime.sampling import SamplingParams


def run(args: Namespace) -> None:
    """Make and write one video after the other.

    Raises:
        ValueError: a bad argument; before anything is made.
        CheckpointError: the model cannot be loaded.
        MediaError: a file cannot be written; before anything is made, as far as can be known.
    """
    begin = time.perf_counter()
    requests = _requests(args)
    paths = numbered(args.output, len(requests))
    for path in paths:
        check_writable(path)
    use_compute(args)
    _check_sampling(args, model_config(args))
    model = load_model(args)
    timings = Counter(load=time.perf_counter() - begin)
    for request in requests:
        # A stream checks its arguments at once and makes nothing until it is read.
        model.stream(**request)
    outputs = []
    for path, request in zip(paths, requests, strict=True):
        start = time.perf_counter()
        result = make_video(model, path.name, **request)
        made = time.perf_counter()
        write_video(path, result.frames[0], result.fps, scale=args.scale)
        timings.update(result.timings | {"write": time.perf_counter() - made})
        output = describe_output(path, request, result, args.scale)
        outputs.append(output | {"seconds": time.perf_counter() - start})
        if not args.json:
            print(output_line(outputs[-1]), flush=True)
    timings["total"] = time.perf_counter() - begin
    if args.json:
        model_name = args.model if args.preset is None else args.preset
        print_json({"model": model_name, "outputs": outputs, "timings": timings})


def make_video(model: VideoAR, title: str, **request: Any) -> VideoResult:
    """`model.generate(**request)` of one video, with a progress bar on a terminal's stderr."""
    config = model.config
    num_frames = request.get("num_frames") or config.num_frames
    steps = config.tokenizer.latent_frames(num_frames) * len(config.transformer.sizes)
    with tqdm(total=steps, desc=title, unit="step", disable=None, leave=False) as bar:
        return model.generate(**request, on_step=lambda frame, scale: bar.update())


def describe_output(
    path: Path, request: dict[str, Any], result: VideoResult, scale: int
) -> dict[str, Any]:
    """What a written file holds; height and width are those of a frame in it."""
    num_frames, height, width, _ = result.frames[0].shape
    return {
        "path": str(path),
        "prompt": request.get("prompt"),
        "class_id": request.get("class_id"),
        "seed": result.seed,
        "num_frames": num_frames,
        "height": height * scale,
        "width": width * scale,
        "fps": result.fps,
    }


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
    """Arguments of `VideoAR.generate`, one dict a video."""
    if bool(args.prompt) == bool(args.class_id):
        raise ValueError("prompt: give at least one PROMPT or --class-id, and not both")
    name, values = ("prompt", args.prompt) if args.prompt else ("class_id", args.class_id)
    common = {
        "num_frames": args.num_frames,
        "guidance": args.guidance,
        "temperature": args.temperature,
    }
    return [{name: value, "seed": args.seed + i, **common} for i, value in enumerate(values)]


def _check_sampling(args: Namespace, config: ModelConfig) -> None:
    """What needs no weights, before they are loaded."""
    if args.num_frames is not None:
        config.tokenizer.latent_frames(args.num_frames)
    guidance = GuidanceSchedule.parse(config.guidance if args.guidance is None else args.guidance)
    if args.temperature is not None:
        SamplingParams(guidance=guidance, temperature=args.temperature)
