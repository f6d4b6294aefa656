"""What does not fit is refused before it is created, with the numbers."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from videoar.runtime import memory, packed
from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.errors import CapacityError
from videoar.runtime.modules import random_modules
from videoar.runtime.presets import PRESETS


def test_cache_larger_than_the_machine() -> None:
    config = PRESETS["videoar-4b"].transformer
    layout = replace(CacheLayout.of(config), max_text=10**9)
    with pytest.raises(CapacityError, match=r"cache of .* in 2 rows") as caught:
        StaticCache(config, layout, 2, torch.bfloat16, "cpu")
    assert caught.value.needed == layout.num_bytes(config, 2, torch.bfloat16)
    assert 0 < caught.value.available <= memory.total_bytes("cpu")


def test_what_torch_keeps_for_reuse_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"memory_reserved": 7, "memory_allocated": 4}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert memory.available_bytes("cuda") == 103


def test_weights_larger_than_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    with pytest.raises(CapacityError, match="the weights on cpu") as caught:
        random_modules(PRESETS["videoar-xl"], torch.bfloat16, "cpu", 0)
    assert caught.value.needed > 2 * 1.9e9


def test_layout_bytes_are_those_of_the_tensor() -> None:
    config = PRESETS["digits"].transformer
    cache = StaticCache(config, CacheLayout.of(config), 2, torch.float32, "cpu")
    assert cache.data.nbytes == cache.layout.num_bytes(config, 2, torch.float32)


@pytest.mark.skipif(not packed.can_pack(torch.float32), reason="nothing to pack with")
def test_packing_holds_one_layer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8, bias=False)) for _ in range(4))
    plain = [weakref.ref(layer.weight) for (layer,) in model]
    alive = []

    class Counted(packed.PackedLinear):
        def __init__(self, product: packed.Product, index: int) -> None:
            super().__init__(product, index)
            alive.append(sum(weight() is not None for weight in plain))

    monkeypatch.setattr(packed, "PackedLinear", Counted)
    packed.pack_linears(model)
    assert alive == [4, 3, 2, 1]
