"""Small videos and folders that several test modules read."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoar.runtime.media import write_png


def moving_frames(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames that all differ, uint8 `[T,H,W,3]`: a bar that moves over a coloured ramp."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] * rng.random(3)
    frames = np.repeat(np.repeat(ramp[None], height, 1), num_frames, 0)
    for t in range(num_frames):
        frames[t, :, t * 3 % width : t * 3 % width + 4] = 40 + rng.integers(200, size=3)
    return frames.astype(np.uint8)


def encode_video(
    path: Path,
    num_frames: int = 20,
    size: tuple[int, int] = (32, 48),
    *,
    codec: str = "libx264",
    fps: Fraction | int = 8,
    gop: int = 6,
    b_frames: int = 0,
    seed: int = 0,
) -> Path:
    """Write a video with PyAV; the suffix decides about the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size, stream.thread_count = gop, 1
        if codec != "gif":
            stream.max_b_frames = b_frames
        for pixels in moving_frames(num_frames, *size, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`encode_video`."""
    return encode_video


@pytest.fixture(scope="session")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCF-101 in small: three classes of two clips, a broken file, a list of each kind."""
    root = tmp_path_factory.mktemp("UCF-101")
    for number, name in enumerate(("HammerThrow", "Hammering", "YoYo")):
        for clip in (1, 2):
            path = root / name / f"v_{name}_g01_c{clip:02d}.avi"
            encode_video(path, 12, codec="mpeg4", fps=25, seed=10 * number + clip)
    (root / "YoYo" / "v_YoYo_g02_c01.avi").write_bytes(b"RIFF....AVI broken")
    return root


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos, two pictures, captions of the digits' grammar, a broken and a short file."""
    root = tmp_path_factory.mktemp("mixed")
    lines = []
    for number in range(5):
        encode_video(root / "videos" / f"{number}.mp4", 20 + number, seed=number)
        lines.append(f'{{"file": "videos/{number}.mp4", "caption": "a red {number} moving left"}}')
    for number in range(2):
        write_png(root / f"{number}.png", moving_frames(1, 40, 40, number)[0])
        lines.append(f'{{"file": "{number}.png", "caption": "a blue {number} standing still"}}')
    encode_video(root / "short.mp4", 3)
    lines.append('{"file": "short.mp4", "caption": "a cyan 9 moving up"}')
    (root / "broken.mp4").write_bytes(b"broken")
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def transnet():
    """TransNetV2 with its weights, read once.

    The package's own constructor seeds torch and numpy and makes torch deterministic.
    """
    from videoar.training.features import load_transnet

    before = torch.get_rng_state()
    network = load_transnet()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    return network
