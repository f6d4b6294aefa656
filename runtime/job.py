"""What a request is once it is checked, and what the engine's scheduler asks of a device.

A job is a list of shots. A shot starts from a fresh cache with its own text and, if there are
frames in front of it, with their bits; within a shot the cache's ring carries any length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from videoar.runtime.sampling import SamplingParams

ScaleHook = Callable[[int, int, int, float], None]
"""Called with (slot, latent frame of the job, scale, seconds) behind every decoding step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One run from a fresh cache.

    Attributes:
        prefix: tokens of the text, or the class.
        null_prefix: the unconditional prefix; None without guidance.
        num_latent_frames: to generate; frames in front of the shot are not counted.
    """

    prefix: tuple[int, ...]
    null_prefix: tuple[int, ...] | None
    num_latent_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, checked and tokenised.

    Attributes:
        shots: in order, at least one.
        params: guidance and temperature.
        seed: 0 .. 2^63 - 1.
        history: uint8 `[T,H,W,3]` with T = 1 + tau n, frames in front of the first shot.
        overlap: pixel frames, 1 + tau n, encoded again in front of every later shot.
    """

    shots: tuple[Shot, ...]
    params: SamplingParams
    seed: int
    history: np.ndarray | None = None
    overlap: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFrame:
    """What one slot gives for one latent frame.

    Attributes:
        frames: uint8 `[n,H,W,3]`, the receiver's to keep; None where there is an error.
        error: what ended the slot's job; the scheduler clears the slot.
        seconds: what the frame took, by part: `transformer`, `decoder`.
    """

    frames: np.ndarray | None
    error: Exception | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


class Ticket(Protocol):
    """A latent frame under way."""

    @property
    def done(self) -> bool:
        """Whether `wait` returns at once."""

    def wait(self) -> dict[int, SlotFrame]:
        """The results by slot, once the device has them."""


class Executor(Protocol):
    """A model on a device with a fixed number of slots. One thread at a time may use it.

    A slot is started and cleared only while none of its frames is under way.

    Attributes:
        slots: how many jobs at a time.
        max_text: longest prefix, in tokens.
        num_scales: decoding steps of a latent frame.
        temporal_compression: tau, pixel frames of every latent frame but the first.
    """

    slots: int
    max_text: int
    num_scales: int
    temporal_compression: int

    def start(
        self, slot: int, job: Job, shot: int, history: np.ndarray | None, first_frame: int
    ) -> None:
        """Fill a free slot with the text of a shot and the bits of the frames in front of it.

        Args:
            history: uint8 `[T,H,W,3]` of the model's size; None: the shot starts with its text.
            first_frame: latent frames that the job was given or has made before this shot's
                generated ones, which keys its random numbers.

        Raises:
            Exception: the job cannot run; the slot is as it was.
        """

    def frame(self, slots: Sequence[int], on_scale: ScaleHook) -> Ticket:
        """Compute the next latent frame of these slots, and its pixels.

        A GPU works on while the caller goes on; a CPU is done on return. `on_scale` must not raise.
        """

    def clear(self, slot: int) -> None:
        """Free the slot, whatever it was doing; also one whose `start` was interrupted."""

    def close(self) -> None:
        """Free all memory; nothing may be called afterwards."""
