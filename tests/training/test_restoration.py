"""Restored clips: true scores, means by folder, and a picture of what was compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from videoar.runtime.media_sheet import enlarge
from videoar.runtime.presets import FOOTAGE_TOKENIZER
from videoar.runtime.schedule import default_sizes
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.eval_clips import Sample, restore
from videoar.training.metrics import psnr, ssim
from videoar.training.restoration import (
    Restoration,
    by_folder,
    comparison_sheet,
    mean_scores,
    median_of_each_folder,
    restorations,
)


def restoration(name: str, quality: float) -> Restoration:
    frames = np.full((5, 16, 16, 3), 60, np.uint8)
    return Restoration(
        name=name,
        frames=frames,
        restored=frames + 9,
        psnr=quality,
        ssim=quality / 100,
        num_bits=640,
    )


CLIPS = [
    restoration("data/b/1.mp4", 20.0),
    restoration("data/a/2.mp4", 30.0),
    restoration("data/b/3.mp4", 26.0),
    restoration("data/b/2.mp4", 22.0),
]


def test_scores_are_those_of_what_comes_back() -> None:
    torch.manual_seed(0)
    config = replace(FOOTAGE_TOKENIZER, channels=8, norm_groups=4, latent_dim=8)
    tokenizer, sizes = VideoTokenizer(config).eval(), default_sizes(2, 2)
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    samples = [Sample(name=f"x/{i}.mp4", frames=clip) for i, clip in enumerate(frames)]
    results = list(restorations(tokenizer, sizes, samples))
    assert [result.name for result in results] == ["x/0.mp4", "x/1.mp4"]
    for clip, result in zip(frames, results, strict=True):
        restored, _ = restore(tokenizer, sizes, clip)
        assert np.array_equal(result.frames, clip)
        assert np.array_equal(result.restored, restored)
        assert result.num_bits == 2 * 5 * 8
        assert (result.psnr, result.ssim) == (psnr(restored, clip), ssim(restored, clip))


def test_means_by_folder() -> None:
    expected = {
        "a": {"psnr": 30.0, "ssim": 0.3, "bits_per_pixel": 0.5, "num": 1},
        "b": {"psnr": 22.66667, "ssim": 0.22667, "bits_per_pixel": 0.5, "num": 3},
    }
    assert by_folder(CLIPS) == expected
    assert list(by_folder(CLIPS)) == ["a", "b"]
    assert mean_scores(CLIPS) == {"psnr": 24.5, "ssim": 0.245, "bits_per_pixel": 0.5, "num": 4}
    with pytest.raises(ValueError, match="clips"):
        mean_scores([])


@pytest.mark.parametrize(
    ("count", "names"),
    [(1, ["a/2", "b/2"]), (2, ["a/2", "b/1", "b/2"]), (9, ["a/2", "b/1", "b/2", "b/3"])],
)
def test_the_shown_clips_are_around_the_median(count: int, names: list[str]) -> None:
    chosen = median_of_each_folder(CLIPS, count)
    assert [clip.name for clip in chosen] == [f"data/{name}.mp4" for name in names]


def test_the_picture_holds_both_rows_of_every_clip() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 16, 16, 3), np.uint8)
    clips = [replace(CLIPS[0], frames=own, restored=restored) for own, restored in frames]
    sheet = comparison_sheet(clips, every=2, scale=3, columns=2)
    side = 16 * 3
    wide = 3 * (side + 2) + 2
    assert sheet.shape[1] == 2 * wide
    for number, pair in enumerate(frames):
        half = sheet[:, number % 2 * wide :][:, :wide]
        tops = []
        for clip in pair:
            row = np.concatenate(list(enlarge(clip[::2], 3)), axis=1)
            shown = np.delete(half, [2 + i for i in gaps(side, 3)], axis=1)
            found = [t for t in range(len(sheet) - side + 1) if equal_at(shown, row, t)]
            assert len(found) == 1
            tops += found
        assert tops[0] + side < tops[1]
        assert (tops[0] > len(sheet) // 2) == (number == 2)


def gaps(side: int, count: int) -> list[int]:
    """Columns of a sheet that belong to no frame, counted from its first frame's left edge."""
    between = [i * (side + 2) + side + offset for i in range(count) for offset in (0, 1)]
    return [-2, -1, *between]


def equal_at(sheet: np.ndarray, row: np.ndarray, top: int) -> bool:
    return np.array_equal(sheet[top : top + len(row)], row)


def test_a_picture_of_nothing() -> None:
    with pytest.raises(ValueError, match="clips"):
        comparison_sheet([])
