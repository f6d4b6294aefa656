"""`import videoar` is cheap, and the public names exist."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import videoar

PUBLIC = {
    "VideoAR",
    "VideoResult",
    "PRESETS",
    "TransformerConfig",
    "TokenizerConfig",
    "ChunkSchedule",
    "CheckpointError",
    "MediaError",
    "CapacityError",
    "Engine",
    "Handle",
    "NumericalError",
    "Cancelled",
    "EngineClosed",
    "HookError",
}
IMPORT_LIMIT_S = 0.15
# The clock stands inside the process: between two processes' start-up times is mostly noise.
TIMED_IMPORT = """
import json, sys, time
start = time.perf_counter()
import videoar
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": list(sys.modules)}))
"""

# As on the machine of `make gpu-check`, which brings torch, Triton and pytest alone.
COLLECT_BARE = """
import sys
for name in ("av", "tokenizers", "mlxtend", "matplotlib"):
    sys.modules[name] = None
import pytest
options = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
sys.exit(pytest.main(options + sys.argv[1:]))
"""
TESTS = Path(__file__).parent


def timed_import() -> dict:
    process = subprocess.run(
        [sys.executable, "-c", TIMED_IMPORT], capture_output=True, text=True, check=True
    )
    return json.loads(process.stdout)


def test_import_loads_nothing_heavy():
    heavy = {"torch", "triton", "av", "numpy", "videoar._C", "videoar.runtime"}
    assert heavy.isdisjoint(timed_import()["modules"])


def test_import_is_fast():
    best = min(timed_import()["seconds"] for _ in range(5))
    assert best < IMPORT_LIMIT_S


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_loads(name):
    assert getattr(videoar, name) is not None
    assert name in dir(videoar)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'VideoGAN'"):
        _ = videoar.VideoGAN


def test_version_is_the_installed_one():
    assert videoar.__version__ == version("videoar")


def test_gpu_tests_need_no_more_than_a_bare_machine_has():
    """The files are those that `make gpu-check` runs."""
    others = [path for path in TESTS.glob("*/test_*.py") if "mark.gpu" in path.read_text()]
    files = sorted({*TESTS.glob("kernels/test_*.py"), *others})
    command = [sys.executable, "-c", COLLECT_BARE, *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
