"""The cases of the operations between latents, bits and the accumulated frame."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from videoar import kernels
from videoar.benchmarks.kernel_case import (
    Case,
    Setting,
    compiled,
    random_bits,
    random_tensors,
    upcast,
)
from videoar.benchmarks.kernel_costs import (
    bsq_bytes,
    bsq_flops,
    next_scale_bytes,
    pack_bytes,
    resample_flops,
)
from videoar.kernels.bsq_quantize import bsq_quantize_ref
from videoar.kernels.bsq_quantize_lanes import serves
from videoar.kernels.next_scale import next_scale_ref
from videoar.kernels.pack_bits import pack_bits_ref, unpack_bits_ref
from videoar.kernels.philox import philox_uniform_ref
from videoar.kernels.resample import resample_ref
from videoar.runtime.presets import PRESETS


def next_scale_cases(setting: Setting) -> Iterator[Case]:
    """The last scale of a frame of videoar-l, with guidance."""
    config = PRESETS["digits" if setting.small else "videoar-l"].transformer
    sizes, dim = config.sizes, config.latent_dim
    height, width = sizes[-1]
    seeds = torch.tensor([1234], device=setting.device)
    frames = torch.tensor([3], device=setting.device)

    def make(seed: int) -> tuple[Tensor, ...]:
        shapes = [(1, height * width, 2 * dim)] * 2 + [(1, dim, height, width)]
        logits, uncond, accumulator = random_tensors(setting, seed, shapes)
        return logits, uncond, accumulator.float()

    def apply(op: Callable, logits, uncond, accumulator) -> tuple[Tensor, ...]:
        sampling = {"guidance": 5.0, "temperature": 0.9, "seeds": seeds, "frames": frames}
        scale = len(sizes) - 1
        return tuple(op(logits, accumulator, sizes, scale, logits_uncond=uncond, **sampling))

    bits, cells = height * width * dim, height * width * dim
    inputs = sizes[0][0] * sizes[0][1] * dim
    yield Case(
        op="next_scale",
        name="last scale, guidance",
        num_bytes=next_scale_bytes(bits, cells, inputs, setting.dtype.itemsize),
        flops=bits * 10 + cells + resample_flops(dim, sizes[-1], sizes[0], "bilinear"),
        make=make,
        run=partial(apply, kernels.next_scale),
        expected=partial(apply, next_scale_ref),
        torch_best={"compiled": compiled(partial(apply, next_scale_ref))},
        launch_bound=True,
    )


def bsq_quantize_cases(setting: Setting) -> Iterator[Case]:
    """64 clips of videoar-l and 8 of videoar-4b, 5 frames each, float32 as training calls it."""
    dim = PRESETS["videoar-l"].transformer.latent_dim
    shapes = [(64, PRESETS["videoar-l"]), (8, PRESETS["videoar-4b"])]
    shapes = [(clips, preset.transformer.sizes) for clips, preset in shapes]
    if setting.small:
        dim = PRESETS["digits"].transformer.latent_dim
        shapes = [(2, PRESETS["digits"].transformer.sizes), (1, ((1, 1), (2, 3), (3, 5)))]
    for clips, sizes in shapes:
        frames, tokens = clips * 5, sum(h * w for h, w in sizes)
        height, width = sizes[-1]
        form = "lanes" if serves(sizes, dim) else "sums"

        def make(seed: int, shape=(clips, dim, 5, height, width)) -> tuple[Tensor]:
            return (random_tensors(setting, seed, [shape])[0].float(),)

        def apply(op: Callable, x: Tensor, sizes=sizes) -> tuple[Tensor, ...]:
            made = op(x, sizes, return_inputs=True)
            return made.targets, made.bits, made.reconstruction, made.inputs

        yield Case(
            op="bsq_quantize",
            name=f"{clips} clips of {height} x {width}, inputs, {form}",
            num_bytes=bsq_bytes(frames, dim, tokens, height * width, 4),
            flops=bsq_flops(frames, dim, sizes),
            make=make,
            run=partial(apply, kernels.bsq_quantize),
            expected=partial(apply, bsq_quantize_ref),
            torch_best={"compiled": compiled(partial(apply, bsq_quantize_ref))},
            launch_bound=True,
            ties=1e-5,
        )


def pack_bits_cases(setting: Setting) -> Iterator[Case]:
    """The 48 bits of a token, both ways."""
    tokens, dim = (256 if setting.small else 2**21), 48
    shape = (tokens, dim)
    yield Case(
        op="pack_bits",
        name=f"pack, {tokens} tokens of {dim}",
        num_bytes=pack_bytes(tokens, dim),
        flops=0,
        make=lambda seed: (random_bits(setting, seed, *shape),),
        run=lambda bits: (kernels.pack_bits(bits),),
        expected=lambda bits: (pack_bits_ref(bits.cpu()),),
        torch_best={"compiled": compiled(lambda bits: (pack_bits_ref(bits),))},
    )
    yield Case(
        op="pack_bits",
        name=f"unpack, {tokens} tokens of {dim}",
        num_bytes=pack_bytes(tokens, dim),
        flops=0,
        make=lambda seed: (pack_bits_ref(random_bits(setting, seed, *shape)),),
        run=lambda words: (kernels.unpack_bits(words, dim),),
        expected=lambda words: (unpack_bits_ref(words.cpu(), dim),),
        torch_best={"compiled": compiled(lambda words: (unpack_bits_ref(words, dim),))},
    )


def resample_cases(setting: Setting) -> Iterator[Case]:
    """Maps of 64 clips of 5 frames and 48 channels, half size up and full size down."""
    side, maps = (8, 16) if setting.small else (64, 64 * 5 * 48)
    half = side // 2
    for mode, source, target in (("bilinear", half, side), ("area", side, half)):
        size = (target, target)

        def apply(op: Callable, x: Tensor, size=size, mode=mode) -> tuple[Tensor]:
            return (op(x, size, mode),)

        def interpolate(x: Tensor, size=size, mode=mode) -> tuple[Tensor]:
            return (F.interpolate(x[None], size=size, mode=mode)[0],)

        yield Case(
            op="resample",
            name=f"{mode}, {source} to {target}, {maps} maps",
            num_bytes=maps * (source**2 + target**2) * setting.dtype.itemsize,
            flops=resample_flops(maps, (source, source), size, mode),
            make=lambda seed, side=source: random_tensors(setting, seed, [(maps, side, side)]),
            run=partial(apply, kernels.resample),
            expected=upcast(partial(apply, resample_ref)),
            torch_best={
                "interpolate": lambda run=interpolate: run,
                "compiled": compiled(partial(apply, resample_ref)),
            },
        )


def philox_cases(setting: Setting) -> Iterator[Case]:
    """The bits of the last scale of videoar-l for 64 requests, and many more."""
    shapes = ((2, 4),) if setting.small else ((64, 64), (256, 1024))
    for rows, tokens in shapes:

        def make(seed: int, rows=rows) -> tuple[Tensor, Tensor]:
            generator = torch.Generator(setting.device).manual_seed(seed)
            options = {"generator": generator, "device": setting.device, "dtype": torch.int64}
            seeds = torch.randint(-(2**62), 2**62, (rows,), **options)
            return seeds, torch.randint(0, 2**20, (rows,), **options)

        def apply(op: Callable, seeds, frames, tokens=tokens) -> tuple[Tensor]:
            return (op(seeds, frames, 5, tokens, 48),)

        def on_cpu(seeds, frames, apply=apply) -> tuple[Tensor]:
            return apply(philox_uniform_ref, seeds.cpu(), frames.cpu())

        yield Case(
            op="philox",
            name=f"{rows} requests, {tokens} tokens of 48",
            num_bytes=rows * (16 + tokens * 48 * 4),
            flops=0,
            make=make,
            run=partial(apply, kernels.philox_uniform),
            expected=on_cpu,
            torch_best={"compiled": compiled(partial(apply, philox_uniform_ref))},
            launch_bound=tokens < 1024,
        )
