"""The states that a run is resumed from: folders of safetensors, one written aside and renamed.

    state-00000200/shard-00001-model-00001-of-00001.safetensors ...

The number is that of the steps done. torch.distributed.checkpoint writes one file for each rank
and reads them on any number of ranks; its safetensors form has no pickle. A folder of that name is
complete, and there is one but for the moment between the new one's renaming and the old one's end.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from videoar.runtime.errors import CheckpointError
from videoar.training.world import ALONE, World

PREFIX = "state-"
ASIDE = ".tmp"


def latest_state(folder: Path) -> Path | None:
    """The state with the most steps of a run's folder; what was not renamed is none."""
    states = [path for path in folder.glob(f"{PREFIX}*") if path.suffix != ASIDE]
    return max(states, default=None)


def state_step(path: Path) -> int:
    """Steps done in a state.

    Raises:
        CheckpointError: not a state's name.
    """
    number = path.name.removeprefix(PREFIX)
    if not number.isdecimal():
        raise CheckpointError(f"{path}: expected a name like {PREFIX}00000200")
    return int(number)


def clean(folder: Path) -> None:
    """Remove all states but the latest, and what a killed process has left of its last save."""
    latest = latest_state(folder)
    for path in folder.glob(f"{PREFIX}*"):
        if path != latest:
            # Half removed it must not look like a state.
            shutil.rmtree(path if path.suffix == ASIDE else path.rename(path.with_suffix(ASIDE)))


def save_state(folder: Path, step: int, state: dict[str, Tensor], world: World = ALONE) -> None:
    """Write a state aside, rename it, remove older ones; all ranks together.

    Args:
        step: steps done. Where there is a state of this step, it is this one.
        state: tensors of any device, shared out among the ranks or the same on all of them.

    Raises:
        CheckpointError: a rank's part could not be written, such as on a full disk. What was
            written aside is gone, older states are still there.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    final = folder / f"{PREFIX}{step:08d}"
    aside = final.with_suffix(ASIDE)
    if final.exists():
        return
    try:
        with _own_errors(final, "written"):
            writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
            save(state, storage_writer=writer, no_dist=world.size == 1)
    except CheckpointError:
        if world.main:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    world.barrier()
    if world.main:
        # The files are on the disk, torch synchronises each; now the folder and its new name.
        _synchronise(aside)
        aside.rename(final)
        _synchronise(folder)
        clean(folder)
    world.barrier()


def state_shapes(path: Path) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Data type and shape of each tensor of a state.

    Raises:
        CheckpointError: not readable, or not all of a tensor is there.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    try:
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: no readable state ({error})") from error
    for name, tensor in found.items():
        if sum(prod(chunk.sizes) for chunk in tensor.chunks) != prod(tensor.size):
            raise CheckpointError(f"{path}: {name}: a part of it is missing")
    return {name: (t.properties.dtype, list(t.size)) for name, t in found.items()}


def load_state(path: Path, into: dict[str, Tensor], world: World = ALONE) -> None:
    """Read a state into tensors of its names and shapes, whatever number of ranks wrote it.

    Raises:
        CheckpointError: not readable, or with other names, shapes or data types.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    found = state_shapes(path)
    asked = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in into.items()}
    for name in sorted(found.keys() | asked.keys()):
        if found.get(name) != asked.get(name):
            text = f"{name}: {_show(found.get(name))}, this run has {_show(asked.get(name))}"
            raise CheckpointError(f"{path}: of another model: {text}")
    with _own_errors(path, "read"):
        reader = HuggingFaceStorageReader(str(path))
        load(into, storage_reader=reader, no_dist=world.size == 1)


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a run's latest state, on the CPU.

    Raises:
        CheckpointError: there is none, or it is not readable.
    """
    path = latest_state(folder)
    if path is None:
        raise CheckpointError(f"{folder}: no state of a run")
    state = {
        name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in state_shapes(path).items()
    }
    load_state(path, state)
    return state


def _show(entry: tuple[torch.dtype, list[int]] | None) -> str:
    return "nothing" if entry is None else f"{str(entry[0]).removeprefix('torch.')} {entry[1]}"


def _synchronise(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _own_errors(path: Path, what: str) -> Iterator[None]:
    """What torch's collectives gather from the ranks as one CheckpointError, or as Ctrl-C.

    Without torch's warning that there is no process group, which one process has none of.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if not isinstance(cause, Exception):
                raise cause from None
        raise CheckpointError(f"{path}: could not be {what} ({causes[0]})") from error
