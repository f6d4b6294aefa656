"""Tensors out of a file of `torch.save`, whose pickle could be a program: it is never run.

The file is read by `torch.load(weights_only=True)`, which knows tensors and plain containers only,
and in a process of its own, so that whatever a crafted file does to the reader ends there. What
comes back is a safetensors file.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from videoar.runtime.errors import CheckpointError

# Isolated (-I): the current folder and PYTHON* variables cannot put modules in front of ours.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from videoar.runtime.convert_pickle import main; sys.exit(main(sys.argv[2:]))"
)
_REFUSED = 3
_UNKNOWN_GLOBAL = re.compile(r"GLOBAL (\S+)")


def extract_tensors(source: Path, entry: str, target: Path) -> None:
    """Writes the tensors of `torch.load(source)[entry]` as the safetensors file `target`.

    Args:
        source: a file of `torch.save` that holds a dict.
        entry: the dict's entry that holds the tensors by name, others are left alone; "" where
            the dict itself does.
        target: the file to be written.

    Raises:
        CheckpointError: no readable torch file, one that is no dict with `entry`, one that asks
            for anything but tensors, or tensors that the file has not the bytes of.
    """
    paths = json.dumps(sys.path)
    arguments = [str(source.resolve()), entry, str(target.resolve())]
    process = subprocess.run(
        [sys.executable, "-I", "-c", _START, paths, *arguments],
        cwd=target.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if process.returncode == _REFUSED:
        raise CheckpointError(f"{source}: {process.stdout.strip()}")
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        text = f"the process that reads it ended with status {process.returncode}"
        raise CheckpointError(f"{source}: {text} ({last})")


def main(arguments: Sequence[str]) -> int:
    """The reading process: source, entry and target; a refusal's reason goes to stdout.

    Returns:
        The exit status.
    """
    source, entry, target = arguments
    try:
        tensors = _tensors(Path(source), entry)
        save_file({name: _copied(tensor) for name, tensor in tensors.items()}, target)
    except CheckpointError as error:
        print(error)
        return _REFUSED
    return 0


def _tensors(source: Path, entry: str) -> dict[str, Tensor]:
    content = _load(source)
    if entry and (not isinstance(content, dict) or not isinstance(content.get(entry), dict)):
        raise CheckpointError(f"holds no dict with a dict {entry!r}")
    tensors = content[entry] if entry else content
    if not isinstance(tensors, dict):
        raise CheckpointError("holds no dict of tensors")
    for name, tensor in tensors.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        odd = plain and (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
        if not plain or odd:
            raise CheckpointError(f"{entry}: {name}: a plain tensor is needed")
        if not isinstance(name, str):
            raise CheckpointError(f"{entry}: {name!r}: a name is needed")
    # A tensor may repeat its memory (stride 0) and so claim more than any machine has.
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    size = source.stat().st_size
    if claimed > size:
        raise CheckpointError(f"{entry}: tensors of {claimed} bytes in a file of {size}")
    return tensors


def _load(source: Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # crafted bytes can raise anything
        message = str(error)
        if found := _UNKNOWN_GLOBAL.search(message):
            text = f"its pickle asks for {found[1]}; only tensors are read and no code is run"
            raise CheckpointError(text) from error
        # Behind its first sentence torch explains how to read the file without protection.
        sentence = re.split(r"\.\s|\n", message)[0][:200]
        reason = f"{type(error).__name__}: {sentence}"
        raise CheckpointError(f"no readable torch file ({reason})") from error


def _copied(tensor: Tensor) -> Tensor:
    # Safetensors refuses tensors that share memory or are not contiguous.
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
