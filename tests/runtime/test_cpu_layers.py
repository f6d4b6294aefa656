"""`CpuLayers` is `Transformer.forward`, bit for bit."""

from dataclasses import replace

import pytest
import torch

from videoar import _C
from videoar.kernels.dispatch import use_backend
from videoar.runtime.config import TransformerConfig
from videoar.runtime.cpu_layers import CpuLayers, layers_bytes
from videoar.runtime.packed import can_pack, pack_linears
from videoar.runtime.sampling import chunk_logits, decode_frame, frame_plan, prepare
from videoar.runtime.transformer import Transformer

SMALL = TransformerConfig(
    layers=3,
    width=48,
    heads=4,
    kv_heads=4,
    head_dim=16,
    mlp_width=72,
    latent_dim=6,
    sizes=((1, 1), (1, 2), (2, 3)),
    max_frames=3,
    condition="text",
    vocab_size=10,
    max_text=5,
    rope_theta=10.0,
    rope_sections=(2, 3, 3),
)

# Whole panels: all layers are one call.
PANELS = replace(SMALL, width=64, mlp_width=128)

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no packed products here")


def build(config: TransformerConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    model = model.to(dtype)
    pack_linears(model.layers)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("null_prefix", [None, [0]])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, kv_heads=2),
        replace(SMALL, qk_norm=False),
        replace(SMALL, heads=3, kv_heads=1),
        PANELS,
        replace(PANELS, heads=8, kv_heads=4),
        replace(PANELS, qk_norm=False),
        replace(PANELS, heads=12, kv_heads=4, mlp_width=64),
    ],
)
def test_every_chunk_equals_forward(
    config: TransformerConfig, null_prefix: list[int] | None, dtype: torch.dtype
) -> None:
    """Two requests of different text lengths, over more frames than the ring holds."""
    if not can_pack(dtype):
        pytest.skip(f"no packed products of {dtype} on this processor")
    model = build(config, dtype)
    prefixes, options = [[0, 4, 2], [0, 3, 1, 2, 9]], {"window": 1}
    plain = prepare(model, prefixes, null_prefix, [3, 4], **options)
    fast = prepare(model, prefixes, null_prefix, [3, 4], **options)
    layers = CpuLayers(model, 4 * 6)
    assert layers.whole == (config.width == PANELS.width and _C.isa() != "baseline")
    for _ in range(3):
        plan = frame_plan(model, plain)
        inputs = torch.randn(2, 6, config.latent_dim)
        expected = chunk_logits(model, plain, plan, inputs, 2)
        got = chunk_logits(model, fast, plan, inputs, 2, layers)
        assert torch.equal(got, expected)
        assert torch.equal(fast.cache.data, plain.cache.data)
        decode_frame(model, plain)
        decode_frame(model, fast, layers=layers)
        assert torch.equal(fast.bits, plain.bits)
        assert torch.equal(fast.cache.data, plain.cache.data)
    assert plain.bits.float().std() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_shared_work_change_nothing(dtype: torch.dtype) -> None:
    """Chunks that are large enough to be shared out between the operations, and those too small."""
    if not can_pack(dtype):
        pytest.skip(f"no packed products of {dtype} on this processor")
    config = replace(PANELS, heads=16, mlp_width=704, sizes=((1, 1), (4, 4), (8, 8)))
    model = build(config, dtype)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = prepare(model, [[0, 4, 2]], [0], [3])
            for _ in range(3):
                decode_frame(model, state, layers=CpuLayers(model, 2 * 64))
            results.append((state.bits, state.cache.data))
    finally:
        torch.set_num_threads(threads)
    for bits, cache in results[1:]:
        assert torch.equal(bits, results[0][0])
        assert torch.equal(cache, results[0][1])


def test_a_forced_backend_is_obeyed() -> None:
    model = build(SMALL)
    fast, plain = (prepare(model, [[0, 4]], None, [3]) for _ in range(2))
    layers = CpuLayers(model, 6)
    with use_backend("reference"):
        decode_frame(model, fast, layers=layers)
        decode_frame(model, plain)
    assert torch.equal(fast.cache.data, plain.cache.data)


def test_bytes_and_what_is_served() -> None:
    for config in (SMALL, PANELS, replace(SMALL, heads=16, kv_heads=16, mlp_width=16)):
        model = build(config)
        assert CpuLayers(model, 12).num_bytes == layers_bytes(config, 12, torch.float32)
    assert not CpuLayers.serves(Transformer(SMALL))
    half = Transformer(SMALL).to(torch.float16)
    pack_linears(half.layers)
    assert not CpuLayers.serves(half)
    mixed = build(SMALL)
    mixed.norm.double()
    assert not CpuLayers.serves(mixed)


def test_more_tokens_than_the_buffers_hold_are_refused() -> None:
    model = build(SMALL)
    state = prepare(model, [[0, 4]], None, [3])
    plan = frame_plan(model, state)
    with pytest.raises(ValueError, match="capacity_rows 5"):
        chunk_logits(model, state, plan, torch.randn(1, 6, 6), 2, CpuLayers(model, 5))
