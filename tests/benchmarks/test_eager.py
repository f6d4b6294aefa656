"""The eager baseline computes what the runtime computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from videoar.benchmarks.eager import EagerVideoAR
from videoar.runtime.config import ModelConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.history import next_scale_inputs
from videoar.runtime.modules import random_modules
from videoar.runtime.pixels import to_pixels
from videoar.runtime.presets import PRESETS
from videoar.runtime.text import pad
from videoar.runtime.transformer import teacher_forced_logits

THREE = GuidanceSchedule.parse(3.0)
DIGITS = PRESETS["digits"]
SMALL = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=2))
GROUPED = replace(SMALL, transformer=replace(SMALL.transformer, kv_heads=2, qk_norm=False))
CLASSES = replace(
    SMALL, transformer=replace(SMALL.transformer, condition="class", vocab_size=5, max_text=1)
)


def modules(config: ModelConfig):
    """Random weights with which attention and bits are far from uniform."""
    transformer, tokenizer = random_modules(config, torch.float32, "cpu", 3)
    with torch.no_grad():
        transformer.init_weights(std=0.1)
    return transformer.requires_grad_(False), tokenizer.requires_grad_(False)


@pytest.mark.parametrize(
    ("config", "prefixes", "null_prefix"),
    [
        pytest.param(CLASSES, [[2]], [5], id="class"),
        pytest.param(SMALL, [[1, 7, 9, 4]], None, id="text"),
        pytest.param(SMALL, [[1, 7, 9, 4], [1, 3]], [1], id="texts-of-three-lengths"),
        pytest.param(GROUPED, [[1, 7, 9, 4]], [1], id="grouped-heads"),
    ],
)
def test_logits_are_those_of_the_runtime(config, prefixes, null_prefix):
    transformer, tokenizer = modules(config)
    count, frames, sizes = len(prefixes), 3, config.transformer.sizes
    generator = torch.Generator().manual_seed(1)
    shape = (count, frames, config.transformer.tokens_per_frame, config.transformer.latent_dim)
    bits = torch.rand(shape, generator=generator) < 0.5
    seen = []
    latents = EagerVideoAR(transformer, tokenizer).latents(
        prefixes,
        null_prefix,
        frames,
        guidance=THREE,
        given_bits=bits,
        on_logits=lambda frame, scale, logits: seen.append(logits),
    )
    rows = prefixes + ([null_prefix] * count if null_prefix else [])
    tokens, lengths = pad(rows, max(map(len, rows)))
    inputs = torch.stack([next_scale_inputs(one, sizes)[0] for one in bits])
    inputs = inputs.repeat(len(rows) // count, 1, 1, 1)
    expected = teacher_forced_logits(transformer, tokens, lengths, inputs).flatten(1, 2)
    got = torch.cat(seen, dim=1)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(latents, tokenizer.dequantize(bits, sizes), rtol=1e-5, atol=1e-5)


def test_clip_is_that_of_its_latents():
    transformer, tokenizer = modules(SMALL)
    eager = EagerVideoAR(transformer, tokenizer)
    options = {"guidance": THREE, "temperature": 0.0}
    video = eager.generate([[1, 7]], [1], 3, **options)
    latents = eager.latents([[1, 7]], [1], 3, **options)
    assert video.shape == (1, 9, 64, 64, 3)
    assert np.array_equal(video, to_pixels(tokenizer.decode(latents)))
    assert video.std() > 1


def test_guidance_changes_bits_and_one_does_not():
    transformer, tokenizer = modules(CLASSES)
    eager = EagerVideoAR(transformer, tokenizer)
    plain = eager.latents([[2]], None, 2, guidance=THREE, temperature=0.0)
    one = eager.latents([[2]], [5], 2, guidance=GuidanceSchedule.parse(1.0), temperature=0.0)
    strong = eager.latents([[2]], [5], 2, guidance=GuidanceSchedule.parse(9.0), temperature=0.0)
    assert torch.equal(plain, one)
    assert not torch.equal(plain, strong)


def test_samples_follow_the_logits():
    eager = EagerVideoAR(*modules(CLASSES))
    logits = torch.tensor([0.0, 1.0]).expand(1, 20_000, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        share = eager._sample(logits, 1.0, 0.5, guided=False).float().mean().item()
    assert share == pytest.approx(torch.tensor(2.0).sigmoid().item(), abs=0.01)


def test_longer_than_trained_is_refused():
    eager = EagerVideoAR(*modules(CLASSES))
    with pytest.raises(ValueError, match="latent_frames: at most 5, got 6"):
        eager.latents([[2]], None, 6, guidance=THREE)
