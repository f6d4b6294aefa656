"""The processes that train one model together; torchrun starts them.

One process is `World()` and needs no process group. With several every rank computes the loss of
its rows of each batch, and what concerns all of them goes through torch's collectives: gloo between
CPUs, NCCL between GPUs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videoar.environment import torchrun

# Ranks wait this long for one of them: for a store of latents that rank 0 encodes, say.
TIMEOUT = timedelta(hours=2)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among those that share a run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this is the process that prints, logs and renames."""
        return self.rank == 0

    def rows(self, count: int) -> range:
        """This rank's rows of a batch that all ranks share.

        Raises:
            ValueError: `count` rows cannot be shared evenly.
        """
        if count % self.size:
            raise ValueError(f"batch: {count} is no multiple of {self.size} processes")
        share = count // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def place(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A batch with its tensors on this rank's device."""
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in sample.items()}

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a tensor of one shape, without a gradient."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def means(self, values: dict[str, Any]) -> dict[str, Any]:
        """The mean over ranks of numbers and lists of numbers, by the same names on all ranks."""
        if self.size == 1:
            return values
        tensors = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in values.items()
        }
        return {name: self.mean(tensor).tolist() for name, tensor in tensors.items()}

    def mean_gradients(self, module: nn.Module) -> None:
        """Give a module that every rank holds whole the mean of the ranks' gradients."""
        if self.size > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.mean(parameter.grad)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def turns(self) -> Iterator[None]:
        """Rank 0 goes through the block first: what it leaves on the disk the others find there."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()


ALONE = World()


@contextmanager
def start_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun has started; alone without it.

    Args:
        device: "cuda" or "cpu"; None: CUDA where torch sees a GPU.

    Raises:
        ValueError: no GPU, or none for each process of this machine.
    """
    rank, local_rank, size = torchrun()
    place = choose_device(device, local_rank)
    world = World(rank=rank, size=size, device=place)
    if size == 1:
        yield world
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield world
    # Not behind an error: the others may be waiting for this rank, whose end torchrun tells them.
    dist.destroy_process_group()


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of one process; see `start_world`.

    Args:
        local_rank: its number on this machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name is None and not count):
        return CPU
    if local_rank >= count:
        text = f"cuda: process {local_rank} of this machine has no GPU, torch sees {count}"
        raise ValueError(f"--device: {text}")
    return torch.device("cuda", local_rank)
