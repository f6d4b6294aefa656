"""Weights shared out among ranks: torch's FSDP2, one group for each layer and one for the rest.

Every rank holds 1/size of each parameter, of its gradient, average and moments. A layer is gathered
around its own forward and backward, what no layer has (embeddings, head) for the whole step.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from videoar.training.world import World


class Step(nn.Module):
    """One computation with a network, as a module's forward.

    FSDP gathers weights around forward passes, but a loss also calls parts of its network (such as
    embeddings and head); so the network is inside of what computes the loss.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        return compute(*args)


def shard(network: nn.Module, world: World) -> Step:
    """Bring a network to its device and share its weights out among the ranks, in place.

    Each parameter is cut by its rows; a layer is moved and cut before the next one.

    Args:
        network: the same values on every rank.

    Returns:
        What to compute with it in.
    """
    step = Step(network)
    if world.size == 1:
        return step.to(world.device)
    # Loads much that a single process does without.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if world.device.type == "cuda":
        # What autocast would make of them, but half the bytes to gather and none to keep.
        types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    # Nothing here changes a layer's output in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in _layers(network):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(step, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return step


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor as a whole on every rank; itself where it is not shared out."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def outline(module: nn.Module) -> nn.Module:
    """A copy of a module without the values, on the meta device."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in module.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, memo)


def filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """An `outline` with weights, gathered one by one to the CPU."""
    module.load_state_dict({k: gathered(v).cpu() for k, v in weights.items()}, assign=True)
    return module
