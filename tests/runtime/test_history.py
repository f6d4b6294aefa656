"""Frames in front: decoding behind a prefilled history is decoding behind the same sampled bits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.dispatch import use_backend
from videoar.runtime.config import TransformerConfig
from videoar.runtime.frame_state import FrameState
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.history import encode_history, next_scale_inputs, prefill_history
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.pixels import from_pixels, to_pixels
from videoar.runtime.sampling import decode_frame, prepare, set_guidance
from videoar.runtime.text import encode_prompt
from videoar.runtime.transformer import Transformer

SMALL = TransformerConfig(
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=40,
    latent_dim=6,
    sizes=((1, 1), (2, 2), (2, 3)),
    max_frames=4,
    condition="text",
    vocab_size=11,
    max_text=7,
    rope_theta=10.0,
    rope_sections=(2, 3, 3),
)
TEXT, NULL = [0, 4, 9, 2], [0]
PROMPT = "a red 3 moving left"


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SMALL)
    model.init_weights(std=0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(tiny_folder) -> VideoAR:
    return VideoAR.from_pretrained(tiny_folder)


def some_bits(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = SMALL.tokens_per_frame
    return torch.rand(frames, tokens, SMALL.latent_dim, generator=generator) < 0.5


def a_state(model: Transformer, guided: bool = True, window: int | None = None) -> FrameState:
    return prepare(model, [TEXT], NULL if guided else None, [8], temperature=0.7, window=window)


def stepped(model: Transformer, bits: Tensor, **options) -> FrameState:
    """The state behind `bits`, decoded scale by scale."""
    state = a_state(model, **options)
    for frame in bits:
        decode_frame(model, state, given_bits=frame[None])
    return state


def prefilled(model: Transformer, bits: Tensor, **options) -> FrameState:
    state = a_state(model, **options)
    state.inputs.copy_(prefill_history(model, state.cache, state.text_lengths, bits))
    state.frames.fill_(len(bits))
    state.draws.fill_(len(bits))
    return state


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_prefill_is_decoding_with_given_bits(transformer, frames, guided):
    bits = some_bits(frames)
    expected = stepped(transformer, bits, guided=guided)
    state = prefilled(transformer, bits, guided=guided)
    torch.testing.assert_close(state.cache.data, expected.cache.data, atol=2e-5, rtol=2e-5)
    assert torch.equal(state.inputs, expected.inputs)


def test_prefill_with_triton_kernels(transformer):
    """In the interpreter where there is no GPU: strided keys of the cache, padded queries."""
    bits = some_bits(2)
    expected = prefilled(transformer, bits)
    state = a_state(transformer)
    with use_backend("triton"):
        inputs = prefill_history(transformer, state.cache, state.text_lengths, bits)
    torch.testing.assert_close(state.cache.data, expected.cache.data, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(inputs, expected.inputs)


def test_what_is_sampled_behind_a_history(transformer):
    """Two more frames, the second of which has pushed the oldest out of the ring."""
    bits = some_bits(3)
    states = stepped(transformer, bits), prefilled(transformer, bits)
    made = []
    for state in states:
        set_guidance(state, GuidanceSchedule.parse(2), 3, 5)
        for _ in range(2):
            decode_frame(transformer, state)
            made.append((state.bits.clone(), state.latents.clone()))
    for (bits, latents), (expected_bits, expected) in zip(made[2:], made[:2], strict=True):
        assert torch.equal(bits, expected_bits)
        assert torch.equal(latents, expected)
    assert not torch.equal(made[0][0], made[1][0])


def test_the_history_matters(transformer):
    ours, others = some_bits(2), ~some_bits(2)
    caches = [prefilled(transformer, bits).cache.data for bits in (ours, others)]
    text = SMALL.max_text
    assert torch.equal(caches[0][..., :text, :], caches[1][..., :text, :])
    assert not torch.allclose(caches[0][..., text:, :], caches[1][..., text:, :], atol=0.1)


def test_other_rows_and_later_places_stay(transformer):
    """One slot of two is filled; the ring's last frame, which nothing reaches, keeps its rows."""
    state = prepare(transformer, [TEXT, TEXT], NULL, [1, 2])
    state.cache.data.fill_(7.0)
    slot = state.view(1)
    prefill_history(transformer, slot.cache, slot.text_lengths, some_bits(3))
    last = SMALL.max_text + 3 * SMALL.tokens_per_frame
    assert (state.cache.data[:, :, :2] == 7).all()
    written = state.cache.data[:, :, 2:, :, SMALL.max_text : last]
    assert (written != 7).all()
    assert (state.cache.data[:, :, 2:, :, last:] == 7).all()
    assert (state.cache.data[:, :, 2:, :, : SMALL.max_text] == 7).all()


@pytest.mark.parametrize("frames", [0, 4])
def test_a_history_that_the_ring_cannot_hold(transformer, frames):
    state = a_state(transformer, window=2)
    with pytest.raises(ValueError, match=f"bits: expected 1 to 3 frames, .* got {frames}"):
        prefill_history(transformer, state.cache, state.text_lengths, some_bits(frames))


def test_inputs_are_those_of_the_quantiser():
    latents = torch.randn(1, SMALL.latent_dim, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    quantized = bsq_quantize(latents, SMALL.sizes, return_inputs=True)
    inputs, following = next_scale_inputs(quantized.bits[0], SMALL.sizes)
    torch.testing.assert_close(inputs, quantized.inputs[0])
    # From 2x3 to 1x1 bilinear reads the centre: the middle column, between its two rows.
    centre = quantized.reconstruction[0, :, -1, :, 1].mean(1)
    torch.testing.assert_close(following, centre[None, None])


def test_inputs_by_hand():
    """One bit a token, grids of 1 and 2 cells: a one adds 1, a zero takes 1 away."""
    bits = torch.tensor([[[True], [True], [False]], [[False], [False], [False]]])
    inputs, following = next_scale_inputs(bits, ((1, 1), (1, 2)))
    # Frame 0: 1, then (2, 0), mean 1. Frame 1: -1, then (-2, -2).
    assert inputs.squeeze(-1).tolist() == [[0, 1, 1], [1, -1, -1]]
    assert following.tolist() == [[[-2]]]


def test_encoding_frame_by_frame_is_encoding_the_whole(model):
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    sizes = model.config.transformer.sizes
    bits = encode_history(model.tokenizer, clip, sizes)
    latents = model.tokenizer.encode(from_pixels(clip[None]))
    assert bits.shape == (3, 5, 8)
    assert torch.equal(bits, model.tokenizer.quantize(latents, sizes).bits[0])
    assert torch.equal(bits[:1], encode_history(model.tokenizer, clip[:1], sizes))


def test_frames_that_cannot_be_encoded(model):
    sizes = model.config.transformer.sizes
    for shape, message in (
        ((4, 16, 16, 3), "num_frames: must be 1 \\+ 4n, got 4; nearest: 1 or 5"),
        ((0, 16, 16, 3), "num_frames: must be 1 \\+ 4n, got 0; nearest: 1"),
        ((5, 16, 20, 3), "width: must be a multiple of 8, got 20"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_history(model.tokenizer, np.zeros(shape, np.uint8), sizes)


def test_a_later_shot_is_a_continuation_of_the_one_before(model):
    """Greedily; sampled, it has random numbers of its own."""
    options = {"guidance": 2, "context": 5, "seed": 4}
    for temperature, equal in ((0, True), (1, False)):
        options["temperature"] = temperature
        whole = model.generate(PROMPT, shots=2, **options).frames[0]
        first = model.generate(PROMPT, **options).frames[0]
        second = model.generate(PROMPT, video=first, only_new=True, **options).frames[0]
        assert (len(first), len(second), len(whole)) == (17, 12, 29)
        assert np.array_equal(whole[:17], first)
        assert np.array_equal(whole[17:], second) == equal


def test_a_given_clip_is_in_front_unchanged_and_matters(model):
    clips = np.random.default_rng(5).integers(0, 256, (2, 9, 16, 16, 3), dtype=np.uint8)
    results = [model.generate(PROMPT, video=clip, temperature=0).frames[0] for clip in clips]
    for clip, frames in zip(clips, results, strict=True):
        assert np.array_equal(frames[:9], clip)
        streamed = list(model.stream(PROMPT, video=clip, temperature=0))
        assert [len(part) for part in streamed] == [4, 4]
        assert np.array_equal(np.concatenate(streamed), frames[9:])
    assert not np.array_equal(results[0][9:], results[1][9:])


def test_the_decoder_goes_on_where_the_history_ends(model):
    """All bits known, what is decoded is what decoding the whole clip would give."""
    clip = np.random.default_rng(6).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    tokenizer, sizes = model.tokenizer, model.config.transformer.sizes
    made = model.generate(PROMPT, video=clip, num_frames=13, temperature=0, guidance=1).frames[0]
    prefix = encode_prompt(model.text_tokenizer, PROMPT, 12)
    state = prepare(model.transformer, [prefix], None, [0], temperature=0)
    bits = [*encode_history(tokenizer, clip, sizes)]
    for frame in bits:
        decode_frame(model.transformer, state, given_bits=frame[None])
    decode_frame(model.transformer, state)
    latents = tokenizer.dequantize(torch.stack([*bits, state.bits[0]])[None], sizes)
    whole = to_pixels(tokenizer.decode(latents))[0]
    assert np.abs(whole[9:].astype(int) - made[9:]).max() <= 1
    unprimed = to_pixels(tokenizer.decode(latents[:, :, -2:]))[0]
    assert np.abs(unprimed[1:].astype(int) - made[9:]).max() > 10
