"""Eager and compiled ways compute what the runtime computes, for VideoAR and for PAR."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from videoar.benchmarks.compiled import CompiledVideoAR
from videoar.benchmarks.eager import EagerVideoAR
from videoar.benchmarks.par import Par
from videoar.benchmarks.par_compiled import CompiledPar
from videoar.benchmarks.par_config import ParConfig
from videoar.benchmarks.par_eager import EagerPar
from videoar.benchmarks.par_model import ParTransformer, teacher_forced_logits
from videoar.benchmarks.par_sampling import ParSampling
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.modules import random_modules
from videoar.runtime.presets import PRESETS

THREE = GuidanceSchedule.parse(3.0)
DIGITS = PRESETS["digits"]
SMALL = replace(DIGITS, transformer=replace(DIGITS.transformer, layers=2))
PAR = ParConfig(
    layers=2,
    width=32,
    heads=2,
    mlp_width=48,
    codebook=24,
    classes=5,
    num_frames=2,
    grid=(4, 4),
    rope_sections=(2, 3, 3),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.compiler.reset()


def eager_video() -> EagerVideoAR:
    """Random weights with which attention and bits are far from uniform."""
    transformer, tokenizer = random_modules(SMALL, torch.float32, "cpu", 3)
    with torch.no_grad():
        transformer.init_weights(std=0.1)
    return EagerVideoAR(transformer.requires_grad_(False), tokenizer.requires_grad_(False))


def par_transformer(group: int) -> ParTransformer:
    model = ParTransformer.empty(replace(PAR, group=group), torch.float32, "cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(group)
        model.init_weights(std=0.3)
    return model


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("prefixes", "null_prefix"),
    [
        pytest.param([[1, 7, 9, 4]], None, id="one"),
        pytest.param([[1, 7, 9, 4], [1, 3]], [1], id="texts-of-three-lengths"),
    ],
)
def test_compiled_video_is_the_eager_one(prefixes, null_prefix):
    """Same logits for the same bits; greedy, the same latents. One function a scale."""
    eager, frames = eager_video(), 3
    rows = len(prefixes) * (1 + (null_prefix is not None))
    compiled = CompiledVideoAR(eager, rows=rows, max_text=4, backend="aot_eager")
    config = eager.config
    shape = (len(prefixes), frames, config.tokens_per_frame, config.latent_dim)
    bits = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    options = {"guidance": THREE, "temperature": 0.0}
    seen: dict[EagerVideoAR, list[Tensor]] = {eager: [], compiled: []}
    for way, logits in seen.items():
        way.latents(
            prefixes,
            null_prefix,
            frames,
            given_bits=bits,
            on_logits=lambda frame, scale, x, logits=logits: logits.append(x),
            **options,
        )
    close(torch.cat(seen[compiled], dim=1), torch.cat(seen[eager], dim=1))
    close(*(way.latents(prefixes, null_prefix, frames, **options) for way in seen))


def test_inductor_compiles_a_step():
    """The real back end, on one layer of two scales."""
    small = replace(SMALL.transformer, layers=1, sizes=((1, 1), (4, 4)), max_frames=1)
    transformer, tokenizer = random_modules(
        replace(SMALL, transformer=small), torch.float32, "cpu", 3
    )
    eager = EagerVideoAR(transformer.requires_grad_(False), tokenizer.requires_grad_(False))
    compiled = CompiledVideoAR(eager, rows=2, max_text=2)
    options = {"guidance": THREE, "temperature": 0.0}
    close(*(way.latents([[1, 7]], [1, 2], 1, **options) for way in (compiled, eager)))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("group", [1, 4])
def test_par_codes_are_those_of_the_runtime(group: int, guidance: float):
    """Greedy, so that the ways to draw do not matter."""
    eager = EagerPar(par_transformer(group))
    compiled = CompiledPar(eager, rows=2 if guidance != 1 else 1, backend="aot_eager")
    sampling = ParSampling(guidance=guidance, temperature=0.0)
    expected = Par(par_transformer(group)).generate([3], guidance=guidance, temperature=0.0)
    assert len(expected.unique()) > 3
    assert torch.equal(eager.generate([3], sampling), expected)
    assert torch.equal(compiled.generate([3], sampling), expected)


def test_par_logits_are_those_of_one_pass():
    model = par_transformer(4)
    codes = torch.randint(24, (2, 32), generator=torch.Generator().manual_seed(0))
    eager = EagerPar(model)
    eager.start([1, 4], ParSampling(guidance=1.0))
    eager.given, seen = codes, []
    for step in range(eager.config.num_steps):
        eager.step(step, lambda step, logits: seen.append(logits))
    close(torch.cat(seen, dim=1), teacher_forced_logits(model, torch.tensor([1, 4]), codes))
    assert torch.equal(eager.codes, codes)


def test_par_is_placed_in_front_of_a_step():
    """Timed steps read as many keys as they do in a clip."""
    eager = EagerPar(par_transformer(4))
    eager.start([1], ParSampling())
    eager.place(7)
    assert eager.layers[1].attention.cached_k.shape == (2, 2, 16, 16)
    eager.step(7)
    assert eager.layers[1].attention.cached_k.shape == (2, 2, 20, 16)
    eager.place(0)
    assert eager.layers[0].attention.cached_k is None


def test_draws_follow_the_probabilities():
    from videoar.benchmarks.compiled import drawn

    probabilities = torch.tensor([0.2, 0.7, 0.1]).expand(20_000, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shares = drawn(probabilities).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, probabilities[0], rtol=0, atol=0.015)


def test_par_takes_no_filter():
    with pytest.raises(ValueError, match="draws from all codes"):
        EagerPar(par_transformer(4)).start([1], ParSampling(top_k=3))
