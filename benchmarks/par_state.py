"""The static memory of PAR decoding, and one step of it.

`decode_step` reads the number of the step and every position from the device and writes in place,
so the same callable runs eagerly and inside a captured graph. A clip has hundreds of steps of at
most four kinds. On a CPU the number is known, and what a step reads are views of the same tables:
weights that stream through the caches push Python out of them, so each operation less counts.
"""

from dataclasses import dataclass, fields
from enum import Enum

import torch
from torch import Tensor

from videoar.benchmarks.par_config import ParConfig
from videoar.benchmarks.par_model import ParTransformer
from videoar.benchmarks.par_sampling import guide, sample_codes
from videoar.kernels.philox import philox_uniform
from videoar.runtime.cache import CacheLayout, StaticCache
from videoar.runtime.sampling import Layers
from videoar.runtime.schedule import ChunkSchedule
from videoar.runtime.transformer import AttentionPlan

_NO_CHUNKS = ChunkSchedule(chunks=())


class Kind(Enum):
    """What a step reads."""

    CLASS = "class"
    SINGLE = "single"  # one code
    BRIDGE = "bridge"  # one code and the learned tokens
    GROUP = "group"  # a code of every region


def kind_of(config: ParConfig, step: int) -> Kind:
    """The kind of a step, from 0."""
    if step == 0:
        return Kind.CLASS
    if step < config.group:
        return Kind.SINGLE
    return Kind.BRIDGE if step == config.group > 1 else Kind.GROUP


def first_steps(config: ParConfig) -> dict[Kind, int]:
    """The first step of every kind that a clip has."""
    steps = sorted({0, 1, config.group, min(config.group + 1, config.num_steps - 1)})
    return {kind_of(config, step): step for step in reversed(steps)}


@dataclass(slots=True, kw_only=True)
class ParState:
    """State of R requests; each has a row, or with guidance two neighbouring ones.

    Attributes:
        cache: keys and values of all rows.
        classes: int64 `[rows]`.
        codes: int64 `[R,num_tokens]` in decoding order.
        seeds: int64 `[R]`.
        guidance: float32 `[R]`.
        temperature: float32 `[R]`.
        top_k: int64 `[R]`.
        top_p: float32 `[R]`.
        failed: bool `[R]`, whether any logit was not finite; set by `decode_step`, never cleared.
        step: int64 `[1]`, the coming step where nobody gives its number; stays at the last one.
        starts: int64 `[S,rows]`, first token of every step.
        segments: int32 `[S,rows,1,2]`, the cache rows that a step sees.
        uniforms: float32 `[S,R,group]`, one number for every token; of one token the first counts.
        positions: int64 `[num_tokens,3]` of the tokens that are read.
        unplaced: bool, of the tokens of the kinds that have such, by kind.
        filtered: whether top-k and top-p count.
        greedy: whether a temperature may be 0.
    """

    cache: StaticCache
    classes: Tensor
    codes: Tensor
    seeds: Tensor
    guidance: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    failed: Tensor
    step: Tensor
    starts: Tensor
    segments: Tensor
    uniforms: Tensor
    positions: Tensor
    unplaced: dict[Kind, Tensor]
    filtered: bool = False
    greedy: bool = True

    @classmethod
    def create(
        cls,
        config: ParConfig,
        requests: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        rows_per_request: int = 2,
    ) -> "ParState":
        """Memory for `requests` clips at a time, all of it.

        Raises:
            CapacityError: the cache does not fit into the device's memory.
        """
        rows, chunks = rows_per_request * requests, config.schedule.chunks
        layout = CacheLayout(max_text=0, tokens_per_frame=config.num_tokens, ring_frames=1)
        floats = {n: torch.ones(requests) for n in ("guidance", "temperature", "top_p")}
        integers = {n: torch.zeros(requests, dtype=torch.int64) for n in ("seeds", "top_k")}
        unplaced = config.unplaced()
        buffers = {
            **floats,
            **integers,
            "classes": torch.zeros(rows, dtype=torch.int64),
            "codes": torch.zeros(requests, config.num_tokens, dtype=torch.int64),
            "failed": torch.zeros(requests, dtype=torch.bool),
            "step": torch.zeros(1, dtype=torch.int64),
            "starts": torch.tensor([[chunk.offset] * rows for chunk in chunks]),
            "segments": torch.tensor(
                [[[[0, chunk.offset + chunk.length]]] * rows for chunk in chunks], dtype=torch.int32
            ),
            "uniforms": torch.zeros(len(chunks), requests, config.group),
            "positions": config.input_positions(),
        }
        return cls(
            cache=StaticCache(config.transformer, layout, rows, dtype, device),
            unplaced={
                kind: unplaced[chunk.offset : chunk.offset + chunk.length].to(device)
                for kind, step in first_steps(config).items()
                for chunk in [chunks[step]]
                if unplaced[chunk.offset : chunk.offset + chunk.length].any()
            },
            **{name: tensor.to(device) for name, tensor in buffers.items()},
        )

    @property
    def requests(self) -> int:
        return len(self.seeds)

    @property
    def rows_per_request(self) -> int:
        return len(self.classes) // len(self.seeds)

    def unguided(self) -> "ParState":
        """A row a request, in the same memory."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own["cache"] = self.cache.rows(0, self.requests)
        own["classes"] = self.classes[: self.requests]
        own["starts"] = self.starts[:, : self.requests]
        own["segments"] = self.segments[:, : self.requests]
        return ParState(**own)

    def buffers(self) -> dict[str, Tensor]:
        """What a step reads and writes, by name."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        return {"cache": self.cache.data, **tensors}

    def draw(self) -> None:
        """The uniform numbers of a whole clip, from `seeds`."""
        steps, requests, group = self.uniforms.shape
        frames = torch.arange(steps, device=self.seeds.device).repeat_interleave(requests)
        numbers = philox_uniform(self.seeds.repeat(steps), frames, 0, group, 1)
        self.uniforms.copy_(numbers.view(steps, requests, group))


@torch.inference_mode()
def decode_step(
    model: ParTransformer,
    state: ParState,
    kind: Kind,
    *,
    step: int | None = None,
    layers: Layers | None = None,
) -> None:
    """Predict and draw the tokens of a step of all requests.

    Args:
        state: updated in place.
        kind: of the step.
        step: its number; None: `state.step`, which goes on.
        layers: what computes `model.forward`, such as `CpuLayers`; None: `model` itself.
    """
    logits, tokens = step_logits(model, state, kind, step=step, layers=layers)
    logits = guide(logits, state.guidance, state.requests)
    # A sum is finite where all are. (So large that it is not they are of no use, either.)
    state.failed.logical_or_(~torch.isfinite(logits.sum((1, 2))))
    at = state.step if step is None else slice(step, step + 1)
    uniform = state.uniforms[at][0, :, : logits.shape[1]]
    chosen = (state.top_k, state.top_p) if state.filtered else ()
    codes = sample_codes(logits, uniform, state.temperature, *chosen, greedy=state.greedy)
    if step is None:
        state.codes.index_copy_(1, tokens, codes)
        state.step.add_(1).clamp_(max=len(state.starts) - 1)
    else:
        state.codes[:, tokens] = codes


def step_logits(
    model: ParTransformer,
    state: ParState,
    kind: Kind,
    *,
    step: int | None = None,
    layers: Layers | None = None,
) -> tuple[Tensor, Tensor | slice]:
    """Logits of a step, `[rows,n,V]`, and its tokens, int64 `[n]` or, of a number, a slice.

    Writes the keys and values of what the step reads. Arguments as those of `decode_step`.
    """
    length = model.config.group if kind in (Kind.BRIDGE, Kind.GROUP) else 1
    if step is None:
        start, segments = state.starts[state.step][0], state.segments[state.step][0]
        tokens = start[:1] + torch.arange(length, device=start.device)
        before = tokens - length
    else:
        first = model.config.schedule.chunks[step].offset
        start, segments = state.starts[step], state.segments[step]
        tokens, before = slice(first, first + length), slice(max(0, first - length), first)
    plan = AttentionPlan(
        schedule=_NO_CHUNKS,
        cache=state.cache,
        start=start,
        segments=segments,
        unplaced=state.unplaced.get(kind),
    )
    x = _read(model, state, kind, before)
    return model.head((layers or model)(x, state.positions[tokens], plan)), tokens


def _read(model: ParTransformer, state: ParState, kind: Kind, before: Tensor | slice) -> Tensor:
    """Embedded inputs `[rows,n,C]` of a step; the tokens `before` it are as many."""
    if kind is Kind.CLASS:
        return model.embed_class(state.classes[:, None])
    codes = state.codes[:, before]
    if kind is Kind.BRIDGE:
        last = model.embed_tokens(codes[:, -1:])
        bridge = model.embed_bridge.weight.expand(len(last), -1, -1)
        x = torch.cat([last, bridge], dim=1)
    else:
        x = model.embed_tokens(codes)
    return x[:, None].expand(-1, state.rows_per_request, -1, -1).flatten(0, 1)
