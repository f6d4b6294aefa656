"""The GPU executor's bookkeeping on a CPU: streams and events do nothing, graphs call again.

What it computes on a GPU is tested by the tests marked `gpu` below.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from videoar.runtime import cuda_executor
from videoar.runtime.cuda_executor import CudaExecutor
from videoar.runtime.engine import Engine
from videoar.runtime.errors import NumericalError
from videoar.runtime.executor import ModelExecutor, make_executor
from videoar.runtime.graphs import GraphSet, buckets
from videoar.runtime.packed import pack_linears
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.plan import EngineSettings
from videoar.runtime.requests import make_job

PROMPTS = ["a red 3 moving left", "a green 7 moving up slowly", "blue five standing still"]


class FakeStream:
    def __init__(self, device: object = None) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass


class FakeEvent:
    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return False

    def elapsed_time(self, end: object) -> float:
        return 6.0


class CallAgain(GraphSet):
    """A graph set whose replay runs the captured call eagerly."""

    def capture(self, name, call, buffers) -> None:
        call()
        self._captured[name] = (call, dict(buffers))

    def replay(self, name, buffers) -> None:
        call, expected = self._captured[name]
        assert {key: t.data_ptr() for key, t in expected.items()} == {
            key: t.data_ptr() for key, t in buffers.items()
        }
        call()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(cuda_executor, "GraphSet", CallAgain)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> VideoAR:
    torch.set_num_threads(1)
    return VideoAR.from_pretrained(tiny_folder)


def cuda_of(model: VideoAR, slots: int) -> CudaExecutor:
    pack_linears(model.transformer.layers)
    settings = EngineSettings(config=model.config, slots=slots, device="cuda")
    return CudaExecutor(model.transformer, model.tokenizer, settings)


@pytest.mark.usefixtures("fake_cuda")
def test_batched_frames_are_those_of_the_cpu(model: VideoAR) -> None:
    """Three requests of different lengths and guidance through one engine."""
    options = [
        {"num_frames": 17, "guidance": 2},
        {"num_frames": 5, "guidance": "falling:5:3"},
        {"num_frames": 9, "guidance": 2, "temperature": 0.5},
    ]
    expected = [
        model.generate(prompt, seed=i, **options[i]).frames for i, prompt in enumerate(PROMPTS)
    ]
    with Engine(model, executor=cuda_of(model, slots=2)) as engine:
        handles = [engine.submit(prompt, seed=i, **options[i]) for i, prompt in enumerate(PROMPTS)]
        frames = [handle.result(timeout=60).frames for handle in handles]
    for got, want in zip(frames, expected, strict=True):
        # Rows of two requests are one product here, so a bit in many may fall to the other side.
        assert got.shape == want.shape
        assert (got != want).mean() < 0.02


@pytest.mark.usefixtures("fake_cuda")
def test_one_slot_history_and_shots(model: VideoAR) -> None:
    clip = model.generate(PROMPTS[0], seed=3).frames[0]
    options = {"seed": 4, "video": clip, "context": 5, "shots": 2, "guidance": 2}
    expected = model.generate(PROMPTS[1], **options, only_new=True).frames
    with Engine(model, executor=cuda_of(model, slots=1)) as engine:
        assert np.array_equal(engine.submit(PROMPTS[1], **options).result(60).frames, expected)


@pytest.mark.usefixtures("fake_cuda")
def test_not_finite_logits_fail_their_slot_only(model: VideoAR) -> None:
    executor = cuda_of(model, slots=3)
    job = make_job(model.config, model.text_tokenizer, prompt=PROMPTS[0], guidance=2)
    for slot in range(2):
        executor.start(slot, job, 0, None, 0)
    executor.state.cache.data[:, :, 2, :, 0] = float("nan")
    steps = []
    results = executor.frame([0, 1], lambda *step: steps.append(step)).wait()
    assert isinstance(results[1].error, NumericalError)
    assert results[0].frames.shape[0] == 1
    scales = len(model.config.transformer.sizes)
    assert [step[:3] for step in steps] == [(s, 0, k) for s in range(2) for k in range(scales)]
    # The launch took 6 ms, which its two slots share.
    assert [sum(step[3] for step in part) for part in (steps[:scales], steps[scales:])] == (
        pytest.approx([3e-3, 3e-3])
    )


def test_buckets_end_with_all_slots() -> None:
    assert buckets(1) == [1]
    assert buckets(3) == [1, 2, 3]
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(20) == [1, 2, 4, 8, 16, 20]


@pytest.mark.gpu
def test_graph_equals_eager_bit_for_bit(tiny_folder: Path) -> None:
    model = VideoAR.from_pretrained(tiny_folder, device="cuda", dtype="bfloat16")
    executor = make_executor(model, slots=2)
    eager = make_executor(model, slots=2)
    eager.graphs, eager.decoder_graphs = (
        _eager(eager.graphs, eager),
        _eager(eager.decoder_graphs, eager),
    )
    job = make_job(model.config, model.text_tokenizer, prompt=PROMPTS[0], guidance=2, seed=5)
    for one in (executor, eager):
        one.start(0, job, 0, None, 0)
        one.start(1, job, 0, None, 0)
    for _ in range(job.shots[0].num_latent_frames):
        got = executor.frame([0, 1], lambda *step: None).wait()
        want = eager.frame([0, 1], lambda *step: None).wait()
        for slot in range(2):
            assert np.array_equal(got[slot].frames, want[slot].frames)


def _eager(graphs: GraphSet, executor: ModelExecutor) -> GraphSet:
    """A set that runs the same callables without capture."""
    calls = CallAgain(graphs.stream)

    def replay(name, buffers) -> None:
        with torch.cuda.stream(calls.stream):
            if isinstance(name, int):
                cuda_executor.decode_frame(executor.transformer, executor.state.view(0, name))
            elif name[0] == "text":
                tokens = executor.text[:, : name[1]]
                cuda_executor.prefill_tokens(executor.transformer, tokens, executor.text_row)
            else:
                executor._decode(*name)

    calls.replay = replay
    return calls


@pytest.mark.gpu
def test_nothing_is_allocated_for_a_request(tiny_folder: Path) -> None:
    model = VideoAR.from_pretrained(tiny_folder, device="cuda", dtype="bfloat16")
    with Engine(model, slots=2) as engine:
        engine.submit(PROMPTS[0]).result(60)
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["reserved_bytes.all.peak"]
        for seed in range(4):
            engine.submit(PROMPTS[seed % 3], seed=seed).result(60)
        assert torch.cuda.memory_stats()["reserved_bytes.all.peak"] == before


@pytest.mark.gpu
def test_decoder_and_next_frame_overlap(tiny_folder: Path) -> None:
    """In a trace, kernels of the decoder's stream run while the frame graph's do."""
    model = VideoAR.from_pretrained(tiny_folder, device="cuda", dtype="bfloat16")
    executor = make_executor(model, slots=1)
    job = make_job(model.config, model.text_tokenizer, prompt=PROMPTS[0], num_frames=33)
    executor.start(0, job, 0, None, 0)
    executor.frame([0], lambda *step: None).wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        tickets = [executor.frame([0], lambda *step: None)]
        for _ in range(6):
            tickets.append(executor.frame([0], lambda *step: None))
            tickets.pop(0).wait()
        tickets.pop().wait()
        torch.cuda.synchronize()
    spans: dict[int, list[tuple[float, float]]] = {}
    for event in trace.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns():
            span = (event.start_ns(), event.start_ns() + event.duration_ns())
            spans.setdefault(event.device_resource_id(), []).append(span)
    busiest = sorted(spans.values(), key=len)[-2:]
    assert len(busiest) == 2, f"kernels on {len(spans)} stream"
    assert any(a < d and c < b for a, b in busiest[0] for c, d in busiest[1])


@pytest.mark.gpu
def test_a_changed_buffer_is_refused() -> None:
    graphs = GraphSet(torch.cuda.Stream())
    x = torch.zeros(4, device="cuda")
    graphs.capture("add", lambda: x.add_(1), {"x": x})
    x.zero_()
    graphs.replay("add", {"x": x})
    torch.cuda.synchronize()
    assert x.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="x: graph add was captured with"):
        graphs.replay("add", {"x": torch.zeros(5, device="cuda")})
    with pytest.raises(ValueError, match="not captured"):
        graphs.replay("sub", {})
