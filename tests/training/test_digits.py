"""The demo data: deterministic, split by image, and showing what its captions say."""

import numpy as np
import pytest

from videoar.runtime.text import encode_prompt
from videoar.training import digits
from videoar.training.digits import text_tokenizer as digits_text_tokenizer


def test_split_by_image() -> None:
    train, test = digits.split_images("train"), digits.split_images("test")
    assert [len(x) for x in train] == [450] * 10
    assert [len(x) for x in test] == [50] * 10
    seen = {image.tobytes() for images in train for image in images}
    assert not any(image.tobytes() in seen for images in test for image in images)
    with pytest.raises(ValueError, match="split"):
        digits.split_images("val")


def test_a_clip_is_a_function_of_its_index() -> None:
    frames, caption, scene = digits.clip("train", 3, 17)
    again, same_caption, same_scene = digits.clip("train", 3, 17)
    assert np.array_equal(frames, again)
    assert (caption, scene) == (same_caption, same_scene)
    assert not np.array_equal(frames, digits.clip("test", 3, 17)[0])
    assert frames.shape == (17, 64, 64, 3)
    assert frames.dtype == np.uint8


def centroid(frame: np.ndarray) -> np.ndarray:
    light = frame.max(-1).astype(float)
    rows, columns = np.indices(light.shape)
    return np.array([(rows * light).sum(), (columns * light).sum()]) / light.sum()


@pytest.mark.parametrize("index", range(40))
def test_frames_show_what_the_scene_says(index: int) -> None:
    frames, caption, scene = digits.clip("train", 9, index)
    path = np.array([centroid(frame) for frame in frames])
    speed = digits.SPEEDS.get(scene.speed or "", 0)
    expected = np.array(digits.DIRECTIONS[scene.direction]) * speed
    np.testing.assert_allclose(np.diff(path, axis=0), np.tile(expected, (16, 1)), atol=1e-6)
    colour = frames.reshape(-1, 3).max(0) / np.array(digits.COLOURS[scene.colour])
    assert colour.max() - colour.min() < 0.05
    words = caption.split()
    assert scene.colour in words
    assert str(scene.digit) in words or digits.WORDS[scene.digit] in words
    assert scene.direction in words


def test_every_scene_occurs_and_every_caption_is_known() -> None:
    tokenizer, seen = digits_text_tokenizer(), set()
    for index in range(600):
        _, caption, scene = digits.clip("train", 5, index, 1)
        assert len(encode_prompt(tokenizer, caption, 12)) <= 12
        seen |= {scene.digit, scene.colour, scene.direction, scene.speed}
    assert seen == {*range(10), *digits.COLOURS, *digits.DIRECTIONS, *digits.SPEEDS, None}


def test_longer_clips_bounce() -> None:
    image = np.full((28, 28), 255, np.uint8)
    scene = digits.Scene(digit=1, colour="red", direction="right", speed="quickly")
    frames = digits.render(image, scene, (0, 30), 12)
    columns = [int(frame[0, :, 0].nonzero()[0][0]) for frame in frames]
    assert columns == [30, 32, 34, 36, 34, 32, 30, 28, 26, 24, 22, 20]
