"""A whole model that is small enough to run in every test, and a mock for the engine's logic."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videoar.runtime.config import ModelConfig, TokenizerConfig, TransformerConfig
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.job import Job, Shot, SlotFrame
from videoar.runtime.model_folder import save_model
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.sampling import SamplingParams
from videoar.runtime.schedule import default_sizes
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import VideoTokenizer
from videoar.training.digits import text_tokenizer as digits_text_tokenizer

TINY_TOKENIZER = TokenizerConfig(
    latent_dim=8,
    channels=8,
    multipliers=(1, 1, 1),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    norm_groups=4,
    temporal_levels=(0, 1),
    block_kernel_time=((1, 1), (1, 1), (3, 1)),
    mid_kernel_time=(3, 1),
    resample_kernel_time=(3, 3),
    io_kernel_time=1,
    patch_size=2,
    latent_scale=1.5,
)

TINY_TRANSFORMER = TransformerConfig(
    layers=2,
    width=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    mlp_width=48,
    latent_dim=8,
    sizes=default_sizes(2, 2),
    max_frames=5,
    condition="text",
    vocab_size=48,
    max_text=12,
    rope_sections=(2, 3, 3),
)

# 17 frames of 16x16 pixels in 10 steps.
TINY = ModelConfig(tokenizer=TINY_TOKENIZER, transformer=TINY_TRANSFORMER, height=16, width=16)


def tiny_model(config: ModelConfig = TINY) -> VideoAR:
    """Random weights, the same in every call, with pixels far from grey."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        transformer = Transformer(config.transformer)
        transformer.init_weights(std=0.3)
        tokenizer = VideoTokenizer(config.tokenizer)
        tokenizer.decoder.conv_out.conv.weight.mul_(4)
    text = digits_text_tokenizer() if config.transformer.condition == "text" else None
    return VideoAR(config, transformer, tokenizer, text)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text-conditional model as a checkpoint folder; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, tiny_model())
    return folder


@pytest.fixture(scope="session")
def tiny_class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 5 classes."""
    changes = {"condition": "class", "vocab_size": 5, "max_text": 1}
    config = replace(TINY, transformer=replace(TINY_TRANSFORMER, **changes))
    folder = tmp_path_factory.mktemp("models") / "tiny-class"
    save_model(folder, tiny_model(config))
    return folder


class MockTicket:
    """A frame of the mock; its results are there at once, or when they are waited for."""

    def __init__(self, executor: "MockExecutor", slots: list[int], compute) -> None:
        self.executor, self.slots, self.compute = executor, slots, compute
        self.done = not executor.deferred

    def wait(self) -> dict[int, SlotFrame]:
        self.executor.check()
        self.executor.under_way.remove(self)
        self.executor.log.append(("land", *self.slots))
        return self.compute()


class MockExecutor:
    """Frames of one pixel in no time; holds the scheduler to the rules of `Executor`.

    A frame's channels are the job's seed, the latent frame of the job, and the shot. `deferred`
    plays a GPU, which reports its steps when a frame lands ("eager": when it is launched). `log`
    lists ("start", slot, seed, shot), ("launch", *slots), ("land", *slots) and ("clear", slot).
    Errors are put into `bad_starts` by (seed, shot), `bad_frames` by (seed, latent frame),
    `bad_launches` and `bad_landings` (the next ones). `gate` is called by every launch.
    """

    max_text = 4
    num_scales = 2
    temporal_compression = 2

    def __init__(self, slots: int = 2, *, deferred: bool | str = False, gate=lambda: None) -> None:
        self.slots, self.deferred, self.gate = slots, deferred, gate
        self.jobs: dict[int, tuple[Job, int, int]] = {}
        self.under_way: list[MockTicket] = []
        self.log: list[tuple] = []
        self.histories: dict[tuple[int, int], np.ndarray | None] = {}
        self.bad_starts: dict[tuple[int, int], Exception] = {}
        self.bad_frames: dict[tuple[int, int], Exception] = {}
        self.bad_launches: list[BaseException] = []
        self.bad_landings: list[Exception] = []
        self.threads: set[int] = set()
        self.closed = False

    def check(self, free_of: int | None = None) -> None:
        """Open, one thread, and no frame of slot `free_of` under way."""
        assert not self.closed
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1
        assert all(free_of not in ticket.slots for ticket in self.under_way)

    def start(self, slot, job, shot, history, first_frame) -> None:
        self.check(free_of=slot)
        assert slot in range(self.slots)
        assert slot not in self.jobs
        error = self.bad_starts.get((job.seed, shot))
        if not isinstance(error, Exception):  # an interrupt leaves the slot half filled
            self.jobs[slot] = (job, shot, first_frame)
        if error is not None:
            raise error
        self.histories[job.seed, shot] = history
        self.log.append(("start", slot, job.seed, shot))

    def frame(self, slots, on_scale) -> MockTicket:
        self.check()
        assert len(self.under_way) <= 1
        self.gate()
        if self.bad_launches:
            raise self.bad_launches.pop()
        results, steps = {}, []
        for slot in slots:
            job, shot, frame = self.jobs[slot]
            steps += [(slot, frame, scale, 0.5) for scale in range(self.num_scales)]
            error = self.bad_frames.get((job.seed, frame))
            first = first_frame_of(job, shot)
            pixels = None if error else mock_frame(job, shot, frame, frame == first)
            results[slot] = SlotFrame(frames=pixels, error=error, seconds={"transformer": 1.0})
            self.jobs[slot] = (job, shot, frame + 1)
        bad = self.bad_landings.pop() if self.bad_landings else None

        def report() -> None:
            for step in steps:
                on_scale(*step)

        def compute() -> dict[int, SlotFrame]:
            if bad:
                raise bad
            if self.deferred is True:
                report()
            return results

        if self.deferred is not True:
            report()
        self.under_way.append(MockTicket(self, list(slots), compute))
        self.log.append(("launch", *slots))
        return self.under_way[-1]

    def clear(self, slot) -> None:
        self.check(free_of=slot)
        del self.jobs[slot]
        self.log.append(("clear", slot))

    def close(self) -> None:
        self.check()
        self.closed = True


def first_frame_of(job: Job, shot: int) -> int:
    """Latent frames given or made before a shot."""
    given = 0 if job.history is None else 1 + (len(job.history) - 1) // 2
    return given + sum(one.num_latent_frames for one in job.shots[:shot])


def mock_frame(job: Job, shot: int, frame: int, first: bool) -> np.ndarray:
    """The pixel frames of a latent frame; one only where a shot starts with nothing in front."""
    in_front = job.history is not None if shot == 0 else job.overlap > 0
    count = 1 if first and not in_front else 2
    return np.full((count, 1, 1, 3), (job.seed, frame, shot), dtype=np.uint8)


def mock_frames(job: Job) -> list[np.ndarray]:
    """All that a job gives, latent frame by latent frame."""
    return [
        mock_frame(job, shot, first + i, i == 0)
        for shot, one in enumerate(job.shots)
        for first in [first_frame_of(job, shot)]
        for i in range(one.num_latent_frames)
    ]


def mock_job(seed: int, *num_latent_frames: int, history=None, overlap: int = 0) -> Job:
    """A job of one shot for each number."""
    shots = [
        Shot(prefix=(seed, shot), null_prefix=None, num_latent_frames=number)
        for shot, number in enumerate(num_latent_frames)
    ]
    params = SamplingParams(guidance=GuidanceSchedule.parse(1.0))
    return Job(shots=tuple(shots), params=params, seed=seed, history=history, overlap=overlap)


@pytest.fixture(scope="session")
def mock() -> SimpleNamespace:
    """A model that computes nothing: `Executor(slots)`, `job(seed, *sizes)`, `frames(job)`."""
    return SimpleNamespace(Executor=MockExecutor, job=mock_job, frames=mock_frames)
