"""The ablation: each row adds one technique, a small run gives a result that is kept."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from videoar.training import ablation
from videoar.training.ablation import AblationConfig, architecture_of, training_of

SMALL = AblationConfig(
    layers=1, heads=1, clips=4, steps=2, batch=2, prompts=2, references=3, rate=1e-3
)


def test_each_row_adds_one_technique(tmp_path: Path) -> None:
    networks = [architecture_of(name, SMALL) for name in ablation.TECHNIQUES]
    assert networks[0] == replace(networks[1], positions="sequence", rope_theta=10_000.0)
    assert all(network == networks[1] for network in networks[1:])
    runs = [training_of(name, SMALL, 5, tmp_path) for name in ablation.TECHNIQUES]
    flips, masks = zip(*((run.stages[0].flip, run.stages[0].mask) for run in runs), strict=True)
    assert runs[0] == runs[1]
    assert (flips[1].p_max, flips[1].delta) == (0, 0)
    assert not flips[2].inherit
    assert flips[2].p_max == SMALL.p_max
    assert flips[3] == flips[4] == replace(flips[2], inherit=True)
    assert [mask.p_mask for mask in masks] == [0, 0, 0, 0, SMALL.p_mask]
    assert len({run.seed for run in runs}) == 1


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = [f"--{k}={getattr(SMALL, k)}" for k in ("layers", "heads", "clips", "steps", "batch")]
    flags += ["--prompts=2", "--references=3", "--rate=1e-3", "--seeds", "3", "--out"]
    threads = f"--threads={torch.get_num_threads()}"
    command = ["run", "--only", "real", "base", "mask", threads, *flags, str(tmp_path)]
    ablation.main(command)
    first = capsys.readouterr().out
    result = json.loads((tmp_path / "mask-3.json").read_text())
    assert (result["technique"], result["seed"]) == ("mask", 3)
    assert set(result["short"]) == {"digit", "colour", "direction", "all", "tfvd"}
    assert 0 < result["extended"]["tfvd"] < float("inf")
    assert all(ablation.TITLES[name] in first for name in ("real", "base", "mask"))
    ablation.main(command)
    assert capsys.readouterr().out == first
    with pytest.raises(ValueError, match="made with"):
        ablation.main([*command, "--batch=1"])


def test_the_table_shows_mean_and_spread() -> None:
    def run(seed: int, share: float) -> dict:
        scores = {"digit": share, "colour": 1.0, "all": share, "tfvd": 10 * share}
        return {"technique": "rope", "seed": seed, "short": scores, "extended": scores}

    lines = ablation.table([run(0, 0.5), run(1, 0.7)]).splitlines()
    assert len(lines) == 3
    share = "0.600 ± 0.141"
    assert lines[2].startswith(
        f"| + multi-scale temporal RoPE | {share} | {share} | 6.000 ± 1.414 |"
    )
    assert lines[2].endswith("| 2 |")


def test_the_documented_table_is_that_of_the_committed_runs() -> None:
    docs = Path(__file__).parents[2] / "docs"
    lines = (docs / "logs" / "ablation.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert {(run["technique"], run["seed"]) for run in runs} == {
        (name, seed) for name in ablation.ROWS for seed in range(3)
    }
    assert all(run["config"] == asdict(AblationConfig()) for run in runs)
    assert ablation.table(runs) in (docs / "training.md").read_text()


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no result"):
        ablation.main(["table", "--out", str(tmp_path)])
