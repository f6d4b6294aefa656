"""The bare matrix products of decoding steps, to hold a decoder against."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.benchmarks.floor_parts import linear_products, onednn_linear
from videoar.benchmarks.par_config import ParConfig
from videoar.benchmarks.par_cost import step_gemms
from videoar.benchmarks.par_model import ParTransformer
from videoar.runtime.graphs import GraphSet
from videoar.runtime.packed import can_pack

Product = tuple[int, Callable[[Tensor], Tensor]]
"""Width of the input, and what multiplies it."""


class BareSteps:
    """The matrix products of steps, in their order, and nothing else.

    Args:
        products: of one step.
        lengths: tokens of every step.
        sequences: rows that are decoded together.
        dtype, device: of the inputs.
        graphs: where the products are captured; None: they are called.
    """

    def __init__(
        self,
        products: Sequence[Product],
        lengths: Sequence[int],
        sequences: int,
        dtype: torch.dtype,
        device: torch.device | str,
        graphs: GraphSet | None = None,
    ) -> None:
        self.products, self.sequences = products, sequences
        self.lengths, self.graphs = lengths, graphs
        rows = sequences * max(lengths)
        self.inputs = {
            width: torch.randn(rows, width, dtype=dtype, device=device) for width, _ in products
        }
        if graphs is not None:
            for length in sorted(set(lengths), reverse=True):
                call = partial(self._multiply, sequences * length)
                graphs.capture((self, length), call, self._buffers())

    def step(self, index: int) -> None:
        """The products of one step, numbered from 0."""
        length = self.lengths[index]
        if self.graphs is None:
            self._multiply(self.sequences * length)
        else:
            self.graphs.replay((self, length), self._buffers())

    def _buffers(self) -> dict[str, Tensor]:
        return {f"inputs of {width}": x for width, x in self.inputs.items()}

    @torch.inference_mode()
    def _multiply(self, rows: int) -> None:
        inputs = {width: x[:rows] for width, x in self.inputs.items()}
        for width, product in self.products:
            product(inputs[width])


def own_products(model: ParTransformer) -> list[Product]:
    """Those of the model's own linear layers, whatever form they have."""
    return linear_products([*model.layers.modules(), model.head])


def fused_products(
    config: ParConfig, dtype: torch.dtype, device: torch.device | str
) -> list[Product]:
    """Other weights, products of one input fused into one; packed on a CPU, where that exists."""
    *layer, head = step_gemms(config, 1)
    device = torch.device(device)
    packed = device.type == "cpu" and can_pack(dtype)
    products = []
    for gemm in (*(gemm for _ in range(config.layers) for gemm in layer), head):
        weight = torch.randn(gemm.width_out, gemm.width_in, dtype=dtype, device=device)
        products.append((gemm.width_in, onednn_linear(weight) if packed else _plain(weight)))
    return products


def _plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight)
