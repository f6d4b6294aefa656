"""Requests: how frames are counted, what given frames become, and how bad arguments are named."""

import numpy as np
import pytest
import torch

from videoar.runtime.errors import MediaError
from videoar.runtime.given_frames import given_image, given_video, resampled
from videoar.runtime.media import read_video, write_video
from videoar.runtime.model_folder import read_model_config
from videoar.runtime.requests import default_context, make_job, make_jobs
from videoar.runtime.text import encode_prompt
from videoar.training.digits import text_tokenizer as digits_text_tokenizer

RED, BLUE = "a red 3 moving left", "a blue 7 standing still"
TEXT = digits_text_tokenizer()
SIZE = 16


@pytest.fixture(scope="module")
def config(tiny_folder):
    """17 frames of 16x16 in 5 latent ones, 8 a second."""
    return read_model_config(tiny_folder)


@pytest.fixture(scope="module")
def class_config(tiny_class_folder):
    return read_model_config(tiny_class_folder)


@pytest.fixture
def job(config):
    return lambda prompt=RED, **options: make_job(config, TEXT, prompt=prompt, **options)


def clip(num_frames: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Frame i has the grey level i."""
    levels = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (num_frames, height, width, 3)).copy()


def levels(frames: np.ndarray) -> list[int]:
    assert (frames == frames[:, :1, :1, :1]).all()
    return frames[:, 0, 0, 0].tolist()


def lengths(job) -> list[int]:
    return [shot.num_latent_frames for shot in job.shots]


class TestText:
    def test_the_models_own_settings(self, job, config):
        made = job()
        assert lengths(made) == [5]
        assert made.shots[0].prefix == tuple(encode_prompt(TEXT, RED, 12))
        assert made.shots[0].null_prefix == tuple(encode_prompt(TEXT, "", 12))
        assert (made.seed, made.history, made.overlap) == (0, None, 0)
        assert str(made.params.guidance) == config.guidance
        assert made.params.temperature == config.temperature

    def test_settings(self, job):
        made = job(num_frames=9, seed=np.int64(4), guidance="falling:5:3", temperature=0)
        assert lengths(made) == [3]
        assert type(made.seed) is int
        assert (made.seed, made.params.temperature) == (4, 0)
        assert made.params.guidance.values == (5, 3)
        assert lengths(job(num_frames=1)) == [1]
        assert lengths(job(num_frames=41)) == [11]

    def test_no_guidance_needs_no_second_row(self, job):
        assert job(guidance=1).shots[0].null_prefix is None

    def test_classes(self, class_config):
        made = make_job(class_config, None, class_id=3, shots=2)
        assert [shot.prefix for shot in made.shots] == [(3,), (3,)]
        assert [shot.null_prefix for shot in made.shots] == [(5,), (5,)]
        made = make_job(class_config, None, shots=[0, 4])
        assert [shot.prefix for shot in made.shots] == [(0,), (4,)]


class TestImage:
    def test_is_the_first_frame(self, job):
        picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        for given in (picture, torch.from_numpy(picture), picture[::-1][::-1]):
            made = job(image=given)
            assert np.array_equal(made.history, picture[None])
            assert made.history.flags.c_contiguous
            assert lengths(made) == [4]
        assert lengths(job(image=picture, num_frames=33)) == [8]

    def test_the_callers_array_stays_the_callers(self, job):
        for name, given in (("image", clip(1)[0]), ("video", clip(5))):
            made = job(**{name: given})
            expected = made.history.copy()
            given += 100
            assert np.array_equal(made.history, expected)

    def test_another_size_is_covered_and_cropped(self, config):
        picture = np.zeros((2 * SIZE, 4 * SIZE, 3), np.uint8)
        picture[:, SIZE : 3 * SIZE] = (250, 120, 10)
        frames = given_image(picture, config)
        assert frames.shape == (1, SIZE, SIZE, 3)
        # The middle half of the width is what is left; its edges are blurred by scaling.
        assert (np.abs(frames[:, :, 2:-2].astype(int) - (250, 120, 10)) <= 2).all()

    def test_an_array_is_treated_like_a_file(self, config, tmp_path):
        picture = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
        path = write_video(tmp_path / "a.png", picture[None])
        from_file = given_image(path, config)
        assert np.array_equal(from_file, given_image(picture, config))
        assert np.array_equal(from_file, given_image(str(path), config))

    def test_of_a_video_the_first_frame(self, config, tmp_path):
        path = write_video(tmp_path / "a.gif", 20 * clip(4))
        assert np.array_equal(given_image(path, config), clip(1))


class TestVideo:
    def test_the_end_counts(self, job):
        made = job(video=clip(40))
        assert levels(made.history) == list(range(31, 40))
        assert lengths(made) == [2]

    @pytest.mark.parametrize(
        ("given", "used"), [(1, 1), (2, 1), (4, 1), (5, 5), (7, 5), (8, 5), (9, 9), (11, 9)]
    )
    def test_short_clips_are_cut_in_front(self, job, given, used):
        made = job(video=clip(given))
        assert levels(made.history) == list(range(given - used, given))
        assert lengths(made) == [5 - (used + 3) // 4]

    def test_context(self, job):
        assert levels(job(video=clip(20), context=13).history) == list(range(7, 20))
        assert lengths(job(video=clip(20), context=1, num_frames=29)) == [7]

    def test_there_is_room_for_new_frames(self, job, config):
        assert [default_context(config, n) for n in (5, 9, 13, 17, 41)] == [1, 5, 9, 9, 9]
        assert lengths(job(video=clip(20), num_frames=5)) == [1]

    def test_rates(self, job):
        """The model has 8 frames a second."""
        assert levels(job(video=clip(20), video_fps=8).history) == list(range(11, 20))
        assert levels(job(video=clip(34), video_fps=16).history) == list(range(16, 34, 2))
        assert levels(job(video=clip(5), video_fps=4).history) == [0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert levels(job(video=clip(2), video_fps=1000).history) == [0]
        assert levels(job(video=clip(5), video_fps=np.float32(0.01)).history) == [4] * 9

    @pytest.mark.parametrize(("fps", "count"), [(3, 4), (8, 9), (12, 9), (25, 30), (30, 31)])
    def test_an_array_is_treated_like_a_file(self, config, tmp_path, fps, count):
        path = write_video(tmp_path / "a.mp4", 7 * clip(count, 24, 40), fps)
        decoded, _ = read_video(path)
        from_file = given_video(path, config, fps=None, most=100)
        assert np.array_equal(from_file, given_video(decoded, config, fps=fps, most=100))
        assert np.array_equal(from_file, given_video(path, config, fps=fps, most=100))
        kept = resampled(count, fps, 8)
        assert len(from_file) == 1 + (len(kept) - 1) // 4 * 4

    @pytest.mark.parametrize("most", [1, 5, 9])
    def test_the_end_of_a_file(self, config, tmp_path, most):
        path = write_video(tmp_path / "a.mp4", 7 * clip(30, 24, 40), 12)
        whole = given_video(path, config, fps=12, most=100)
        assert np.array_equal(given_video(path, config, fps=None, most=most), whole[-most:])

    def test_a_rate_of_ones_own_overrides_the_files(self, config, tmp_path):
        path = write_video(tmp_path / "a.mp4", clip(17), 8)
        assert len(given_video(path, config, fps=16, most=100)) == 9

    def test_no_such_file(self, job, tmp_path):
        with pytest.raises(MediaError, match="does not exist"):
            job(video=tmp_path / "no.mp4")


class TestShots:
    def test_later_shots_open_with_frames_of_the_one_before(self, job):
        made = job(shots=3)
        # 5 latent frames a shot; 9 pixel frames are 3 of them.
        assert (lengths(made), made.overlap) == ([5, 2, 2], 9)
        assert len({shot.prefix for shot in made.shots}) == 1
        made = job(shots=2, num_frames=25, context=5)
        assert (lengths(made), made.overlap) == ([7, 5], 5)

    def test_a_prompt_each(self, job):
        made = job(None, shots=[RED, BLUE])
        assert [s.prefix for s in made.shots] == [
            tuple(encode_prompt(TEXT, x, 12)) for x in (RED, BLUE)
        ]

    def test_behind_given_frames(self, job):
        assert lengths(job(shots=2, image=clip(1)[0])) == [4, 2]
        assert lengths(job(shots=2, video=clip(6))) == [3, 2]

    def test_one_shot_has_no_overlap(self, job):
        assert job(shots=1).overlap == 0
        assert job(video=clip(9)).overlap == 0


class TestSeveral:
    def test_one_job_a_prompt(self, config):
        jobs = make_jobs(config, TEXT, prompt=[RED, BLUE], seed=5, num_frames=5)
        assert [job.seed for job in jobs] == [5, 6]
        alone = make_job(config, TEXT, prompt=BLUE, seed=6, num_frames=5)
        assert jobs[1] == alone
        assert make_jobs(config, TEXT, prompts=[RED, BLUE], seed=[9, 6], num_frames=5)[1] == alone
        assert make_jobs(config, TEXT, prompt=BLUE, seed=6, num_frames=5) == [alone]

    def test_classes(self, class_config):
        jobs = make_jobs(class_config, None, class_id=[4, 0])
        assert [job.shots[0].prefix for job in jobs] == [(4,), (0,)]

    def test_a_list_of_shots_is_one_video(self, config):
        jobs = make_jobs(config, TEXT, shots=[RED, BLUE])
        assert [len(job.shots) for job in jobs] == [2]

    def test_given_frames_are_read_once_and_shared(self, config, tmp_path, monkeypatch):
        path = write_video(tmp_path / "a.mp4", clip(30, 24, 40), 12)
        expected = make_job(config, TEXT, prompt=BLUE, video=path, video_fps=10).history
        calls = []

        def read_once(*arguments, **options):
            calls.append(arguments)
            return read_video(*arguments, **options)

        monkeypatch.setattr("videoar.runtime.media.read_video", read_once)
        jobs = make_jobs(config, TEXT, prompt=[RED, BLUE, RED], video=path, video_fps=10)
        assert len(calls) == 1
        for job in jobs:
            assert np.array_equal(job.history, expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prompt": []}, "prompts: expected at least one"),
            ({"prompt": RED, "prompts": [RED]}, "prompt: give prompt or prompts, not both"),
            ({"prompt": [RED, BLUE], "seed": [1]}, "seed: expected 2, one a video, got 1"),
            ({"prompt": [RED, BLUE], "seed": 2**63 - 1}, "seed: expected 0 .. 2"),
            (
                {"prompt": RED, "seed": True},
                "seed: expected an int or a sequence of them, got True",
            ),
            ({"prompt": 5}, "prompt: expected a string, got int"),
        ],
    )
    def test_bad_arguments(self, config, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_jobs(config, TEXT, **arguments)


FLOATS = np.zeros((5, SIZE, SIZE, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "prompt: this model takes a prompt and no class_id"),
        ({"class_id": 1}, "prompt: this model takes a prompt and no class_id"),
        ({"num_frames": 16}, r"num_frames: must be 1 \+ 4n, got 16; nearest: 13 or 17"),
        ({"num_frames": 17.0}, "num_frames: expected an int, got 17.0"),
        ({"seed": -1}, "seed: expected 0 .. 2"),
        ({"guidance": -1}, "guidance: must be 0 or more"),
        ({"temperature": -1}, "temperature: must be 0 or more"),
        ({"shots": 0}, "shots: at least 1, got 0; nearest: 1"),
        ({"shots": True}, "shots: expected a number or one prompt a shot, got True"),
        ({"shots": "two", "prompt": None}, "shots: expected a number or one prompt a shot"),
        ({"shots": [], "prompt": None}, "shots: expected a number or one prompt a shot"),
        ({"shots": [RED]}, "prompt: the shots bring their own"),
        ({"shots": [RED, 3], "prompt": None}, "prompt: expected a string, got int"),
        ({"shots": 2, "num_frames": 1}, "num_frames: 1 leaves nothing to make .* nearest: 5"),
        ({"image": clip(1)[0], "num_frames": 1}, "num_frames: 1 leaves nothing to make"),
        ({"shots": 2, "context": 17}, "context: at most 13 of 17 frames, got 17"),
        ({"shots": 2, "context": 21, "num_frames": 41}, "context: at most 17 of 41 frames, got 21"),
        ({"video": clip(9), "context": 4}, r"context: must be 1 \+ 4n, got 4; nearest: 1 or 5"),
        ({"video": clip(9), "context": "all"}, "context: expected an int, got 'all'"),
        ({"image": clip(1)[0], "video": clip(9)}, "image: give image or video, not both"),
        ({"image": clip(2)}, r"image: expected a file or a non-empty uint8 \[H,W,3\], got uint8 "),
        ({"image": FLOATS[0]}, r"image: .* got float32 \[16, 16, 3\]"),
        ({"image": [1, 2, 3]}, r"image: .* got int64 \[3\]"),
        ({"video": FLOATS}, r"video: .*\[T,H,W,3\], got float32 \[5, 16, 16, 3\]"),
        ({"video": clip(5)[0]}, r"video: .* got uint8 \[16, 16, 3\]"),
        ({"video": clip(5)[:0]}, r"video: .* got uint8 \[0, 16, 16, 3\]"),
        ({"video": clip(5)[..., :1]}, r"video: .* got uint8 \[5, 16, 16, 1\]"),
        ({"video_fps": 8}, "video_fps: there is no video"),
        ({"video": clip(5), "video_fps": 0}, "video_fps: expected a number of at least 0.001"),
        ({"video": clip(5), "video_fps": "8"}, "video_fps: expected a number"),
        ({"video": clip(5), "video_fps": float("nan")}, "video_fps: expected a number"),
    ],
)
def test_bad_arguments(job, arguments, message):
    with pytest.raises(ValueError, match=message):
        job(**arguments)


def test_bad_classes(class_config):
    for arguments, message in (
        ({"class_id": 5}, "class_id: expected 0 .. 4, got 5"),
        ({"prompt": RED}, "class_id: this model takes a class_id and no prompt"),
        ({"shots": [0, 5]}, "class_id: expected 0 .. 4, got 5"),
        ({"shots": [0, RED]}, "class_id: expected an int"),
    ):
        with pytest.raises(ValueError, match=message):
            make_job(class_config, None, **arguments)
