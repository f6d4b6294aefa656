"""The engine's thread: submitting, sleeping, ending; mostly with a model that computes nothing."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videoar.runtime.engine import Engine
from videoar.runtime.errors import Cancelled, EngineClosed, HookError
from videoar.runtime.pipeline import VideoAR

WAIT = 60  # seconds, for what takes a millisecond
MODEL = SimpleNamespace(config=SimpleNamespace(fps=8), text_tokenizer=None)


class Gate:
    """Lets a number of launches through; the next one waits."""

    def __init__(self) -> None:
        self.permits, self.entered, self.passed = threading.Semaphore(0), 0, 0

    def __call__(self) -> None:
        self.entered += 1
        assert self.permits.acquire(timeout=WAIT)
        self.passed += 1

    def open(self, launches: int = 1000) -> None:
        self.permits.release(launches)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def assert_gave(handle, mock, job) -> None:
    expected = np.concatenate(mock.frames(job))
    np.testing.assert_array_equal(handle.result(WAIT).frames[0], expected)


def until(condition) -> None:
    """Wait for another thread."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class TestServing:
    def test_submit_from_many_threads(self, mock):
        jobs = [mock.job(seed, 1 + seed % 5) for seed in range(60)]
        with Engine(MODEL, executor=mock.Executor(3)) as engine, ThreadPoolExecutor(6) as pool:
            handles = list(pool.map(engine.submit_job, jobs))
            for handle, job in zip(handles, jobs, strict=True):
                assert_gave(handle, mock, job)

    def test_sleeps_while_idle(self, mock):
        with Engine(MODEL, executor=mock.Executor()) as engine:
            engine.submit_job(mock.job(1, 3)).result(WAIT)
            begin = time.process_time()
            time.sleep(0.2)
            assert time.process_time() - begin < 0.05
            job = mock.job(2, 3)
            assert_gave(engine.submit_job(job), mock, job)

    def test_hooks_run_in_the_engines_thread(self, mock):
        steps, threads = [], set()

        def hook(*step):
            steps.append(step)
            threads.add(threading.current_thread().name)

        with Engine(MODEL, executor=mock.Executor()) as engine:
            engine.submit_job(mock.job(1, 2), on_step=hook).result(WAIT)
        assert steps == [(0, 0, 0.5), (0, 1, 0.5), (1, 0, 0.5), (1, 1, 0.5)]
        assert threads == {"videoar-engine"}

    def test_keeps_serving_after_faults(self, mock):
        def hook(*step):
            raise asyncio.CancelledError

        executor = mock.Executor(1)
        executor.bad_starts[2, 0] = MemoryError("device")
        executor.bad_launches.append(SystemExit())
        with Engine(MODEL, executor=executor) as engine:
            with pytest.raises(SystemExit):
                engine.submit_job(mock.job(1, 2)).result(WAIT)
            with pytest.raises(MemoryError):
                engine.submit_job(mock.job(2, 2)).result(WAIT)
            with pytest.raises(HookError):
                engine.submit_job(mock.job(3, 2), on_step=hook).result(WAIT)
            job = mock.job(4, 2)
            assert_gave(engine.submit_job(job), mock, job)

    def test_two_engines(self, mock):
        first, second = (Engine(MODEL, executor=mock.Executor()) for _ in range(2))
        first.close()
        job = mock.job(1, 3)
        assert_gave(second.submit_job(job), mock, job)
        second.close()

    def test_keeps_nothing_of_a_request_that_ended(self, mock):
        with Engine(MODEL, executor=mock.Executor()) as engine:
            handle = engine.submit_job(mock.job(1, 3), on_step=lambda *step: None)
            handle.result(WAIT)
            entry = weakref.ref(handle._entry)
            del handle
            until(lambda: entry() is None)

    def test_number_of_cpu_threads(self, mock):
        used = []

        def build() -> Engine:
            before = torch.get_num_threads()
            torch.set_num_threads(before + 2)
            gate = lambda: used.append(torch.get_num_threads() - before)  # noqa: E731
            engine = Engine(MODEL, executor=mock.Executor(gate=gate))
            torch.set_num_threads(before)
            return engine

        with ThreadPoolExecutor(1) as pool, pool.submit(build).result(WAIT) as engine:
            engine.submit_job(mock.job(1, 1)).result(WAIT)
        assert used == [2]


class TestCancel:
    def test_frees_the_slot_within_one_frame(self, mock, gate):
        with Engine(MODEL, executor=mock.Executor(1, gate=gate)) as engine:
            long, job = engine.submit_job(mock.job(1, 100)), mock.job(2, 3)
            behind = engine.submit_job(job)
            gate.open(2)
            until(lambda: gate.passed == 2)
            long.cancel()
            gate.open(1 + 3)
            assert_gave(behind, mock, job)
            with pytest.raises(Cancelled):
                long.result(WAIT)

    def test_dropped_handle_frees_the_slot(self, mock, gate):
        with Engine(MODEL, executor=mock.Executor(1, gate=gate)) as engine:
            long, job = engine.submit_job(mock.job(1, 100)), mock.job(2, 3)
            behind = engine.submit_job(job)
            gate.open(2)
            until(lambda: gate.passed == 2)
            del long
            gate.open(1 + 3)
            assert_gave(behind, mock, job)

    def test_left_loop_frees_the_slot(self, mock):
        executor = mock.Executor(1)
        with Engine(MODEL, executor=executor) as engine:
            for _ in engine.submit_job(mock.job(1, 10**6)).frames():
                break
            job = mock.job(2, 3)
            assert_gave(engine.submit_job(job), mock, job)


class TestClose:
    def test_with_work_in_flight(self, mock, gate):
        executor = mock.Executor(2, gate=gate)
        engine = Engine(MODEL, executor=executor)
        handles = [engine.submit_job(mock.job(seed, 4)) for seed in range(5)]
        gate.open(1)
        until(lambda: gate.entered == 2)
        handles.append(engine.submit_job(mock.job(5, 4)))
        threading.Timer(0.05, gate.open).start()
        engine.close()
        assert executor.closed
        assert not executor.jobs
        assert not engine._thread.is_alive()
        for handle in handles:
            with pytest.raises(EngineClosed):
                handle.result(timeout=0)

    def test_frees_the_executor(self, mock):
        executor = mock.Executor()
        executor.bad_starts[1, 0] = MemoryError()
        gone, engine = weakref.ref(executor), Engine(MODEL, executor=executor)
        del executor
        handles = [engine.submit_job(mock.job(seed, 3)) for seed in range(3)]
        engine.close()
        assert all(handle.done for handle in handles)
        del handles
        gc.collect()
        assert gone() is None

    def test_wakes_consumers(self, mock, gate):
        engine = Engine(MODEL, executor=mock.Executor(1, gate=gate))
        handle = engine.submit_job(mock.job(1, 4))

        async def consume() -> None:
            async for _ in handle:
                pass

        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(handle.result), pool.submit(list, handle.frames())]
            waiting.append(pool.submit(asyncio.run, consume()))
            time.sleep(0.02)
            gate.open(1)
            threading.Timer(0.02, gate.open).start()
            engine.close()
            for one in waiting:
                with pytest.raises(EngineClosed):
                    one.result(WAIT)

    def test_again_and_from_several_threads(self, mock):
        engine = Engine(MODEL, executor=mock.Executor())
        with ThreadPoolExecutor(4) as pool:
            for one in [pool.submit(engine.close) for _ in range(4)]:
                one.result(WAIT)
        engine.close()
        with pytest.raises(EngineClosed, match="the engine is closed"):
            engine.submit_job(mock.job(1, 1))

    def test_from_a_hook(self, mock):
        executor = mock.Executor()
        engine = Engine(MODEL, executor=executor)
        handle = engine.submit_job(mock.job(1, 3), on_step=lambda *step: engine.close())
        with pytest.raises(EngineClosed):
            handle.result(WAIT)
        engine.close()
        assert executor.closed

    def test_while_others_submit(self, mock):
        engine = Engine(MODEL, executor=mock.Executor())
        handles = []

        def submit() -> None:
            for seed in count():
                job = mock.job(seed % 256, 2)
                handles.append((engine.submit_job(job), job))

        with ThreadPoolExecutor(1) as pool:
            submitting = pool.submit(submit)
            until(lambda: len(handles) > 20)
            engine.close()
            with pytest.raises(EngineClosed):
                submitting.result(WAIT)
        for handle, job in handles:
            assert handle.done
            if handle.exception is None:
                assert_gave(handle, mock, job)

    def test_dropped_engine_ends_its_thread(self, mock, gate):
        executor = mock.Executor(1, gate=gate)
        engine = Engine(MODEL, executor=executor)
        thread, gone = engine._thread, weakref.ref(engine)
        handle = engine.submit_job(mock.job(1, 100))
        gate.open(1)
        del engine
        gc.collect()
        assert gone() is None
        gate.open()
        thread.join(WAIT)
        assert not thread.is_alive()
        assert executor.closed
        assert isinstance(handle.exception, EngineClosed)

    def test_forked_process(self, mock, monkeypatch):
        with Engine(MODEL, executor=mock.Executor()) as engine:
            monkeypatch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(RuntimeError, match="fork"):
                engine.submit_job(mock.job(1, 1))


class TestAsyncio:
    def test_overlapping_requests(self, mock):
        jobs = [mock.job(seed, 3 + seed) for seed in range(5)]

        async def consume(engine, job) -> list[np.ndarray]:
            return [frames async for frames in engine.submit_job(job)]

        async def main() -> list[list[np.ndarray]]:
            with Engine(MODEL, executor=mock.Executor(2)) as engine:
                return await asyncio.gather(*(consume(engine, job) for job in jobs))

        for frames, job in zip(asyncio.run(main()), jobs, strict=True):
            np.testing.assert_array_equal(np.concatenate(frames), np.concatenate(mock.frames(job)))

    def test_event_loop_stays_free(self, mock, gate):
        async def main() -> int:
            ticks = 0
            with Engine(MODEL, executor=mock.Executor(1, gate=gate)) as engine:
                task = asyncio.create_task(consume(engine.submit_job(mock.job(1, 2))))
                while ticks < 10:
                    await asyncio.sleep(0.001)
                    ticks += not task.done()
                gate.open()
                await task
            return ticks

        async def consume(handle) -> None:
            async for _ in handle:
                pass

        assert asyncio.run(main()) == 10

    def test_an_event_loop_in_each_thread(self, mock):
        async def consume(engine, job):
            return await engine.submit_job(job)

        with Engine(MODEL, executor=mock.Executor(2)) as engine, ThreadPoolExecutor(3) as pool:
            jobs = [mock.job(seed, 4) for seed in range(6)]
            for job, result in zip(
                jobs, pool.map(lambda job: asyncio.run(consume(engine, job)), jobs), strict=True
            ):
                expected = np.concatenate(mock.frames(job))
                np.testing.assert_array_equal(result.frames[0], expected)


class TestRealModel:
    PROMPTS = ("a red 7 moving right slowly", "a blue 3 moving up", "a green 0 moving down quickly")

    def test_neighbours_change_nothing(self, tiny_folder):
        model = VideoAR.from_pretrained(tiny_folder)
        requests = [{"num_frames": 17 - 4 * i, "seed": i} for i in range(3)]
        alone = []
        with Engine(model, slots=1) as engine:
            for prompt, request in zip(self.PROMPTS, requests, strict=True):
                alone.append(engine.submit(prompt, **request).result(WAIT))
        with Engine(model, slots=2) as engine:
            handles = [
                engine.submit(prompt, **request)
                for prompt, request in zip(self.PROMPTS, requests, strict=True)
            ]
            for handle, expected in zip(handles, alone, strict=True):
                result = handle.result(WAIT)
                np.testing.assert_array_equal(result.frames, expected.frames)
                assert result.seeds == expected.seeds
                assert handle.progress.fraction == 1
                parts = [result.timings[part] for part in ("prefill", "transformer", "decoder")]
                assert min(parts) > 0
                assert sum(parts) < result.timings["total"]

    @pytest.mark.gpu
    def test_the_same_again_on_a_gpu(self, tiny_folder):
        """Graphs that one thread captured, another one replays."""
        model = VideoAR.from_pretrained(tiny_folder, device="cuda")
        with Engine(model) as engine:
            first, _, again = (
                engine.submit(self.PROMPTS[i % 2], seed=7, num_frames=17 + 16 * (i % 2))
                for i in range(3)
            )
            expected = first.result(WAIT).frames
            np.testing.assert_array_equal(np.concatenate(list(again.frames())), expected[0])
        assert expected.std() > 1

    def test_one_model_for_all(self, tiny_folder):
        model = VideoAR.from_pretrained(tiny_folder)
        alone = [model.generate(prompt, seed=5).frames for prompt in self.PROMPTS]
        with Engine(model, slots=2) as first, Engine(model) as second:
            handles = [
                engine.submit(prompt, seed=5)
                for prompt in self.PROMPTS
                for engine in (first, second)
            ]
            beside = [model.generate(prompt, seed=5).frames for prompt in self.PROMPTS]
            results = [handle.result(WAIT).frames for handle in handles]
        for i, expected in enumerate(alone):
            for frames in (beside[i], results[2 * i], results[2 * i + 1]):
                np.testing.assert_array_equal(frames, expected)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({"class_id": 3}, "prompt"),
            ({"prompt": "a red 7 moving right", "num_frames": 3}, "num_frames"),
            ({"prompt": "a red 7 moving right", "seed": -1}, "seed"),
            ({"prompt": "a red 7 moving right", "shots": 0}, "shots"),
        ],
    )
    def test_bad_arguments_are_the_callers(self, tiny_folder, request_, message):
        with (
            Engine(VideoAR.from_pretrained(tiny_folder)) as engine,
            pytest.raises(ValueError, match=message),
        ):
            engine.submit(**request_)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"slots": "4"}, "slots: expected an int, got '4'"),
            ({"slots": 2.5}, "slots: expected an int, got 2.5"),
            ({"slots": True}, "slots: expected an int, got True"),
            ({"slots": None}, "slots: expected an int, got None"),
            ({"slots": 0}, "slots: expected 1 or more, got 0"),
            ({"window": 1.5}, "window: expected an int, got 1.5"),
            ({"max_text": "x"}, "max_text: expected an int, got 'x'"),
            ({"dtype": "foo"}, "dtype: expected one of float32, bfloat16, float16, got 'foo'"),
            ({"dtype": torch.int8}, "dtype: expected one of .* got torch.int8"),
            ({"dtype": ["float32"]}, "dtype: expected one of"),
            ({"device": "foo"}, "device: expected cpu or cuda, got 'foo'"),
            ({"device": "meta"}, "device: expected cpu or cuda, got 'meta'"),
            ({"device": 1.5}, "device: expected cpu or cuda, got 1.5"),
            ({"device": "cuda:99"}, "device: cuda:99, but"),
        ],
    )
    def test_bad_settings(self, tiny_folder, settings, message):
        with pytest.raises(ValueError, match=message):
            Engine(VideoAR.from_pretrained(tiny_folder), **settings)

    @pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
    def test_another_dtype_by_name_or_as_torch_has_it(self, tiny_folder, dtype):
        model = VideoAR.from_pretrained(tiny_folder)
        with Engine(model, dtype=dtype, device=torch.device("cpu", 0)) as engine:
            assert engine.submit(self.PROMPTS[0], num_frames=1).result().frames.shape[0] == 1

    def test_prompt_too_long_for_the_engine(self, tiny_folder):
        model = VideoAR.from_pretrained(tiny_folder)
        with Engine(model, max_text=3) as engine, pytest.raises(ValueError, match="takes 3"):
            engine.submit(self.PROMPTS[0])


EXIT = """
import sys, time
from videoar.runtime import engine as module
from videoar.runtime.engine import Engine
from videoar.runtime.pipeline import VideoAR

module.EXIT_SECONDS = float(sys.argv[2])
engine = Engine(VideoAR.from_pretrained(sys.argv[1]))
hook = (lambda *step: time.sleep(1000)) if sys.argv[3] == "hanging" else None
handle = engine.submit("a red 7 moving right slowly", num_frames=4001, on_step=hook)
if sys.argv[3] == "idle":
    handle.cancel()
    while not handle.done:
        time.sleep(0.001)
elif hook is None:
    next(handle.frames())
else:
    time.sleep(0.2)
print("leaving", flush=True)
"""


@pytest.mark.parametrize(("work", "seconds"), [("busy", 30), ("idle", 30), ("hanging", 0.1)])
def test_interpreter_exit_without_close(tiny_folder, work, seconds):
    process = subprocess.run(
        [sys.executable, "-c", EXIT, str(tiny_folder), str(seconds), work],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "leaving\n", "")
