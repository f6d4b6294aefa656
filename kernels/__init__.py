"""One file per operation: the function, its plain-PyTorch twin, later its kernels."""

from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.bsq_quantize import bsq_quantize
from videoar.kernels.cached_attention import cached_attention
from videoar.kernels.chunk_attention import chunk_attention, chunk_mask
from videoar.kernels.dispatch import use_backend
from videoar.kernels.group_norm_silu import group_norm_silu
from videoar.kernels.next_scale import NextScale, next_scale
from videoar.kernels.pack_bits import pack_bits, unpack_bits
from videoar.kernels.philox import philox_uniform
from videoar.kernels.qk_norm_rope import CacheWrite, qk_norm_rope, rope_sections
from videoar.kernels.resample import resample
from videoar.kernels.rms_norm import rms_norm
from videoar.kernels.swiglu import swiglu

__all__ = [
    "CacheWrite",
    "NextScale",
    "bitwise_cross_entropy",
    "bsq_quantize",
    "cached_attention",
    "chunk_attention",
    "chunk_mask",
    "group_norm_silu",
    "next_scale",
    "pack_bits",
    "philox_uniform",
    "qk_norm_rope",
    "resample",
    "rms_norm",
    "rope_sections",
    "swiglu",
    "unpack_bits",
    "use_backend",
]
