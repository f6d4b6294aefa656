"""Command lines of the benchmarks: what is wrong is said before anything is built or measured."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from tests.benchmarks.test_par import SMALL
from videoar.benchmarks import par_measure
from videoar.benchmarks.arguments import output_file, output_folder
from videoar.benchmarks.par_config import PAR_PRESETS

AT_LEAST_1 = r"expected an integer of at least 1, got '0'"
BAD = [
    ("par_measure", ["--guidance", "-1"], "--guidance: expected a number of 0 or more, got '-1'"),
    ("par_measure", ["--guidance", "nan"], "--guidance: expected a number of 0 or more, got 'nan'"),
    ("par_measure", ["--top-k", "-1"], "--top-k: expected an integer of at least 0, got '-1'"),
    ("par_measure", ["--top-k", "99999"], "--top-k: expected 0 .. 16384, got 99999"),
    ("par_measure", ["--first-step", "323"], "--first-step: expected 0 .. 322, got 323"),
    ("par_measure", ["--steps", "324"], "--steps: expected 1 .. 323, got 324"),
    ("par_measure", ["--threads", "0"], f"--threads: {AT_LEAST_1}"),
    ("par_measure", ["--device", "cuda"], "--device cuda: there is no CUDA device"),
    (
        "par_measure",
        ["--json-out", "/no/such/x.json"],
        "--json-out: cannot write '/no/such/x.json'",
    ),
    ("products", ["--rows", ""], "--rows: expected an integer of at least 1, got ''"),
    ("products", ["--rows", "8,0"], f"--rows: {AT_LEAST_1}"),
    ("products", ["--threads", "0"], f"--threads: {AT_LEAST_1}"),
    ("products", ["--json-out", "/"], "--json-out: expected a file, '/' is a folder"),
    ("floor", ["--preset", "nope"], "--preset: no 'nope', there are digits"),
    ("floor", ["--threads", "0"], f"--threads: {AT_LEAST_1}"),
    ("floor", ["--json-out", "/no/such/x.json"], "--json-out: cannot write"),
    ("train_floor", ["--preset", "nope"], "--preset: no 'nope', there are digits"),
    ("train_floor", ["--clips", "0"], f"--clips: {AT_LEAST_1}"),
    ("train_floor", ["--json-out", "/no/such/x.json"], "--json-out: cannot write"),
    ("train_memory", ["--preset", "nope"], "--preset: no 'nope', there are digits"),
    ("train_memory", ["--batch", "0"], f"--batch: {AT_LEAST_1}"),
    ("train_memory", ["--layers", "0"], f"--layers: {AT_LEAST_1}"),
    ("train_profile", ["--preset", "nope"], "--preset: no 'nope', there are digits"),
    ("train_profile", ["--repeats", "0"], f"--repeats: {AT_LEAST_1}"),
    ("train_profile", ["--device", "cuda"], "--device cuda: there is no CUDA device"),
    ("kernels", ["--seconds", "0"], "--seconds: expected a number above 0, got '0'"),
    ("kernels", ["--out", "/no/such/x.json"], "--out: cannot write"),
    ("tune", ["--out", "/no/such/x.json"], "--out: cannot write"),
    ("simulate", ["--clips-per-second", "inf"], "--clips-per-second: expected a number above 0"),
    ("simulate", ["--clips-per-second", "0"], "--clips-per-second: expected a number above 0"),
    ("simulate", ["--transformer-share", "inf"], "--transformer-share: expected a share above 0"),
    ("simulate", ["--decoder-share", "2"], "--decoder-share: expected a share .* at most 1, got"),
    ("simulate", ["--window", "-1"], "--window: expected an integer of at least 0, got '-1'"),
    ("simulate", ["--out", "/etc/hostname"], "--out: expected a folder, '/etc/hostname' is a file"),
    ("environment", ["--bogus"], "unrecognized arguments: --bogus"),
]


@pytest.mark.parametrize(
    ("name", "words", "message"), BAD, ids=[f"{name} {' '.join(words)}" for name, words, _ in BAD]
)
def test_refused_at_once(
    name: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = importlib.import_module(f"videoar.benchmarks.{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for work in ("measure", "measure_parts", "result", "simulate", "tune", "environment"):
        if hasattr(program, work):
            monkeypatch.setattr(program, work, lambda *_, **__: pytest.fail("it measured"))
    main = program.run if name == "par_measure" else program.main
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_more_clips_of_par_than_fit(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAR_PRESETS, "par-4x", SMALL)
    with pytest.raises(SystemExit) as caught:
        par_measure.run(["--slots", str(10**7)])
    assert caught.value.code == 2
    assert "--slots 10000000: a cache of" in capsys.readouterr().err


def test_what_can_be_written(tmp_path: Path) -> None:
    assert output_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    assert output_folder(str(tmp_path / "a/b/c")) == tmp_path / "a/b/c"
    assert not (tmp_path / "a").exists()
