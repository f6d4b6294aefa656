"""What a training step never makes: a mask or scores of the whole sequence, wide logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videoar.kernels import use_backend
from videoar.runtime.presets import DIGITS_TRANSFORMER
from videoar.runtime.transformer import Transformer
from videoar.training.teacher_forcing import Batch, bit_accuracy, transformer_loss

FRAMES, TEXT, BATCH = 5, 7, 3


class Watch(TorchDispatchMode):
    """Notes dtype and shape of every tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for x in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(x, torch.Tensor):
                self.made.add((x.dtype, tuple(x.shape)))
        return results


def everything_made(checkpointing=False):
    """In a step with hidden frames, and in the accuracies of its log."""
    config = DIGITS_TRANSFORMER
    model = Transformer(config).train()
    model.gradient_checkpointing = checkpointing
    shape = BATCH, FRAMES, config.tokens_per_frame, config.latent_dim
    batch = Batch(
        tokens=torch.zeros(BATCH, TEXT, dtype=torch.int64),
        text_lengths=torch.tensor([TEXT, 3, 5]),
        inputs=torch.randn(shape),
        targets=torch.rand(shape) < 0.5,
        sizes=config.sizes,
        frame_visible=torch.rand(BATCH, FRAMES, FRAMES) < 0.5,
    )
    with Watch() as watch:
        loss, logits = transformer_loss(model, batch)
        loss.backward()
        bit_accuracy(logits, batch.targets, config.sizes)
    return watch.made


def squares(made):
    """Shapes with two axes as long as the sequence, or the video in it."""
    length = FRAMES * DIGITS_TRANSFORMER.tokens_per_frame
    return {shape for _, shape in made if sum(size >= length for size in shape[-2:]) == 2} - {
        shape for _, shape in made if any(size in _WIDTHS for size in shape[-2:])
    }


_WIDTHS = (DIGITS_TRANSFORMER.width, DIGITS_TRANSFORMER.mlp_width)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_has_the_size_of_the_sequence_squared(checkpointing):
    made = everything_made(checkpointing)
    assert len(made) > 50
    assert not squares(made)


def test_the_watch_sees_the_reference_make_it():
    with use_backend("reference"):
        made = everything_made()
    assert squares(made)


def wide_logits(made):
    """Float32 tensors of at least as many values as all logits, and of their layout."""
    config = DIGITS_TRANSFORMER
    count = BATCH * FRAMES * config.tokens_per_frame * config.latent_dim
    layouts = (2, config.latent_dim, 2 * config.latent_dim)
    return {
        shape
        for dtype, shape in made
        if dtype == torch.float32 and torch.Size(shape).numel() >= 2 * count and len(shape) > 3
        if shape[-1] in layouts
    }


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="trains in float32 on this processor"
)
def test_no_float32_copy_of_all_logits():
    assert not wide_logits(everything_made())
    with use_backend("reference"):
        assert wide_logits(everything_made())
