"""A run that is killed at any moment goes on as if nothing had been; what a kill leaves behind."""

import json
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from videoar.runtime.errors import CheckpointError
from videoar.training.run import OptimConfig, Run, train
from videoar.training.state import latest_state, load_state, read_state, save_state


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments and within saves: the same weights, bit for bit, and log."""
    script = Path(__file__).with_name("toy_runs.py")
    subprocess.run([sys.executable, script, "kills", tmp_path], check=True, timeout=300)
    killed = json.loads((tmp_path / "kills.json").read_text())
    assert len(killed) == 20
    left = [kill["left"] for kill in killed]
    # Some had written the new state aside, some had renamed it beside the old one.
    assert any(names and names[-1].endswith(".tmp") for names in left)
    assert any(len(names) == 2 and not names[-1].endswith(".tmp") for names in left)

    def outcome(folder: Path) -> tuple[dict[str, Tensor], list[dict]]:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("time")
        assert [path.name for path in folder.glob("state-*")] == ["state-00000060"]
        return load_file(folder / "finished.safetensors") | read_state(folder), lines

    weights, lines = outcome(tmp_path / "whole")
    assert [line["step"] for line in lines] == list(range(60))
    for name, _ in Counter(kill["run"] for kill in killed).items():
        again, more = outcome(tmp_path / name)
        assert weights.keys() == again.keys()
        assert [key for key in weights if not torch.equal(weights[key], again[key])] == []
        assert lines == more


def make_run(folder: Path, width: int = 2) -> Run:
    torch.manual_seed(0)
    return Run(folder, nn.Linear(3, width), OptimConfig(steps=4), "line", save_every=1)


def fit(run: Run, stop: int) -> None:
    def loss_of(draw: int) -> tuple[Tensor, dict[str, float]]:
        if draw == stop:
            raise KeyboardInterrupt
        return run.model(torch.full((1, 3), float(draw))).square().sum(), {}

    with pytest.raises(KeyboardInterrupt):
        train(run, loss_of, log_every=1)


def test_what_was_not_renamed_is_no_state(tmp_path: Path) -> None:
    fit(make_run(tmp_path), 2)
    shutil.copytree(tmp_path / "state-00000002", tmp_path / "state-00000003.tmp")
    (shard,) = (tmp_path / "state-00000003.tmp").iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    run = make_run(tmp_path)
    assert run.step == 2
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000002"]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_an_older_state_beside_the_new_one_goes(tmp_path: Path) -> None:
    """A process killed between the new state's renaming and the old one's end leaves both."""
    fit(make_run(tmp_path), 1)
    shutil.copytree(tmp_path / "state-00000001", tmp_path / "kept")
    fit(make_run(tmp_path), 2)
    shutil.move(tmp_path / "kept", tmp_path / "state-00000001")
    assert make_run(tmp_path).step == 2
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000002"]


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = {
        "model.a": torch.randn(5, 3),
        "model.b.c": torch.arange(4),
        "step": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
    }
    save_state(tmp_path, 12, state)
    again = read_state(tmp_path)
    assert again.keys() == state.keys()
    for name, value in state.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)


def test_a_full_disk_leaves_the_older_state(tmp_path: Path) -> None:
    fit(make_run(tmp_path), 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"state-00000003: could not be written \(.*too "):
            save_state(tmp_path, 3, {"weight": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000002"]
    assert make_run(tmp_path).step == 2


def test_an_interrupted_save_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's collectives would gather it as an exception of their own."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 3, {"weight": torch.zeros(10)})
    assert latest_state(tmp_path) is None


def test_a_bad_state_is_refused_by_name(tmp_path: Path) -> None:
    fit(make_run(tmp_path), 2)
    with pytest.raises(CheckpointError, match=r"another model: ema.bias: float32 \[2\].* \[5\]"):
        make_run(tmp_path, width=5)
    state = latest_state(tmp_path)
    with pytest.raises(CheckpointError, match=r"more: nothing, this run has int64 \[1\]"):
        load_state(state, read_state(tmp_path) | {"more": torch.zeros(1, dtype=torch.int64)})
    (shard,) = state.iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="state-00000002: no readable state"):
        make_run(tmp_path)
    with pytest.raises(CheckpointError, match="no state of a run"):
        read_state(tmp_path / "nowhere")
    state.rename(tmp_path / "state-old")
    with pytest.raises(CheckpointError, match="expected a name like state-00000200"):
        make_run(tmp_path)
