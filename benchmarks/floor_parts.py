"""What the floor benchmark times: a clip of ours, its bare products and convolutions, other forms.

Every class is built untimed, warms up, and has a method that does the work of one clip once.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.benchmarks.eager import EagerVideoAR
from videoar.runtime.config import ModelConfig, TransformerConfig
from videoar.runtime.cost import Gemm, step_gemms
from videoar.runtime.folded_conv import ConvShape, PackedConv
from videoar.runtime.folded_plan import trace
from videoar.runtime.guidance import GuidanceSchedule
from videoar.runtime.job import Job
from videoar.runtime.modules import random_modules
from videoar.runtime.packed import PackedLinear
from videoar.runtime.pipeline import VideoAR
from videoar.runtime.requests import make_job
from videoar.runtime.transformer import Transformer
from videoar.runtime.video_tokenizer import Decoder, VideoTokenizer

Product = tuple[int, Callable[[Tensor], Tensor]]
"""Width of the input, and what multiplies it."""


def request(by_class: bool, index: int) -> dict[str, object]:
    """Arguments of the `index`-th clip: another prompt each time, so that its text is not known."""
    if by_class:
        return {"class_id": index % 100, "seed": index}
    colours = ("red", "green", "blue", "yellow")
    return {"prompt": f"a {colours[index % 4]} {index // 4 % 10} moving left", "seed": index}


def job_of(model: VideoAR, index: int, **options: int) -> Job:
    """The same clip as tokens."""
    by_class = model.config.transformer.condition == "class"
    return make_job(model.config, model.text_tokenizer, **request(by_class, index), **options)


class OurClip:
    """`VideoAR.generate`, with its own account of where the time went."""

    def __init__(self, model: VideoAR) -> None:
        self.model, self.calls = model, 0
        self.by_class = model.config.transformer.condition == "class"
        # Also decodes the prefix without a condition, which is kept, and a later frame.
        tau = model.config.tokenizer.temporal_compression
        self.run(num_frames=1 + tau)

    def run(self, **options: object) -> dict[str, float]:
        """Milliseconds: `transformer`, `decoder`, `total`."""
        self.calls += 1
        options = request(self.by_class, self.calls) | options
        timings = self.model.generate(**options).timings
        return {name: 1e3 * timings[name] for name in ("transformer", "decoder", "total")}


def rows_per_token(config: ModelConfig) -> int:
    """2 with guidance, else 1."""
    return 1 if GuidanceSchedule.parse(config.guidance).is_one() else 2


def gemm_flops(config: ModelConfig) -> int:
    """Of the decoding steps of a clip."""
    transformer, sequences = config.transformer, rows_per_token(config)
    rows = (sequences * height * width for height, width in transformer.sizes)
    frame = sum(gemm.flops for count in rows for gemm in step_gemms(transformer, count))
    return transformer.max_frames * frame


class BareGemms:
    """The matrix products of the decoding steps of a clip, in their order, and nothing else.

    Args:
        products: of one step.
    """

    def __init__(
        self, products: Sequence[Product], model_config: ModelConfig, dtype: torch.dtype
    ) -> None:
        self.products, self.config = products, model_config.transformer
        self.sequences, (height, width) = rows_per_token(model_config), self.config.sizes[-1]
        rows = self.sequences * height * width
        widths = {width for width, _ in products}
        self.inputs = {width: torch.randn(rows, width, dtype=dtype) for width in widths}
        self._frame()

    def run(self) -> None:
        for _ in range(self.config.max_frames):
            self._frame()

    @torch.inference_mode()
    def _frame(self) -> None:
        for height, width in self.config.sizes:
            rows = self.sequences * height * width
            inputs = {width: x[:rows] for width, x in self.inputs.items()}
            for size, product in self.products:
                product(inputs[size])


def own_products(transformer: Transformer) -> list[Product]:
    """Those of the model's own linear layers, whatever form they have."""
    modules = transformer.embed_bits, *transformer.layers.modules(), transformer.head
    return linear_products(modules)


def linear_products(modules: Iterable[nn.Module]) -> list[Product]:
    """Those of the linear layers among `modules`; layers that share a product count once."""
    products = {}
    for module in modules:
        if hasattr(module, "in_features"):
            product = getattr(module, "product", module)
            products[id(product)] = (module.in_features, product)
    return list(products.values())


def packed_products(config: TransformerConfig, dtype: torch.dtype) -> list[Product]:
    """Weights in oneDNN's own order, products of one input fused into one."""
    return _products(step_gemms(config, 1), dtype, onednn_linear)


def onednn_linear(weight: Tensor) -> PackedLinear:
    """The linear layer of a weight, packed in oneDNN's own order."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return PackedLinear.of(linear, panels=False)


def plain_products(config: TransformerConfig, dtype: torch.dtype) -> list[Product]:
    """`F.linear` on weights as a checkpoint has them, fused in the same way."""

    def plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
        weight = weight.clone()
        return lambda x: F.linear(x, weight)

    return _products(step_gemms(config, 1), dtype, plain)


def _products(
    gemms: Sequence[Gemm], dtype: torch.dtype, make: Callable[[Tensor], Callable[[Tensor], Tensor]]
) -> list[Product]:
    """Products of random weights, in the order of a step; each has memory of its own."""
    weights = {g.name: torch.randn(g.width_out, g.width_in, dtype=dtype) for g in gemms}
    first, *layer, last = gemms
    order = [first, *(gemm for _ in range(layer[0].count) for gemm in layer), last]
    return [(gemm.width_in, make(weights[gemm.name])) for gemm in order]


def conv_shapes(config: ModelConfig) -> tuple[list[ConvShape], list[ConvShape]]:
    """The streaming decoder's convolutions for the first latent frame, and for any later one."""
    with torch.device("meta"):
        layers = trace(Decoder(config.tokenizer), *config.transformer.sizes[-1])
    first, later = ([layer.shape(first) for layer in layers] for first in (True, False))
    return first, later


def conv_flops(config: ModelConfig) -> int:
    """Of a clip, as the streaming decoder runs it."""
    first, later = (sum(shape.flops for shape in shapes) for shapes in conv_shapes(config))
    return first + (config.transformer.max_frames - 1) * later


class BareConvs:
    """The convolutions of the streaming decoder for a clip, packed, and nothing else."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.frames = config.transformer.max_frames
        first, later = conv_shapes(config)
        shapes = [*first, *later]
        # Large maps lie in the same memory, as they do in the decoder.
        self.inputs = torch.randn(max(prod(s.input) for s in shapes), dtype=dtype)
        self.outputs = torch.zeros(max(prod(s.output) for s in shapes), dtype=dtype)
        self.first = [self._conv(shape, dtype) for shape in first]
        self.later = [self._conv(shape, dtype) for shape in later]
        self.frame(0)
        self.frame(1)

    def _conv(self, shape: ConvShape, dtype: torch.dtype) -> PackedConv:
        weight = torch.randn(shape.weight, dtype=dtype)
        bias = torch.zeros(shape.weight[0], dtype=dtype)
        return PackedConv(shape, weight, bias, dtype=dtype, device="cpu")

    def run(self) -> None:
        for frame in range(self.frames):
            self.frame(frame)

    @torch.inference_mode()
    def frame(self, number: int) -> None:
        """Those of one latent frame, numbered from 0."""
        for conv in self.later if number else self.first:
            x, out = conv.shape.input, conv.shape.output
            # Adding to what is there is the form without a pass to clear it.
            conv(self.inputs[: prod(x)].view(x), self.outputs[: prod(out)].view(out), add=True)


class PlainDecoder:
    """`VideoTokenizer.decode` of the whole clip, in a dtype of its own."""

    def __init__(
        self, tokenizer: VideoTokenizer, config: TransformerConfig, dtype: torch.dtype
    ) -> None:
        self.tokenizer = copy.deepcopy(tokenizer).to(dtype)
        shape = (1, config.latent_dim, config.max_frames, *config.sizes[-1])
        self.latents = torch.randn(shape, dtype=dtype)
        self._decode(self.latents[:, :, :1])

    def run(self) -> None:
        self._decode(self.latents)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> None:
        self.tokenizer.decode(latents)


class EagerClip:
    """`EagerVideoAR.generate` for the same prompts as ours, on weights of its own."""

    def __init__(self, model: VideoAR, dtype: torch.dtype) -> None:
        self.eager = EagerVideoAR(*random_modules(model.config, dtype, "cpu", 0))
        self.model, self.calls = model, 0
        self._generate(latent_frames=2)

    def run(self) -> None:
        self._generate(self.model.config.transformer.max_frames)

    def _generate(self, latent_frames: int) -> None:
        self.calls += 1
        job = job_of(self.model, self.calls)
        shot = job.shots[0]
        self.eager.generate(
            [shot.prefix],
            shot.null_prefix,
            latent_frames,
            guidance=job.params.guidance,
            temperature=job.params.temperature,
        )
