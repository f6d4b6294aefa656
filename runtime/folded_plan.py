"""What the fast decoder runs in one step, and the memory that takes, from the sizes alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from videoar.runtime.causal import CausalConv, FrameNorm, ResidualBlock, Upsample
from videoar.runtime.config import TokenizerConfig
from videoar.runtime.folded_conv import ConvShape
from videoar.runtime.video_tokenizer import Decoder

# Buffers of a step: the residual stream stands in "a" or "b", "hidden" is between two convolutions
# of a block, "input" is what a convolution reads where that has to be put together.
LATENT, HIDDEN, INPUT = "latent", "hidden", "input"
_OTHER = {"a": "b", "b": "a"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution of the decoder with the norm in front and the upsample folded into it.

    Attributes:
        conv: with the weights, not folded.
        norm: GroupNorm, followed by SiLU, in front; None: there is none.
        source: buffer that is read.
        target: buffer that is written.
        adds: whether the result is added to the target.
        upsamples: (time, space) factors of the map in front of the convolution, 1 or 2.
        size: frames, height and width of the source in a steady step.
    """

    conv: CausalConv
    norm: FrameNorm | None
    source: str
    target: str
    adds: bool = False
    upsamples: tuple[int, int] = (1, 1)
    size: tuple[int, int, int]

    @property
    def past(self) -> int:
        """Frames carried from step to step: both outputs of a repeated frame need but one."""
        return 1 if self.upsamples[0] == 2 else self.conv.kernel_time - 1

    @property
    def gathers(self) -> bool:
        """Whether the convolution reads the input buffer and not the source itself."""
        return bool(self.past) or self.norm is not None or self.source == LATENT

    def shape(self, first: bool) -> ConvShape:
        """As it is run; the first frame of a stream has zeros in front, so one tap is enough."""
        out, width = self.conv.conv.weight.shape[:2]
        frames, *grid = self.size
        time, space = self.upsamples
        kernel = (2, 2) if space == 2 else (self.conv.kernel,) * 2
        out *= space**2
        if first:
            return ConvShape(weight=(out, width, *kernel), input=(1, *grid, width))
        taps = (self.past + 1,) if self.past else ()
        return ConvShape(
            weight=(out * time, width, *taps, *kernel), input=(self.past + frames, *grid, width)
        )

    def result(self, first: bool) -> tuple[int, int, int, int]:
        """`(T,H,W,C)` of the map that stands in the target, upsampled."""
        frames, *grid = self.size
        time, space = self.upsamples
        height, width = (space * side for side in grid)
        channels = self.conv.conv.weight.shape[0]
        return 1 if first else frames * time, height, width, channels


def trace(decoder: Decoder, height: int, width: int) -> list[Layer]:
    """The layers of a step on a latent grid, in the order in which they run."""
    trace = _Trace((1, height, width))
    trace.conv(decoder.conv_in, source=LATENT, target="a")
    trace.block(decoder.mid.block_1)
    trace.block(decoder.mid.block_2)
    for level in reversed(decoder.up):
        for block in level.block:
            trace.block(block)
        if hasattr(level, "upsample"):
            trace.upsample(level.upsample)
    trace.conv(decoder.conv_out, norm=decoder.norm_out, source=trace.stream, target=HIDDEN)
    return trace.layers


class _Trace:
    def __init__(self, size: tuple[int, int, int]) -> None:
        self.layers: list[Layer] = []
        self.size = size
        self.stream = "a"

    def conv(self, conv: CausalConv, norm: FrameNorm | None = None, **fields: object) -> None:
        self.layers.append(Layer(conv=conv, norm=norm, size=self.size, **fields))

    def block(self, block: ResidualBlock) -> None:
        self.conv(block.conv1, block.norm1, source=self.stream, target=HIDDEN)
        if hasattr(block, "nin_shortcut"):
            other = _OTHER[self.stream]
            self.conv(block.nin_shortcut, source=self.stream, target=other)
            self.stream = other
        self.conv(block.conv2, block.norm2, source=HIDDEN, target=self.stream, adds=True)

    def upsample(self, upsample: Upsample) -> None:
        factors = (2 if upsample.temporal else 1, 2)
        self.conv(upsample.conv, source=self.stream, target=self.stream, upsamples=factors)
        frames, height, width = self.size
        self.size = (factors[0] * frames, 2 * height, 2 * width)


def buffer_sizes(layers: Iterable[Layer]) -> dict[str, int]:
    """Elements of each buffer."""
    sizes = {"a": 0, "b": 0, HIDDEN: 0, INPUT: 0}
    for layer in layers:
        shape = layer.shape(first=False)
        needed = {layer.target: prod(layer.result(first=False))}
        if layer.upsamples[1] == 2:
            needed[HIDDEN] = prod(shape.output)
        if layer.gathers:
            needed[INPUT] = prod(shape.input)
        for name, elements in needed.items():
            sizes[name] = max(sizes[name], elements)
    return sizes


def carried_shape(layer: Layer) -> tuple[int, int, int, int]:
    """`(past,H,W,C)` of what a stream keeps for one layer."""
    return layer.past, *layer.size[1:], layer.conv.conv.weight.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderMemory:
    """Bytes of a fast decoder.

    Attributes:
        weights: of the convolutions, for the first and for later frames, biases left out.
        workspace: all that a step writes, shared by all streams. On CUDA, torch's allocator holds a
            part of it.
        state: what one stream carries from step to step.
    """

    weights: int
    workspace: int
    state: int


def decoder_memory(
    config: TokenizerConfig, height: int, width: int, dtype: torch.dtype
) -> DecoderMemory:
    """What a `FastDecoder` on a latent grid of `height` x `width` will hold; creates nothing."""
    with torch.device("meta"):
        layers = trace(Decoder(config), height, width)
    return memory_of(layers, dtype)


def memory_of(layers: list[Layer], dtype: torch.dtype) -> DecoderMemory:
    """The same for traced layers."""
    shapes = [layer.shape(first) for layer in layers for first in forms(layer)]
    # conv_out's channels are the pixels of a patch: as float32 and as uint8 behind the step.
    pixels = prod(layers[-1].result(first=False))
    return DecoderMemory(
        weights=dtype.itemsize * sum(prod(shape.weight) for shape in shapes),
        workspace=dtype.itemsize * sum(buffer_sizes(layers).values()) + 5 * pixels,
        state=dtype.itemsize * sum(prod(carried_shape(layer)) for layer in layers),
    )


def forms(layer: Layer) -> tuple[bool, ...]:
    """The forms of a layer with weights of their own: (first or not)."""
    return (True, False) if layer.past else (False,)
