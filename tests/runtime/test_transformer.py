"""The transformer: a standard decoder on text, cached equals uncached, nothing leaks ahead."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.runtime import sampling
from videoar.runtime.cache import CacheLayout
from videoar.runtime.config import TransformerConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.positions import video_positions
from videoar.runtime.presets import PRESETS, preset
from videoar.runtime.sampling import (
    chunk_logits,
    decode_frame,
    frame_plan,
    prefill_text,
    prepare,
    set_guidance,
)
from videoar.runtime.schedule import ChunkSchedule, default_sizes
from videoar.runtime.text import pad
from videoar.runtime.transformer import Transformer, teacher_forced_logits

SMALL = TransformerConfig(
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=40,
    latent_dim=6,
    sizes=((1, 1), (2, 2), (2, 3)),
    max_frames=3,
    condition="text",
    vocab_size=11,
    max_text=7,
    rope_theta=10.0,
    rope_sections=(2, 3, 3),
)


def build(config: TransformerConfig = SMALL) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config)
    model.init_weights(std=0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model.eval().requires_grad_(False)


def plain_decoder(state: dict[str, Tensor], config: TransformerConfig, tokens: Tensor) -> Tensor:
    """A LLaMA-family decoder on one row of text, written with nothing of this project."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight

    def rotate(x: Tensor) -> Tensor:
        half = config.head_dim // 2
        frequency = config.rope_theta ** (-torch.arange(half).double() / half)
        angle = torch.arange(len(tokens)).double()[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    w = {name: value.double() for name, value in state.items()}
    x = w["embed_tokens.weight"][tokens]
    causal = torch.ones(len(tokens), len(tokens)).tril().bool()
    for i in range(config.layers):
        p = f"layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        heads = []
        for j in range(config.heads):
            g = j // (config.heads // config.kv_heads)
            d = config.head_dim
            q = h @ w[p + "self_attn.q_proj.weight"][j * d : (j + 1) * d].T
            k = h @ w[p + "self_attn.k_proj.weight"][g * d : (g + 1) * d].T
            v = h @ w[p + "self_attn.v_proj.weight"][g * d : (g + 1) * d].T
            if config.qk_norm:
                q = norm(q, w[p + "self_attn.q_norm.weight"])
                k = norm(k, w[p + "self_attn.k_norm.weight"])
            scores = rotate(q) @ rotate(k).T / d**0.5
            heads.append(scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"])


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_text_alone_is_a_standard_decoder(qk_norm: bool, kv_heads: int) -> None:
    config = replace(SMALL, qk_norm=qk_norm, kv_heads=kv_heads)
    model = build(config)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    hidden = model.text_hidden(tokens)
    for row in range(2):
        expected = plain_decoder(model.state_dict(), config, tokens[row])
        torch.testing.assert_close(hidden[row].double(), expected, atol=2e-5, rtol=2e-5)


def sample_inputs(batch: int, frames: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    quantized = bsq_quantize(torch.randn(batch, 6, frames, 2, 3), SMALL.sizes, return_inputs=True)
    tokens, lengths = pad([[0, 4, 2], [0, 3, 1, 2, 9], [0]][:batch], 5)
    return tokens, lengths, quantized.inputs, quantized.bits


@pytest.mark.parametrize("positions", ["grid", "sequence"])
def test_cached_equals_teacher_forced(positions: str) -> None:
    """Each chunk's logits from the cache are those of one pass, rows of different text lengths."""
    model = build(replace(SMALL, positions=positions))
    tokens, lengths, inputs, bits = sample_inputs(3, 3)
    whole = teacher_forced_logits(model, tokens, lengths, inputs)
    rows = [tokens[i, : lengths[i]].tolist() for i in range(3)]
    state = prepare(model, rows, None, [0, 0, 0], window=2)
    for frame in range(3):
        plan = frame_plan(model, state)
        for k in range(len(SMALL.sizes)):
            own = plan.scale(k)
            logits = chunk_logits(model, state, plan, inputs[:, frame, own], k)
            torch.testing.assert_close(logits, whole[:, frame, own], atol=2e-5, rtol=2e-5)
        state.inputs.copy_(inputs[:, frame, :1])
        decode_frame(model, state, given_bits=bits[:, frame])


def test_positions() -> None:
    grid = ChunkSchedule.video(3, SMALL.sizes).positions()
    assert torch.equal(video_positions(SMALL, 3), grid)
    ordinary = video_positions(replace(SMALL, positions="sequence"), 3)
    assert torch.equal(ordinary, torch.arange(33)[:, None].expand(-1, 3))


def test_given_bits_come_back() -> None:
    model = build()
    latents = torch.randn(2, 6, 2, 2, 3)
    quantized = bsq_quantize(latents, SMALL.sizes, return_inputs=True)
    state = prepare(model, [[0, 1], [0]], [0], [5, 6])
    set_guidance(state, GuidanceSchedule.parse(3), 0, 2)
    for frame in range(2):
        decode_frame(model, state, given_bits=quantized.bits[:, frame])
        assert torch.equal(state.bits, quantized.bits[:, frame])
        torch.testing.assert_close(state.latents, quantized.reconstruction[:, :, frame])
        assert state.frames.tolist() == state.draws.tolist() == [frame + 1] * 2
    assert not state.failed.any()


def test_a_logit_that_is_not_finite_marks_its_slot() -> None:
    model = build()
    state = prepare(model, [[0, 1], [0, 2]], [0], [5, 6])
    model.embed_tokens.weight[2] = float("nan")
    prefill_text(model, [0, 2], state.cache.rows(2, 1))
    decode_frame(model, state)
    assert state.failed.tolist() == [False, True]


def test_nothing_sees_what_comes_later() -> None:
    model = build()
    tokens, lengths, inputs, _ = sample_inputs(1, 3)
    base = teacher_forced_logits(model, tokens, lengths, inputs)
    changed = inputs.clone()
    changed[:, 1, 5:] += 1.0
    other = teacher_forced_logits(model, tokens, lengths, changed)
    assert torch.equal(base[:, 0], other[:, 0])
    assert torch.equal(base[:, 1, :5], other[:, 1, :5])
    assert not torch.allclose(base[:, 1, 5:], other[:, 1, 5:])
    assert not torch.allclose(base[:, 2], other[:, 2])


def test_padding_and_first_input_are_not_read() -> None:
    model = build()
    tokens, lengths, inputs, _ = sample_inputs(2, 2)
    base = teacher_forced_logits(model, tokens, lengths, inputs)
    tokens[0, 3:] = 7
    inputs[:, 0, 0] = 99.0
    torch.testing.assert_close(teacher_forced_logits(model, tokens, lengths, inputs), base)


def test_hidden_frames_change_what_is_seen() -> None:
    model = build()
    tokens, lengths, inputs, _ = sample_inputs(1, 3)
    blind = torch.zeros(3, 3, dtype=torch.bool)
    alone = teacher_forced_logits(model, tokens, lengths, inputs, frame_visible=blind)
    changed = inputs.clone()
    changed[:, 0, 1:] += 1.0
    other = teacher_forced_logits(model, tokens, lengths, changed, frame_visible=blind)
    torch.testing.assert_close(alone[:, 1:], other[:, 1:])


def test_ring_segments_name_the_visible_rows() -> None:
    layout = CacheLayout(max_text=4, tokens_per_frame=10, ring_frames=3)
    lengths = torch.tensor([2, 4])
    for first in range(8):
        frames = [first, first + 5]
        segments = layout.segments(lengths, torch.tensor(frames), torch.tensor([1, 10]))
        for k, filled in enumerate((1, 10)):
            for row, frame in enumerate(frames):
                rows = [r for s, n in segments[k, row].tolist() for r in range(s, s + n)]
                expected = set(range(int(lengths[row])))
                for past in range(max(0, frame - 2), frame):
                    start = 4 + 10 * (past % 3)
                    expected |= set(range(start, start + 10))
                start = 4 + 10 * (frame % 3)
                expected |= set(range(start, start + filled))
                assert sorted(rows) == sorted(expected), (frame, filled)
    assert layout.start(torch.tensor([0, 4])).tolist() == [4, 14]
    assert layout.capacity == 34


@pytest.mark.parametrize("window", [0, 1, 2])
def test_plan_of_a_frame_follows_the_ring(window: int) -> None:
    model = build()
    state = prepare(model, [[0, 1], [0, 2, 3]], [0], [5, 6], window=window)
    layout = state.cache.layout
    filled = torch.tensor([h * w for h, w in SMALL.sizes]).cumsum(0)
    for frame in range(3 * (window + 1) + 1):
        state.frames.copy_(torch.tensor([frame, frame + 5]))
        plan, frames = frame_plan(model, state), state.frames.repeat_interleave(2)
        assert torch.equal(plan.segments, layout.segments(state.text_lengths, frames, filled))
        for k in range(len(SMALL.sizes)):
            assert torch.equal(plan.starts[k], layout.start(frames) + plan.scale(k).start)
        places = video_positions(SMALL, frame + 6).unflatten(0, (-1, SMALL.tokens_per_frame))
        assert torch.equal(plan.positions, places[frames] + state.text_lengths[:, None, None])


class _Launches(TorchDispatchMode):
    """Counts the operations of torch that compute or copy; on a GPU each is a kernel or more."""

    VIEWS = ("view", "_unsafe_view", "unsqueeze", "expand", "slice", "select", "t", "transpose")
    FREE = (*VIEWS, "split", "detach", "alias", "empty", "new_empty")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in self.FREE
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_small_operations_stand_around_the_layers(
    slots: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each costs a launch in the graph, as long as a matrix product of few rows."""
    model = build().to(dtype)
    state = prepare(model, [[0]] * slots, [0], [0] * slots)
    # It is one launch, and all rows are one call where kernels are.
    monkeypatch.setattr(sampling, "next_scale", lambda *arguments, **options: None)
    monkeypatch.setattr(sampling, "_in_parts", lambda function, rows, *parts: function(*parts))
    with _Launches() as launches, torch.no_grad():
        decode_frame.__wrapped__(model, state, layers=lambda x, *plan: x)
    scales, frame = len(SMALL.sizes), 17
    assert launches.count <= frame + 4 * scales


def test_one_scale_for_all_tokens() -> None:
    model, inputs = build(), torch.randn(2, 6, 6)
    expected = model.embed_video(inputs, torch.full((6,), 2))
    assert torch.equal(model.embed_video(inputs, 2), expected)


def test_overfits_one_clip_to_zero_bit_error() -> None:
    torch.manual_seed(0)
    model = Transformer(SMALL)
    model.init_weights()
    latents = torch.randn(1, 6, 2, 2, 3)
    quantized = bsq_quantize(latents, SMALL.sizes, return_inputs=True)
    tokens, lengths = pad([[0, 4, 2]], 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        logits = teacher_forced_logits(model, tokens, lengths, quantized.inputs)
        loss = bitwise_cross_entropy(logits, quantized.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval().requires_grad_(False)
    state = prepare(model, [[0, 4, 2]], None, [0], temperature=0.0)
    for frame in range(2):
        decode_frame(model, state)
        assert torch.equal(state.bits, quantized.targets[:, frame])


def test_gradient_checkpointing_changes_nothing() -> None:
    tokens, lengths, inputs, bits = sample_inputs(2, 2)
    gradients = []
    for checkpointing in (False, True):
        model = build().requires_grad_(True).train()
        model.gradient_checkpointing = checkpointing
        logits = teacher_forced_logits(model, tokens, lengths, inputs)
        bitwise_cross_entropy(logits, bits).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_presets() -> None:
    millions = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in Transformer(config.transformer).parameters())
        millions[name] = count / 1e6
        assert config.transformer.heads * config.transformer.head_dim == config.transformer.width
    assert round(millions["videoar-l"]) == 921
    assert 1950 < millions["videoar-xl"] < 2050
    assert 3950 < millions["videoar-4b"] < 4100
    assert PRESETS["videoar-l"].num_frames == 17
    assert PRESETS["videoar-l"].transformer.rope_sections == (16, 24, 24)
    assert PRESETS["videoar-4b"].transformer.rope_sections == (10, 15, 15)
    assert PRESETS["videoar-l"].transformer.sizes == default_sizes(8, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_heads", 3),
        ("rope_sections", (1, 3, 3)),
        ("condition", "audio"),
        ("sizes", ()),
        ("sizes", ((0, 1),)),
        ("layers", 0),
        ("norm_eps", 0.0),
        ("rope_theta", -1.0),
        ("positions", "columns"),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SMALL, **{field: value})


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean 'videoar-xl'"):
        preset("videoar_xl")
