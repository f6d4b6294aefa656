"""The Triton kernel of `bsq_quantize` for small grids: a lane has a whole map in its registers.

In units of 1/sqrt(d) the running reconstruction is A = sum_k up(s_k), where s_k = 2 bits_k - 1:

    y_k = down(x - A / sqrt(d))      bits_k = [y_k > 0] ^ flips
    inputs_k = resize(A) / sqrt(d)   A += up(s_k)

Every scale is a constant of the kernel, so all taps and weights are too, and nothing passes between
lanes: no shared memory, no barrier. A map is a tuple of H lines `[W, BLOCK]`. What runs along
columns adds whole lines; for what runs along rows the lines are turned, which names registers anew
and moves nothing. For that the lanes of every tensor must lie on its last axis. The compiler puts
them there, if BLOCK is a number of warps, tokens are contiguous along it, and their pointers are
not known to be aligned: else stores would be gathered into wider ones, and values change lanes.

Bytes that must move are those of `bsq_quantize_triton`; instructions and their limit are in
docs/kernels.md.
"""

import torch
from torch import Tensor

from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.variant import Variant

Sizes = tuple[tuple[int, int], ...]

# Cells of a map: x and A, a register a cell each, and what a scale needs beside them.
MAX_CELLS = 64
TOKEN_POINTERS = ("flips_ptr", "targets_ptr", "bits_ptr", "inputs_ptr", "scale_inputs_ptr")


@jit
def _joined(
    lines, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr
):
    """Lines FIRST, FIRST + STEP, ... below PADDED on new last axes of 2; the last one repeats."""
    if STEP == PADDED:
        return lines[FIRST if FIRST < COUNT else COUNT - 1]
    else:
        return tl.join(
            _joined(lines, FIRST, 2 * STEP, COUNT, PADDED),
            _joined(lines, FIRST + STEP, 2 * STEP, COUNT, PADDED),
        )


@jit
def _cube(lines, COUNT: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT lines `[N, BLOCK]` as `[N, PADDED, BLOCK]`; a power of two, the last line repeats."""
    joined = tl.reshape(_joined(lines, 0, 1, COUNT, PADDED), [N, BLOCK, PADDED])
    return tl.permute(joined, [0, 2, 1])


@jit
def _split(last, COUNT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """`[N, BLOCK, COUNT]` as COUNT lines `[N, BLOCK]`."""
    if COUNT == 1:
        return (tl.reshape(last, [N, BLOCK]),)
    else:
        even, odd = tl.split(tl.reshape(last, [N, BLOCK, COUNT // 2, 2]))
        evens, odds = _split(even, COUNT // 2, N, BLOCK), _split(odd, COUNT // 2, N, BLOCK)
        lines = ()
        for i in tl.static_range(COUNT // 2):
            lines += (evens[i], odds[i])
        return lines


@jit
def _rows(cube, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):
    """`[N, M, BLOCK]` as N lines `[M, BLOCK]`."""
    return _split(tl.permute(cube, [1, 2, 0]), N, M, BLOCK)


@jit
def _columns(cube, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):
    """`[N, M, BLOCK]` as M lines `[N, BLOCK]`."""
    return _split(tl.permute(cube, [0, 2, 1]), M, N, BLOCK)


@jit
def _turned(lines, COUNT: tl.constexpr, PADDED: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT lines `[N, BLOCK]` as N lines `[PADDED, BLOCK]`."""
    return _rows(_cube(lines, COUNT, PADDED, N, BLOCK), N, PADDED, BLOCK)


@jit
def _sum(lines, FIRST: tl.constexpr, LAST: tl.constexpr):
    total = lines[FIRST]
    for p in tl.static_range(FIRST + 1, LAST):
        total += lines[p]
    return total


@jit
def _sums(lines, LENGTH: tl.constexpr, OUT: tl.constexpr):
    """Sums of the lines that each line of a smaller grid touches."""
    if LENGTH == OUT:
        return lines
    else:
        out = ()
        for i in tl.static_range(OUT):
            total = _sum(lines, i * LENGTH // OUT, ((i + 1) * LENGTH + OUT - 1) // OUT)
            out += (total,)
        return out


@jit
def _between(lines, NUMERATOR: tl.constexpr, DENOMINATOR: tl.constexpr, LENGTH: tl.constexpr):
    """The line at the coordinate NUMERATOR / DENOMINATOR, no further out than first and last."""
    if NUMERATOR <= 0:
        return lines[0]
    elif NUMERATOR % DENOMINATOR == 0 or NUMERATOR // DENOMINATOR + 1 >= LENGTH:
        return lines[NUMERATOR // DENOMINATOR]
    else:
        weight: tl.constexpr = NUMERATOR % DENOMINATOR / DENOMINATOR
        lower, upper = lines[NUMERATOR // DENOMINATOR], lines[NUMERATOR // DENOMINATOR + 1]
        return lower * (1.0 - weight) + upper * weight


@jit
def _bilinear(lines, LENGTH: tl.constexpr, OUT: tl.constexpr):
    """OUT lines from LENGTH, by the rule of `resample_matrix(..., "bilinear")`."""
    if LENGTH == OUT:
        return lines
    else:
        out = ()
        for i in tl.static_range(OUT):
            line = _between(lines, (2 * i + 1) * LENGTH - OUT, 2 * OUT, LENGTH)
            out += (line,)
        return out


@jit
def _offsets(
    offs,
    TOKEN: tl.constexpr,
    S: tl.constexpr,
    w: tl.constexpr,
    P: tl.constexpr,
    NUM_BITS: tl.constexpr,
):
    """Of tokens (i, j) behind token TOKEN, `[S, P, BLOCK]`, from those of the frames' first."""
    token = TOKEN + tl.arange(0, S)[:, None] * w + tl.arange(0, P)[None, :]
    return offs[None, None, :] + (token * NUM_BITS)[:, :, None]


@jit
def _inside(
    h: tl.constexpr, S: tl.constexpr, w: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr
):
    """`[S, P, BLOCK]`: whether (i, j) is a token; known for each register, so it costs nothing."""
    inside = (tl.arange(0, S) < h)[:, None] & (tl.arange(0, P) < w)[None, :]
    return tl.broadcast_to(inside[:, :, None], [S, P, BLOCK])


@jit
def store_bits(y, flips, at, mask, targets_ptr, bits_ptr, scale_inputs_ptr, share):
    """[y > 0] ^ flips at `at`, with `share` y where asked for; gives the bits as -1 and 1."""
    bit = (y > 0).to(tl.int32)
    tl.store(targets_ptr + at, bit.to(tl.uint8), mask=mask)
    if flips is not None:
        bit = bit ^ flips.to(tl.int32)
    tl.store(bits_ptr + at, bit.to(tl.uint8), mask=mask)
    if scale_inputs_ptr is not None:
        tl.store(scale_inputs_ptr + at, y * share, mask=mask)
    return tl.where(bit != 0, 1.0, -1.0)


@jit
def _resized(
    total, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, S: tl.constexpr, w: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A on the grid of a scale, `[S, P, BLOCK]`."""
    columns = _turned(_bilinear(total, H, h), h, S, W, BLOCK)
    return _cube(_bilinear(columns, W, w), w, P, S, BLOCK)


@jit
def _quantize_scale(
    x, total, code, offs, is_first, flips_ptr, targets_ptr, bits_ptr, inputs_ptr, scale_inputs_ptr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, S: tl.constexpr, w: tl.constexpr,
    P: tl.constexpr, TOKEN: tl.constexpr, NUM_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A behind a scale that is smaller than the map; everything of the scale is written."""
    at = _offsets(offs, TOKEN, S, w, P, NUM_BITS)
    inside = _inside(h, S, w, P, BLOCK)
    if TOKEN == 0:
        if inputs_ptr is not None:
            zeros = tl.zeros([S, P, BLOCK], inputs_ptr.dtype.element_ty)
            tl.store(inputs_ptr + at, zeros, mask=inside & is_first[None, None, :])
    else:
        if inputs_ptr is not None:
            value = _resized(total, H, W, h, S, w, P, BLOCK) * code
            tl.store(inputs_ptr + at, value.to(inputs_ptr.dtype.element_ty), mask=inside)
    # Asked for now, since a store may be behind every load that follows it.
    flips = None
    if flips_ptr is not None:
        flips = tl.load(flips_ptr + at, mask=inside, other=0)
    residual = x
    if TOKEN > 0:
        residual = ()
        for p in tl.static_range(H):
            residual += (x[p] - total[p] * code,)
    columns = _turned(_sums(residual, H, h), h, S, W, BLOCK)
    y = _cube(_sums(columns, W, w), w, P, S, BLOCK)
    i, j = tl.arange(0, S), tl.arange(0, P)
    tall = ((i + 1) * H + h - 1) // h - i * H // h
    wide = ((j + 1) * W + w - 1) // w - j * W // w
    share = (1.0 / (tall[:, None] * wide[None, :]).to(tl.float32))[:, :, None]
    signs = store_bits(y, flips, at, inside, targets_ptr, bits_ptr, scale_inputs_ptr, share)
    columns = _bilinear(_columns(signs, S, P, BLOCK), w, W)
    rows, out = _turned(columns, W, W, S, BLOCK), ()
    for p in tl.static_range(H):
        line = _between(rows, (2 * p + 1) * h - H, 2 * H, h)
        if TOKEN > 0:
            line += total[p]
        out += (line,)
    return out


@jit
def _quantize_grid(
    x, total, code, offs, is_first, flips_ptr, targets_ptr, bits_ptr, inputs_ptr, scale_inputs_ptr,
    H: tl.constexpr, S: tl.constexpr, W: tl.constexpr, TOKEN: tl.constexpr,
    NUM_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same for a scale of the map's own size, line by line: nothing is resampled."""
    cells = (TOKEN + tl.arange(0, W)) * NUM_BITS
    offs = offs[None, :] + cells[:, None]
    flips, out = (), ()
    for p in tl.static_range(H):
        at = offs + p * W * NUM_BITS
        if flips_ptr is not None:
            # Half of the map ahead of their use: all of them would not fit into the registers.
            for line in tl.static_range(p + (H // 2 if p > 0 else 0), p + H // 2 + 1):
                if line < H:
                    flips += (tl.load(flips_ptr + (offs + line * W * NUM_BITS)),)
        if TOKEN == 0:
            y = x[p]
            if inputs_ptr is not None:
                zeros = tl.zeros([W, BLOCK], inputs_ptr.dtype.element_ty)
                first = tl.broadcast_to(is_first[None, :], [W, BLOCK])
                tl.store(inputs_ptr + at, zeros, mask=first)
        else:
            known = total[p] * code
            y = x[p] - known
            if inputs_ptr is not None:
                tl.store(inputs_ptr + at, known.to(inputs_ptr.dtype.element_ty))
        flip = None
        if flips_ptr is not None:
            flip = flips[p]
        sign = store_bits(y, flip, at, None, targets_ptr, bits_ptr, scale_inputs_ptr, 1.0)
        if TOKEN > 0:
            sign += total[p]
        out += (sign,)
    return out


@jit
def _store_first_inputs(
    total, code, offs, has_next, inputs_ptr, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr,
    S: tl.constexpr, w: tl.constexpr, P: tl.constexpr, NUM_TOKENS: tl.constexpr,
    NUM_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first scale of the next frame starts from this one; the last frame has none to start."""
    value = _resized(total, H, W, h, S, w, P, BLOCK) * code
    at = _offsets(offs, NUM_TOKENS, S, w, P, NUM_BITS)
    mask = _inside(h, S, w, P, BLOCK) & has_next[None, None, :]
    tl.store(inputs_ptr + at, value.to(inputs_ptr.dtype.element_ty), mask=mask)


@jit
def _load_map(
    x_ptr, offs, H: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lines of float32, VECTOR cells a load."""
    cells, tiles = tl.arange(0, VECTOR), ()
    for n in tl.static_range(H * W // VECTOR):
        at = offs[None, :] + (n * VECTOR + cells)[:, None]
        tiles += (tl.load(x_ptr + at).to(tl.float32),)
    cube = tl.permute(_cube(tiles, H * W // VECTOR, S * W // VECTOR, VECTOR, BLOCK), [1, 0, 2])
    return _rows(tl.reshape(cube, [S, W, BLOCK]), S, W, BLOCK)


@jit
def _store_map(
    out_ptr, offs, total, code, H: tl.constexpr, S: tl.constexpr, W: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A / sqrt(d), VECTOR cells a store."""
    cube = tl.permute(_cube(total, H, S, W, BLOCK), [1, 0, 2]) * code
    cube = tl.reshape(cube.to(out_ptr.dtype.element_ty), [S * W // VECTOR, VECTOR, BLOCK])
    tiles, cells = _rows(cube, S * W // VECTOR, VECTOR, BLOCK), tl.arange(0, VECTOR)
    for n in tl.static_range(H * W // VECTOR):
        tl.store(out_ptr + (offs[None, :] + (n * VECTOR + cells)[:, None]), tiles[n])


@jit(do_not_specialize_on_alignment=TOKEN_POINTERS)
def bsq_quantize_lanes_kernel(
    x_ptr,
    flips_ptr,
    targets_ptr,
    bits_ptr,
    out_ptr,
    inputs_ptr,
    scale_inputs_ptr,
    num_maps,
    num_frames,
    code,
    stride_xb,
    stride_xd,
    stride_xt,
    SCALES: tl.constexpr,
    NUM_TOKENS: tl.constexpr,
    NUM_BITS: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All scales of BLOCK maps; SCALES holds (h, h padded, w, w padded, first token) each."""
    LAST: tl.constexpr = len(SCALES) - 1
    H: tl.constexpr = SCALES[LAST][0]
    S: tl.constexpr = SCALES[LAST][1]
    W: tl.constexpr = SCALES[LAST][2]
    # Lanes without a map of their own take one of the last two, and write the same values again.
    lane = tl.arange(0, BLOCK)
    index = tl.program_id(0) * BLOCK + lane
    index = tl.where(index < num_maps, index, num_maps - 2 + lane % 2)
    m, d = index // NUM_BITS, index % NUM_BITS
    b = m // num_frames
    t = m - b * num_frames
    offs_x = b.to(tl.int64) * stride_xb + t.to(tl.int64) * stride_xt + d.to(tl.int64) * stride_xd
    # The number of bits is even, so bits 2 n and 2 n + 1 are of one frame, and of two lanes.
    offs = tl.max_contiguous(m.to(tl.int64) * (NUM_TOKENS * NUM_BITS) + d, 2)
    x = _load_map(x_ptr, offs_x, H, S, W, VECTOR, BLOCK)
    total = x
    for k in tl.static_range(LAST):
        total = _quantize_scale(
            x, total, code, offs, t == 0, flips_ptr, targets_ptr, bits_ptr, inputs_ptr,
            scale_inputs_ptr, H, W, SCALES[k][0], SCALES[k][1], SCALES[k][2], SCALES[k][3],
            SCALES[k][4], NUM_BITS, BLOCK,
        )  # fmt: skip
    total = _quantize_grid(
        x, total, code, offs, t == 0, flips_ptr, targets_ptr, bits_ptr, inputs_ptr,
        scale_inputs_ptr, H, S, W, SCALES[LAST][4], NUM_BITS, BLOCK,
    )  # fmt: skip
    if inputs_ptr is not None:
        _store_first_inputs(
            total, code, offs, t + 1 < num_frames, inputs_ptr, H, W, SCALES[0][0], SCALES[0][1],
            SCALES[0][2], SCALES[0][3], NUM_TOKENS, NUM_BITS, BLOCK,
        )  # fmt: skip
    _store_map(out_ptr, index.to(tl.int64) * (H * W), total, code, H, S, W, VECTOR, BLOCK)


def bsq_quantize_lanes_tiles(lanes: int) -> tuple[int, int]:
    """Maps of a program, as many as it has lanes, and warps; `lanes` are those of a warp.

    Nothing is shared between warps, so one is enough, and all processors get as much to do.
    """
    return lanes, 1


def serves(sizes: Sizes, dim: int) -> bool:
    """Whether a map fits into a lane; whatever their number, so that no clip depends on others."""
    height, width = sizes[-1]
    small = height * width <= MAX_CELLS and width & (width - 1) == 0 and len(sizes) <= 8
    return small and dim % 2 == 0


def _lanes() -> int:
    return 64 if torch.version.hip else 32


def _scales(sizes: Sizes) -> tuple[tuple[int, int, int, int, int], ...]:
    """Height, width, both also as the next power of two, and the first token of every scale."""
    scales, token = [], 0
    for h, w in sizes:
        scales.append((h, triton.next_power_of_2(h), w, triton.next_power_of_2(w), token))
        token += h * w
    return tuple(scales)


def _vector(width: int, itemsize: int) -> int:
    """Cells of one load: 16 bytes of a row, or all of it."""
    return min(width, max(16 // itemsize, 1))


def launch_lanes(
    x: Tensor,
    flips: Tensor | None,
    sizes: Sizes,
    targets: Tensor,
    bits: Tensor,
    out: Tensor,
    inputs: Tensor | None,
    scale_inputs: Tensor | None,
) -> None:
    """Quantise `[B,d,T,H,W]` where `serves`, into tensors as `_launch` makes them."""
    batch, dim, frames, _, width = x.shape
    if (x.stride(3), x.stride(4)) != (width, 1):
        x = x.contiguous()
    num_maps = batch * frames * dim
    block, num_warps = bsq_quantize_lanes_tiles(_lanes())
    bsq_quantize_lanes_kernel[(triton.cdiv(num_maps, block),)](
        x,
        flips,
        targets,
        bits,
        out,
        inputs,
        scale_inputs,
        num_maps,
        frames,
        dim**-0.5,
        *x.stride()[:3],
        SCALES=_scales(sizes),
        NUM_TOKENS=sum(h * w for h, w in sizes),
        NUM_BITS=dim,
        VECTOR=_vector(width, x.element_size()),
        BLOCK=block,
        num_warps=num_warps,
        num_stages=1,
    )


def aot_variants() -> list[Variant]:
    """The scales of `videoar-l`: as a benchmark and a tokenizer call it, and error correction."""
    sizes = tuple((side, side) for side in (1, 2, 3, 4, 6, 8))
    masks = dict.fromkeys(("targets_ptr", "bits_ptr"), "*u8")
    forms = {
        "inputs": ("*fp32", {"inputs_ptr": "*fp32"}),
        "all": (
            "*fp32",
            {"flips_ptr": "*u8", "inputs_ptr": "*fp32", "scale_inputs_ptr": "*fp32"},
        ),
        "narrow": ("*bf16", {"flips_ptr": "*u8", "inputs_ptr": "*bf16"}),
    }
    strides = ("stride_xb", "stride_xd", "stride_xt")
    integers = dict.fromkeys(("num_maps", "num_frames", *strides), "i32")
    optional = ("flips_ptr", "inputs_ptr", "scale_inputs_ptr")
    return [
        Variant(
            name=f"bsq_quantize_lanes-{name}",
            kernel=bsq_quantize_lanes_kernel,
            signature={
                **dict.fromkeys(("x_ptr", "out_ptr"), pointer),
                **masks,
                **given,
                **integers,
                "code": "fp32",
            },
            constexprs={
                **dict.fromkeys(set(optional) - set(given)),
                "SCALES": _scales(sizes),
                "NUM_TOKENS": sum(h * w for h, w in sizes),
                "NUM_BITS": 48,
                "VECTOR": _vector(8, 4 if pointer == "*fp32" else 2),
                "BLOCK": block,
            },
            divisible=("x_ptr", "out_ptr", "num_maps", *strides),
            num_warps=num_warps,
            num_stages=1,
            vector_bytes=16,
            targets=targets,
        )
        for lanes, targets in ((32, ("sm_80", "sm_90", "sm_100", "sm_120")), (64, ("gfx942",)))
        for block, num_warps in (bsq_quantize_lanes_tiles(lanes),)
        for name, (pointer, given) in forms.items()
    ]
