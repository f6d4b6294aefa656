"""Evaluation with models whose faults are known: exactly those faults come out."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.errors import MediaError
from videoar.runtime.media import write_video
from videoar.runtime.presets import DIGITS_TOKENIZER, preset
from videoar.runtime.schedule import default_sizes
from videoar.runtime.text import encode_prompt
from videoar.training import digits
from videoar.training.digits import DIRECTIONS, Scene
from videoar.training.digits import text_tokenizer as digits_text_tokenizer
from videoar.training.eval_clips import (
    Sample,
    condition_of,
    digit_samples,
    folder_clips,
    folder_samples,
    generated,
)
from videoar.training.evaluate import (
    ASPECTS,
    draw_prompts,
    eval_continuation,
    eval_prompts,
    eval_tokenizer,
)
from videoar.training.judge import load_judge
from videoar.training.video_folder import Bucket, VideoFolder

NUM = 40
SIZES = default_sizes(4, 4)


def parse(text: str) -> Scene:
    """The scene of a prompt, from its words."""
    words = text.split()
    names = {str(d): d for d in range(10)} | {word: d for d, word in enumerate(digits.WORDS)}
    digit = next(names[word] for word in words if word in names)
    colour = next(word for word in words if word in digits.COLOURS)
    direction = next((word for word in words if word in DIRECTIONS), "still")
    speed = next((word for word in words if word in digits.SPEEDS), None)
    return Scene(digit=digit, colour=colour, direction=direction, speed=speed)


class DrawingModel:
    """Draws what the prompt says, after `change`."""

    config = preset("digits")

    def __init__(self, change=lambda scene: scene):
        self.change, self.calls = change, []

    def generate(self, prompt, *, seed, guidance=None, temperature=None, num_frames=17):
        self.calls.append((prompt, seed, guidance, temperature))
        clips = [self.draw(self.change(parse(text)), num_frames) for text in prompt]
        return SimpleNamespace(frames=np.stack(clips))

    def draw(self, scene, num_frames):
        start = tuple({1: 0, -1: 36, 0: 18}[step] for step in DIRECTIONS[scene.direction])
        image = digits.split_images("train")[scene.digit][0]
        return digits.render(image, scene, start, num_frames)


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def scenes():
    return [prompt.scene for prompt in draw_prompts(NUM)]


def test_a_faultless_model(judge, scenes):
    result = eval_prompts(DrawingModel(), judge, NUM)
    assert {name: result[name] for name in (*ASPECTS, "all")} == dict.fromkeys(
        (*ASPECTS, "all"), 1.0
    )
    assert result["digits"] == {str(d): 1.0 for d in range(10)}
    assert result["num"] == NUM
    assert result["num_moving"] == sum(scene.speed is not None for scene in scenes)
    assert result["judge_accuracy"] == judge.config.accuracy
    json.dumps(result, allow_nan=False)


def test_wrong_digits(judge):
    model = DrawingModel(lambda s: replace(s, digit=1) if s.digit == 4 else s)
    result = eval_prompts(model, judge, NUM)
    assert result["digit"] == result["all"] == 0.9
    assert result["digits"]["4"] == 0
    assert result["digits"]["1"] == result["colour"] == result["direction"] == 1


def test_wrong_colours(judge, scenes):
    model = DrawingModel(lambda s: replace(s, colour="cyan"))
    expected = sum(scene.colour == "cyan" for scene in scenes) / NUM
    result = eval_prompts(model, judge, NUM)
    assert result["colour"] == result["all"] == pytest.approx(expected, abs=1e-4)
    assert result["digit"] == 1


def test_wrong_directions(judge, scenes):
    mirror = {"left": "right", "right": "left"}
    model = DrawingModel(lambda s: replace(s, direction=mirror.get(s.direction, s.direction)))
    expected = 1 - sum(scene.direction in mirror for scene in scenes) / NUM
    result = eval_prompts(model, judge, NUM)
    assert result["direction"] == pytest.approx(expected, abs=1e-4)
    assert result["speed"] == 1


def test_speed_counts_over_moving_prompts_only(judge, scenes):
    slow = DrawingModel(lambda s: replace(s, speed=s.speed and "slowly"))
    moving = [scene for scene in scenes if scene.speed is not None]
    expected = sum(scene.speed == "slowly" for scene in moving) / len(moving)
    result = eval_prompts(slow, judge, NUM)
    assert result["speed"] == pytest.approx(expected, abs=1e-4)
    assert result["direction"] == 1
    frozen = DrawingModel(lambda s: replace(s, direction="still", speed=None))
    assert eval_prompts(frozen, judge, NUM)["speed"] == 0


def test_black_clips_are_wrong_in_everything(judge):
    model = DrawingModel()
    model.draw = lambda scene, num_frames: np.zeros((num_frames, 64, 64, 3), np.uint8)
    result = eval_prompts(model, judge, NUM)
    assert [result[name] for name in (*ASPECTS, "all")] == [0] * 5


def test_a_long_clip_is_judged_in_parts(judge):
    """From frame 33 on the colour is another one; the beginning counts as a short clip does."""
    model, draw = DrawingModel(), DrawingModel().draw

    def fading(scene, num_frames):
        frames = draw(scene, num_frames)
        frames[33:] = frames[33:, :, :, [1, 2, 0]]
        return frames

    model.draw = fading
    result = eval_prompts(model, judge, 10, num_frames=45)
    assert result["all"] == 1
    parts = result["parts"]
    assert [part["frames"] for part in parts] == [[0, 16], [17, 32], [33, 44]]
    assert [part["digit"] for part in parts] == [1, 1, 1]
    assert [part["colour"] for part in parts] == [part["both"] for part in parts] == [1, 1, 0]
    assert "parts" not in eval_prompts(DrawingModel(), judge, 2, num_frames=9)


def test_what_the_model_is_asked(judge):
    model = DrawingModel()
    eval_prompts(model, judge, 5, seed=70, batch=2, guidance="constant:2", temperature=0.5)
    prompts = [prompt.text for prompt in draw_prompts(5, 70)]
    seeds = [70, 71, 72, 73, 74]
    assert model.calls == [
        (prompts[i : i + 2], seeds[i : i + 2], "constant:2", 0.5) for i in (0, 2, 4)
    ]


def test_prompts_are_of_the_grammar_and_tell_the_speed():
    tokenizer = digits_text_tokenizer()
    prompts = draw_prompts(200)
    for prompt in prompts:
        encode_prompt(tokenizer, prompt.text, max_text=12)
        assert parse(prompt.text) == prompt.scene
    counts = np.bincount([prompt.scene.digit for prompt in prompts])
    assert counts.tolist() == [20] * 10
    assert any(prompt.text.startswith("a ") for prompt in prompts)
    assert any(not prompt.text.startswith("a ") for prompt in prompts)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_prompts_of_a_clips_seed_are_not_its_stream(split, seed):
    stream = [digits.clip(split, seed, index, num_frames=1)[2] for index in range(20)]
    drawn = [prompt.scene for prompt in draw_prompts(20, seed)]
    assert [replace(s, digit=0) for s in stream] != [replace(s, digit=0) for s in drawn]


def test_no_prompts(judge):
    with pytest.raises(ValueError, match="num: at least 1, got 0"):
        eval_prompts(DrawingModel(), judge, 0)


class ContinuingModel:
    """Continues with the clip's own frames, after `change`; without a prompt with black ones."""

    config = preset("digits")

    def __init__(self, change=lambda frames: frames):
        self.change, self.calls = change, []

    def generate(self, prompt, *, video, seed, num_frames, context, only_new, **sampling):
        self.calls.append((prompt, len(video), num_frames, context, seed, sampling))
        frames, _, _ = digits.clip("test", 70, seed - 70, num_frames)
        np.testing.assert_array_equal(frames[:context], video)
        made = self.change(frames[context:]) if prompt else np.zeros_like(frames[context:])
        return SimpleNamespace(frames=(made if only_new else np.concatenate([video, made]))[None])


def test_a_faultless_continuation(judge):
    result = eval_continuation(ContinuingModel(), judge, NUM, seed=70)
    shares = {name: result[name] for name in (*ASPECTS, "all", "digits", "num_moving")}
    assert shares == result["real"]
    assert result["digit"] > 0.9
    assert result["colour"] == result["direction"] == result["speed"] == 1
    assert [result["unprompted"][name] for name in (*ASPECTS, "all")] == [0] * 5
    assert [result[name] for name in ("num", "given_frames", "made_frames")] == [NUM, 9, 8]
    json.dumps(result, allow_nan=False)


def test_only_made_frames_are_judged(judge):
    """A continuation that runs backwards is wrong wherever something moves, and only there."""
    result = eval_continuation(ContinuingModel(lambda made: made[::-1]), judge, NUM, seed=70)
    still = 1 - result["num_moving"] / NUM
    assert result["direction"] == pytest.approx(still, abs=1e-4)
    assert result["real"]["direction"] == 1
    assert result["speed"] == result["real"]["speed"]


def test_what_a_continuing_model_is_asked(judge):
    model = ContinuingModel()
    eval_continuation(model, judge, 2, seed=70, context=5, guidance=2, temperature=0.5)
    sampling = {"guidance": 2, "temperature": 0.5}
    captions = [digits.clip("test", 70, index)[1] for index in range(2)]
    assert model.calls == [
        (prompt, 5, 17, 5, 70 + index, sampling)
        for index in range(2)
        for prompt in (captions[index], "")
    ]


@pytest.mark.parametrize("context", [0, 16, 17])
def test_contexts_that_leave_nothing_to_judge(judge, context):
    with pytest.raises(ValueError, match=f"context: expected 1 .. 15, got {context}"):
        eval_continuation(ContinuingModel(), judge, 1, context=context)


class ShiftingTokenizer(nn.Module):
    """Gives every video back two grey levels brighter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, video):
        self.video = video
        frames = DIGITS_TOKENIZER.latent_frames(video.shape[2])
        return torch.ones(1, 32, frames, 4, 4)

    def quantize(self, latents, sizes):
        return bsq_quantize(latents, sizes)

    def decode(self, latents):
        return self.video + 2 / 127.5


def test_tokenizer_with_a_known_error():
    clips = [np.full((17, 64, 64, 3), level, np.uint8) for level in (10, 100, 200)]
    result = eval_tokenizer(ShiftingTokenizer(), SIZES, clips)
    assert result["psnr"] == pytest.approx(20 * np.log10(255 / 2), abs=1e-4)
    assert 0.9 < result["ssim"] < 1
    assert result["bits_per_pixel"] == pytest.approx((1 + 4 + 9 + 16) * 32 * 5 / (17 * 64**2), 1e-3)
    assert result["num"] == 3


def test_an_exact_tokenizer_has_finite_numbers():
    clips = [np.full((17, 64, 64, 3), 255, np.uint8)]
    result = eval_tokenizer(ShiftingTokenizer(), SIZES, clips)
    assert (result["psnr"], result["ssim"]) == (100, 1)


def test_no_clips():
    with pytest.raises(ValueError, match="clips: at least one"):
        eval_tokenizer(ShiftingTokenizer(), SIZES, [])


def test_digit_samples_are_the_held_out_clips():
    samples = list(digit_samples(3, seed=5))
    assert len(samples) == 3
    for index, sample in enumerate(samples):
        frames, caption, _ = digits.clip("test", 5, index)
        np.testing.assert_array_equal(sample.frames, frames)
        assert sample.caption == caption


@pytest.fixture
def folder(tmp_path):
    """Three videos, one too short, one broken, one file that is no video."""
    rng = np.random.default_rng(0)
    for name, count in (("a", 20), ("b", 17), ("short", 5), ("z", 18)):
        level = int(rng.integers(40, 200))
        write_video(tmp_path / f"{name}.mp4", np.full((count, 48, 96, 3), level, np.uint8))
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_folder(folder, capsys):
    clips = list(folder_clips(folder, 10, (64, 64), 17))
    assert [clip.shape for clip in clips] == [(17, 64, 64, 3)] * 3
    reported = capsys.readouterr().err
    assert reported.count("left out: ") == 2
    assert "broken.mp4" in reported
    assert "short.mp4" in reported
    result = eval_tokenizer(ShiftingTokenizer(), SIZES, clips)
    assert result["num"] == 3
    assert result["psnr"] == pytest.approx(20 * np.log10(255 / 2), abs=1e-4)


def test_folder_stops_at_num(folder):
    errors = []
    assert len(list(folder_clips(folder, 1, (64, 64), 17, errors.append))) == 1
    assert not errors


def test_folder_without_a_readable_file(folder):
    errors = []
    with pytest.raises(MediaError, match="none of its 5 files"):
        list(folder_clips(folder, 10, (64, 64), 100, errors.append))
    assert len(errors) == 5
    assert all(isinstance(error, MediaError) for error in errors)


def test_missing_folder(tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        list(folder_clips(tmp_path / "nowhere", 1, (64, 64), 17))


def test_samples_of_a_folder(tmp_path):
    """Every video once, in an order and from starts of the seed; broken ones are replaced."""
    for index in range(4):
        level = 50 * index + np.arange(30, dtype=np.uint8)[:, None, None, None]
        write_video(tmp_path / f"{index}.mp4", level + np.zeros((30, 32, 32, 3), np.uint8), fps=8)
    write_video(tmp_path / "short.mp4", np.zeros((3, 32, 32, 3), np.uint8), fps=8)
    names = [f"{index}.mp4" for index in range(4)]
    rows = [{"file": name, "caption": f"number {name[0]}"} for name in names]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder, bucket = VideoFolder(tmp_path), Bucket(frames=5, height=16, width=16)

    def drawn(num, seed=0, **options):
        return list(folder_samples(folder, num, bucket, fps=8, seed=seed, **options))

    samples = drawn(9)
    assert sorted(sample.name for sample in samples) == [str(tmp_path / name) for name in names]
    for sample in samples:
        number = int(sample.name[-5])
        assert sample.frames.shape == (5, 16, 16, 3)
        assert sample.caption == f"number {number}"
        steps = np.diff(sample.frames[:, 8, 8, 0].astype(int))
        assert abs(steps - 1).max() <= 2
    again = drawn(9)
    assert [s.name for s in again] == [s.name for s in samples]
    assert all((a.frames == b.frames).all() for a, b in zip(again, samples, strict=True))
    assert [s.name for s in drawn(2)] == [s.name for s in samples[:2]]
    orders = {tuple(sample.name for sample in drawn(4, seed)) for seed in range(6)}
    assert len(orders) > 1

    first = Path(samples[0].name)
    first.write_bytes(first.read_bytes()[:200])
    errors = []
    assert [s.name for s in drawn(2, on_unreadable=errors.append)] == [s.name for s in samples[1:3]]
    assert len(errors) == 1
    with pytest.raises(MediaError, match="none of 5 videos gives a clip of 40x16x16"):
        list(folder_samples(folder, 1, Bucket(frames=40, height=16, width=16), fps=8))


def test_what_generates_is_asked_for_every_condition():
    calls = []

    class Model:
        config = preset("digits")

        def generate(self, *, prompt, seed, **options):
            calls.append((prompt, seed, options))
            return SimpleNamespace(frames=[f"{p} {s}" for p, s in zip(prompt, seed, strict=True)])

    made = list(generated(Model(), ["a", "b", "c"], seed=5, batch=2, num_frames=9))
    assert made == ["a 5", "b 6", "c 7"]
    assert calls == [(["a", "b"], [5, 6], {"num_frames": 9}), (["c"], [7], {"num_frames": 9})]


def test_conditions():
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    both = Sample(name="x", frames=frames, caption="a 3", class_id=7)
    assert (condition_of(both, "text"), condition_of(both, "class")) == ("a 3", 7)
    with pytest.raises(ValueError, match="y: class: missing"):
        condition_of(Sample(name="y", frames=frames, caption="a 3"), "class")
