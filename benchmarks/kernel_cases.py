"""What `benchmarks/kernels.py` times: cases at the published sizes, and what each must cost.

Bytes are those that must move through memory: every input read once, every output written once.
FLOPs are those of unmasked work; an exponential or a square root counts as one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from videoar import kernels
from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy_ref
from videoar.kernels.bsq_quantize import bsq_quantize_ref
from videoar.kernels.cached_attention import cached_attention_ref
from videoar.kernels.chunk_attention import chunk_mask
from videoar.kernels.next_scale import next_scale_ref
from videoar.kernels.pack_bits import pack_bits_ref, unpack_bits_ref
from videoar.kernels.philox import philox_uniform_ref
from videoar.kernels.qk_norm_rope import qk_norm_rope_ref
from videoar.kernels.resample import resample_matrix, resample_ref
from videoar.kernels.rms_norm import rms_norm_ref
from videoar.kernels.swiglu import swiglu_ref
from videoar.runtime.presets import PRESETS
from videoar.runtime.schedule import ChunkSchedule, default_sizes

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the cases run. `small`: tiny shapes, for a CPU."""

    device: torch.device
    dtype: torch.dtype
    small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation at one shape.

    Attributes:
        op, name: of the operation, and of the shape.
        num_bytes, flops: see the file's head.
        make: seed to fresh random inputs.
        run: the public operation; the backend is forced around it.
        expected: the same outputs in float64 (float32 where the operation takes nothing else).
        torch_best: torch's own ways to the same outputs, by name; factories, since some compile.
        launch_bound: also timed as a CUDA graph.
        ties: share of bits that may differ from `expected`, see `timing.compare`.
    """

    op: str
    name: str
    num_bytes: int
    flops: int
    make: Callable[[int], tuple[Tensor, ...]]
    run: Run
    expected: Run
    torch_best: dict[str, Callable[[], Run]] = field(default_factory=dict)
    launch_bound: bool = False
    ties: float = 0.0


def upcast(run: Run) -> Run:
    """`run` on float64 copies of its floating inputs."""

    def wide(*inputs: Tensor) -> tuple[Tensor, ...]:
        return run(*(_widen(x) if x.is_floating_point() else x for x in inputs))

    return wide


def _widen(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_(x.requires_grad)


def with_backward(forward: Run, outputs: int = 1) -> Run:
    """Forward, then the gradients of all inputs that want one; grad_outputs are the last inputs."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        arguments, grads = inputs[:-outputs], inputs[-outputs:]
        results = forward(*arguments)
        wanted = [x for x in arguments if x.requires_grad]
        return (*results, *torch.autograd.grad(results, wanted, grads))

    return run


def compiled(reference: Run, wrap: Callable[[Run], Run] | None = None) -> Callable[[], Run]:
    """A factory of `torch.compile(reference)`, wrapped afterwards: autograd stays outside."""

    def build() -> Run:
        run = torch.compile(reference, dynamic=False)
        return run if wrap is None else wrap(run)

    return build


def _same(run: Run) -> Run:
    return run


def _random(
    setting: Setting, seed: int, shapes: Sequence[Sequence[int]], grads: int = 0
) -> tuple[Tensor, ...]:
    """Normal numbers; the first `grads` tensors want a gradient."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    options = {"generator": generator, "device": setting.device, "dtype": setting.dtype}
    made = [torch.randn(*shape, **options) for shape in shapes]
    return tuple(x.requires_grad_(i < grads) for i, x in enumerate(made))


def _bits(setting: Setting, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(setting.device).manual_seed(seed)
    return torch.rand(*shape, generator=generator, device=setting.device) < 0.5


# The costs, as functions of sizes alone.


def visible_pairs(schedule: ChunkSchedule, frame_visible: Tensor | None = None) -> int:
    """Pairs of query and key that the mask of a sequence without text lets through."""
    # A list: reading a GPU tensor element by element would stall thousands of times.
    visible = None if frame_visible is None else frame_visible.tolist()
    tokens = [0] * schedule.num_frames
    pairs = 0
    for chunk in schedule.chunks:
        seen = tokens[chunk.frame] + chunk.length
        for frame in range(chunk.frame):
            if visible is None or visible[chunk.frame][frame]:
                seen += tokens[frame]
        pairs += chunk.length * seen
        tokens[chunk.frame] += chunk.length
    return pairs


def attention_flops(pairs: int, width: int, backward: bool) -> int:
    """Two products forwards, five more backwards, 2 D each for every pair."""
    return pairs * width * 2 * (7 if backward else 2)


def chunk_attention_bytes(query: int, key: int, rows: int, itemsize: int, backward: bool) -> int:
    """`query`, `key`: elements of q and of k; `rows` = B H L float32 log-sum-exps.

    Forwards q, k, v in, out and lse out; backwards these and grad_out in, three gradients out.
    """
    forward = (2 * query + 2 * key) * itemsize + 4 * rows
    return forward + backward * ((4 * query + 4 * key) * itemsize + 4 * rows)


def cached_attention_bytes(query: int, keys: int, itemsize: int) -> int:
    """`query`: elements of q; `keys`: elements of the used rows of one cache."""
    return 2 * (query + keys) * itemsize


def qk_norm_rope_bytes(query: int, key: int, itemsize: int) -> int:
    """q and k in and out, v in, k and v into the cache."""
    return (2 * query + 5 * key) * itemsize


def next_scale_bytes(
    bits: int, accumulator: int, inputs: int, itemsize: int, guided: bool = True
) -> int:
    """Two logits a bit, of both rows with guidance; one byte a bit; float32 for the rest."""
    return bits * (2 * itemsize * (1 + guided) + 1) + 4 * (2 * accumulator + inputs)


def resample_flops(maps: int, source: tuple[int, int], target: tuple[int, int], mode: str) -> int:
    """Separable: along the height first, two a nonzero of each axis's matrix."""
    taps = [
        int((resample_matrix(a, b, mode) != 0).sum()) for a, b in zip(source, target, strict=True)
    ]
    return 2 * maps * (taps[0] * source[1] + taps[1] * target[0])


def bsq_bytes(frames: int, dim: int, tokens: int, cells: int, itemsize: int) -> int:
    """Latents in and out, one byte a bit of targets and of bits, the next-scale inputs."""
    return frames * dim * (2 * cells * itemsize + tokens * (2 + itemsize))


def bsq_flops(frames: int, dim: int, sizes: Sequence[tuple[int, int]]) -> int:
    """Area down and bilinear up of every scale but the last, inputs, two sums a cell and scale."""
    full = tuple(sizes[-1])
    total = 2 * len(sizes) * full[0] * full[1] * frames * dim
    for size in sizes[:-1]:
        total += resample_flops(frames * dim, full, size, "area")
        total += resample_flops(frames * dim, size, full, "bilinear")
        total += resample_flops(frames * dim, full, size, "bilinear")
    return total


def pack_bytes(tokens: int, dim: int) -> int:
    """One byte a bit and the words; the same either way."""
    return tokens * (dim + 4 * -(-dim // 32))


def cross_entropy_bytes(bits: int, itemsize: int, backward: bool) -> int:
    """Two logits and one target a bit; again backwards, with two gradients."""
    return bits * (2 * itemsize + 1 + backward * (4 * itemsize + 1))


# The cases.


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
    wrap = with_backward if backward else _same

    def make(seed: int) -> tuple[Tensor, ...]:
        return _random(setting, seed, [shape] * (4 if backward else 3), 3 if backward else 0)

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
        return _random(setting, seed, [(2, heads, length, width), cache, cache])

    def reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (cached_attention_ref(q, k, v, segments),)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (F.scaled_dot_product_attention(q, k, v),)

    query, used = 2 * heads * length * width, 2 * heads * keys * width
    yield Case(
        op="cached_attention",
        name=f"{2 * length} rows, {keys} keys",
        num_bytes=cached_attention_bytes(query, used, setting.dtype.itemsize),
        flops=attention_flops(2 * heads * length * keys, width, False),
        make=make,
        run=lambda q, k, v: (kernels.cached_attention(q, k, v, segments),),
        expected=upcast(reference),
        torch_best={"sdpa": lambda: sdpa, "compiled": compiled(reference)},
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
        made = _random(setting, seed, [rows] * 3 + [cache] * 2 + [(width,)] * 2)
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


def next_scale_cases(setting: Setting) -> Iterator[Case]:
    """The last scale of a frame of videoar-l, with guidance."""
    config = PRESETS["digits" if setting.small else "videoar-l"].transformer
    sizes, dim = config.sizes, config.latent_dim
    height, width = sizes[-1]
    seeds = torch.tensor([1234], device=setting.device)
    frames = torch.tensor([3], device=setting.device)

    def make(seed: int) -> tuple[Tensor, ...]:
        shapes = [(1, height * width, 2 * dim)] * 2 + [(1, dim, height, width)]
        logits, uncond, accumulator = _random(setting, seed, shapes)
        return logits, uncond, accumulator.float()

    def apply(op: Callable, logits, uncond, accumulator) -> tuple[Tensor, ...]:
        sampling = {"guidance": 5.0, "temperature": 0.9, "seeds": seeds, "frames": frames}
        scale = len(sizes) - 1
        return tuple(op(logits, accumulator, sizes, scale, logits_uncond=uncond, **sampling))

    bits, cells = height * width * dim, height * width * dim
    inputs = sizes[0][0] * sizes[0][1] * dim
    yield Case(
        op="next_scale",
        name="last scale, guidance",
        num_bytes=next_scale_bytes(bits, cells, inputs, setting.dtype.itemsize),
        flops=bits * 10 + cells + resample_flops(dim, sizes[-1], sizes[0], "bilinear"),
        make=make,
        run=partial(apply, kernels.next_scale),
        expected=partial(apply, next_scale_ref),
        torch_best={"compiled": compiled(partial(apply, next_scale_ref))},
        launch_bound=True,
    )


def rms_norm_cases(setting: Setting) -> Iterator[Case]:
    """The width of videoar-xl."""
    rows, width = (64, 128) if setting.small else (32768, 2048)
    elements, itemsize = rows * width, setting.dtype.itemsize

    def plain(op: Callable, x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (op(x, weight),)

    def residual(op: Callable, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return op(x, weight, r)

    def torch_own(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (F.rms_norm(x, (width,), weight, 1e-6),)

    x, weight = (rows, width), (width,)
    yield Case(
        op="rms_norm",
        name=f"forward, {rows} x {width}",
        num_bytes=2 * elements * itemsize,
        flops=4 * elements,
        make=lambda seed: _random(setting, seed, [x, weight]),
        run=partial(plain, kernels.rms_norm),
        expected=upcast(partial(plain, rms_norm_ref)),
        torch_best={
            "rms_norm": lambda: torch_own,
            "compiled": compiled(partial(plain, rms_norm_ref)),
        },
    )
    for backward in (False, True):
        wrap = partial(with_backward, outputs=2) if backward else _same
        shapes = [x, weight, x, *[x, x] * backward]
        yield Case(
            op="rms_norm",
            name=f"{'forward+backward' if backward else 'forward'}, residual, {rows} x {width}",
            num_bytes=(8 if backward else 4) * elements * itemsize,
            flops=(15 if backward else 5) * elements,
            make=lambda seed, shapes=shapes, grads=3 * backward: _random(
                setting, seed, shapes, grads
            ),
            run=wrap(partial(residual, kernels.rms_norm)),
            expected=upcast(wrap(partial(residual, rms_norm_ref))),
            torch_best={"compiled": compiled(partial(residual, rms_norm_ref), wrap)},
        )


def swiglu_cases(setting: Setting) -> Iterator[Case]:
    """The MLP width of videoar-l."""
    shape = (64, 128) if setting.small else (16384, 6272)
    elements = shape[0] * shape[1]

    def apply(op: Callable, gate: Tensor, up: Tensor) -> tuple[Tensor]:
        return (op(gate, up),)

    for backward in (False, True):
        wrap = with_backward if backward else _same
        yield Case(
            op="swiglu",
            name=f"{'forward+backward' if backward else 'forward'}, {shape[0]} x {shape[1]}",
            num_bytes=(8 if backward else 3) * elements * setting.dtype.itemsize,
            flops=(16 if backward else 5) * elements,
            make=lambda seed, backward=backward: _random(
                setting, seed, [shape] * (2 + backward), 2 * backward
            ),
            run=wrap(partial(apply, kernels.swiglu)),
            expected=upcast(wrap(partial(apply, swiglu_ref))),
            torch_best={"compiled": compiled(partial(apply, swiglu_ref), wrap)},
        )


def resample_cases(setting: Setting) -> Iterator[Case]:
    """Maps of 64 clips of 5 frames and 48 channels, half size up and full size down."""
    side, maps = (8, 16) if setting.small else (64, 64 * 5 * 48)
    half = side // 2
    for mode, source, target in (("bilinear", half, side), ("area", side, half)):
        size = (target, target)

        def apply(op: Callable, x: Tensor, size=size, mode=mode) -> tuple[Tensor]:
            return (op(x, size, mode),)

        def interpolate(x: Tensor, size=size, mode=mode) -> tuple[Tensor]:
            return (F.interpolate(x[None], size=size, mode=mode)[0],)

        yield Case(
            op="resample",
            name=f"{mode}, {source} to {target}, {maps} maps",
            num_bytes=maps * (source**2 + target**2) * setting.dtype.itemsize,
            flops=resample_flops(maps, (source, source), size, mode),
            make=lambda seed, side=source: _random(setting, seed, [(maps, side, side)]),
            run=partial(apply, kernels.resample),
            expected=upcast(partial(apply, resample_ref)),
            torch_best={
                "interpolate": lambda run=interpolate: run,
                "compiled": compiled(partial(apply, resample_ref)),
            },
        )


def bsq_quantize_cases(setting: Setting) -> Iterator[Case]:
    """64 clips of videoar-l and 8 of videoar-4b, 5 frames each, float32 as training calls it."""
    shapes = ((64, "videoar-l"), (8, "videoar-4b"))
    for clips, preset in ((2, "digits"),) if setting.small else shapes:
        config = PRESETS[preset].transformer
        sizes, dim, frames = config.sizes, config.latent_dim, clips * 5
        height, width = sizes[-1]

        def make(seed: int, shape=(clips, dim, 5, height, width)) -> tuple[Tensor]:
            return (_random(setting, seed, [shape])[0].float(),)

        def apply(op: Callable, x: Tensor, sizes=sizes) -> tuple[Tensor, ...]:
            made = op(x, sizes, return_inputs=True)
            return made.targets, made.bits, made.reconstruction, made.inputs

        yield Case(
            op="bsq_quantize",
            name=f"{clips} clips of {height} x {width}, inputs",
            num_bytes=bsq_bytes(frames, dim, config.tokens_per_frame, height * width, 4),
            flops=bsq_flops(frames, dim, sizes),
            make=make,
            run=partial(apply, kernels.bsq_quantize),
            expected=partial(apply, bsq_quantize_ref),
            torch_best={"compiled": compiled(partial(apply, bsq_quantize_ref))},
            launch_bound=True,
            ties=1e-5,
        )


def pack_bits_cases(setting: Setting) -> Iterator[Case]:
    """The 48 bits of a token, both ways."""
    tokens, dim = (256 if setting.small else 2**21), 48
    shape = (tokens, dim)
    yield Case(
        op="pack_bits",
        name=f"pack, {tokens} tokens of {dim}",
        num_bytes=pack_bytes(tokens, dim),
        flops=0,
        make=lambda seed: (_bits(setting, seed, *shape),),
        run=lambda bits: (kernels.pack_bits(bits),),
        expected=lambda bits: (pack_bits_ref(bits.cpu()),),
        torch_best={"compiled": compiled(lambda bits: (pack_bits_ref(bits),))},
    )
    yield Case(
        op="pack_bits",
        name=f"unpack, {tokens} tokens of {dim}",
        num_bytes=pack_bytes(tokens, dim),
        flops=0,
        make=lambda seed: (pack_bits_ref(_bits(setting, seed, *shape)),),
        run=lambda words: (kernels.unpack_bits(words, dim),),
        expected=lambda words: (unpack_bits_ref(words.cpu(), dim),),
        torch_best={"compiled": compiled(lambda words: (unpack_bits_ref(words, dim),))},
    )


def bitwise_cross_entropy_cases(setting: Setting) -> Iterator[Case]:
    """The mean over the 48 bits of every token, from logits."""
    tokens, dim = (64 if setting.small else 2**20), 48

    def apply(op: Callable, x: Tensor, bits: Tensor) -> tuple[Tensor]:
        return (op(x, bits),)

    for backward in (False, True):

        def make(seed: int, backward=backward) -> tuple[Tensor, ...]:
            (logits,) = _random(setting, seed, [(tokens, 2 * dim)], int(backward))
            grad = (torch.ones((), device=setting.device),) * backward
            return logits, _bits(setting, seed, tokens, dim), *grad

        wrap = with_backward if backward else _same
        yield Case(
            op="bitwise_cross_entropy",
            name=f"{'forward+backward' if backward else 'forward'}, {tokens} tokens of {dim}",
            num_bytes=cross_entropy_bytes(tokens * dim, setting.dtype.itemsize, backward),
            flops=(16 if backward else 8) * tokens * dim,
            make=make,
            run=wrap(partial(apply, kernels.bitwise_cross_entropy)),
            expected=upcast(wrap(partial(apply, bitwise_cross_entropy_ref))),
            torch_best={"compiled": compiled(partial(apply, bitwise_cross_entropy_ref), wrap)},
        )


def philox_cases(setting: Setting) -> Iterator[Case]:
    """The bits of the last scale of videoar-l for 64 requests, and many more."""
    shapes = ((2, 4),) if setting.small else ((64, 64), (256, 1024))
    for rows, tokens in shapes:

        def make(seed: int, rows=rows) -> tuple[Tensor, Tensor]:
            generator = torch.Generator(setting.device).manual_seed(seed)
            options = {"generator": generator, "device": setting.device, "dtype": torch.int64}
            seeds = torch.randint(-(2**62), 2**62, (rows,), **options)
            return seeds, torch.randint(0, 2**20, (rows,), **options)

        def apply(op: Callable, seeds, frames, tokens=tokens) -> tuple[Tensor]:
            return (op(seeds, frames, 5, tokens, 48),)

        def on_cpu(seeds, frames, apply=apply) -> tuple[Tensor]:
            return apply(philox_uniform_ref, seeds.cpu(), frames.cpu())

        yield Case(
            op="philox",
            name=f"{rows} requests, {tokens} tokens of 48",
            num_bytes=rows * (16 + tokens * 48 * 4),
            flops=0,
            make=make,
            run=partial(apply, kernels.philox_uniform),
            expected=on_cpu,
            torch_best={"compiled": compiled(partial(apply, philox_uniform_ref))},
            launch_bound=tokens < 1024,
        )


CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "chunk_attention": chunk_attention_cases,
    "cached_attention": cached_attention_cases,
    "qk_norm_rope": qk_norm_rope_cases,
    "next_scale": next_scale_cases,
    "bsq_quantize": bsq_quantize_cases,
    "rms_norm": rms_norm_cases,
    "swiglu": swiglu_cases,
    "resample": resample_cases,
    "pack_bits": pack_bits_cases,
    "bitwise_cross_entropy": bitwise_cross_entropy_cases,
    "philox": philox_cases,
}
