"""Triton, where it is: `from videoar.kernels.jit import jit, tl, triton` in every kernel file.

Triton exists for Linux only. Elsewhere the kernels cannot be called, and the files that define them
must still load, since their references and C++ kernels serve the CPU.
"""

import sys
from typing import Any

AVAILABLE = sys.platform == "linux"

if AVAILABLE:
    import triton
    import triton.language as tl

    jit = triton.jit
else:

    class _Absent:
        """Stands where Triton's names are read in signatures; every use raises."""

        constexpr = Any
        language: "_Absent"

        def __getattr__(self, name: str) -> Any:
            raise ImportError(f"triton.{name}: Triton runs on Linux only")

    triton = tl = _Absent()

    def jit(function: Any) -> Any:
        """Keep the function; a launch of it raises."""
        return function


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1).

    The switch is read when a kernel is defined, so it must be set before Triton is imported.
    """
    return AVAILABLE and triton.knobs.runtime.interpret
