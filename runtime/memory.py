"""How much memory a device has, and the check made before something large is created."""

import os
from pathlib import Path

import torch

from videoar.runtime.errors import CapacityError


def total_bytes(device: torch.device | str) -> int:
    """All memory of the device, used or not."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes(device: torch.device | str) -> int:
    """Memory that can be had now: on a CPU what the kernel could free is counted in."""
    device = torch.device(device)
    if device.type == "cuda":
        # Blocks that torch keeps for reuse are free, though the driver does not know it.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return total_bytes(device)


def check_fits(what: str, needed: int, device: torch.device | str) -> None:
    """Refuse what cannot fit; a CPU would hand out the addresses and die in filling them.

    Raises:
        CapacityError: `needed` bytes are more than are available.
    """
    available = available_bytes(device)
    if needed > available:
        raise CapacityError(f"{what} on {device}", needed=needed, available=available)
