"""What an operation must cost, from its sizes alone.

Bytes are those that must move through memory: every input read once, every output written once.
FLOPs are those of unmasked work; an exponential or a square root counts as one.
"""

from collections.abc import Sequence

from torch import Tensor

from videoar.kernels.resample import resample_matrix
from videoar.runtime.schedule import ChunkSchedule


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
