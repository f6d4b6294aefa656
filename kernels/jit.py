"""Triton, where it is: `from videoar.kernels.jit import jit, tl, triton` in every kernel file.

Triton exists for Linux only. Elsewhere the kernels cannot be called, and the files that define them
must still load, since their references and C++ kernels serve the CPU.
"""

import sys
from functools import lru_cache
from typing import Any

import torch

AVAILABLE = sys.platform == "linux"
# NVIDIA GPUs of this compute capability or more have programmatic dependent launch.
PDL_CAPABILITY = (9, 0)

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

    def jit(function: Any = None, **options: Any) -> Any:
        """Keep the function; a launch of it raises."""
        return function or jit


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1).

    The switch is read when a kernel is defined, so it must be set before Triton is imported.
    """
    return AVAILABLE and triton.knobs.runtime.interpret


@lru_cache
def pdl_options(device: torch.device) -> dict[str, bool]:
    """What a launch on `device` adds for programmatic dependent launch, where it has that.

    For kernels with an argument `PDL: tl.constexpr = False` that begin with `wait_then_release`.
    The one place that decides: returning {} here turns it off.
    """
    if device.type != "cuda" or torch.version.hip is not None or interpreted():
        return {}
    if torch.cuda.get_device_capability(device) < PDL_CAPABILITY:
        return {}
    return {"PDL": True, "launch_pdl": True}


@jit
def wait_then_release():
    """Wait until the kernel before is complete, its writes visible; let the one behind start.

    The first thing that a kernel with PDL does, in every program and outside of any loop: Triton
    moves the loads of a pipelined loop in front of a wait inside it (3.7.1). The kernel behind
    waits in the same way for all of this one, so nothing is gained by letting it start later.
    """
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
