"""Loading a checkpoint folder with all its checks, beside reading its files and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from videoar.benchmarks.suite import Suite
from videoar.benchmarks.suite_entry import Entry, part_clock
from videoar.runtime.model_folder import resolve_folder, save_model
from videoar.runtime.modules import random_modules
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import PRESETS

pytestmark = pytest.mark.benchmark(timer=part_clock)

_LAYERS = 2
_TIMED = "from_pretrained: every check of keys, shapes and finite values, files in the page cache"
_BARE = "the limit is copying the files' bytes once at the measured bandwidth"


def bench_load_digits(benchmark, suite: Suite) -> None:
    """The shipped model."""
    _load(benchmark, suite, "digits", resolve_folder("digits"), "float32")


def bench_load_videoar_l(benchmark, suite: Suite, tmp_path: Path) -> None:
    """Two layers of videoar-l and its whole tokenizer: 0.6 GB in 16 bits."""
    config = PRESETS["videoar-l"]
    config = replace(config, transformer=replace(config.transformer, layers=_LAYERS))
    model = f"videoar-l, {_LAYERS} layers"
    suite.require(model, "load", needed=4 << 30, requested=False)
    save_model(tmp_path, VideoAR(config, *random_modules(config, suite.dtype, "cpu", 0), None))
    _load(benchmark, suite, model, tmp_path, suite.dtype_name)


def _load(benchmark, suite: Suite, model: str, folder: Path, dtype: str) -> None:
    suite.require(model, "load", needed=1 << 30, requested=False)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)

    def ours() -> None:
        VideoAR.from_pretrained(folder, dtype=dtype, device=suite.device)

    def bare() -> None:
        for path in files:
            path.read_bytes()

    samples = suite.race(benchmark, {"videoar": ours, "bare": bare})
    entry = Entry(
        model=model,
        way="videoar",
        part="load",
        timed=_TIMED,
        num_bytes=num_bytes,
        flops=0,
        limit_s=suite.limits.seconds(num_bytes, 0),
        limit_note=_BARE,
    )
    suite.describe(benchmark, entry, samples, dtype=dtype)
