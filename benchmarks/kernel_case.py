"""A case of the kernels' benchmark: one operation at one shape, and what variants are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the cases run. `small`: tiny shapes, for a CPU."""

    device: torch.device
    dtype: torch.dtype
    small: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operation at one shape.

    Attributes:
        op, name: of the operation, and of the shape.
        num_bytes, flops: what it must cost, see `kernel_costs`.
        make: seed to fresh random inputs.
        run: the public operation; the backend is forced around it.
        expected: the same outputs in float64 (float32 where the operation takes nothing else).
        torch_best: torch's own ways to the same outputs, by name; factories, since some compile.
        launch_bound: also timed as a CUDA graph.
        ties: share of bits that may differ from `expected`, see `timing.compare`.
    """

    op: str
    name: str
    num_bytes: int
    flops: int
    make: Callable[[int], tuple[Tensor, ...]]
    run: Run
    expected: Run
    torch_best: dict[str, Callable[[], Run]] = field(default_factory=dict)
    launch_bound: bool = False
    ties: float = 0.0


def upcast(run: Run) -> Run:
    """`run` on float64 copies of its floating inputs."""

    def wide(*inputs: Tensor) -> tuple[Tensor, ...]:
        return run(*(_widen(x) if x.is_floating_point() else x for x in inputs))

    return wide


def _widen(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_(x.requires_grad)


def with_backward(forward: Run, outputs: int = 1) -> Run:
    """Forward, then the gradients of all inputs that want one; grad_outputs are the last inputs."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        arguments, grads = inputs[:-outputs], inputs[-outputs:]
        results = forward(*arguments)
        wanted = [x for x in arguments if x.requires_grad]
        return (*results, *torch.autograd.grad(results, wanted, grads))

    return run


def compiled(reference: Run, wrap: Callable[[Run], Run] | None = None) -> Callable[[], Run]:
    """A factory of `torch.compile(reference)`, wrapped afterwards: autograd stays outside."""

    def build() -> Run:
        run = torch.compile(reference, dynamic=False)
        return run if wrap is None else wrap(run)

    return build


def same(run: Run) -> Run:
    return run


def random_tensors(
    setting: Setting, seed: int, shapes: Sequence[Sequence[int]], grads: int = 0
) -> tuple[Tensor, ...]:
    """Normal numbers; the first `grads` tensors want a gradient."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    options = {"generator": generator, "device": setting.device, "dtype": setting.dtype}
    made = [torch.randn(*shape, **options) for shape in shapes]
    return tuple(x.requires_grad_(i < grads) for i, x in enumerate(made))


def random_bits(setting: Setting, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator(setting.device).manual_seed(seed)
    return torch.rand(*shape, generator=generator, device=setting.device) < 0.5
