"""Bit accuracy by frame and scale: against a count by hand, and against cached decoding's order."""

import numpy as np
import pytest
import torch

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.pixels import from_pixels
from videoar.runtime.text import encode_prompt, pad
from videoar.runtime.transformer import teacher_forced_logits
from videoar.training import bits
from videoar.training.bits import eval_bits
from videoar.training.eval_clips import Sample, digit_samples


@pytest.fixture(scope="module")
def model() -> VideoAR:
    return VideoAR.from_pretrained("digits")


def test_shares_are_counted_right(model, monkeypatch):
    """Logits that are wrong in known places: exactly those shares come out, in any batches."""
    sizes, dim = model.config.transformer.sizes, model.config.transformer.latent_dim
    counts = [h * w for h, w in sizes]

    def logits(transformer, tokens, lengths, inputs, frame_visible):
        frames = [from_pixels(sample.frames) for sample in digit_samples(3)]
        latents = model.tokenizer.encode(torch.stack(frames))
        targets = bsq_quantize(latents.float(), sizes).targets
        # The clip is known by its inputs, whatever the batch.
        every = bsq_quantize(latents.float(), sizes, return_inputs=True).inputs
        rows = [int((every - row).abs().flatten(1).sum(1).argmin()) for row in inputs]
        guess = targets[rows].clone()
        guess[:, 2, 0, :8] ^= True  # frame 3, scale 1: 8 of 32 bits
        last = slice(sum(counts[:3]), None)
        guess[:, :, last] ^= torch.arange(dim) < dim // 2  # half of the bits of scale 4
        return torch.stack([-3.0 * guess + 1.5, 3.0 * guess - 1.5], dim=-1).flatten(-2)

    monkeypatch.setattr(bits, "teacher_forced_logits", logits)
    result = eval_bits(model, digit_samples(3), batch=2)
    expected = np.ones((5, 4))
    expected[:, 3], expected[2, 0] = 0.5, 0.75
    np.testing.assert_allclose(result["bits"], expected)
    weights = np.array(counts) / sum(counts)
    np.testing.assert_allclose(result["frames"], expected @ weights, atol=1e-6)
    np.testing.assert_allclose(result["scales"], expected.mean(axis=0), atol=1e-6)
    assert result["accuracy"] == pytest.approx((expected @ weights).mean(), abs=1e-6)
    # -log softmax of a margin of 3, for right and wrong bits.
    right, wrong = np.log1p(np.exp(-3)), np.log1p(np.exp(3))
    np.testing.assert_allclose(
        result["loss_bits"], expected * right + (1 - expected) * wrong, atol=1e-5
    )
    assert result["num"] == 3
    assert result["sizes"] == [[1, 1], [2, 2], [3, 3], [4, 4]]


def test_the_shipped_model_predicts_held_out_bits(model):
    result = eval_bits(model, digit_samples(4, seed=1))
    assert result["accuracy"] > 0.85
    assert result["loss"] < 0.3
    # A wrong caption must cost something, or the text is not used.
    wrong = [
        Sample(name=s.name, frames=s.frames, caption="a cyan 0 standing still")
        for s in digit_samples(4, seed=1)
    ]
    assert eval_bits(model, wrong)["loss"] > result["loss"]


def test_the_same_as_one_plain_pass(model):
    (sample,) = digit_samples(1, seed=2)
    architecture = model.config.transformer
    with torch.no_grad():
        latents = model.tokenizer.encode(from_pixels(sample.frames[None]))
        quantized = bsq_quantize(latents, architecture.sizes, return_inputs=True)
        row = encode_prompt(model.text_tokenizer, sample.caption, architecture.max_text)
        tokens, lengths = pad([row], len(row))
        logits = teacher_forced_logits(model.transformer, tokens, lengths, quantized.inputs)
    guess = logits[..., 1::2] > logits[..., ::2]
    expected = (guess == quantized.targets).double().mean()
    assert eval_bits(model, [sample])["accuracy"] == pytest.approx(float(expected), abs=1e-6)


def test_long_clips_are_predicted_with_the_window(model):
    """The first frames see all that there is; the later ones what they see in generation."""
    long = eval_bits(model, digit_samples(4, seed=1, num_frames=65))
    assert len(long["frames"]) == 17
    assert min(long["frames"]) > 0.85
    (sample,) = digit_samples(1, seed=1, num_frames=65)
    cut = Sample(name=sample.name, frames=sample.frames[:17], caption=sample.caption)
    first = eval_bits(model, [cut])["bits"]
    assert eval_bits(model, [sample])["bits"][:5] == first


def test_bad_samples(model):
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="clip7: caption: missing"):
        eval_bits(model, [Sample(name="clip7", frames=frames)])
    with pytest.raises(ValueError, match=r"clip7: prompt: unknown words \['zebra'\]"):
        eval_bits(model, [Sample(name="clip7", frames=frames, caption="a red zebra")])
    with pytest.raises(ValueError, match="samples: at least one"):
        eval_bits(model, [])
