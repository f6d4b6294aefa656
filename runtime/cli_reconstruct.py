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

from videoar.runtime.cli_models import model_config, print_json, use_compute
from videoar.runtime.media import check_writable, read_video, to_float, to_uint8, write_video
from videoar.runtime.model_folder import load_tokenizer
from videoar.runtime.pipeline import DTYPES
from videoar.runtime.schedule import Sizes
from videoar.runtime.video_tokenizer import VideoTokenizer


def run(args: Namespace) -> None:
    """Reconstruct one file.

    Raises:
        ValueError: a bad argument; before anything is computed.
        CheckpointError: the model cannot be loaded.
        MediaError: the input cannot be read, or the output not be written.
    """
    begin = time.perf_counter()
    check_writable(args.output)
    use_compute(args)
    config = model_config(args)
    if args.num_frames is not None:
        config.tokenizer.latent_frames(args.num_frames)
    size = (config.height, config.width)
    frames, fps = read_video(args.input, size=size, num_frames=args.num_frames)
    frames = _cut(frames, config.tokenizer.temporal_compression, args.input)
    tokenizer = load_tokenizer(args.model, dtype=DTYPES[args.dtype], device=args.device)
    loaded = time.perf_counter()
    sizes = config.transformer.sizes
    decoded = np.concatenate(list(reconstruct(tokenizer, frames, sizes)))
    done = time.perf_counter()
    write_video(args.output, decoded, fps, scale=args.scale)
    latent_frames = config.tokenizer.latent_frames(len(frames))
    bits = latent_frames * config.transformer.tokens_per_frame * config.tokenizer.latent_dim
    quality = psnr(frames, decoded)
    output = {
        "path": str(args.output),
        "input": str(args.input),
        "num_frames": len(decoded),
        "height": config.height * args.scale,
        "width": config.width * args.scale,
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
