"""Frames are the same inside a program that has changed torch's settings for its own work."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from videoar.runtime.engine import Engine
from videoar.runtime.isolation import isolated
from videoar.runtime.pipeline import VideoAR

# Every number rounds differently in bf16 and half, and every tensor without a device goes astray.
SCRIPT = """
import contextlib, sys
import torch
from test_isolation import digest

torch.set_default_dtype(getattr(torch, sys.argv[2]))
torch.set_default_device(sys.argv[3])
with torch.autocast("cpu", torch.bfloat16) if sys.argv[4] else contextlib.nullcontext():
    print(digest(sys.argv[1]))
    assert torch.is_autocast_enabled("cpu") == bool(sys.argv[4])
assert torch.zeros(1).dtype == getattr(torch, sys.argv[2])
assert torch.zeros(1).device.type == sys.argv[3]
"""


def digest(folder: str | Path) -> str:
    """Of frames made in all ways: given frames, shots, guidance that changes, an engine."""
    torch.set_num_threads(1)
    model = VideoAR.from_pretrained(folder)
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    options = {"image": image, "guidance": "ucf101:1.1:2.3:3.7", "temperature": 0.7, "seed": 5}
    made = [model.generate("a red 3 moving left", shots=2, **options).frames]
    made += model.stream("a blue 4 moving up", num_frames=5)
    with Engine(model) as engine:
        made.append(engine.submit("a red 3 moving left", **options).result().frames)
    return hashlib.sha256(b"".join(frames.tobytes() for frames in made)).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [("bfloat16", "cpu", ""), ("float16", "meta", "autocast"), ("float64", "cpu", "autocast")],
)
def test_what_a_program_sets_for_itself(tiny_folder: Path, settings: tuple[str, str, str]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tiny_folder), *settings]
    here = Path(__file__).parent
    done = subprocess.run(
        command, cwd=here, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    try:
        assert done.stdout.split() == [digest(tiny_folder)]
    finally:
        torch.set_num_threads(threads)


def test_settings_come_back_behind_an_error() -> None:
    @isolated
    def failing() -> None:
        assert not torch.is_autocast_enabled("cpu")
        assert torch.zeros(1).device.type == "cpu"
        raise KeyError

    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(KeyError):
            failing()
        assert torch.is_autocast_enabled("cpu")
        assert torch.zeros(1).device.type == "meta"
