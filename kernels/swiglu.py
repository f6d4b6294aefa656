"""The gated activation of a SwiGLU feed-forward layer.

    y = silu(gate) * up        silu(g) = g * sigmoid(g)

(arXiv 2002.05202, section 2). Axes: F feed-forward channels, any axes in front. Bytes that must
move: gate, up and y once each.
"""

from torch import Tensor
from torch.nn.functional import silu

from videoar.kernels.dispatch import select


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202, section 2).

    Args:
        gate: `[..., F]`, floating.
        up: of the shape and dtype of `gate`.

    Returns:
        The shape and dtype of `gate`.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    if gate.dim() < 1 or not gate.is_floating_point():
        raise ValueError(f"gate: expected floating [..., F], got {gate.dtype} {list(gate.shape)}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise ValueError(
            f"up: expected {gate.dtype} {list(gate.shape)}, got {up.dtype} {list(up.shape)}"
        )
    return select("swiglu", gate, {"reference": swiglu_ref})(gate, up)


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    """Plain PyTorch twin of `swiglu`; the sigmoid is float32 inside for every dtype."""
    return silu(gate) * up
