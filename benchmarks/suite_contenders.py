"""Who runs a clip in the suite: VideoAR by this runtime, eager, compiled, and its bare products.

A contender is built untimed; `run` makes a batch of clips, in turns, and says where the time went.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Protocol

from torch import Tensor

from videoar.benchmarks.compiled import CompiledVideoAR
from videoar.benchmarks.eager import EagerVideoAR
from videoar.benchmarks.floor_parts import BareConvs, job_of, own_products, rows_per_token
from videoar.benchmarks.par_floor import BareSteps
from videoar.benchmarks.suite_turns import Laps, Turns, result_of
from videoar.runtime.entry import Entry as Request
from videoar.runtime.executor import make_executor
from videoar.runtime.graphs import GraphSet
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.plan import EngineSettings
from videoar.runtime.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds of one batch of clips; None for a part that a contender does not have.

    Attributes:
        step_s: of every timed decoding step.
        steps: of a clip; more than were timed where a sample stands for all.
        decoder_s: of the tokenizer's decoder, for all frames.
        clip_s: from the request to the last pixel.
        first_frame_s: from the request to the first pixel frame.
        steady_frame_s: median from one latent frame's pixels to those of the next.
    """

    step_s: tuple[float, ...]
    steps: int
    decoder_s: float | None = None
    clip_s: float | None = None
    first_frame_s: float | None = None
    steady_frame_s: float | None = None

    def part(self, name: str) -> float | None:
        """Seconds of "transformer", "decoder", "clip", "first_frame" or "steady_frame"."""
        if name == "transformer":
            return sum(self.step_s) * self.steps / len(self.step_s)
        return getattr(self, f"{name}_s")


class Contender(Protocol):
    """One way to run one model.

    Attributes:
        compile_s: seconds that compiling took, untimed; None where nothing is compiled.
    """

    compile_s: float | None

    def run(self) -> Turns[Run]:
        """Make one batch of clips, in turns where the device is a CPU."""


class OurVideo:
    """This runtime: its executor, driven by its scheduler, each clip with a new class or prompt."""

    compile_s = None

    def __init__(self, model: VideoAR, batch: int) -> None:
        self.model, self.batch, self.calls = model, batch, 0
        self.frames = model.config.transformer.max_frames
        self.executor = make_executor(model, slots=batch)
        tau = model.config.tokenizer.temporal_compression
        # Two latent frames, and the prefix without a condition, which is kept.
        result_of(self._drive([self._request(0, num_frames=1 + tau)]))

    def run(self) -> Turns[Run]:
        config, requests = self.model.config.transformer, self._requests()
        step_s = [0.0] * (self.frames * len(config.sizes))

        def add(frame: int, scale: int, seconds: float) -> None:
            step_s[frame * len(config.sizes) + scale] += seconds

        for request in requests:
            request.on_step = add
        stamps = yield from self._drive(requests)
        steady = [end - begin for begin, end in pairwise(stamps)]
        return Run(
            step_s=tuple(step_s),
            steps=len(step_s),
            decoder_s=sum(request.timings["decoder"] for request in requests),
            clip_s=stamps[-1],
            first_frame_s=stamps[0],
            steady_frame_s=median(steady) if steady else None,
        )

    def _requests(self) -> list[Request]:
        self.calls += self.batch
        return [self._request(number) for number in range(self.calls, self.calls + self.batch)]

    def _request(self, number: int, **options: int) -> Request:
        job = job_of(self.model, number, **options)
        return Request(job, num_scales=self.executor.num_scales)

    def _drive(self, requests: Sequence[Request]) -> Turns[list[float]]:
        """The seconds at which pixels came, the last ones when all are done."""
        scheduler, came = Scheduler(self.executor), []
        laps = Laps(self.model.device, host=True)
        for request in requests:
            scheduler.add(request)
        while scheduler.busy:
            scheduler.tick()
            pixels = [request.drain() for request in requests]
            came.append(any(pixels))
            laps.mark()
            # On a CPU a tick is a latent frame of all clips.
            yield from laps.rest(len(came) / self.frames)
        for request in requests:
            if request.error is not None:
                raise request.error
        stamps = accumulate(laps.seconds())
        return [stamp for stamp, pixels in zip(stamps, came, strict=True) if pixels]


class OtherVideo:
    """The eager code, or the compiled one, which compiles while it is built.

    Args:
        decodes: whether latents become pixels.
    """

    compile_s = None

    def __init__(self, way: EagerVideoAR, model: VideoAR, batch: int, decodes: bool = True) -> None:
        self.way, self.model, self.batch, self.calls = way, model, batch, 0
        self.decodes = decodes
        config = model.config.transformer
        latents = result_of(self._latents(min(2, config.max_frames), Laps(model.device)))
        if isinstance(way, CompiledVideoAR):
            # For the shape that is timed; a CUDA graph is made in the second call or the third.
            shape = (batch, config.latent_dim, config.max_frames, *config.sizes[-1])
            latents = latents[:, :, :1].expand(shape).contiguous()
        for _ in range(decodes * (3 if model.device.type == "cuda" else 1)):
            way.decode(latents)

    def run(self) -> Turns[Run]:
        laps = Laps(self.model.device)
        latents = yield from self._latents(self.model.config.transformer.max_frames, laps)
        if not self.decodes:
            _, *step_s = laps.seconds()
            return Run(step_s=tuple(step_s), steps=len(step_s))
        self.way.decode(latents)
        laps.mark()
        _, *step_s, decoder_s = laps.seconds()
        return Run(
            step_s=tuple(step_s),
            steps=len(step_s),
            decoder_s=decoder_s,
            clip_s=sum(laps.seconds()),
        )

    def _latents(self, frames: int, laps: Laps) -> Turns[Tensor]:
        """The latents of a clip; a lap for the prefill and for every step."""
        self.calls += self.batch
        numbers = range(self.calls, self.calls + self.batch)
        jobs = [job_of(self.model, number) for number in numbers]
        steps = self.way.steps(
            [job.shots[0].prefix for job in jobs],
            jobs[0].shots[0].null_prefix,
            frames,
            guidance=jobs[0].params.guidance,
            temperature=jobs[0].params.temperature,
        )
        num_steps = frames * len(self.model.config.transformer.sizes)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            laps.mark()
            yield from laps.rest((len(laps.pairs) - 1) / num_steps)


class BareVideo:
    """The matrix products of the decoding steps; on a CPU also the decoder's convolutions."""

    compile_s = None

    def __init__(self, model: VideoAR, batch: int, graphs: GraphSet | None) -> None:
        config, weight = model.config.transformer, model.transformer.embed_bits.weight
        self.device, self.graphs = weight.device, graphs
        settings = EngineSettings(
            config=model.config, slots=batch, dtype=weight.dtype, device=self.device.type
        )
        whole, rest = divmod(batch, settings.together)
        self.batch, self.batches = batch, [settings.together] * whole + [rest] * (rest > 0)
        lengths = [h * w for h, w in config.sizes] * config.max_frames
        self.frames, self.num_steps = config.max_frames, len(lengths)
        products, rows = own_products(model.transformer), rows_per_token(model.config)
        memory = (weight.dtype, weight.device, graphs)
        self.products = {
            clips: BareSteps(products, lengths, rows * clips, *memory)
            for clips in set(self.batches)
        }
        cpu = self.device.type == "cpu"
        self.convs = BareConvs(model.config, weight.dtype) if cpu else None

    def run(self) -> Turns[Run]:
        # Of every lap: its step, None for the convolutions.
        laps, done = Laps(self.device, self.graphs and self.graphs.stream), []
        for before, clips in zip(accumulate(self.batches, initial=0), self.batches, strict=False):
            for frame in range(self.frames):
                done += self._frame(frame, clips, laps)
                yield from laps.rest((before + clips * (frame + 1) / self.frames) / self.batch)
        step_s, decoder_s = [0.0] * self.num_steps, 0.0
        for step, seconds in zip(done, laps.seconds(), strict=True):
            if step is None:
                decoder_s += seconds
            else:
                step_s[step] += seconds
        return Run(
            step_s=tuple(step_s),
            steps=self.num_steps,
            decoder_s=None if self.convs is None else decoder_s,
        )

    def _frame(self, frame: int, clips: int, laps: Laps) -> list[int | None]:
        scales = self.num_steps // self.frames
        steps: list[int | None] = list(range(frame * scales, (frame + 1) * scales))
        for step in steps:
            self.products[clips].step(step)
            laps.mark()
        if self.convs is None:
            return steps
        for _ in range(clips):
            self.convs.frame(frame)
        laps.mark()
        return [*steps, None]
