"""The cases of the attention operations, at the sizes of videoar-l."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from videoar import kernels
from videoar.benchmarks.kernel_case import (
    Case,
    Run,
    Setting,
    compiled,
    random_tensors,
    same,
    upcast,
    with_backward,
)
from videoar.benchmarks.kernel_costs import (
    attention_flops,
    cached_attention_bytes,
    chunk_attention_bytes,
    qk_norm_rope_bytes,
    visible_pairs,
)
from videoar.kernels.cached_attention import cached_attention_ref
from videoar.kernels.chunk_attention import chunk_mask
from videoar.kernels.qk_norm_rope import qk_norm_rope_ref
from videoar.runtime.presets import PRESETS
from videoar.runtime.schedule import ChunkSchedule, default_sizes


def _half_hidden(frames: int) -> Tensor:
    """Every frame sees a random half of the frames before it (and itself)."""
    generator = torch.Generator().manual_seed(0)
    visible = torch.zeros(frames, frames, dtype=torch.bool)
    for frame in range(frames):
        visible[frame, torch.randperm(frame, generator=generator)[: (frame + 1) // 2]] = True
    return visible


def chunk_attention_cases(setting: Setting) -> Iterator[Case]:
    """16,430 tokens: 31 latent frames of 16 x 16, the 12 heads of 128 of videoar-l."""
    sizes, frames, heads, width = default_sizes(16, 16), 31, 12, 128
    if setting.small:
        sizes, frames, heads, width = default_sizes(4, 4), 3, 2, 32
    schedule = ChunkSchedule.video(frames, sizes)
    for hidden in (False, True):
        visible = _half_hidden(frames).to(setting.device) if hidden else None
        for backward in (False, True):
            yield _chunk_case(setting, schedule, heads, width, visible, backward)


def _chunk_case(
    setting: Setting,
    schedule: ChunkSchedule,
    heads: int,
    width: int,
    visible: Tensor | None,
    backward: bool,
) -> Case:
    length = schedule.num_tokens
    shape = (1, heads, length, width)
    mask = chunk_mask(schedule, frame_visible=visible, device=setting.device)
    wrap = with_backward if backward else same

    def make(seed: int) -> tuple[Tensor, ...]:
        return random_tensors(setting, seed, [shape] * (4 if backward else 3), 3 if backward else 0)

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        out = kernels.chunk_attention(q, k, v, schedule, frame_visible=visible, mask=mask)
        return (out,)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask),)

    def flex() -> Run:
        attend = _flex_attention(schedule, visible, setting.device)
        return wrap(lambda q, k, v: (attend(q, k, v),))

    elements = heads * length * width
    pairs = heads * visible_pairs(schedule, visible)
    frames = "half the frames hidden" if visible is not None else "all frames"
    return Case(
        op="chunk_attention",
        name=f"{'forward+backward' if backward else 'forward'}, {length} tokens, {frames}",
        num_bytes=chunk_attention_bytes(
            elements, elements, heads * length, setting.dtype.itemsize, backward
        ),
        flops=attention_flops(pairs, width, backward),
        make=make,
        run=wrap(run),
        expected=partial(blocked_attention, mask),
        torch_best={"sdpa": lambda: wrap(sdpa), "flex_attention": flex},
    )


def _flex_attention(
    schedule: ChunkSchedule, visible: Tensor | None, device: torch.device
) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    chunk, frame = (ids.to(device) for ids in (schedule.chunk_ids(), schedule.frame_ids()))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        causal = chunk[k] <= chunk[q]
        if visible is None:
            return causal
        return causal & ((frame[q] == frame[k]) | visible[frame[q], frame[k]])

    length = schedule.num_tokens
    blocks = create_block_mask(mask_mod, None, None, length, length, device=device)
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=blocks)


def blocked_attention(mask: Tensor, *inputs: Tensor, block: int = 256) -> tuple[Tensor, ...]:
    """Attention in float64, a block of queries at a time; with grad_out also three gradients."""
    q, k, v = (x.detach().double().requires_grad_(len(inputs) > 3) for x in inputs[:3])
    outs = []
    for start in range(0, q.shape[2], block):
        rows = slice(start, start + block)
        scores = q[:, :, rows] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        out = scores.masked_fill(~mask[:, :, rows], float("-inf")).softmax(-1) @ v
        if len(inputs) > 3:
            out.backward(inputs[3][:, :, rows].double())
        outs.append(out.detach())
    grads = (q.grad, k.grad, v.grad) if len(inputs) > 3 else ()
    return torch.cat(outs, 2), *grads


def cached_attention_cases(setting: Setting) -> Iterator[Case]:
    """The last step of a frame of videoar-l: 2 rows of 64 tokens, 780 keys in three segments."""
    heads, length, keys, width = (2, 4, 30, 32) if setting.small else (12, 64, 780, 128)
    third = keys // 3
    parts = [[0, third], [third, third], [2 * third, keys - 2 * third]]
    segments = torch.tensor([parts, parts], dtype=torch.int32, device=setting.device)

    def make(seed: int) -> tuple[Tensor, ...]:
        cache = (2, heads, keys, width)
        return random_tensors(setting, seed, [(2, heads, length, width), cache, cache])

    def reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (cached_attention_ref(q, k, v, segments),)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (F.scaled_dot_product_attention(q, k, v),)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (kernels.cached_attention(q, k, v, segments, impl="flash"),)

    others = {"flash_attn": lambda: flash} if setting.device.type == "cuda" else {}
    query, used = 2 * heads * length * width, 2 * heads * keys * width
    yield Case(
        op="cached_attention",
        name=f"{2 * length} rows, {keys} keys",
        num_bytes=cached_attention_bytes(query, used, setting.dtype.itemsize),
        flops=attention_flops(2 * heads * length * keys, width, False),
        make=make,
        run=lambda q, k, v: (kernels.cached_attention(q, k, v, segments),),
        expected=upcast(reference),
        torch_best={"sdpa": lambda: sdpa, "compiled": compiled(reference), **others},
        launch_bound=True,
    )


def qk_norm_rope_cases(setting: Setting) -> Iterator[Case]:
    """Every step of a frame of videoar-l, with the write of keys and values into the cache."""
    config = PRESETS["digits" if setting.small else "videoar-l"].transformer
    for grid in (config.sizes[0], config.sizes[-1]):
        yield _qk_norm_rope_case(setting, config, grid)


def _qk_norm_rope_case(setting: Setting, config, grid: tuple[int, int]) -> Case:
    heads, width, length = config.heads, config.head_dim, grid[0] * grid[1]
    capacity = 2 * config.tokens_per_frame
    positions = ChunkSchedule.image((grid,)).positions().to(setting.device)
    start = torch.tensor([0, config.tokens_per_frame], device=setting.device)

    def make(seed: int) -> tuple[Tensor, ...]:
        # As the projections leave them: heads inside of tokens.
        rows, cache = (2, length, heads, width), (2, heads, capacity, width)
        made = random_tensors(setting, seed, [rows] * 3 + [cache] * 2 + [(width,)] * 2)
        return *(x.transpose(1, 2) for x in made[:3]), *made[3:]

    def apply(op: Callable, q, k, v, k_cache, v_cache, q_weight, k_weight) -> tuple[Tensor, ...]:
        write = kernels.CacheWrite(v_BGLD=v, k_cache=k_cache, v_cache=v_cache, start=start)
        weights = {"q_weight": q_weight, "k_weight": k_weight}
        options = {"sections": config.rope_sections, "theta": config.rope_theta, **weights}
        return *op(q, k, positions, cache=write, **options), k_cache, v_cache

    elements = 2 * heads * length * width
    reference = partial(apply, qk_norm_rope_ref)
    return Case(
        op="qk_norm_rope",
        name=f"{2 * length} rows, cache write",
        num_bytes=qk_norm_rope_bytes(elements, elements, setting.dtype.itemsize),
        flops=2 * elements * 7,
        make=make,
        run=partial(apply, kernels.qk_norm_rope),
        expected=upcast(reference),
        torch_best={"compiled": compiled(reference)},
        launch_bound=True,
    )
