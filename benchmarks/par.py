"""PAR (arXiv 2412.15119), the baseline of VideoAR, on this runtime's layers, cache and kernels.

Run as `python -m videoar.benchmarks.par --preset par-4x --steps N`: milliseconds a step beside its
bare matrix products, interleaved; as the last line one JSON document. See docs/benchmarks.md.
"""

import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from videoar.benchmarks.par_config import PAR_PRESETS, ParConfig
from videoar.benchmarks.par_graphs import ParGraphs
from videoar.benchmarks.par_import import import_public
from videoar.benchmarks.par_model import ParTransformer
from videoar.benchmarks.par_sampling import ParSampling
from videoar.benchmarks.par_state import ParState, decode_step, kind_of
from videoar.runtime.cpu_layers import CpuLayers
from videoar.runtime.errors import NumericalError
from videoar.runtime.packed import pack_linears

__all__ = ["PAR_PRESETS", "Par", "ParConfig", "ParSampling", "ParTransformer", "describe"]


class Par:
    """A PAR model with the memory to decode `slots` clips at a time.

    The linear layers of `transformer` are packed in place. With one slot on a CPU, a result is the
    same whatever else was asked for; more slots share their products' rows.
    """

    def __init__(self, transformer: ParTransformer, *, slots: int = 1) -> None:
        if slots < 1:
            raise ValueError(f"slots: expected 1 or more, got {slots}")
        self.config, self.transformer = transformer.config, transformer.eval()
        weight = transformer.embed_tokens.weight
        self.state = ParState.create(self.config, slots, weight.dtype, weight.device)
        self.graphs = ParGraphs(transformer) if weight.is_cuda else None
        pack_linears(transformer)
        self.layers = None
        if CpuLayers.serves(transformer):
            self.layers = CpuLayers(transformer, len(self.state.classes) * self.config.group)

    @classmethod
    def random(
        cls,
        config: ParConfig,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        slots: int = 1,
    ) -> "Par":
        """Random weights, the same for the same seed on one kind of device.

        Raises:
            CapacityError: weights or cache do not fit into the device's memory.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transformer = ParTransformer.empty(config, dtype, device)
            transformer.init_weights()
        return cls(transformer, slots=slots)

    @classmethod
    def from_public(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        heads: int,
        grid: tuple[int, int] = (16, 16),
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        slots: int = 1,
    ) -> "Par":
        """A public LlamaGen or PAR image model; see `import_public`."""
        config, weights = import_public(tensors, heads=heads, grid=grid)
        transformer = ParTransformer.empty(config, dtype, device)
        transformer.load_state_dict(weights)
        return cls(transformer, slots=slots)

    @property
    def slots(self) -> int:
        return self.state.requests

    def generate(
        self,
        class_id: int | Sequence[int],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float = 1.5,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Decode clips of these classes.

        Args:
            class_id: one class or several, from 0; `classes` is "no class".
            seed: of each clip; of one number, clip i takes it plus i.
            guidance, temperature, top_k, top_p: see `ParSampling`.
            on_step: called with the step, from 0, behind every step (on a GPU: behind its launch).

        Returns:
            Codes, int64 `[clips, frames, height, width]`, on the CPU.

        Raises:
            ValueError: an argument out of range.
            NumericalError: logits were NaN or infinite.
        """
        sampling = ParSampling(guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p)
        classes, seeds = _integers("class_id", class_id), _integers("seed", seed)
        if not isinstance(seed, Iterable):
            seeds = [seeds[0] + i for i in range(len(classes))]
        if not classes:
            raise ValueError("class_id: expected at least one class")
        if len(seeds) != len(classes):
            raise ValueError(f"seed: expected {len(classes)}, got {len(seeds)}")
        clips = []
        for first in range(0, len(classes), self.slots):
            part = slice(first, first + self.slots)
            state = self.start(classes[part], seeds[part], sampling)
            for step in range(self.config.num_steps):
                self.step(state, step)
                if on_step is not None:
                    on_step(step)
            clips.append(self.codes(state)[: len(classes[part])])
        return torch.cat(clips)

    def start(
        self,
        classes: Sequence[int],
        seeds: Sequence[int],
        sampling: ParSampling,
        *,
        first_step: int = 0,
    ) -> ParState:
        """Fill the slots with clips; slots without one take the first's class and seed.

        Args:
            first_step: the coming step; what is in front of it is left as it is (for timing).
        """
        self._check(classes, seeds, sampling)
        state = self.state if sampling.guided else self.state.unguided()
        idle = self.slots - len(classes)
        pairs = [(one, self.config.classes) for one in (*classes, *[classes[0]] * idle)]
        rows = [row for pair in pairs for row in pair[: state.rows_per_request]]
        with self._stream():
            state.classes.copy_(torch.tensor(rows))
            state.seeds.copy_(torch.tensor([*seeds, *[seeds[0]] * idle]))
            state.guidance.fill_(sampling.guidance)
            state.temperature.fill_(sampling.temperature)
            state.top_k.fill_(sampling.top_k or self.config.codebook)
            state.top_p.fill_(sampling.top_p)
            state.filtered, state.greedy = sampling.filtered, sampling.temperature == 0
            state.draw()
            if self.graphs is not None:
                # Behind what it reads: with a top_k of 0 a first call would look for code -1.
                self.graphs.prepare(state)
            state.failed.fill_(False)
            state.step.fill_(first_step)
        return state

    def _check(self, classes: Sequence[int], seeds: Sequence[int], sampling: ParSampling) -> None:
        for one in classes:
            if not 0 <= one <= self.config.classes:
                raise ValueError(f"class_id: expected 0 .. {self.config.classes}, got {one}")
        for one in seeds:
            if not 0 <= one < 1 << 63:
                raise ValueError(f"seed: expected 0 .. 2^63 - 1, got {one}")
        if sampling.top_k > self.config.codebook:
            raise ValueError(f"top_k: expected 0 .. {self.config.codebook}, got {sampling.top_k}")

    def step(self, state: ParState, step: int) -> None:
        """Compute step number `step`, which is the coming one of `state`; on a GPU launch it."""
        kind = kind_of(self.config, step)
        if self.graphs is not None:
            self.graphs.step(state, kind)
        else:
            decode_step(self.transformer, state, kind, step=step, layers=self.layers)

    def codes(self, state: ParState) -> Tensor:
        """Codes of the clips, `[slots, frames, height, width]`, when they are computed."""
        with self._stream():
            if state.failed.any():
                # What a later clip does not see may be multiplied by 0, so it must be finite.
                state.cache.data.zero_()
                raise NumericalError("logits are not finite")
            codes = state.codes.cpu()
        clips = torch.empty_like(codes)
        clips[:, self.config.order()] = codes
        return clips.unflatten(1, (self.config.num_frames, *self.config.grid))

    def _stream(self) -> AbstractContextManager:
        return nullcontext() if self.graphs is None else torch.cuda.stream(self.graphs.stream)

    def close(self) -> None:
        """Free the graphs."""
        if self.graphs is not None:
            self.graphs.close()


def _integers(name: str, value: int | Sequence[int]) -> list[int]:
    """One integer or several, of Python or numpy."""
    found = []
    for one in value if isinstance(value, Iterable) else [value]:
        try:
            if isinstance(one, bool):
                raise TypeError
            found.append(operator.index(one))
        except TypeError:
            raise ValueError(f"{name}: expected integers, got {one!r}") from None
    return found


def describe(config: ParConfig) -> dict[str, int]:
    """Sizes that need no weights: parameters, steps and tokens of a clip."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ParTransformer(config).parameters())
    return {
        "parameters": parameters,
        "steps": config.num_steps,
        "video_tokens": config.num_tokens,
    }


def main(arguments: list[str] | None = None) -> int:
    """Print table and JSON; the exit status is 0."""
    from videoar.benchmarks.par_measure import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
