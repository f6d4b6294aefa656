"""`videoar reconstruct`: a video or picture to bits and back."""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from videoar.runtime.checkpoint_json import CONFIG_NAME, INDEX_NAME, read_config
from videoar.runtime.cli_models import model_config, print_json, use_compute
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.media import check_writable, read_video, to_float, to_uint8, write_video
from videoar.runtime.model_folder import load_tokenizer, resolve_folder
from videoar.runtime.modules import DTYPES
from videoar.runtime.schedule import Sizes, default_sizes
from videoar.runtime.video_tokenizer import VideoTokenizer


def run(args: Namespace) -> None:
    """Reconstruct one file.

    Raises:
        ValueError: a bad argument or size; before anything is computed.
        CheckpointError: the model cannot be loaded.
        MediaError: the input cannot be read, or the output not be written.
    """
    begin = time.perf_counter()
    check_writable(args.output)
    use_compute(args)
    config, size, sizes = _setting(args)
    frames, fps = read_video(args.input, size=size, num_frames=args.num_frames, fps=args.fps)
    check_writable(args.output, fps)
    frames = _cut(frames, config.temporal_compression, args.input)
    if size is None:
        frames = _crop(frames, config.spatial_compression)
        sizes = _scales(sizes, config.latent_size(*frames.shape[1:3]))
    height, width = frames.shape[1:3]
    tokenizer = load_tokenizer(args.model, dtype=DTYPES[args.dtype], device=args.device)
    loaded = time.perf_counter()
    decoded = np.concatenate(list(reconstruct(tokenizer, frames, sizes)))
    done = time.perf_counter()
    write_video(args.output, decoded, fps, scale=args.scale)
    tokens = config.latent_frames(len(frames)) * sum(h * w for h, w in sizes)
    bits = tokens * config.latent_dim
    quality = psnr(frames, decoded)
    output = {
        "path": str(args.output),
        "input": str(args.input),
        "num_frames": len(decoded),
        "height": height * args.scale,
        "width": width * args.scale,
        "fps": fps,
        "psnr": quality if math.isfinite(quality) else None,
        "bits_per_pixel": bits / frames[..., 0].size,
        "timings": {
            "load": loaded - begin,
            "reconstruct": done - loaded,
            "total": time.perf_counter() - begin,
        },
    }
    if args.json:
        print_json(output)
    else:
        print(_line(output))


@torch.inference_mode()
def reconstruct(
    tokenizer: VideoTokenizer, frames: np.ndarray, sizes: Sizes
) -> Iterator[np.ndarray]:
    """Through encoder, bits of all scales and decoder, one latent frame at a time.

    Memory is that of one latent frame, whatever the length.

    Args:
        frames: uint8 `[T,H,W,3]`, T = 1 + tau n.
        sizes: grids of the scales.

    Yields:
        uint8 `[1,H,W,3]`, then `[tau,H,W,3]` each.
    """
    weight = tokenizer.encoder.conv_in.conv.weight
    tau = tokenizer.config.temporal_compression
    starts = [0, *range(1, len(frames), tau)]
    encoder_state = decoder_state = None
    for start in tqdm(starts, desc="reconstruct", unit="frame", disable=None, leave=False):
        piece = to_float(frames[start : start + (tau if start else 1)])
        piece = piece.to(weight.device, weight.dtype)[None]
        latents, encoder_state = tokenizer.encoder.step(piece, encoder_state)
        bits = tokenizer.quantize(latents, sizes).bits
        latents = tokenizer.dequantize(bits, sizes).to(weight.dtype)
        pixels, decoder_state = tokenizer.decoder.step(latents, decoder_state)
        yield to_uint8(pixels)[0]


def _setting(args: Namespace) -> tuple[TokenizerConfig, tuple[int, int] | None, Sizes | None]:
    """The tokenizer's configuration, the frame size and the scales; None: the input tells.

    Only a whole model tells the last two: a tokenizer alone, as of `videoar convert`, takes
    frames of any size.
    """
    folder = resolve_folder(args.model)
    alone = [path for path in (folder / "video_tokenizer", folder) if (path / CONFIG_NAME).exists()]
    if alone and not (folder / INDEX_NAME).exists():
        config = read_config(alone[0], TokenizerConfig, component="video_tokenizer")
        size, sizes = args.size, args.sizes
    else:
        model = model_config(args)
        config, size = model.tokenizer, args.size or (model.height, model.width)
        own = model.transformer.sizes if size == (model.height, model.width) else None
        sizes = args.sizes or own
    if args.num_frames is not None:
        config.latent_frames(args.num_frames)
    if size is not None:
        sizes = _scales(sizes, config.latent_size(*size))
    return config, size, sizes


def _scales(sizes: Sizes | None, grid: tuple[int, int]) -> Sizes:
    """The scales of a latent grid: `default_sizes` where none are given.

    Raises:
        ValueError: the last one is not the grid, or one is larger than it.
    """
    sizes = sizes or default_sizes(*grid)
    if sizes[-1] != grid or any(h > grid[0] or w > grid[1] for h, w in sizes):
        raise ValueError(f"sizes: must end with the latent grid {grid[0]}x{grid[1]} and fit in it")
    return sizes


def _crop(frames: np.ndarray, factor: int) -> np.ndarray:
    """The largest middle part whose sides are multiples of `factor`; smaller sides as they are."""
    height, width = (side // factor * factor or side for side in frames.shape[1:3])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of all values of two uint8 arrays; equal ones have inf."""
    error = np.square(original.astype(np.float32) - decoded).mean(dtype=np.float64)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _cut(frames: np.ndarray, tau: int, path: Path) -> np.ndarray:
    """The longest beginning of 1 + tau n frames."""
    usable = 1 + (len(frames) - 1) // tau * tau
    if usable < len(frames):
        text = f"{path}: the first {usable} of {len(frames)} frames are used (1 + {tau}n)"
        print("videoar:", text, file=sys.stderr)
    return frames[:usable]


def _line(output: dict[str, Any]) -> str:
    quality = "lossless" if output["psnr"] is None else f"PSNR {output['psnr']:.2f} dB"
    return (
        f"{output['path']}: {output['num_frames']} frames of {output['width']}x{output['height']}, "
        f"{quality}, {output['bits_per_pixel']:.4f} bits a pixel, "
        f"{output['timings']['total']:.1f} s"
    )
