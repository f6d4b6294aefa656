"""What does not fit is refused before it is created, with the numbers."""

from dataclasses import replace

import pytest
import torch

from videoar.runtime import memory
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


def test_weights_larger_than_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    with pytest.raises(CapacityError, match="the weights on cpu") as caught:
        random_modules(PRESETS["videoar-xl"], torch.bfloat16, "cpu", 0)
    assert caught.value.needed > 2 * 1.9e9


def test_layout_bytes_are_those_of_the_tensor() -> None:
    config = PRESETS["digits"].transformer
    cache = StaticCache(config, CacheLayout.of(config), 2, torch.float32, "cpu")
    assert cache.data.nbytes == cache.layout.num_bytes(config, 2, torch.float32)
