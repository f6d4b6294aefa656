"""The random frame mask: Eq. 9 by brute force, its rates, and what attention makes of it."""

import pytest
import torch

from videoar.kernels.chunk_attention import chunk_mask
from videoar.runtime.schedule import ChunkSchedule
from videoar.training.frame_mask import FrameMaskConfig, draw_frame_mask


def draw(config: FrameMaskConfig, batch: int, frames: int) -> torch.Tensor:
    return draw_frame_mask(config, batch, frames, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [1, 2, 4, 9, None])
@pytest.mark.parametrize("p_mask", [0.0, 0.4, 1.0])
def test_equals_the_equation(window: int | None, p_mask: float) -> None:
    batch, frames = 7, 6
    visible = draw(FrameMaskConfig(p_mask=p_mask, window=window), batch, frames)
    assert visible.shape == (batch, frames, frames)
    # m_t': the last frame of those that see t' tells; nobody looks back on the last one.
    kept = [[bool(visible[b, t + 1, t]) for t in range(frames - 1)] for b in range(batch)]
    for b in range(batch):
        for t in range(frames):
            first = 0 if window is None else max(0, t - window)
            seen = {u for u in range(first, t) if kept[b][u]}
            assert set(visible[b, t].nonzero().flatten().tolist()) == seen | {t}


def test_frames_are_hidden_at_their_rate() -> None:
    visible = draw(FrameMaskConfig(p_mask=0.3), 4000, 5)
    kept = torch.stack([visible[:, t + 1, t] for t in range(4)], dim=1).double()
    assert kept.mean(dim=0).tolist() == pytest.approx([0.7] * 4, abs=0.03)
    # Independent of each other, and another draw for every sample.
    assert torch.cov(kept.T).fill_diagonal_(0).abs().max() < 0.02
    assert draw(FrameMaskConfig(), 3, 4).equal(torch.ones(4, 4).tril().bool().expand(3, -1, -1))


def test_the_training_mask_by_brute_force() -> None:
    """Text, masked earlier frames, coarser scales and the own chunk: token by token."""
    sizes, text_len, batch, frames = ((1, 1), (1, 2), (2, 2)), 3, 4, 4
    schedule = ChunkSchedule.video(frames, sizes)
    lengths = torch.tensor([1, 3, 2, 3])
    visible = draw(FrameMaskConfig(p_mask=0.3, window=2), batch, frames)
    mask = chunk_mask(schedule, text_len, lengths, visible)[:, 0]
    tokens = [(c.frame, c.scale) for c in schedule.chunks for _ in range(c.length)]
    for b in range(batch):
        for i, (t, k) in enumerate(tokens, text_len):
            for j in range(text_len):
                assert mask[b, i, j] == (j < lengths[b])
            for j, (u, m) in enumerate(tokens, text_len):
                expected = (u == t and m <= k) or (u < t and bool(visible[b, t, u]))
                assert mask[b, i, j] == expected, (b, t, k, u, m)
    earlier = visible[:, 1:, :][:, torch.ones(3, 4).tril().bool()]
    assert earlier.any()
    assert not earlier.all()


def test_settings() -> None:
    assert not FrameMaskConfig().enabled
    assert FrameMaskConfig(window=3).enabled
    assert FrameMaskConfig(p_mask=0.1).enabled
    for values, message in (
        ({"p_mask": 1.5}, "^p_mask: 0 to 1, got 1.5"),
        ({"p_mask": -0.5}, "^p_mask: "),
        ({"window": 0}, "^window: at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FrameMaskConfig(**values)
