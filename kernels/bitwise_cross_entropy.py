"""Cross-entropy of every bit, from two logits a bit.

    delta = logit_1 - logit_0        loss = softplus(-delta) if bit else softplus(delta)

which equals the two-class cross-entropy -log softmax(logit_0, logit_1)[bit] (the bitwise
classifier of arXiv 2412.04431; arXiv 2601.05966, Eq. 5). The difference and the loss are float32.
Axes: C model width, d bits a token, any axes in front. Bytes that must move: hidden (or logits) and
bits once; with the head inside the kernel the logits never reach memory.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from videoar.kernels.dispatch import select

REDUCTIONS = ("mean", "none")


def bitwise_cross_entropy(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean cross-entropy of the bits, in nats a bit.

    Args:
        x: hidden states `[..., C]` when `weight` is given, else logits `[..., 2d]`; floating. The
            logits of bit j are elements 2j (bit 0) and 2j + 1 (bit 1).
        bits: bool or uint8 `[..., d]`, targets.
        weight: output head `[2d, C]`, or None.
        mask: bool `[...]`, True where a token counts; None: everywhere.
        reduction: "mean" over the bits of the tokens that count (0 if there are none), or "none".

    Returns:
        float32 scalar, or float32 `[..., d]` with 0 at the tokens that do not count. (float64 for
        float64 inputs.)

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
    """
    _check(x, bits, weight, mask, reduction)
    implementation = select("bitwise_cross_entropy", x, {"reference": bitwise_cross_entropy_ref})
    return implementation(x, bits, weight, mask=mask, reduction=reduction)


def bitwise_cross_entropy_ref(
    x: Tensor,
    bits: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Plain PyTorch twin of `bitwise_cross_entropy`."""
    logits = x if weight is None else linear(x, weight.to(x.dtype))
    pairs = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(-1, (-1, 2))
    delta = pairs[..., 1] - pairs[..., 0]
    loss = softplus(torch.where(bits.bool(), -delta, delta))
    if mask is None:
        return loss if reduction == "none" else loss.mean()
    loss = loss.masked_fill(~mask[..., None], 0)
    if reduction == "none":
        return loss
    return loss.sum() / (mask.sum() * bits.shape[-1]).clamp(min=1)


def _check(
    x: Tensor, bits: Tensor, weight: Tensor | None, mask: Tensor | None, reduction: str
) -> None:
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x: expected floating [..., C], got {x.dtype} {list(x.shape)}")
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != x.shape[-1]):
        raise ValueError(f"weight: expected [2d, {x.shape[-1]}], got {list(weight.shape)}")
    classes = x.shape[-1] if weight is None else weight.shape[0]
    if classes % 2:
        name = "x" if weight is None else "weight"
        raise ValueError(f"{name}: expected two logits a bit, got {classes} logits")
    expected = (*x.shape[:-1], classes // 2)
    if tuple(bits.shape) != expected or bits.dtype not in (torch.bool, torch.uint8):
        raise ValueError(
            f"bits: expected bool or uint8 {list(expected)}, got {bits.dtype} {list(bits.shape)}"
        )
    if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask: expected bool {list(x.shape[:-1])}, got {mask.dtype} {list(mask.shape)}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
