"""The executor on a CPU: what a slot, its neighbours and the ring may and may not change."""

import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runtime.conftest import TINY, tiny_model
from videoar.runtime.cpu_layers import one_call
from videoar.runtime.errors import NumericalError
from videoar.runtime.executor import ModelExecutor, make_executor
from videoar.runtime.job import Job, ScaleHook
from videoar.runtime.modules import DTYPES
from videoar.runtime.packed import can_pack, pack_linears
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.presets import PRESETS
from videoar.runtime.requests import make_job
from videoar.runtime.sampling import decode_frame, prepare, set_guidance
from videoar.runtime.transformer import Transformer

PROMPT = "a red 3 moving left"
PROMPTS = (
    *("a red 3 moving left", "a green 7", "a blue 1 moving up quickly", "a yellow 0"),
    *("a cyan two standing still", "a yellow 4 moving right quickly", "a red 8"),
)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> VideoAR:
    torch.set_num_threads(1)
    return VideoAR.from_pretrained(tiny_folder)


def job_of(model: VideoAR, prompt: str = PROMPT, **options) -> Job:
    return make_job(model.config, model.text_tokenizer, prompt=prompt, guidance=2, **options)


def run(executor: ModelExecutor, slot: int, job: Job, beside: tuple[int, ...] = ()) -> np.ndarray:
    """The frames of a job's first shot, with other slots computed beside it."""
    given = 0 if job.history is None else 1 + (len(job.history) - 1) // 4
    executor.start(slot, job, 0, job.history, given)
    frames = []
    for _ in range(job.shots[0].num_latent_frames):
        result = executor.frame([slot, *beside], lambda *step: None).wait()[slot]
        assert result.error is None
        frames.append(result.frames)
    executor.clear(slot)
    return np.concatenate(frames)


def test_slot_and_neighbours_change_nothing(model: VideoAR) -> None:
    executor = make_executor(model, slots=3)
    job = job_of(model, seed=3)
    alone = run(executor, 0, job)
    executor.start(1, job_of(model, "a green 7", seed=9, num_frames=5), 0, None, 0)
    executor.start(0, job_of(model, seed=4, temperature=0.3), 0, None, 0)
    assert np.array_equal(run(executor, 2, job, beside=(0, 1)), alone)
    assert np.array_equal(alone, model.generate(PROMPT, seed=3, guidance=2).frames[0])


@pytest.fixture(scope="module")
def panels() -> VideoAR:
    """A model whose products are all in panels, so that its slots are decoded together."""
    sizes = replace(TINY.transformer, width=64, mlp_width=64)
    model = tiny_model(replace(TINY, transformer=sizes))
    if not one_call(sizes, torch.float32):
        pytest.skip("no packed panels on this processor")
    return model


def spied(executor: ModelExecutor, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The batches that the executor decodes, as they come."""
    batches, decode = [], executor._decode

    def note(slots: list[int], on_scale: ScaleHook) -> float:
        batches.append(list(slots))
        return decode(slots, on_scale)

    monkeypatch.setattr(executor, "_decode", note)
    return batches


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_decoded_together_is_what_comes_alone(
    panels: VideoAR, monkeypatch: pytest.MonkeyPatch, dtype: str, threads: int
) -> None:
    """Seven slots: guided and not, at other frames, behind texts of other lengths, one idle."""
    if not one_call(panels.config.transformer, DTYPES[dtype]):
        pytest.skip(f"no packed panels of {dtype} on this processor")
    torch.set_num_threads(threads)
    fresh = tiny_model(panels.config)
    text = fresh.text_tokenizer
    guidance = [2, 1, 1, 2, 3, 2, "falling:5:3"]
    jobs = [
        make_job(fresh.config, text, prompt=prompt, guidance=strength, seed=seed, temperature=0.9)
        for seed, (prompt, strength) in enumerate(zip(PROMPTS, guidance, strict=True))
    ]
    single = make_executor(fresh, dtype=dtype)
    alone = [run(single, 0, job) for job in jobs]
    executor = make_executor(tiny_model(panels.config), slots=7, dtype=dtype)
    executor.together = 3
    batches, rows = spied(executor, monkeypatch), set()
    for plain in (executor.transformer.embed_bits, executor.transformer.head):
        plain.register_forward_pre_hook(lambda layer, inputs: rows.add(len(inputs[0])))
    frames = [[] for _ in jobs]
    steps = []
    # Slot 5 stays idle until the others have made two frames.
    late = 5
    for slot in range(7):
        if slot != late:
            executor.start(slot, jobs[slot], 0, None, 0)
    for tick in range(5 + 2):
        if tick == 2:
            executor.start(late, jobs[late], 0, None, 0)
        busy = [s for s in range(7) if (0 <= tick - 2 * (s == late) < 5)]
        results = executor.frame(busy, lambda *step: steps.append(step)).wait()
        assert list(results) == busy
        for slot in busy:
            frames[slot].append(results[slot].frames)
            assert results[slot].seconds["transformer"] > 0
    torch.set_num_threads(1)
    for got, want in zip(frames, alone, strict=True):
        assert np.array_equal(np.concatenate(got), want)
    assert batches[:4] == [[0], [1, 2], [3, 4], [6]]
    assert batches[2 * 4 : 3 * 4] == [[0], [1, 2], [3, 4, 5], [6]]
    assert batches[-1] == [late]
    # Sums of plain layers depend on the number of rows: every slot has a call of its own.
    assert rows == {1, 2}
    scales = executor.num_scales
    expected = {(s, f, k) for s in range(7) for f in range(5) for k in range(scales)}
    assert len(steps) == len(expected)
    assert {step[:3] for step in steps} == expected


def test_a_failed_slot_leaves_its_batch_alone(
    panels: VideoAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(panels, slots=3)
    good = job_of(panels, seed=3)
    expected = run(executor, 0, good)
    for slot, seed in enumerate((3, 4, 3)):
        executor.start(slot, job_of(panels, seed=seed), 0, None, 0)
    batches = spied(executor, monkeypatch)
    executor.state.cache.data[:, :, 2, :, 0] = float("nan")
    results = executor.frame([0, 1, 2], lambda *step: None).wait()
    assert batches == [[0, 1, 2]]
    assert isinstance(results[1].error, NumericalError)
    assert np.array_equal(results[0].frames, expected[:1])
    assert np.array_equal(results[2].frames, expected[:1])
    for slot in range(3):
        executor.clear(slot)
    assert np.array_equal(run(executor, 1, good), expected)


def test_shares_of_a_step_add_up_to_it(panels: VideoAR, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, clock = make_executor(panels, slots=4), iter(range(1000))
    monkeypatch.setattr("videoar.runtime.executor.time.perf_counter", lambda: next(clock))
    for slot in range(4):
        executor.start(slot, job_of(panels, seed=slot), 0, None, 0)
    steps = []
    results = executor.frame(range(4), lambda *step: steps.append(step)).wait()
    scales = executor.num_scales
    # The clock goes on by one whenever it is read: at the beginning, at every scale, in the end.
    assert [seconds for *_, seconds in steps] == [0.25] * 4 * scales
    assert [result.seconds["transformer"] for result in results.values()] == [(scales + 1) / 4] * 4
    assert [result.seconds["decoder"] for result in results.values()] == [1] * 4


def test_ring_equals_full_cache_inside_the_window(model: VideoAR) -> None:
    job = job_of(model, seed=3)
    frames = job.shots[0].num_latent_frames
    whole = run(make_executor(model, window=frames + 3), 0, job)
    assert np.array_equal(run(make_executor(model, window=frames - 1), 0, job), whole)
    short = run(make_executor(model, window=1), 0, job)
    assert np.array_equal(short[:5], whole[:5])
    assert not np.array_equal(short, whole)


def test_ring_equals_a_mask(model: VideoAR) -> None:
    """Behind the window the ring shows what a full cache with the same window would."""
    job = job_of(model, seed=3, num_frames=1 + 4 * 7)
    executor = make_executor(model, window=2)
    executor.start(0, job, 0, None, 0)
    shot, transformer = job.shots[0], executor.transformer
    full = prepare(transformer, [shot.prefix], shot.null_prefix, [3], window=7)
    for frame in range(shot.num_latent_frames):
        executor.frame([0], lambda *step: None)
        set_guidance(full, job.params.guidance, frame, shot.num_latent_frames)
        decode_masked(transformer, full, visible=2)
        assert torch.equal(full.bits, executor.state.bits), frame


def decode_masked(transformer, state, visible: int) -> None:
    """`decode_frame` on a full cache whose segments leave out what is older than `visible`."""
    segments, layout = state.segments, state.cache.layout
    frames = torch.arange(2 * layout.ring_frames)
    assert state.frames.max() < layout.ring_frames
    state.segments = segments.clone()
    skip = (frames - visible).clamp(min=0) * layout.tokens_per_frame
    state.segments[:, :, 1] += torch.stack([skip, -skip], dim=-1).int()
    decode_frame(transformer, state)
    state.segments = segments


def test_a_failed_slot_leaves_the_others_alone(model: VideoAR) -> None:
    executor = make_executor(model, slots=2)
    good, bad = job_of(model, seed=3), job_of(model, seed=4)
    expected = run(executor, 0, good)[:1]
    executor.start(0, good, 0, None, 0)
    executor.start(1, bad, 0, None, 0)
    executor.state.cache.data[:, :, 2, :, 0] = float("nan")
    executor.state.cache.data[:, :, 2, :, -1] = float("nan")
    results = executor.frame([0, 1], lambda *step: None).wait()
    assert isinstance(results[1].error, NumericalError)
    assert results[1].frames is None
    assert np.array_equal(results[0].frames, expected)
    executor.clear(0)
    executor.clear(1)
    assert torch.isfinite(executor.state.cache.data).all()
    assert np.array_equal(run(executor, 1, good)[:1], expected)


def test_history_takes_its_place_in_the_clip(model: VideoAR) -> None:
    """Frames in front give what decoding their bits would have given."""
    clip = model.generate(PROMPT, seed=3, guidance=2).frames[0]
    job = job_of(model, seed=3, video=clip, context=5)
    continued = run(make_executor(model, slots=2), 1, job)
    assert len(continued) == len(clip) - 5
    again = model.generate(PROMPT, seed=3, guidance=2, video=clip, context=5)
    assert np.array_equal(again.frames[0], np.concatenate([clip[-5:], continued]))
    new = model.generate(PROMPT, seed=3, guidance=2, video=clip, context=5, only_new=True)
    assert np.array_equal(new.frames[0], continued)


def test_prefixes_are_computed_once(model: VideoAR, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_executor(model)
    expected = run(executor, 0, job_of(model, seed=3))
    monkeypatch.setattr(executor.prefixes, "prefill", None)
    assert np.array_equal(run(executor, 0, job_of(model, seed=3)), expected)
    assert len(executor.prefixes.places) == 2


def test_the_oldest_prefix_makes_room(model: VideoAR) -> None:
    executor = make_executor(model)
    expected = run(executor, 0, job_of(model, seed=3, num_frames=5))
    for number in range(executor.prefixes.count + 1):
        run(executor, 0, job_of(model, f"a green {number}", num_frames=1))
    assert len(executor.prefixes.places) == executor.prefixes.count
    assert np.array_equal(run(executor, 0, job_of(model, seed=3, num_frames=5)), expected)


def test_another_dtype_is_a_copy(tiny_folder: Path, model: VideoAR) -> None:
    fresh = VideoAR.from_pretrained(tiny_folder)
    executor = make_executor(fresh, dtype="bfloat16")
    assert executor.state.cache.data.dtype == torch.bfloat16
    assert fresh.transformer.embed_bits.weight.dtype == torch.float32
    assert len(run(executor, 0, job_of(fresh, seed=3))) == fresh.config.num_frames
    make_executor(model)
    with pytest.raises(RuntimeError, match="load it anew"):
        make_executor(model, dtype="bfloat16")


@pytest.mark.parametrize("settings", [{"slots": 0}, {"window": -1}, {"max_text": 10**6}])
def test_bad_settings(model: VideoAR, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_executor(model, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_layers_compute_and_save_the_same(dtype: torch.dtype) -> None:
    config = PRESETS["digits"].transformer
    torch.manual_seed(0)
    layers = Transformer(config).to(dtype).layers.requires_grad_(False)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    x = torch.randn(2, 17, config.width, dtype=dtype)
    mlp, attention = layers[0].mlp, layers[0].self_attn
    expected = [layer(x) for layer in (attention.k_proj, attention.o_proj, mlp)]
    pack_linears(layers)
    products = {module.product for module in layers.modules() if hasattr(module, "product")}
    assert len(products) == 4 * config.layers
    assert any(product.packed for product in products) == can_pack(dtype)
    got = [layer(x) for layer in (attention.k_proj, attention.o_proj, mlp)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    after = layers.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RuntimeError, match="new model"):
        layers.load_state_dict(before)
    with pytest.raises(RuntimeError, match="load the model anew"):
        layers.to(torch.float64)


def test_unguided_needs_no_second_row(model: VideoAR) -> None:
    job = make_job(model.config, model.text_tokenizer, prompt=PROMPT, guidance=1, seed=3)
    assert job.shots[0].null_prefix is None
    executor = make_executor(model)
    frames = run(executor, 0, job)
    executor.state.cache.data[:, :, 1] = float("nan")
    assert np.array_equal(run(executor, 0, replace(job)), frames)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_200_latent_frames_in_constant_memory(model: VideoAR) -> None:
    """A request allocates nothing that stays: Python's heap and the process stop growing."""
    executor = make_executor(model, window=2)
    job = job_of(model, seed=3, num_frames=1 + 4 * 199)
    executor.start(0, job, 0, None, 0)
    heap, resident = [], []
    tracemalloc.start()
    for frame in range(200):
        result = executor.frame([0], lambda *step: None).wait()[0]
        assert result.error is None
        if frame in (20, 199):
            del result
            heap.append(tracemalloc.get_traced_memory()[0])
            resident.append(resident_bytes())
    tracemalloc.stop()
    assert heap[1] - heap[0] < 64 * 2**10
    assert resident[1] - resident[0] < 8 * 2**20
    assert executor.state.frames.tolist() == [200]


def test_requests_use_the_memory_of_the_first(model: VideoAR) -> None:
    executor = make_executor(model, slots=2)
    buffers = [executor.state.cache.data, executor.state.latents, executor.prefixes.cache.data]
    addresses = [buffer.data_ptr() for buffer in buffers]
    for seed in range(3):
        run(executor, seed % 2, job_of(model, seed=seed, num_frames=5))
    run(executor, 0, job_of(model, seed=3))
    before = resident_bytes()
    for seed in range(8):
        run(executor, seed % 2, job_of(model, seed=seed))
    assert resident_bytes() - before < 8 * 2**20
    assert [buffer.data_ptr() for buffer in buffers] == addresses
