"""Which tiles of `chunk_attention` are hidden, wholly visible or mixed; the mask of a mixed one.

A key j is hidden from query i unless

    j < end_i   and   (j is text: j < text_lengths[b];  else: frame_j = frame_i or visible[b, i, j])

where end_i is one behind the last token of the query's chunk (of itself, for text), since chunks
follow each other, and visible[b, i, j] stands for frame_visible[b, frame_i, frame_j]. end and frame
come from the schedule; text lengths and visibility stay on the device, so no host reads a tensor:
one small kernel writes, for each key block and query frame, a word with a bit for every frame of
the block; a second one classifies the tiles from these words and from the extremes of end and frame
over each block. They move about 24 bytes a pair of blocks and 4 bytes for each visible one.
"""

from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from videoar.kernels.jit import jit, tl, triton


class Chunks(Protocol):
    """What attention reads from a schedule; the Triton kernels also need it hashable."""

    num_tokens: int

    def chunk_ids(self) -> Tensor:
        """Chunk of each video token, int64 `[num_tokens]`, not decreasing."""

    def frame_ids(self) -> Tensor:
        """Frame of each video token, int64 `[num_tokens]`, from 0 on, not decreasing."""


def frames_of(schedule: Chunks) -> Tensor:
    """Its `frame_ids`.

    Raises:
        ValueError: a frame in front of an earlier one, or a negative one.
    """
    frame = schedule.frame_ids()
    if (frame < 0).any() or (frame.diff() < 0).any():
        raise ValueError("schedule: expected frames from 0 on that do not decrease")
    return frame


# Bytes of shared memory of one program, and which targets have it.
SHARED_LIMITS = {("sm_90", "sm_100"): 232448, ("sm_80",): 166912, ("sm_120", "gfx942"): 65536}
# Targets with more than this multiply from shared memory (wgmma, tcgen05); the others keep their
# operands in registers, where the larger tiles would spill.
OPERANDS_IN_SHARED = 200 * 1024


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def shared_limit(device: torch.device) -> int:
    """Bytes of shared memory that one program may use; 0, that is the least, off a GPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


# A word has 32 bits, and 1 << 31 would be negative.
MAX_SPAN = 30


class TokenTable(NamedTuple):
    """Per token and block, int32: see `token_table`."""

    end: Tensor
    frame: Tensor
    slot: Tensor
    queries: Tensor
    keys: Tensor
    num_frames: int
    query_span: int
    key_span: int


# Kept for good: captured graphs read the tables where they are.
@cache
def token_table(
    schedule: Chunks, text_len: int, block_m: int, block_n: int, device: torch.device
) -> TokenTable:
    """end, frame (0 for text, else from 1) and slot of every token, and extremes over blocks.

    Returns:
        end, frame and slot `[L]`, slot being the frame minus the first one of the token's key
        block; queries `[blocks, 4]` of (least end, largest end, first frame, last frame) over
        block_m tokens; keys `[blocks, 2]` of (first frame, last frame) over block_n tokens; the
        number of frames, text included; the most frames of a block of queries, and of keys.
    """
    # A table kept from inside inference mode could not be saved for a backward pass later.
    with torch.inference_mode(False):
        chunk = schedule.chunk_ids()
        text = torch.arange(text_len, device="cpu")
        end = torch.cat([text + 1, text_len + torch.searchsorted(chunk, chunk, right=True)])
        frame = torch.cat([torch.zeros_like(text), frames_of(schedule) + 1])
        ends, frames = end.split(block_m), frame.split(block_m)
        queries = [
            [int(x) for x in (e.min(), e.max(), f.min(), f.max())]
            for e, f in zip(ends, frames, strict=True)
        ]
        keys = [[int(f.min()), int(f.max())] for f in frame.split(block_n)]
        slot = torch.cat([f - f.min() for f in frame.split(block_n)])
        spans = [max(block[-1] - block[-2] + 1 for block in side) for side in (queries, keys)]
        tensors = map(torch.as_tensor, (end, frame, slot, queries, keys))
        tensors = (x.to(torch.int32).to(device) for x in tensors)
        return TokenTable(*tensors, int(frame.max()) + 1, *spans)


@jit
def visible_tile(offs_n, end_m, word_m, slot_n, real_text, text_len, HAS_VISIBLE: tl.constexpr):
    """The mask of a tile, from columns of queries and rows of keys or the other way round.

    A query beyond the sequence has end 0. word_m has bit slot_n where the query sees that frame.
    What depends on the key alone is settled before the two meet: a pair costs one comparison and
    one test of bits.
    """
    real_n = (offs_n < real_text) | (offs_n >= text_len)
    if HAS_VISIBLE:
        return (offs_n < end_m) & ((word_m & tl.where(real_n, 1 << slot_n, 0)) != 0)
    return (offs_n < end_m) & real_n


@jit
def frame_word_kernel(
    key_ptr,
    visible_ptr,
    word_ptr,
    stride_vb,
    stride_vf,
    num_frames,
    key_span,
    BLOCK: tl.constexpr,
):
    """word[b, n, f]: bit i is set where query frame f sees frame first(n) + i of key block n."""
    n, batch = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(key_ptr + 2 * n), tl.load(key_ptr + 2 * n + 1)
    visible_base = visible_ptr + batch.to(tl.int64) * stride_vb
    word_base = word_ptr + (batch.to(tl.int64) * tl.num_programs(0) + n) * num_frames
    for start in range(0, num_frames, BLOCK):
        offs_f = start + tl.arange(0, BLOCK)
        word = tl.zeros([BLOCK], tl.int32)
        for i in range(key_span):
            frame = first + i
            # Text is frame 0: end and text lengths alone decide about it.
            free = (frame == 0) | (offs_f == 0) | (offs_f == frame)
            stored = (free == 0) & (offs_f < num_frames) & (frame <= last)
            pair_ptrs = visible_base + (offs_f - 1) * stride_vf + (frame - 1)
            pair = free | (tl.load(pair_ptrs, mask=stored, other=0) != 0)
            word = word | (tl.where(pair & (frame <= last), 1, 0) << i)
        tl.store(word_base + offs_f, word, mask=offs_f < num_frames)


@jit
def block_list_kernel(
    query_ptr,
    key_ptr,
    lengths_ptr,
    word_ptr,
    list_ptr,
    count_ptr,
    stride_word,
    text_len,
    others,
    num_frames,
    query_span,
    TRANSPOSED: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_VISIBLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Key blocks of one query block (query blocks of one key block if TRANSPOSED), ascending.

    list `[B, own, 2, others]` and count `[B, own, 2]`: first the wholly visible, then the mixed.
    """
    own, batch = tl.program_id(0), tl.program_id(1)
    real_text = text_len
    if HAS_LENGTHS:
        real_text = tl.load(lengths_ptr + batch).to(tl.int32)
    row = batch * tl.num_programs(0) + own
    full_ptr = list_ptr + row.to(tl.int64) * 2 * others
    part_ptr = full_ptr + others
    num_full, num_part = 0, 0
    for first in range(0, others, BLOCK):
        offs = first + tl.arange(0, BLOCK)
        inside = offs < others
        m, n = own, offs
        if TRANSPOSED:
            m, n = offs, own
        # Loads without a common index are broadcast to the vector by adding zeros.
        query = query_ptr + 4 * m + tl.zeros([BLOCK], tl.int32)
        key = key_ptr + 2 * n + tl.zeros([BLOCK], tl.int32)
        low = n * BLOCK_N + tl.zeros([BLOCK], tl.int32)
        high = low + BLOCK_N
        every = high <= tl.load(query, mask=inside, other=0)
        some = inside & (low < tl.load(query + 1, mask=inside, other=0))
        some = some & ((low < real_text) | (high > text_len))
        every = every & (tl.maximum(low, real_text) >= tl.minimum(high, text_len))
        if HAS_VISIBLE:
            last = tl.load(query + 3, mask=inside, other=0)
            frames = tl.load(key + 1, mask=inside, other=0) - tl.load(key, mask=inside, other=0)
            complete = (tl.full([BLOCK], 2, tl.int32) << frames) - 1
            any_pair = low < 0
            for i in range(query_span):
                frame = tl.load(query + 2, mask=inside, other=0) + i
                exists = inside & (frame <= last)
                word_ptrs = word_ptr + batch * stride_word + n * num_frames + frame
                word = tl.load(word_ptrs, mask=exists, other=0)
                any_pair = any_pair | (word != 0)
                every = every & ((word == complete) | (exists == 0))
            some = some & any_pair
        full, part = (some & every).to(tl.int32), (some & (every == 0)).to(tl.int32)
        tl.store(full_ptr + num_full + tl.cumsum(full, 0) - 1, offs, mask=full != 0)
        tl.store(part_ptr + num_part + tl.cumsum(part, 0) - 1, offs, mask=part != 0)
        num_full += tl.sum(full, 0)
        num_part += tl.sum(part, 0)
    tl.store(count_ptr + 2 * row, num_full)
    tl.store(count_ptr + 2 * row + 1, num_part)


class Visibility(NamedTuple):
    """What the kernels read of the mask; where an argument is absent, a table stands for it."""

    table: TokenTable
    lengths: Tensor
    words: Tensor
    stride_word: int
    has_lengths: bool
    has_visible: bool
    per_sample: bool


def check_span(table: TokenTable, frame_visible: Tensor | None) -> None:
    """Raise ValueError if more than 30 frames, which may be hidden, are in one block of keys."""
    if frame_visible is not None and table.key_span > MAX_SPAN:
        raise ValueError(
            f"schedule: with frame_visible the Triton kernel takes up to {MAX_SPAN} frames in a "
            f"block of keys, got {table.key_span}"
        )


def visibility(
    table: TokenTable, text_lengths: Tensor | None, frame_visible: Tensor | None
) -> Visibility:
    """Bring the optional arguments of `chunk_attention` into the form of the kernels.

    Raises:
        ValueError: as `check_span`.
    """
    check_span(table, frame_visible)
    device, lengths, words, stride_word = table.end.device, table.end, table.end, 0
    if text_lengths is not None:
        lengths = text_lengths.to(device).contiguous()
    if frame_visible is not None:
        words = _frame_words(table, frame_visible.to(device).contiguous().view(torch.uint8))
        stride_word = words.stride(0) if words.shape[0] > 1 else 0
    per_sample = text_lengths is not None or stride_word > 0
    present = (text_lengths is not None, frame_visible is not None)
    return Visibility(table, lengths, words, stride_word, *present, per_sample)


def _frame_words(table: TokenTable, visible: Tensor) -> Tensor:
    visible = visible if visible.dim() == 3 else visible[None]
    shape = (visible.shape[0], len(table.keys), table.num_frames)
    words = torch.empty(shape, dtype=torch.int32, device=visible.device)
    frame_word_kernel[(shape[1], shape[0])](
        table.keys,
        visible,
        words,
        *visible.stride()[:2],
        table.num_frames,
        table.key_span,
        BLOCK=32,
        num_warps=1,
    )
    return words


def block_lists(
    seen: Visibility, batch: int, text_len: int, block_n: int, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Lists and counts as `block_list_kernel` writes them; B is 1 where all samples agree."""
    table = seen.table
    own, others = len(table.queries), len(table.keys)
    if transposed:
        own, others = others, own
    rows = batch if seen.per_sample else 1
    lists = torch.empty(rows, own, 2, others, dtype=torch.int32, device=table.end.device)
    counts = torch.empty(rows, own, 2, dtype=torch.int32, device=table.end.device)
    block_list_kernel[(own, rows)](
        table.queries,
        table.keys,
        seen.lengths,
        seen.words,
        lists,
        counts,
        seen.stride_word,
        text_len,
        others,
        table.num_frames,
        table.query_span,
        TRANSPOSED=transposed,
        HAS_LENGTHS=seen.has_lengths,
        HAS_VISIBLE=seen.has_visible,
        BLOCK_N=block_n,
        BLOCK=list_block(others),
        num_warps=1,
    )
    return lists, counts


def list_block(others: int) -> int:
    """Blocks that one program of `block_list_kernel` looks at in one go."""
    return min(max(triton.next_power_of_2(others), 16), 128)
