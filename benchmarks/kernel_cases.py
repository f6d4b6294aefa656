"""What `benchmarks/kernels.py` times: every operation's cases, at the published sizes."""

from collections.abc import Callable, Iterator

from videoar.benchmarks.kernel_case import Case, Setting
from videoar.benchmarks.kernel_cases_attention import (
    cached_attention_cases,
    chunk_attention_cases,
    qk_norm_rope_cases,
)
from videoar.benchmarks.kernel_cases_bits import (
    bsq_quantize_cases,
    next_scale_cases,
    pack_bits_cases,
    philox_cases,
    resample_cases,
)
from videoar.benchmarks.kernel_cases_layers import (
    bitwise_cross_entropy_cases,
    rms_norm_cases,
    swiglu_cases,
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
