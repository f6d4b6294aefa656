"""The commands of `videoar eval` with the shipped model: what they print, write and refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videoar.runtime.cli_arguments import Parser
from videoar.runtime.errors import CheckpointError, MediaError
from videoar.runtime.media import write_video
from videoar.training import digits, features
from videoar.training.cli_eval import add_eval

PROMPT = "a red three moving left slowly"


def run(*words: object) -> None:
    parser = Parser(prog="videoar")
    add_eval(parser.add_subparsers(required=True))
    args = parser.parse_args(["eval", *map(str, words)])
    assert not args.run(args)


@pytest.fixture
def printed(capsys) -> Callable[..., dict]:
    """Run a command with `--json` and parse what it prints."""

    def call(*words: object) -> dict:
        run(*words, "--json")
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def loaded(transnet, monkeypatch) -> None:
    """TransNetV2 is loaded once for all tests."""
    monkeypatch.setattr(features, "load_transnet", lambda device: transnet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three videos of moving digits with captions, a short one and a broken one."""
    root = tmp_path_factory.mktemp("digits")
    lines = []
    for index in range(3):
        frames, caption, _ = digits.clip("test", 5, index)
        write_video(root / f"{index}.mp4", frames, fps=8)
        lines.append(json.dumps({"file": f"{index}.mp4", "caption": caption}))
    write_video(root / "short.mp4", frames[:5], fps=8)
    (root / "broken.mp4").write_bytes(b"broken")
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.usefixtures("loaded")
def test_restored_clips_of_a_folder(printed, folder, capsys):
    words = ("--data", folder, "--num", 5, "--num-frames", 5, "--resamples", 2)
    result = printed("fvd", "--form", "restored", *words)
    assert result["metric"] == "rTFVD"
    # Shorter clips fit in the fourth file; the fifth cannot be read.
    assert (result["num"], result["num_reference"], result["unreadable"]) == (4, 4, 1)
    assert (result["num_frames"], result["height"], result["width"]) == (5, 64, 64)
    assert result["rank_deficient"]
    assert 0 < result["value"] < 1
    run("fvd", "--form", "restored", *words)
    output = capsys.readouterr()
    assert output.out.split()[0] == "rTFVD"
    assert "broken.mp4" in output.err
    assert "lack rank" in output.out


@pytest.mark.usefixtures("loaded")
def test_the_same_videos_have_no_distance(printed, folder):
    """`--videos` takes the first frames, and so do clips that fill their whole file."""
    words = ("--data", folder, "--videos", folder, "--num", 3, "--resamples", 0)
    result = printed("fvd", *words)
    assert result["metric"] == "gTFVD"
    assert (result["num"], result["num_reference"]) == (3, 3)
    assert result["value"] < 1e-6
    assert result["low"] is None
    # One for the scan of --data and two while --videos is read: the short and the broken file.
    assert result["unreadable"] >= 1


@pytest.mark.usefixtures("loaded")
def test_generated_clips(printed):
    result = printed("fvd", "--num", 2, "--num-frames", 5, "--resamples", 0)
    assert result["metric"] == "gTFVD"
    assert (result["num"], result["dim"]) == (2, 512)
    assert result["value"] > 0


def test_bits_of_a_folder(printed, folder, tmp_path, capsys):
    result = printed("bits", "--data", folder, "--num", 3)
    assert result["num"] == 3
    assert np.array(result["bits"]).shape == (5, 4)
    assert 0.8 < result["accuracy"] < 1
    (tmp_path / "bits.json").write_text(json.dumps(result))
    run("heatmap", tmp_path / "bits.json", "-o", tmp_path / "b.png")
    assert (tmp_path / "b.png").exists()
    capsys.readouterr()
    run("bits", "--num", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["bits", "right", "1x1", "2x2", "3x3", "4x4", "all"]
    assert len(lines) == 1 + 5 + 1 + 1


def test_vbench(printed, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    words = ("--prompts", prompts, "--out", tmp_path / "clips", "--num-frames", 5)
    assert printed("vbench", *words, "--samples", 1)["made"] == 1
    result = printed("vbench", *words, "--samples", 2)
    assert (result["made"], result["kept"]) == (1, 1)
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {
        f"{PROMPT}-0.mp4",
        f"{PROMPT}-1.mp4",
    }


def test_samples(printed, folder, tmp_path):
    words = ("samples", "shipped=digits", folder, "--prompt", PROMPT, "--frames", 2)
    result = printed(*words, "-o", tmp_path / "s.png")
    assert result["rows"] == ["shipped", folder.name]
    assert result["prompts"] == [PROMPT]
    assert (tmp_path / "s.png").exists()
    more = ("--prompt", "a red 3 standing still", "--num-frames", 5)
    result = printed(*words[:2], *words[3:], *more, "-o", tmp_path / "s.png")
    assert result["prompts"] == [PROMPT, "a red 3 standing still"]


def test_curves(printed, tmp_path):
    lines = [{"step": step, "time": step, "loss": 1 / (1 + step)} for step in range(5)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = printed("curves", tmp_path, "-o", tmp_path / "c.png")
    assert result["panels"] == ["loss"]
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("fvd --num 1", ValueError, "--num: a distance needs at least 2 clips, got 1"),
        ("fvd --resamples 1", ValueError, "--resamples: 0, or at least 2"),
        ("fvd --i3d nowhere.pt", CheckpointError, "nowhere.pt: no such file"),
        ("fvd --form both", ValueError, "--form"),
        ("bits --size 32 32", ValueError, "--data: missing, moving digits are 64x64"),
        ("bits --fps 8", ValueError, "--data: missing, --split and --fps are for it"),
        ("bits --data nowhere", MediaError, "nowhere: does not exist"),
        ("tokenizer --data nowhere", MediaError, "nowhere: does not exist"),
        ("tokenizer --num-frames 4", ValueError, "4"),
        ("vbench --prompts nowhere.txt --out x", ValueError, "nowhere.txt: cannot be read"),
        ("vbench --out x", ValueError, "--prompts"),
        ("curves nowhere -o c.png", ValueError, "nowhere: no such folder"),
        ("curves nowhere -o c.jpg", ValueError, "c.jpg: .png is needed"),
        ("heatmap nowhere.json -o c.png", ValueError, "nowhere.json: no JSON"),
        ("samples nowhere -o c.png", CheckpointError, "nowhere"),
    ],
)
def test_bad_input(words, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(*words.split())
    assert not list(tmp_path.iterdir())


def test_generated_clips_have_one_size(folder):
    with pytest.raises(ValueError, match=r"--size: the model generates 64x64"):
        run("fvd", "--data", folder, "--size", 32, 32)


def test_captions_are_needed(tmp_path):
    write_video(tmp_path / "a.mp4", digits.clip("test", 5, 0)[0], fps=8)
    with pytest.raises(ValueError, match=r"a.mp4: caption: missing"):
        run("bits", "--data", tmp_path, "--num", 1)
