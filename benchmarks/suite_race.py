"""Rounds in which several models, each run in several ways, are timed one after the other.

Every way is checked before it is timed: its logits of the first steps, for given bits or codes, are
those of the runtime up to the rounding of the dtype.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoar.benchmarks.compiled import CompiledVideoAR
from videoar.benchmarks.eager import EagerVideoAR
from videoar.benchmarks.floor_parts import job_of, rows_per_token
from videoar.benchmarks.par import Par
from videoar.benchmarks.par_compiled import CompiledPar
from videoar.benchmarks.par_config import PAR_PRESETS
from videoar.benchmarks.par_eager import EagerPar
from videoar.benchmarks.par_model import ParTransformer
from videoar.benchmarks.par_state import kind_of, step_logits
from videoar.benchmarks.suite_contenders import BareVideo, Contender, OtherVideo, OurVideo, Run
from videoar.benchmarks.suite_par import SAMPLING, BarePar, OtherPar, OurPar
from videoar.benchmarks.suite_turns import side_by_side
from videoar.runtime.graphs import GraphSet
from videoar.runtime.history import next_scale_inputs
from videoar.runtime.modules import DTYPES
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.text import pad
from videoar.runtime.transformer import teacher_forced_logits

Key = tuple[str, str]
"""Model and way."""
Runs = dict[Key, list[Run]]

# Of the turns: models of one way are neighbours; the bare products stand behind this runtime, whose
# turns are the longest.
_ORDER = ("videoar", "bare", "eager", "compiled")
# Ways that read plain weights.
_OTHERS = {"eager", "compiled"}
# RMS of the logits' error over their RMS: tens of layers of rounding in 16 bits.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class WrongResultError(RuntimeError):
    """A way does not compute what the runtime computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the clips of a race are made.

    Attributes:
        batch: clips at a time.
        dtype: "bfloat16", ..
        device: "cpu" or "cuda".
        stride: of PAR's timed steps, for all but this runtime.
        compile_decoder: whether the compiled way has a decoder.
        backend: of `torch.compile`.
    """

    batch: int
    dtype: str
    device: str
    stride: int
    compile_decoder: bool = True
    backend: str = "inductor"


Made = Iterator[tuple[str, Callable[[], Contender]]]
"""Ways by name and what builds them, in order: a later one may read the weights of an earlier."""


def make_video(name: str, setting: Setting, ways: Sequence[str]) -> Made:
    """The ways to run a preset of VideoAR, with random weights."""
    model = VideoAR.preset(name, dtype=setting.dtype, device=setting.device)
    rows, eager = rows_per_token(model.config) * setting.batch, None
    if _OTHERS & set(ways):
        # Ours packs its layers in place.
        eager = EagerVideoAR(copy.deepcopy(model.transformer), model.tokenizer)
    yield "videoar", lambda: OurVideo(model, setting.batch)

    def checked(way: EagerVideoAR, decodes: bool = True) -> OtherVideo:
        _hold(way_logits(way, model, setting.batch), model.transformer.sos.dtype)
        return OtherVideo(way, model, setting.batch, decodes)

    yield "eager", lambda: checked(eager)
    text = model.config.transformer.max_text

    def compiled() -> OtherVideo:
        way = CompiledVideoAR(eager, rows=rows, max_text=text, backend=setting.backend)
        return checked(way, setting.compile_decoder)

    yield "compiled", compiled
    yield "bare", lambda: BareVideo(model, setting.batch, _graphs(setting.device))


def make_par(name: str, setting: Setting, ways: Sequence[str]) -> Made:
    """The ways to run a preset of PAR, with random weights."""
    config, dtype = PAR_PRESETS[name], DTYPES[setting.dtype]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = ParTransformer.empty(config, dtype, setting.device)
        transformer.init_weights()
    eager = EagerPar(transformer) if _OTHERS & set(ways) else None
    par = Par(transformer, slots=setting.batch)
    yield "videoar", lambda: OurPar(par)

    def checked(way: EagerPar) -> OtherPar:
        _hold(par_logits(way, par, setting.batch), dtype)
        return OtherPar(way, setting.batch, setting.stride)

    rows = setting.batch * (1 + SAMPLING.guided)
    yield "eager", lambda: checked(eager)
    yield "compiled", lambda: checked(CompiledPar(eager, rows=rows, backend=setting.backend))
    yield "bare", lambda: BarePar(par, setting.stride)


def _graphs(device: str) -> GraphSet | None:
    return GraphSet(torch.cuda.Stream()) if device == "cuda" else None


def _hold(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """Hold logits against those of the runtime.

    Raises:
        WrongResultError: further away than rounding.
    """
    got, expected = (logits.double() for logits in pair)
    error = ((got - expected).square().mean() / expected.square().mean()).sqrt().item()
    if not error <= _TOLERANCE[dtype]:
        limit = _TOLERANCE[dtype]
        raise WrongResultError(f"its logits are off by {error:.1e} of their RMS, allowed {limit}")


@torch.inference_mode()
def way_logits(way: EagerVideoAR, model: VideoAR, batch: int) -> tuple[Tensor, Tensor]:
    """Logits of two latent frames of given bits: of the way, and of the runtime in one pass."""
    config, device, job = model.config.transformer, model.device, job_of(model, 0)
    frames, shot = min(2, config.max_frames), job.shots[0]
    shape = (frames, config.tokens_per_frame, config.latent_dim)
    bits = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(device)
    seen: list[Tensor] = []
    way.latents(
        [shot.prefix] * batch,
        shot.null_prefix,
        frames,
        guidance=job.params.guidance,
        given_bits=bits.expand(batch, *shape),
        on_logits=lambda frame, scale, logits: seen.append(logits),
    )
    got = torch.cat(seen, dim=1)[::batch]
    rows = [shot.prefix] if shot.null_prefix is None else [shot.prefix, shot.null_prefix]
    tokens, lengths = (x.to(device) for x in pad(rows, max(map(len, rows))))
    inputs = next_scale_inputs(bits, config.sizes)[0].expand(len(rows), *shape)
    expected = teacher_forced_logits(model.transformer, tokens, lengths, inputs)
    return got, expected.flatten(1, 2)


@torch.inference_mode()
def par_logits(way: EagerPar, par: Par, batch: int) -> tuple[Tensor, Tensor]:
    """Logits of the steps up to the second group, of given codes: of the way, of the runtime."""
    config, device = par.config, way.head.device
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(config.codebook, (1, config.num_tokens), generator=generator).to(device)
    way.start([0] * batch, SAMPLING)
    way.given, seen, expected = codes.expand(batch, -1), [], []
    state = par.start([0] * par.slots, [0] * par.slots, SAMPLING)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    state.codes.copy_(codes.expand(par.slots, -1))
    for step in range(config.group + 2):
        way.step(step, lambda step, logits: seen.append(logits[::batch]))
        state.step.fill_(step)
        logits, _ = step_logits(par.transformer, state, kind_of(config, step))
        expected.append(logits[: state.rows_per_request])
    way.given = None
    return torch.cat(seen, dim=1), torch.cat(expected, dim=1)


def build(
    models: Sequence[str],
    ways: Mapping[str, Sequence[str]],
    setting: Setting,
    give_up: Callable[[str, str, Exception], None],
) -> dict[Key, Contender]:
    """All contenders, in `_ORDER`, so that rivals are timed close together.

    Args:
        ways: that are wanted, by model.
        give_up: called with model, way and what the way raised when it was built.
    """
    contenders: dict[Key, Contender] = {}
    for model in (one for one in models if ways[one]):
        make = make_par if model in PAR_PRESETS else make_video
        try:
            for way, construct in make(model, setting, ways[model]):
                if way in ways[model]:
                    try:
                        contenders[model, way] = _built(way, construct)
                    except Exception as error:  # its entries say why
                        give_up(model, way, error)
        except Exception as error:  # no weights, so no way
            for way in ways[model]:
                give_up(model, way, error)
    return dict(sorted(contenders.items(), key=lambda item: _ORDER.index(item[0][1])))


def _built(way: str, construct: Callable[[], Contender]) -> Contender:
    begin = time.perf_counter()
    contender = construct()
    if way == "compiled":
        contender.compile_s = time.perf_counter() - begin
    return contender


def race(
    contenders: Mapping[Key, Contender],
    rounds: int,
    go_on: Callable[[int], bool],
    give_up: Callable[[str, str, Exception], None],
    between: Callable[[], None] = lambda: None,
) -> Runs:
    """Let every contender make a batch of clips in every round, each round another one first.

    Clips that take longer than a turn (on a CPU; see `videoar.benchmarks.suite_turns`) are made
    side by side.

    One more round comes before them untimed: first clips draw memory from the system, and the
    matrix library prepares itself for every shape.

    Args:
        go_on: called with the number of rounds done, the untimed one included, whether to begin
            another.
        give_up: called with model, way and what a clip raised; the contender is then out.
        between: called before every turn.
    """
    runs: Runs = {key: [] for key in contenders}
    for turn in range(rounds + 1):
        if turn > 1 and not go_on(turn):
            break
        keys = list(runs)
        first = turn % max(1, len(keys))
        clips = {key: contenders[key].run() for key in keys[first:] + keys[:first]}
        for key, result in side_by_side(clips, between):
            if isinstance(result, Exception):
                give_up(*key, result)
                del runs[key]
            elif turn:
                runs[key].append(result)
    return runs
