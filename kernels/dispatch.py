"""The one rule that decides which implementation of an operation serves a call.

A CUDA tensor is served by the op's "triton" kernel, a CPU tensor by its "cpp" kernel. An op whose
kernel for that device is not written yet, and a device that has no kernels (such as meta), is
served by "reference", the plain-PyTorch twin that every op has. Nothing else moves a call: a kernel
that exists and cannot serve its arguments raises.

`use_backend` overrides the rule, for tests and baselines.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor

BACKENDS = ("reference", "cpp", "triton")

_KERNEL_OF_DEVICE = {"cuda": "triton", "cpu": "cpp"}
_forced: ContextVar[str | None] = ContextVar("videoar_backend", default=None)

Implementation = TypeVar("Implementation", bound=Callable)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Serve every op inside the block by backend `name`; None restores the rule of the device.

    The choice belongs to the current context: other threads and asyncio tasks do not see it.
    Autograd may run a backward pass in another thread, so an `autograd.Function` selects its
    backward in `forward`.

    Raises:
        ValueError: `name` is no backend.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(f"use_backend: name is {name!r}, expected None or one of {BACKENDS}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def select(
    op: str, tensor: Tensor, implementations: Mapping[str, Implementation]
) -> Implementation:
    """Return the implementation of `op` that serves `tensor`, by the rule at the file's head.

    Args:
        op: name of the operation, for messages.
        tensor: the tensor whose device decides.
        implementations: what is written, by backend; "reference" is always among them.

    Raises:
        ValueError: the forced backend does not exist for this op, or cannot read the tensor's
            memory: "cpp" off the CPU, "triton" off the GPU and not in its interpreter.
    """
    assert "reference" in implementations, f"{op} has no reference implementation"
    forced = _forced.get()
    if forced is None:
        kernel = _KERNEL_OF_DEVICE.get(tensor.device.type, "reference")
        return implementations.get(kernel, implementations["reference"])
    if forced not in implementations:
        raise ValueError(f"{op}: no {forced!r} backend, it has {sorted(implementations)}")
    if forced == "cpp" and tensor.device.type != "cpu":
        raise ValueError(f"{op}: the 'cpp' backend needs a CPU tensor, got one on {tensor.device}")
    if forced == "triton" and tensor.device.type != "cuda" and not _interpreted():
        raise ValueError(
            f"{op}: the 'triton' backend needs a CUDA tensor or TRITON_INTERPRET=1, "
            f"got one on {tensor.device}"
        )
    return implementations[forced]


def _interpreted() -> bool:
    # Here, so that a process that never forces Triton need not import it for this file.
    from videoar.kernels.jit import interpreted

    return interpreted()
