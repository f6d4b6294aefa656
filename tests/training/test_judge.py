"""The shipped judge on held-out clips, and what its measurements make of doctored ones."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from videoar.runtime.errors import CheckpointError
from videoar.training import digits, train_judge
from videoar.training.digits import COLOURS, DIRECTIONS, Scene, render
from videoar.training.judge import Verdict, load_judge
from videoar.training.train_judge import JudgeTraining, distort

NUM = 100
# The stream of seed 0 is the one that the judge's own accuracy was measured on.
SEED = 1


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def held_out(judge):
    """Scenes of held-out clips, and the judge's verdicts."""
    clips = [digits.clip("test", SEED, index) for index in range(NUM)]
    return [(scene, judge(frames)) for frames, _, scene in clips]


def clip_of(scene: Scene, start: tuple[int, int] = (18, 18), num_frames: int = 17) -> np.ndarray:
    return render(digits.split_images("train")[scene.digit][0], scene, start, num_frames)


def test_digit_of_held_out_clips(held_out):
    assert sum(verdict.digit == scene.digit for scene, verdict in held_out) >= 0.97 * NUM


@pytest.mark.parametrize("aspect", ["colour", "direction", "speed"])
def test_measured_aspects_of_held_out_clips(held_out, aspect):
    wrong = [pair for pair in held_out if getattr(pair[0], aspect) != getattr(pair[1], aspect)]
    assert not wrong


def test_velocity_of_held_out_clips(held_out):
    for scene, verdict in held_out:
        pixels = digits.SPEEDS.get(scene.speed or "", 0)
        expected = np.multiply(DIRECTIONS[scene.direction], pixels)
        np.testing.assert_allclose(verdict.velocity, expected, atol=0.05)


def test_stated_accuracy(judge):
    assert judge.config.accuracy > 0.97
    assert judge.config.num_held_out >= 500
    assert judge.config.image_accuracy > 0.97


def test_stated_accuracy_is_the_measured_one(judge):
    small = train_judge.measure(judge, num=NUM, seed=0)
    assert small[0] == pytest.approx(judge.config.accuracy, abs=0.03)
    assert small[1] == pytest.approx(judge.config.image_accuracy, abs=0.005)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dim_and_noisy_clip_reads_the_same(judge, colour):
    scene = Scene(digit=7, colour=colour, direction="left", speed="quickly")
    clip = clip_of(scene, (18, 36)).astype(np.float32)
    noise = np.random.default_rng(0).normal(20, 12, clip.shape)
    verdict = judge(np.clip(clip * 0.75 + noise, 0, 255).astype(np.uint8))
    assert (verdict.digit, verdict.colour) == (7, colour)
    assert (verdict.direction, verdict.speed) == ("left", "quickly")


def test_a_stray_bright_spot_does_not_matter(judge):
    scene = Scene(digit=3, colour="red", direction="up", speed="slowly")
    clip = clip_of(scene, (30, 36))
    clip[9:, :4, :4] = 255
    verdict = judge(clip)
    assert (verdict.colour, verdict.direction, verdict.speed) == ("red", "up", "slowly")


@pytest.mark.parametrize(("pixels", "named"), [(0.4, "still"), (0.6, "down")])
def test_still_is_less_than_half_a_pixel_a_frame(judge, pixels, named):
    still = Scene(digit=5, colour="cyan", direction="still", speed=None)
    frames = [clip_of(still, (round(8 + pixels * t), 18), 1)[0] for t in range(17)]
    verdict = judge(np.stack(frames))
    assert verdict.direction == named
    assert verdict.speed == (None if named == "still" else "slowly")


def test_only_the_trained_length_is_judged(judge):
    scene = Scene(digit=2, colour="blue", direction="down", speed="quickly")
    there_and_back = clip_of(scene, (0, 18), num_frames=37)
    assert judge(there_and_back).direction == "down"
    assert judge(there_and_back) == judge(there_and_back[:17])


def test_nothing_is_seen_in_the_dark(judge):
    assert judge(np.zeros((17, 64, 64, 3), np.uint8)) == Verdict()
    assert judge(np.full((17, 64, 64, 3), 60, np.uint8)) == Verdict()


def test_a_white_digit_has_no_colour(judge):
    scene = Scene(digit=1, colour="red", direction="still", speed=None)
    white = np.repeat(clip_of(scene).max(axis=-1, keepdims=True), 3, axis=-1)
    assert judge(white).colour is None
    assert judge(white).digit == 1


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((17, 64, 64, 3), np.float32),
        np.zeros((17, 32, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
    ],
)
def test_bad_clips(judge, clip):
    with pytest.raises(ValueError, match="clip: expected uint8"):
        judge(clip)


def test_distorted_digits_are_of_the_judges_range():
    images = torch.rand(64, 28, 28, generator=torch.Generator().manual_seed(0))
    first, second = (distort(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() >= 0
    torch.testing.assert_close(first.amax(dim=(1, 2)), torch.ones(64))
    assert (first - images).abs().mean(dim=(1, 2)).min() > 0.01


def test_training_is_reproducible_and_a_finished_run_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "HELD_OUT_CLIPS", 5)
    config = JudgeTraining(steps=3, batch=8)
    whole = train_judge.train_judge(tmp_path / "whole", config)
    assert whole.config.num_held_out == 5
    assert load_judge(tmp_path / "whole").config == whole.config
    train_judge.train_judge(tmp_path / "again", config)
    weights = [
        load_file(tmp_path / name / "judge" / "model.safetensors") for name in ("whole", "again")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    logged = (tmp_path / "whole" / "run" / "log.jsonl").read_text()
    train_judge.train_judge(tmp_path / "whole", config)
    assert (tmp_path / "whole" / "run" / "log.jsonl").read_text() == logged


def test_missing_judge(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_judge(tmp_path / "nowhere")
