"""The ceilings of a device: those known of it, those given, or those of a short measurement."""

import time
from collections.abc import Callable

import torch
from torch import nn

from videoar.runtime.cost import Limits
from videoar.runtime.memory import total_bytes
from videoar.runtime.packed import PackedLinear

_HALF = (torch.bfloat16, torch.float16)
# Copied, and edge of the square product; large enough to leave the caches, short enough for < 3 s.
_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}
_EDGE = {"cuda": 8192, "cpu": 1024}

# Copy bandwidth and bfloat16 products as measured on one; its memory as sold.
H200 = Limits(
    name="NVIDIA H200",
    bandwidth=4.3e12,
    rate=790e12,
    source="measured on one, bfloat16",
    memory=141 * 10**9,
)
KNOWN = {"h200": H200}


def known_limits(device: str, dtype: torch.dtype) -> Limits:
    """The limits of a device in the table.

    Raises:
        ValueError: a dtype that was not measured on it.
    """
    if dtype not in _HALF:
        raise ValueError(
            f"dtype: the rate of {device} is known in 16 bits only, got {str(dtype)[6:]}; "
            "nearest: bfloat16"
        )
    return KNOWN[device]


def measure_limits(device: str, dtype: torch.dtype, budget_s: float = 0.5) -> Limits:
    """Measure this machine in less than 3 s: a large copy, and a large product of random matrices.

    The copy counts bytes read and written. The best of several runs each: a ceiling is wanted.

    Args:
        budget_s: seconds for each of the two; at least three runs, whatever they take.
    """
    where = torch.device(device)
    return Limits(
        name=_name(where),
        bandwidth=_copy_bandwidth(where, budget_s),
        rate=_product_rate(where, dtype, budget_s),
        source=f"measured just now, {str(dtype)[6:]}",
        memory=total_bytes(where),
    )


def _copy_bandwidth(device: torch.device, budget_s: float) -> float:
    source = torch.ones(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device, budget_s)


@torch.inference_mode()
def _product_rate(device: torch.device, dtype: torch.dtype, budget_s: float) -> float:
    edge = _EDGE[device.type]
    product = _product(edge, dtype, device)
    x = torch.randn(edge, edge, device=device, dtype=dtype)
    return 2 * edge**3 / _best_seconds(lambda: product(x), device, budget_s)


def _product(edge: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A square linear layer in the form in which decoding has it."""
    linear = nn.Linear(edge, edge, bias=False, device=device, dtype=dtype)
    return PackedLinear.of(linear)


def _best_seconds(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """The shortest of the calls that fit into the budget, at least 3, after one to warm up."""
    times: list[float] = []
    call()
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < budget_s:
        times.append(_seconds(call, device))
    return min(times)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"this machine's CPU, {threads} thread{'s' * (threads > 1)}"
