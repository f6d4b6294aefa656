"""Which device and versions a result belongs to: a table, then one line of JSON.

Run as `python -m videoar.benchmarks.environment`.
"""

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import videoar

_PACKAGES = ("triton", "numpy", "pybind11")


def environment() -> dict[str, str | int | None]:
    """Describe this process: device, its memory in bytes, and versions (None: not there)."""
    return {
        **_device(),
        "videoar": videoar.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _installed_version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
    }


def _device() -> dict[str, str | int | None]:
    if not torch.cuda.is_available():
        return {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "capability": None,
            "memory_bytes": None,
        }
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.environment", description=__doc__)
    parser.parse_args(arguments)
    facts = environment()
    for name, value in facts.items():
        print(f"{name:<14}{'-' if value is None else value}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
