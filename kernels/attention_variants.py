"""The attention kernels at the tiles that the published presets use, for `benchmarks/aot.py`."""

from videoar.kernels.cached_attention_triton import (
    COMBINE_ROWS,
    cached_attention_tiles,
    combine_kernel,
    split_attention_kernel,
)
from videoar.kernels.cached_attention_triton import Tiles as CachedTiles
from videoar.kernels.chunk_attention_backward import (
    backward_tiles,
    key_gradient_kernel,
    query_gradient_kernel,
)
from videoar.kernels.chunk_attention_triton import chunk_attention_tiles, forward_kernel
from videoar.kernels.chunk_blocks import (
    SHARED_LIMITS,
    Tiles,
    block_list_kernel,
    frame_word_kernel,
    list_block,
)
from videoar.kernels.jit import tl, triton
from videoar.kernels.variant import Variant


def aot_variants() -> list[Variant]:
    """Cached attention at the first and last step of a frame, chunk attention over a clip.

    And chunk attention with heads of 64, which have tiles of their own and no published preset.
    """
    from videoar.runtime.cache import CacheLayout
    from videoar.runtime.presets import PRESETS

    variants = []
    for preset in ("videoar-l", "videoar-xl", "videoar-4b"):
        config = PRESETS[preset].transformer
        width, groups = config.head_dim, config.kv_heads
        capacity = CacheLayout.of(config).capacity
        for step, size in (("first", config.sizes[0]), ("last", config.sizes[-1])):
            rows = config.heads // groups * size[0] * size[1]
            tiles = cached_attention_tiles(2, groups, rows, capacity, width, 2)
            variants += _cached_variants(f"{preset}-{step}", width, tiles)
        variants += _forward_variants(preset, width, capacity)
        tiles = chunk_attention_tiles(capacity, width, 2, min(SHARED_LIMITS.values()))
        blocks = (triton.cdiv(capacity, tiles.block_m), triton.cdiv(capacity, tiles.block_n))
        variants += _list_variants(preset, *blocks, tiles.block_n)
        variants += _backward_variants(preset, width)
    return [
        *variants,
        *_forward_variants("heads-64", 64, 1024),
        *_backward_variants("heads-64", 64),
    ]


def _cached_variants(name: str, width: int, tiles: CachedTiles) -> list[Variant]:
    strides = ("stride_ob", "stride_oh", "stride_ol")
    inputs = [
        f"stride_{x}{axis}"
        for x, axes in (("q", "bhl"), ("k", "bgn"), ("v", "bgn"))
        for axis in axes
    ]
    pointers = ("q_ptr", "k_ptr", "v_ptr", "segments_ptr", "out_ptr", "lse_ptr")
    part = "*fp32" if tiles.splits > 1 else "*bf16"
    constexprs = {
        "SPLITS": tiles.splits,
        "WIDTH": width,
        "BLOCK_D": triton.next_power_of_2(width),
    }
    split = Variant(
        name=f"cached_attention-{name}",
        kernel=split_attention_kernel,
        signature=dict.fromkeys(pointers, "*bf16")
        | {"segments_ptr": "*i32", "out_ptr": part, "lse_ptr": part}
        | dict.fromkeys((*inputs, *strides, "groups", "share", "length"), "i32")
        | {"scale_log2": "fp32"},
        constexprs=constexprs
        | {
            "SEGMENTS": 3,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "DOT": tl.bfloat16,
        },
        divisible=(*pointers, *inputs, *strides),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        expects_mma=True,
        vector_bytes=16,
    )
    if tiles.splits == 1:
        return [split]
    pointers = ("part_ptr", "lse_ptr", "out_ptr")
    combine = Variant(
        name=f"cached_attention_combine-{name}",
        kernel=combine_kernel,
        signature=dict.fromkeys(pointers, "*fp32")
        | {"out_ptr": "*bf16"}
        | dict.fromkeys((*strides, "heads", "length", "rows"), "i32"),
        constexprs=constexprs | {"BLOCK_R": COMBINE_ROWS},
        divisible=(*pointers, *strides),
        vector_bytes=16,
    )
    return [split, combine]


def _forward_variants(name: str, width: int, length: int) -> list[Variant]:
    """The kernel at heads of `width`."""
    return [
        _forward_variant(name, width, chunk_attention_tiles(length, width, 2, limit), targets)
        for targets, limit in SHARED_LIMITS.items()
    ]


def _forward_variant(name: str, width: int, tiles: Tiles, targets: tuple[str, ...]) -> Variant:
    pointers = {f"{x}_ptr": "*bf16" for x in ("q", "k", "v", "out")}
    pointers |= {f"{x}_ptr": "*i32" for x in ("list", "count", "end", "frame", "slot")}
    pointers |= {"lse_ptr": "*fp32", "lengths_ptr": "*i64", "word_ptr": "*i32"}
    strides = tuple(
        f"stride_{x}{a}" for x, axes in {"q": "bhl", "k": "bgl", "v": "bgl"}.items() for a in axes
    )
    integers = ("stride_list", "stride_word", "num_frames", "heads", "share", "length")
    return Variant(
        name=f"chunk_attention-{name}",
        kernel=forward_kernel,
        signature=pointers
        | dict.fromkeys((*strides, *integers, "text_len", "others"), "i32")
        | {"scale_log2": "fp32"},
        constexprs={
            "HAS_LENGTHS": True,
            "HAS_VISIBLE": True,
            "WIDTH": width,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": triton.next_power_of_2(width),
            "DOT": tl.bfloat16,
        },
        divisible=(*pointers, *strides),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        expects_mma=True,
        vector_bytes=16,
        targets=targets,
    )


def _backward_variants(name: str, width: int) -> list[Variant]:
    """Both kernels at heads of `width`."""
    variants = []
    for targets, limit in SHARED_LIMITS.items():
        tiles_q, tiles_k = backward_tiles(width, 2, limit)
        for kernel, tiles in ((query_gradient_kernel, tiles_q), (key_gradient_kernel, tiles_k)):
            variants.append(
                _gradient_variant(f"{kernel.__name__}-{name}", kernel, width, tiles, targets)
            )
    return variants


def _gradient_variant(
    name: str, kernel: object, width: int, tiles: Tiles, targets: tuple[str, ...]
) -> Variant:
    tables = {f"{x}_ptr": "*i32" for x in ("list", "count", "end", "frame", "slot")}
    tables |= {"lengths_ptr": "*i64", "word_ptr": "*i32"}
    wide = ("lse_ptr", "grad_lse_ptr", "delta_ptr")
    constexprs = {
        "HAS_GRAD_LSE": False,
        "HAS_LENGTHS": True,
        "HAS_VISIBLE": True,
        "WIDTH": width,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": triton.next_power_of_2(width),
        "DOT": tl.bfloat16,
    }
    signature = {
        x: tables.get(x, "*fp32" if x in wide else "*bf16" if x.endswith("_ptr") else "i32")
        for x in kernel.arg_names
        if x not in constexprs
    } | {"scale": "fp32"}
    strides = {f"stride_{x}{axis}" for x in "qkvg" for axis in "bhgl"}
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        constexprs={x: c for x, c in constexprs.items() if x in kernel.arg_names},
        divisible=tuple(x for x in signature if x.endswith("_ptr") or x in strides),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        expects_mma=True,
        vector_bytes=16,
        targets=targets,
    )


def _list_variants(name: str, num_queries: int, num_keys: int, block_n: int) -> list[Variant]:
    pointers = {f"{x}_ptr": "*i32" for x in ("query", "key", "list", "count")}
    pointers |= {"lengths_ptr": "*i64", "word_ptr": "*i32"}
    integers = ("stride_word", "text_len", "others", "num_frames", "query_span")
    words = Variant(
        name=f"frame_word-{name}",
        kernel=frame_word_kernel,
        signature={"key_ptr": "*i32", "visible_ptr": "*u8", "word_ptr": "*i32"}
        | dict.fromkeys(("stride_vb", "stride_vf", "num_frames", "key_span"), "i32"),
        constexprs={"BLOCK": 32},
        num_warps=1,
    )
    lists = [
        Variant(
            name=f"block_list-{name}" + ("-transposed" if transposed else ""),
            kernel=block_list_kernel,
            signature=pointers | dict.fromkeys(integers, "i32"),
            constexprs={
                "TRANSPOSED": transposed,
                "HAS_LENGTHS": True,
                "HAS_VISIBLE": True,
                "BLOCK_N": block_n,
                "BLOCK": list_block(num_queries if transposed else num_keys),
            },
            num_warps=1,
        )
        for transposed in (False, True)
    ]
    return [words, *lists]
