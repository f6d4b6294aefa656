"""Linear layers of a model that only decodes: one product an input, weights packed once.

A plain `nn.Linear` lets oneDNN reorder its weights in every call, with few rows most of its
time (`python -m videoar.benchmarks.products`). Weights with whole panels are packed for
`kernels/packed_linear.py`, all others in oneDNN's own order. Layers that read the same input (a
module names them in `SHARED_INPUT`) become one product. Packed weights take the place of the plain
ones, and `state_dict` gives the same numbers as before.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.kernels.packed_linear import (
    can_pack_panels,
    pack_panels,
    packed_linear,
    unpack_panels,
)

# oneDNN blocks by the number of rows it is told; one blocking serves all row counts here.
_ROWS = 128


class Product:
    """x W^T for the stacked weights of one or more linear layers, `[..., in]` -> `[..., out]`.

    Args:
        panels: False keeps to oneDNN's order, for comparisons.
    """

    def __init__(self, layers: Sequence[nn.Linear], *, panels: bool = True) -> None:
        weights = [layer.weight.detach() for layer in layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.in_features, self.sizes = weight.shape[1], [len(rows) for rows in weights]
        self.panels = panels and can_pack_panels(weight)
        self.packed = self.panels or (weight.is_cpu and can_pack(weight.dtype))
        self.weight = weight
        if self.panels:
            self.weight = pack_panels(weight)
        elif self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        if self.panels:
            return packed_linear(x, self.weight)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, None, "none", [], "")
        return F.linear(x, self.weight)

    def dense(self) -> tuple[Tensor, ...]:
        """The plain weights, a layer each."""
        weight = self.weight
        if self.panels:
            weight = unpack_panels(weight)
        elif self.packed:
            weight = weight.to_dense()
        return weight.split(self.sizes)


class PackedLinear(nn.Module):
    """One of the layers of a product, in place of an `nn.Linear` without a bias."""

    def __init__(self, product: Product, index: int = 0) -> None:
        super().__init__()
        self.product, self.index = product, index
        self.in_features, self.out_features = product.in_features, product.sizes[index]

    @classmethod
    def of(cls, linear: nn.Linear, *, panels: bool = True) -> "PackedLinear":
        """A layer that is a product of its own."""
        return cls(Product([linear], panels=panels))

    def forward(self, x: Tensor) -> Tensor:
        out, sizes = self.product(x), self.product.sizes
        return out if len(sizes) == 1 else out.split_with_sizes(sizes, -1)[self.index]

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.product.dense()[self.index].clone()

    def _load_from_state_dict(self, *args: Any) -> None:
        raise RuntimeError("a packed linear layer takes no new weights: load them into a new model")

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        raise RuntimeError(
            "a packed linear layer has one device and dtype: load the model anew for another"
        )


def linears(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """What several linear layers give for one input: one product where they are packed together."""
    products = {getattr(layer, "product", layer) for layer in layers}
    product = products.pop()
    if products or not isinstance(product, Product) or len(product.sizes) != len(layers):
        return [layer(x) for layer in layers]
    return product(x).split_with_sizes(product.sizes, -1)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build and this processor have packed products of `dtype`."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


@torch.no_grad()
def pack_linears(module: nn.Module) -> None:
    """Pack, in place, every linear layer inside `module` that has no bias.

    One product is made at a time, so that no more than its layers are in memory twice.
    """
    # A list that held the layers themselves would keep all of them until its end.
    for parent in [one for one in module.modules() if not isinstance(one, nn.Linear)]:
        shared = tuple(getattr(parent, "SHARED_INPUT", ()))
        names = [name for name, child in parent.named_children() if _packable(child)]
        groups = [shared] if shared and set(shared) <= set(names) else []
        for group in groups + [(name,) for name in names if not groups or name not in shared]:
            product = Product([getattr(parent, name) for name in group])
            for index, name in enumerate(group):
                setattr(parent, name, PackedLinear(product, index))


def _packable(child: nn.Module) -> bool:
    return isinstance(child, nn.Linear) and child.bias is None
