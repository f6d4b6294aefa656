"""Philox4x32-10: one uniform number per sampled bit, the same on every backend.

Formula (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): ten rounds of
    (hi0, lo0) = M0 * c0,  (hi1, lo1) = M1 * c2
    (c0, c1, c2, c3) <- (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0),  (k0, k1) += (W0, W1)
on 32-bit words. A bit's counter is (frame, scale, token, bit), its key the low and high half of
its row's seed, its uniform the upper 24 bits of the first word times 2^-24: exact in float32.

Axes: R rows, L tokens of a scale, d bits of a token. Bytes moved: 16 R read, 4 R L d written.
"""

import torch
from torch import Tensor

from videoar import _C
from videoar.kernels.dispatch import select
from videoar.kernels.jit import jit, tl, triton
from videoar.kernels.values import values_known
from videoar.kernels.variant import Variant

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


@jit
def philox_words(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 inside a kernel: four uint32 counter words and two key words, of one shape."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@jit
def bit_uniform(seed, frame, scale, token, bit):
    """Uniforms of the bits at (token, bit), which broadcast; seed int64, the others integers."""
    zero = (token * 0 + bit * 0).to(tl.uint32)
    key = seed.to(tl.uint64, bitcast=True)
    word, _, _, _ = philox_words(
        zero + tl.cast(frame, tl.uint32),
        zero + tl.cast(scale, tl.uint32),
        zero + token.to(tl.uint32),
        zero + bit.to(tl.uint32),
        zero + key.to(tl.uint32),
        zero + (key >> 32).to(tl.uint32),
    )
    return (word >> 8).to(tl.float32) * (1.0 / 16777216)


@jit
def philox_uniform_kernel(
    seeds_ptr,
    frames_ptr,
    out_ptr,
    stride_seed,
    stride_frame,
    scale,
    num_tokens,
    num_bits,
    token_blocks,
    bit_blocks,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Uniforms of one row's block of tokens and bits; writes 4 bytes each, reads 16 a program."""
    pid = tl.program_id(0)
    row = (pid // (token_blocks * bit_blocks)).to(tl.int64)
    block = pid % (token_blocks * bit_blocks)
    offs_l = (block // bit_blocks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_d = (block % bit_blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    seed = tl.load(seeds_ptr + row * stride_seed)
    frame = tl.load(frames_ptr + row * stride_frame)
    uniform = bit_uniform(seed, frame, scale, offs_l[:, None], offs_d[None, :])
    offs = (row * num_tokens + offs_l[:, None]) * num_bits + offs_d[None, :]
    mask = (offs_l[:, None] < num_tokens) & (offs_d[None, :] < num_bits)
    tl.store(out_ptr + offs, uniform, mask=mask)


def uniform_tiles(num_bits: int) -> tuple[int, int]:
    """BLOCK_L, BLOCK_D of `philox_uniform_kernel`: about 1,024 numbers, 8 a thread."""
    block_d = min(64, triton.next_power_of_2(max(1, num_bits)))
    return 1024 // block_d, block_d


def _philox_uniform_triton(
    seeds: Tensor, frames: int | Tensor, scale: int, num_tokens: int, num_bits: int
) -> Tensor:
    seeds, frames = _check(seeds, frames, scale, num_tokens, num_bits)
    rows = seeds.shape[0]
    uniforms = torch.empty(rows, num_tokens, num_bits, dtype=torch.float32, device=seeds.device)
    if uniforms.numel() == 0:
        return uniforms
    block_l, block_d = uniform_tiles(num_bits)
    blocks = triton.cdiv(num_tokens, block_l), triton.cdiv(num_bits, block_d)
    philox_uniform_kernel[(rows * blocks[0] * blocks[1],)](
        seeds,
        frames,
        uniforms,
        seeds.stride(0),
        frames.stride(0),
        scale,
        num_tokens,
        num_bits,
        *blocks,
        BLOCK_L=block_l,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return uniforms


def aot_variants() -> list[Variant]:
    """The kernel for the 48 bits a token that all presets have."""
    block_l, block_d = uniform_tiles(48)
    integers = ("stride_frame", "scale", "num_tokens", "num_bits", "token_blocks")
    return [
        Variant(
            name="philox_uniform-d48",
            kernel=philox_uniform_kernel,
            signature={
                "seeds_ptr": "*i64",
                "frames_ptr": "*i64",
                "out_ptr": "*fp32",
                **dict.fromkeys(integers, "i32"),
            },
            constexprs={
                "stride_seed": 1,
                "bit_blocks": 1,
                "BLOCK_L": block_l,
                "BLOCK_D": block_d,
            },
            num_warps=4,
        )
    ]


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 of counters under keys, in plain PyTorch.

    Args:
        counter: int64 [..., 4], each a uint32 value.
        key: int64 [..., 2], each a uint32 value; its leading axes broadcast with the counter's.

    Returns:
        int64 [..., 4], each a uint32 value.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 -> 64 bit product; halves keep it inside signed int64."""
    upper = (word >> 16) * multiplier
    lower = (word & 0xFFFF) * multiplier
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _MASK
    return high, low


def philox_uniform_ref(
    seeds: Tensor, frames: int | Tensor, scale: int, num_tokens: int, num_bits: int
) -> Tensor:
    """`philox_uniform` in plain PyTorch."""
    seeds, frames = _check(seeds, frames, scale, num_tokens, num_bits)
    shape = (seeds.shape[0], num_tokens, num_bits)
    token_L1 = torch.arange(num_tokens, device=seeds.device)[:, None]
    bit_d = torch.arange(num_bits, device=seeds.device)
    counter = torch.stack(
        (
            frames[:, None, None].expand(shape),
            torch.full((), scale, dtype=torch.int64, device=seeds.device).expand(shape),
            token_L1.expand(shape),
            bit_d.expand(shape),
        ),
        dim=-1,
    )
    key = torch.stack((seeds & _MASK, (seeds >> 32) & _MASK), dim=-1)[:, None, None]
    word = philox4x32(counter, key)[..., 0]
    return (word >> 8).to(torch.float32) * 2.0**-24


def _philox_uniform_cpp(
    seeds: Tensor, frames: int | Tensor, scale: int, num_tokens: int, num_bits: int
) -> Tensor:
    seeds, frames = _check(seeds, frames, scale, num_tokens, num_bits)
    seeds, frames = seeds.contiguous(), frames.contiguous()
    uniforms = torch.empty(seeds.shape[0], num_tokens, num_bits, dtype=torch.float32, device="cpu")
    _C.philox_uniform(
        seeds.data_ptr(),
        frames.data_ptr(),
        seeds.shape[0],
        scale,
        num_tokens,
        num_bits,
        uniforms.data_ptr(),
    )
    return uniforms


def philox_uniform(
    seeds: Tensor, frames: int | Tensor, scale: int, num_tokens: int, num_bits: int
) -> Tensor:
    """Uniform numbers in [0, 1) for the bits of one scale; each depends on its coordinates alone.

    Args:
        seeds: int64 [R], one per row; any value.
        frames: latent frame index, one for all rows or an integer tensor [R].
        scale: scale index.
        num_tokens: L, tokens of the scale.
        num_bits: d, bits of a token.

    Returns:
        float32 [R, L, d] on the device of `seeds`.

    Raises:
        ValueError: a wrong type, dtype or shape, or a coordinate outside of 32 bits.
    """
    kernel = select("philox_uniform", seeds, _PHILOX_UNIFORM)
    return kernel(seeds, frames, scale, num_tokens, num_bits)


_PHILOX_UNIFORM = {
    "reference": philox_uniform_ref,
    "cpp": _philox_uniform_cpp,
    "triton": _philox_uniform_triton,
}


def _check(
    seeds: Tensor, frames: int | Tensor, scale: int, num_tokens: int, num_bits: int
) -> tuple[Tensor, Tensor]:
    """Validate; return seeds and frames as int64 [R] on one device."""
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise ValueError(f"seeds: expected int64 [R], got {seeds.dtype} {list(seeds.shape)}")
    for name, value in {"num_tokens": num_tokens, "num_bits": num_bits}.items():
        if not 0 <= value <= _MASK + 1:
            raise ValueError(f"{name}: expected 0 .. 2**32, got {value}")
    if not 0 <= scale <= _MASK:
        raise ValueError(f"scale: expected 0 .. 2**32 - 1, got {scale}")
    frames = check_frames(frames, seeds)
    return seeds, torch.full_like(seeds, frames) if isinstance(frames, int) else frames


def check_frames(frames: int | Tensor, seeds: Tensor) -> int | Tensor:
    """`frames` as it came, a tensor as int64 beside `seeds`; ValueError if it is wrong."""
    if not isinstance(frames, Tensor):
        if not isinstance(frames, int) or not 0 <= frames <= _MASK:
            raise ValueError(f"frames: expected an integer of 0 .. 2**32 - 1, got {frames}")
        return frames
    fits = frames.shape == seeds.shape and frames.dtype in (torch.int32, torch.int64)
    if not fits or frames.is_meta != seeds.is_meta:
        raise ValueError(
            f"frames: expected int32 or int64 {list(seeds.shape)} on {seeds.device}, "
            f"got {frames.dtype} {list(frames.shape)} on {frames.device}"
        )
    if values_known(frames) and not all(0 <= frame <= _MASK for frame in frames.tolist()):
        raise ValueError(f"frames: expected 0 .. 2**32 - 1, got {frames.tolist()}")
    return frames.to(seeds.device, torch.int64)
