"""The dispatch rule: device decides, `use_backend` overrides, and only in its own context."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from videoar.kernels.dispatch import select, use_backend


def reference() -> str:
    return "reference"


def cpp() -> str:
    return "cpp"


def triton() -> str:
    return "triton"


ALL = {"reference": reference, "cpp": cpp, "triton": triton}
REFERENCE_ONLY = {"reference": reference}


def test_device_decides(device):
    tensor = torch.zeros(1, device=device)
    assert select("op", tensor, ALL)() == {"cpu": "cpp", "cuda": "triton"}[device.type]


def test_reference_serves_an_op_without_a_kernel(device):
    assert select("op", torch.zeros(1, device=device), REFERENCE_ONLY)() == "reference"


def test_reference_serves_a_device_without_kernels():
    assert select("op", torch.zeros(1, device="meta"), ALL)() == "reference"


@pytest.mark.parametrize("name", ["reference", "cpp", "triton"])
def test_forced_backend(name):
    with use_backend(name):
        assert select("op", torch.zeros(1), ALL)() == name


def test_inner_block_wins_and_the_outer_comes_back():
    tensor = torch.zeros(1)
    with use_backend("reference"):
        with use_backend("triton"):
            assert select("op", tensor, ALL)() == "triton"
        with use_backend(None):
            assert select("op", tensor, ALL)() == "cpp"
        assert select("op", tensor, ALL)() == "reference"
    assert select("op", tensor, ALL)() == "cpp"


def test_rule_returns_after_an_exception():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert select("op", torch.zeros(1), ALL)() == "cpp"


def test_missing_forced_backend_names_op_backend_and_what_exists():
    with use_backend("triton"), pytest.raises(ValueError, match=r"swiglu.*triton.*reference"):
        select("swiglu", torch.zeros(1), REFERENCE_ONLY)


def test_cpp_refuses_a_tensor_elsewhere():
    with use_backend("cpp"), pytest.raises(ValueError, match=r"swiglu.*meta"):
        select("swiglu", torch.zeros(1, device="meta"), ALL)
    # Also where the plain twin would serve the dtype, and torch would raise.
    double = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^up: expected on cpu, got on meta"):
        select("swiglu", double, ALL, up=double.to("meta"))


def test_unknown_backend():
    with pytest.raises(ValueError, match="'cuda'"), use_backend("cuda"):
        pass


def test_other_threads_keep_the_rule():
    seen = []
    with use_backend("reference"):
        worker = threading.Thread(target=lambda: seen.append(select("op", torch.zeros(1), ALL)()))
        worker.start()
        worker.join()
    assert seen == ["cpp"]


def test_interleaved_tasks_keep_their_own_backend():
    async def serve(name: str) -> list[str]:
        seen = []
        with use_backend(name):
            for _ in range(3):
                seen.append(select("op", torch.zeros(1), ALL)())
                await asyncio.sleep(0)
        return seen

    async def both() -> list[list[str]]:
        return await asyncio.gather(serve("reference"), serve("triton"))

    assert asyncio.run(both()) == [["reference"] * 3, ["triton"] * 3]


def test_a_launch_on_another_gpu_makes_it_the_current_one(monkeypatch):
    """Triton launches on the current GPU, whatever memory it is given."""
    current = [0]

    @contextmanager
    def device(which):
        before, current[0] = current[0], which.index
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    own = {"triton": lambda x, y=0: (current[0], x, y), "reference": None}
    for index in (0, 1):
        tensor = SimpleNamespace(device=torch.device("cuda", index), is_cpu=False)
        chosen = select("op", tensor, own)
        assert (chosen is own["triton"]) == (index == 0)
        assert chosen(3, y=4) == (index, 3, 4)
        with use_backend("triton"):
            assert select("op", tensor, own)(3) == (index, 3, 0)
        assert current == [0]
