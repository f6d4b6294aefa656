"""One kernel at one shape and dtype, as `benchmarks/aot.py` compiles it without a GPU.

Every op file with Triton kernels has a function `aot_variants() -> list[Variant]`: its kernels with
the tiles that the presets really use, taken from the same pure function that the launcher calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What a launch would fix, so that the compiler sees what it would see at that launch.

    An integer argument that is 1 at the launch (a unit stride) and a pointer that is None belong
    into `constexprs`, as Triton's launcher specialises them.
    """

    name: str  # of the kernel and the shape, such as "rms_norm_forward-4b"
    kernel: Any  # the `@jit` function
    signature: Mapping[str, str]  # arguments that are not constexpr: "*bf16", "i32", "i64", "fp32"
    constexprs: Mapping[str, Any]  # all others
    divisible: tuple[str, ...] | None = None  # multiples of 16 at the launch; None: the pointers
    num_warps: int = 4
    num_stages: int = 2
    expects_mma: bool = False  # whether a matrix instruction must be in the result
    vector_bytes: int = 0  # NVIDIA: what the widest load and store of memory must reach
    targets: tuple[str, ...] = ()  # names as in `benchmarks/aot.py`, such as "sm_90"; none: all
