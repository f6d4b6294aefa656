"""Several processes train what one does: FSDP2 over gloo, states that change hands, torchrun."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from videoar.runtime.cli import main
from videoar.runtime.errors import CheckpointError
from videoar.runtime.model_folder import load_transformer, save_tokenizer
from videoar.runtime.presets import DIGITS_TOKENIZER
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.run import row_generators, train
from videoar.training.sharding import Step, filled, outline, shard
from videoar.training.state import latest_state, read_state
from videoar.training.world import ALONE, World, choose_device

SCRIPT = Path(__file__).with_name("toy_runs.py")
STEPS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy_runs.scale`: a transformer and a second network, two batches a step, on 1 to 4 ranks."""
    folder = tmp_path_factory.mktemp("scale")
    subprocess.run([sys.executable, SCRIPT, "scale", folder], check=True, timeout=300)
    return folder


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"finished-{rank}.safetensors")


@pytest.mark.parametrize("name", ["two", "one-then-2", "two-then-1", "two-then-4"])
def test_any_number_of_processes_trains_alike(runs: Path, name: str) -> None:
    """Also where a run goes on from another number's state."""
    one, other = log(runs / "one"), log(runs / name)
    assert [line["step"] for line in other] == list(range(STEPS))
    for a, b in zip(one, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["right"] == pytest.approx(a["right"], abs=2e-6)
        for norm in ("norm", "other_norm"):
            assert b[norm] == pytest.approx(a[norm], rel=1e-4, abs=2e-6)
    state, expected, found = read_state(runs / "one"), weights(runs / "one"), weights(runs / name)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
        # Training moved the weights by much more than that.
        assert (state[f"model.{key}"] - value).abs().max() > 2e-4


@pytest.mark.parametrize("stage", ["image", "clip"])
def test_a_tokenizer_and_its_discriminator_train_alike(runs: Path, stage: str) -> None:
    one, two = (
        [line for line in log(runs / name / stage) if "loss" in line]
        for name in ("tokenizer-one", "tokenizer-two")
    )
    assert [line["step"] for line in two] == [0]
    assert two[0].keys() == one[0].keys() >= {"gan_weight", "lecam", "adversary_norm"}
    # A mean of decibels, and the entropy of a mean, are of each rank's own rows.
    for key in one[0].keys() - {"time", "psnr", "batch_entropy"}:
        assert two[0][key] == pytest.approx(one[0][key], rel=2e-4, abs=1e-5), key
    states = [read_state(runs / name / stage) for name in ("tokenizer-one", "tokenizer-two")]
    limits = {"model.": 1e-7, "adversary.model.": 1e-7}
    limits |= {f"{name}optimizer.exp_avg.": 5e-5 for name in ("", "adversary.")}
    for part, limit in limits.items():
        expected, found = (
            torch.cat([value.flatten() for key, value in state.items() if key.startswith(part)])
            for state in states
        )
        assert (found - expected).norm() < limit * expected.norm(), part


def test_resuming_on_as_many_processes_is_exact(runs: Path) -> None:
    expected, found = read_state(runs / "two"), read_state(runs / "two-then-2")
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("shard", ["state-00000002", "state-00000004.tmp"]),
        ("aside", ["state-00000002", "state-00000004.tmp"]),
        ("renamed", ["state-00000002", "state-00000004"]),
    ],
)
def test_a_kill_of_one_rank_changes_nothing(runs: Path, name: str, states: list[str]) -> None:
    """Within a save: while it writes its part, and before and behind the renaming."""
    folder = runs / f"killed-{name}"
    assert json.loads((folder / "left.json").read_text()) == states
    expected, found = read_state(runs / "two"), read_state(folder)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert [line["loss"] for line in log(folder)] == [line["loss"] for line in log(runs / "two")]
    assert [path.name for path in folder.glob("state-*")] == ["state-00000006"]


def test_every_rank_ends_with_the_whole_model(runs: Path) -> None:
    state = read_state(runs / "two")
    for rank in (0, 1):
        for key, value in weights(runs / "two", rank).items():
            assert torch.equal(value, state[f"ema.{key}"]), key


def test_each_rank_writes_its_own_shards(runs: Path) -> None:
    sizes = [path.stat().st_size for path in latest_state(runs / "two").iterdir()]
    whole = sum(path.stat().st_size for path in latest_state(runs / "one").iterdir())
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * whole


def test_a_bad_loss_on_one_rank_stops_all(runs: Path) -> None:
    for rank in (0, 1):
        text = (runs / "bad" / f"error-{rank}.txt").read_text()
        assert text == "toy: loss is nan at step 4 (batch 8)"
    assert latest_state(runs / "bad").name == "state-00000004"
    assert [line["step"] for line in log(runs / "bad")] == [0, 1, 2, 3]


def test_a_missing_shard_is_noticed(runs: Path, tmp_path: Path) -> None:
    state = tmp_path / "state-00000006"
    state.mkdir()
    source = latest_state(runs / "two-then-4") / "shard-00001-model-00001-of-00001.safetensors"
    (state / "shard-00001-model-00001-of-00001.safetensors").write_bytes(source.read_bytes())
    last = source.with_name("shard-00004-model-00001-of-00001.safetensors")
    (state / last.name).write_bytes(last.read_bytes())
    with pytest.raises(CheckpointError, match="a part of it is missing"):
        read_state(tmp_path)


def test_rows_are_shared_evenly() -> None:
    world = [World(rank=rank, size=3) for rank in range(3)]
    assert [list(w.rows(6)) for w in world] == [[0, 1], [2, 3], [4, 5]]
    assert list(ALONE.rows(4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="batch: 4 is no multiple of 3 processes"):
        world[0].rows(4)


def test_a_row_draws_the_same_on_every_rank() -> None:
    whole = [torch.rand(3, generator=g) for g in row_generators(5, 2, range(4))]
    part = [torch.rand(3, generator=g) for g in row_generators(5, 2, range(2, 4))]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], part, strict=True))
    others = row_generators(5, 3, [0]) + row_generators(6, 2, [0])
    numbers = whole + [torch.rand(3, generator=g) for g in others]
    assert len({tuple(row.tolist()) for row in numbers}) == 6


def test_one_process_is_not_sharded() -> None:
    model = nn.Linear(2, 2)
    step = shard(model, ALONE)
    assert type(step) is Step
    assert step(lambda x: model(x) is not None, torch.ones(1, 2))
    empty = outline(model)
    assert empty.weight.is_meta
    assert torch.equal(filled(empty, model.state_dict()).weight, model.weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_devices() -> None:
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device: cuda: process 0 of this machine has no GPU"):
        choose_device("cuda")


CONFIG = """
preset = "digits"
stages = [
    { name = "image", steps = 2, learning_rate = 1e-3, shapes = [{ frames = 1, batch = 4 }] },
    { name = "clip", steps = 2, learning_rate = 1e-3, shapes = [{ frames = 5, batch = 2 }] },
]
data = [{ source = "digits", count = 8 }]
"""


def test_torchrun_trains_what_one_process_goes_on_with(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command under torchrun; its states load on one process, and both runs agree."""
    # As `toy_runs.command` has it: float32, and every step in the log.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(train, "__defaults__", (1,))
    tokenizer, config = tmp_path / "tokenizer", tmp_path / "config.toml"
    config.write_text(CONFIG)
    torch.manual_seed(0)
    save_tokenizer(tokenizer, VideoTokenizer(DIGITS_TOKENIZER))
    words = ["train", "transformer", "--config", config, "--tokenizer", tokenizer]
    words += ["--device", "cpu", "--out"]

    def command(out: str) -> list[str]:
        return [str(word) for word in (*words, tmp_path / out)]

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", str(SCRIPT), "command"]
    subprocess.run([*launcher, *command("two")], check=True, timeout=300)
    # Only rank 0 prints.
    assert capfd.readouterr().out.split() == [str(tmp_path / "two" / "transformer")]
    assert main(command("one")) == 0
    for stage in ("image", "clip"):
        one, two = (log(tmp_path / name / stage) for name in ("one", "two"))
        assert [line["step"] for line in two] == [0, 1]
        assert [line["loss"] for line in two] == pytest.approx([x["loss"] for x in one], abs=1e-5)
        assert two[0]["bits_1"] == pytest.approx(one[0]["bits_1"], abs=1e-5)
    exported = load_component(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "transformer")
    assert main(command("two")) == 0
    again = load_component(tmp_path / "two")
    assert all(torch.equal(again[key], value) for key, value in exported.items())


def load_component(out: Path) -> dict[str, Tensor]:
    return load_transformer(out / "transformer").state_dict()
