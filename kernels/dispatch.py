"""The one rule that decides which implementation of an operation serves a call.

A CUDA tensor is served by the op's "triton" kernel, a CPU tensor by its "cpp" kernel. A CPU call
that autograd must record (gradients are enabled and an input requires one) is served by the op's
"cpp_grad" implementation, the C++ kernel with its backward; ops that training does not call have
none. The C++ kernels compute float32 and bfloat16: a call with another floating dtype, and a
recorded one of an op without a C++ backward, are served by "reference", the plain-PyTorch twin
that every op has. So are an op whose kernel for the device is not written yet and a device that
has no kernels (such as meta). All of this can be read off the call; nothing else moves it: a kernel
that exists and cannot serve its arguments raises.

`use_backend` overrides the rule, for tests and baselines.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

BACKENDS = ("reference", "cpp", "triton")
CPP_DTYPES = (torch.float32, torch.bfloat16)

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


def forced_backend() -> str | None:
    """The backend that `use_backend` forces here; None where the rule of the device holds."""
    return _forced.get()


def select(
    op: str,
    tensor: Tensor,
    implementations: Mapping[str, Implementation],
    **others: Tensor | None,
) -> Implementation:
    """Return the implementation of `op` that serves a call, by the rule at the file's head.

    Args:
        op: name of the operation, for messages.
        tensor: the tensor whose device decides.
        implementations: what is written, by backend, and "cpp_grad"; "reference" is always among
            them.
        others: the call's other tensors, by argument name. An op with a "cpp" implementation, which
            reads memory by address, passes all of them.

    Raises:
        ValueError: the forced backend does not exist for this op or cannot serve the call, or the
            C++ kernel would read a tensor that is not in the CPU's memory.
    """
    forced = _forced.get()
    if forced is None:
        kernel = _KERNEL_OF_DEVICE.get(tensor.device.type, "reference")
        if kernel not in implementations:
            return implementations["reference"]
        if kernel == "cpp":
            kernel, reason = _form_on_cpu(tensor, others, implementations)
            return implementations["reference" if reason else kernel]
        return _on_its_device(tensor.device, implementations[kernel])
    if forced not in implementations:
        existing = sorted(implementations.keys() & set(BACKENDS))
        raise ValueError(f"{op}: no {forced!r} backend, it has {existing}")
    if forced == "cpp":
        forced, reason = _form_on_cpu(tensor, others, implementations)
        if reason:
            raise ValueError(f"{op}: the 'cpp' backend {reason}")
    if forced == "triton" and tensor.device.type != "cuda" and not _interpreted():
        raise ValueError(
            f"{op}: the 'triton' backend needs a CUDA tensor or TRITON_INTERPRET=1, "
            f"got one on {tensor.device}"
        )
    return _on_its_device(tensor.device, implementations[forced])


def _on_its_device(device: torch.device, implementation: Implementation) -> Implementation:
    """`implementation` with that GPU as the current one: Triton launches on the current."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return implementation

    def run(*arguments, **options):
        with torch.cuda.device(device):
            return implementation(*arguments, **options)

    return run


def refuse_recording(op: str, **tensors: Tensor | None) -> None:
    """For a kernel without a backward: raise where autograd would have to record its call.

    Raises:
        ValueError: gradients are enabled and one of the tensors requires one.
    """
    wanted = [name for name, t in tensors.items() if t is not None and t.requires_grad]
    if wanted and torch.is_grad_enabled():
        raise ValueError(f"{wanted[0]}: requires a gradient, the kernel of {op} has no backward")


def _form_on_cpu(
    tensor: Tensor, others: Mapping[str, Tensor | None], implementations: Mapping[str, object]
) -> tuple[str, str | None]:
    """Which C++ form serves the call, "cpp" or "cpp_grad", and why none does, or None.

    Raises:
        ValueError: `tensor` is on the CPU and another one is not.
    """
    if not tensor.is_cpu:
        return "cpp", f"needs a CPU tensor, got one on {tensor.device}"
    form, grad, reason = "cpp", torch.is_grad_enabled(), None
    for name, t in (("", tensor), *others.items()):
        if t is None:
            continue
        if not t.is_cpu:
            raise ValueError(f"{name}: expected on cpu, got on {t.device}")
        if t.dtype not in CPP_DTYPES and t.is_floating_point():
            reason = reason or f"computes {CPP_DTYPES}, got {t.dtype}"
        if grad and t.requires_grad:
            form = "cpp_grad"
    if reason is None and form not in implementations:
        reason = "has no backward, and autograd would have to record this call"
    return form, reason


def _interpreted() -> bool:
    # Here, so that a process that never forces Triton need not import it for this file.
    from videoar.kernels.jit import interpreted

    return interpreted()
