"""The memory plan: its bytes are those of what is created, and a refusal says what would fit."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from videoar.runtime import plan as plan_module
from videoar.runtime.errors import CapacityError
from videoar.runtime.fast_decoder import FastDecoder
from videoar.runtime.frame_state import FrameState
from videoar.runtime.modules import random_modules
from videoar.runtime.plan import EngineSettings, MemoryPlan, check, largest_fit
from videoar.runtime.prefixes import PrefixStore
from videoar.runtime.presets import PRESETS

DIGITS = PRESETS["digits"]
CLASSES = replace(
    DIGITS, transformer=replace(DIGITS.transformer, condition="class", vocab_size=7, max_text=1)
)
LARGE = EngineSettings(config=PRESETS["videoar-l"], slots=64, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (DIGITS, {}),
        (DIGITS, {"slots": 3, "window": 2, "max_text": 5}),
        (CLASSES, {"slots": 2, "window": 0}),
    ],
)
def test_bytes_are_those_created(config, changes, dtype):
    settings = EngineSettings(config=config, dtype=dtype, **changes)
    plan, layout, slots = MemoryPlan.of(settings), settings.layout, settings.slots
    transformer, tokenizer = random_modules(config, dtype, "cpu", 0)
    memory = {"dtype": dtype, "device": "cpu"}
    state = FrameState.create(config.transformer, layout, slots, **memory)
    store = PrefixStore(transformer, slots, layout.max_text, **memory)
    height, width = config.transformer.sizes[-1]
    decoder = FastDecoder(tokenizer.decoder, height=height, width=width, **memory)
    weights = [*transformer.parameters(), *tokenizer.parameters()]
    assert plan.weights == sum(weight.nbytes for weight in weights)
    assert plan.cache == state.cache.data.nbytes + store.cache.data.nbytes
    tensors = [value for f in fields(state) if isinstance(value := getattr(state, f.name), Tensor)]
    assert plan.buffers == sum(tensor.nbytes for tensor in tensors)
    assert plan.decoder_state == slots * decoder.new_state().num_bytes
    assert plan.decoder_kernels == decoder.memory.weights
    assert plan.workspaces > decoder.workspace_bytes


def test_total_is_the_sum():
    plan = MemoryPlan.of(LARGE)
    assert plan.total == sum(plan.parts().values())
    assert plan.total - plan.weights == plan.created
    assert set(plan.parts()) == {field.name for field in fields(plan)} - {"settings"}


def test_a_gpu_also_holds_frames_under_way():
    cpu, gpu = (MemoryPlan.of(replace(LARGE, device=device)) for device in ("cpu", "cuda"))
    # Latents, 4 frames of pixels and a flag a slot, and one row of one class.
    per_slot = 48 * 8 * 8 * 4 + 4 * 128 * 128 * 3 + 1
    assert gpu.buffers - cpu.buffers == 64 * per_slot + 2 * 24 * 1536 * 2
    assert gpu.workspaces > cpu.workspaces


class TestCheck:
    @pytest.fixture
    def available(self, monkeypatch):
        def set_bytes(count: int) -> None:
            monkeypatch.setattr(plan_module, "available_bytes", lambda device: count)

        return set_bytes

    def test_what_fits_is_let_through(self, available):
        plan = MemoryPlan.of(LARGE)
        available(plan.created)
        check(plan, "cpu")
        available(plan.total)
        check(plan, "cpu", loaded=False)

    @pytest.mark.parametrize("loaded", [True, False])
    def test_most_slots_that_fit(self, available, loaded):
        five = MemoryPlan.of(replace(LARGE, slots=5))
        room = five.created if loaded else five.total
        available(room)
        message = r"64 slots with a window of 4 frames on cpu; largest that fits: 5 slots with"
        with pytest.raises(CapacityError, match=message) as caught:
            check(MemoryPlan.of(LARGE), "cpu", loaded=loaded)
        asked = MemoryPlan.of(LARGE)
        assert caught.value.needed == (asked.created if loaded else asked.total)
        assert caught.value.available == room
        available(room - 1)
        with pytest.raises(CapacityError, match="largest that fits: 4 slots"):
            check(MemoryPlan.of(LARGE), "cpu", loaded=loaded)

    def test_longest_window_of_one_slot(self, available):
        long = replace(LARGE, window=1000)
        available(MemoryPlan.of(replace(long, slots=1, window=10)).created)
        with pytest.raises(CapacityError, match="largest that fits: 1 slot with a window of 10 f"):
            check(MemoryPlan.of(long), "cpu")

    def test_nothing_fits(self):
        smallest = MemoryPlan.of(replace(LARGE, slots=1, window=0))
        unloaded = {"loaded": False}
        assert largest_fit(LARGE, smallest.total, **unloaded).endswith("a window of 0 frames")
        hint = largest_fit(LARGE, smallest.total - 1, **unloaded)
        assert hint == "not even 1 slot without a window fits"
        hint = largest_fit(LARGE, smallest.weights - 1, **unloaded)
        assert hint == "the weights alone do not fit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots: expected 1 or more, got 0; nearest: 1"),
        ({"window": -1}, "window: expected 0 or more"),
        ({"max_text": 2}, "max_text: expected 1 .. 1, got 2"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(LARGE, **changes)
