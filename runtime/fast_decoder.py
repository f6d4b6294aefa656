"""The tokenizer's decoder for streaming: one latent frame a step, in memory that never grows.

It computes what `Decoder.step` computes (runtime/video_tokenizer.py, its reference), from the same
weights, in another form (arXiv 2601.05966, section 3, gives the network):

- maps are channels last, `x_THWC`; a convolution over time reads the carried frames and the new
  ones from one buffer, into which the operation in front writes;
- every nearest upsample is folded into the convolution behind it (runtime/folded_conv.py);
- GroupNorm and SiLU are one operation; the residual is added by the convolution;
- the first frame of a stream has only zeros in front, so it takes the last tap alone.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from videoar.kernels.group_norm_silu import group_norm_silu
from videoar.runtime.folded_conv import ConvShape, PackedConv, fold_upsample, interleave
from videoar.runtime.folded_plan import (
    HIDDEN,
    INPUT,
    LATENT,
    Layer,
    buffer_sizes,
    carried_shape,
    decoder_memory,
    forms,
    memory_of,
    trace,
)
from videoar.runtime.memory import check_fits
from videoar.runtime.video_tokenizer import Decoder

__all__ = ["DecoderState", "FastDecoder", "decoder_memory"]


@dataclass(slots=True, kw_only=True)
class DecoderState:
    """What one stream carries from step to step.

    Attributes:
        carried: for each layer, `[past,H,W,C]`: the last frames that its convolution read.
        started: whether a frame was decoded since the stream began.
    """

    carried: list[Tensor]
    started: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all carried frames."""
        return sum(frames.nbytes for frames in self.carried)


class FastDecoder:
    """A `Decoder` on one latent grid, dtype and device. One step at a time, by one thread.

    Args:
        decoder: the weights; they are copied.
        dtype: of weights and maps: float32 or bfloat16 (on a GPU also float16).
        device: where it runs.
        height, width: of the latent grid.

    Raises:
        ValueError: a grid without cells, or another dtype.
        CapacityError: weights and workspace do not fit into the device's memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        height: int,
        width: int,
    ) -> None:
        for name, side in (("height", height), ("width", width)):
            if side < 1:
                raise ValueError(f"{name}: at least 1 latent cell, got {side}")
        self.device, self.dtype = torch.device(device), dtype
        half = (torch.float16,) if self.device.type != "cpu" else ()
        if dtype not in (torch.float32, torch.bfloat16, *half):
            raise ValueError(f"dtype: the decoder on {device} cannot compute {dtype}")
        self.config = decoder.config
        self.latent_shape = (decoder.config.latent_dim, height, width)
        self._layers = trace(decoder, height, width)
        self.memory = memory_of(self._layers, dtype)
        needed = self.memory.weights + self.memory.workspace
        check_fits("the tokenizer's decoder", needed, self.device)
        self._buffers = {
            name: torch.empty(elements, dtype=dtype, device=self.device)
            for name, elements in buffer_sizes(self._layers).items()
        }
        self._steps = [_Step(layer, self._buffers) for layer in self._layers]
        frames, rows, columns, channels = self._layers[-1].result(first=False)
        patch = self.config.patch_size
        shape = (frames, rows * patch, columns * patch, channels // patch**2)
        self._pixels = torch.empty(shape, dtype=torch.float32, device=self.device)
        self._frames = torch.empty(shape, dtype=torch.uint8, device=self.device)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the buffers that all streams share."""
        buffers = (*self._buffers.values(), self._pixels, self._frames)
        return sum(buffer.nbytes for buffer in buffers)

    def convs(self, first: bool = False) -> list[ConvShape]:
        """The convolutions of one step in order, of the first step of a stream or a later one."""
        return [layer.shape(first) for layer in self._layers]

    def new_state(self) -> DecoderState:
        """A stream at its start.

        Raises:
            CapacityError: it does not fit into the device's memory.
        """
        check_fits("a stream of the tokenizer's decoder", self.memory.state, self.device)
        shapes = map(carried_shape, self._layers)
        zeros = [torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes]
        return DecoderState(carried=zeros)

    def reset(self, state: DecoderState) -> None:
        """Put a stream at its start; what it carried is not read again."""
        state.started = False

    def step(self, latent_frame: Tensor, state: DecoderState) -> Tensor:
        """The next pixel frames of a stream, as `to_pixels` would give them.

        No value is read by the host: inside a CUDA graph, a capture with `state.started` false
        holds the first step of a stream, one with true holds any later one.

        Args:
            latent_frame: `[d,h,w]`, floating.
            state: of this stream; changed in place.

        Returns:
            uint8 `[n,H,W,3]`, n = 1 at the start of a stream and tau later: a view of the
            workspace, valid until the next step of any stream.

        Raises:
            ValueError: a latent frame of another shape.
        """
        pixels = self.decode(latent_frame, state)
        pixels.clamp_(-1, 1).add_(1).mul_(127.5).round_()
        return self._frames[: len(pixels)].copy_(pixels)

    @torch.no_grad()
    def decode(self, latent_frame: Tensor, state: DecoderState) -> Tensor:
        """As `step`, but float32 `[n,H,W,3]`, about -1 to 1 and not clamped."""
        if tuple(latent_frame.shape) != self.latent_shape:
            got = tuple(latent_frame.shape)
            raise ValueError(f"latent_frame: expected {self.latent_shape}, got {got}")
        first = not state.started
        maps = {LATENT: latent_frame.permute(1, 2, 0)[None]}
        for step, carried in zip(self._steps, state.carried, strict=True):
            maps[step.target] = step.run(maps, carried, first)
        state.started = True
        return self._to_pixels(maps[HIDDEN])

    def _to_pixels(self, x_THWC: Tensor) -> Tensor:
        """Unfold the patches; float32."""
        patch = self.config.patch_size
        frames, rows, columns, channels = x_THWC.shape
        colours = channels // patch**2
        x = x_THWC.view(frames, rows, columns, colours, patch, patch).permute(0, 1, 4, 2, 5, 3)
        pixels = self._pixels[:frames]
        pixels.view(frames, rows, patch, columns, patch, colours).copy_(x)
        return pixels


class _Form:
    """What a layer reads and writes in the first step of a stream or in later ones.

    The views are made once: a step makes hundreds, in a Python whose own data the maps, streaming
    through the caches, have pushed out.

    Attributes:
        conv: with the weights of the form.
        target: `[T,H,W,C]`, the map that stands in the target afterwards.
        inputs: what the convolution reads where that is put together; None: the source itself.
        new: the part of `inputs` behind the carried frames.
        past: the part in front; None: the form reads no carried frames.
        last: the part of `inputs` that the next step reads again.
        phases: where the result of a folded upsample stands before it is interleaved, else None.
        time: phases in time.
    """

    def __init__(
        self, layer: Layer, first: bool, conv: PackedConv, buffers: dict[str, Tensor]
    ) -> None:
        shape, past = layer.shape(first), 0 if first else layer.past
        self.conv = conv
        self.target = _view(buffers[layer.target], layer.result(first))
        self.inputs = self.new = self.past = self.last = self.phases = None
        if layer.gathers:
            self.inputs = _view(buffers[INPUT], shape.input)
            self.new = self.inputs[past:]
        if past:
            self.past, self.last = self.inputs[:past], self.inputs[-past:]
        if layer.upsamples[1] == 2:
            self.phases = _view(buffers[HIDDEN], shape.output)
        self.time = 1 if first else layer.upsamples[0]


class _Step:
    """A layer with its weights and views."""

    def __init__(self, layer: Layer, buffers: dict[str, Tensor]) -> None:
        self.source, self.target, self.adds = layer.source, layer.target, layer.adds
        self.carries = layer.past > 0
        buffer = buffers[layer.target]
        dtype, device = buffer.dtype, buffer.device
        bias = layer.conv.conv.bias.detach()
        weights = _weights(layer)
        convs = {
            first: PackedConv(
                layer.shape(first),
                weights[first],
                bias.repeat(weights[first].shape[0] // bias.shape[0]),
                dtype=dtype,
                device=device,
            )
            for first in forms(layer)
        }
        self.forms = {
            first: _Form(layer, first, convs[first and self.carries], buffers)
            for first in (True, False)
        }
        self.norm = None
        if layer.norm is not None:
            norm = layer.norm.norm
            parameters = (norm.weight, norm.bias)
            self.affine = [t.detach().to(device, torch.float32, copy=True) for t in parameters]
            self.norm = {"groups": norm.num_groups, "eps": norm.eps}

    def run(self, maps: dict[str, Tensor], carried: Tensor, first: bool) -> Tensor:
        """Make the target from the source; keep the frames that the next step reads again."""
        form, x = self.forms[first], maps[self.source]
        if form.inputs is not None:
            self._gather(x, form, carried)
            x = form.inputs
        if form.phases is None:
            return form.conv(x, maps[self.target] if self.adds else form.target, self.adds)
        return interleave(form.conv(x, form.phases, add=False), form.time, form.target)

    def _gather(self, x_THWC: Tensor, form: _Form, carried: Tensor) -> None:
        """The carried frames and behind them the new ones, normalised where there is a norm."""
        if self.norm is None:
            form.new.copy_(x_THWC)
        else:
            group_norm_silu(x_THWC, *self.affine, **self.norm, out=form.new)
        if form.past is not None:
            form.past.copy_(carried)
            carried.copy_(form.last)
        elif self.carries:
            carried[:-1].zero_()
            carried[-1:].copy_(form.new)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: prod(shape)].view(shape)


def _weights(layer: Layer) -> dict[bool, Tensor]:
    """Of the first form and of the steady one, as `Layer.shape` says."""
    weight = layer.conv.conv.weight.detach()
    time, space = layer.upsamples
    if space == 2:
        folded = fold_upsample(weight, time == 2)
        # A stream starts with the second frame of a pair, whose last tap reads the new frame.
        first, weight = folded[-1].flatten(0, 2), folded.flatten(0, 3)
    else:
        first = weight
    if layer.past:
        return {True: first[:, :, -1], False: weight}
    return {False: weight if weight.dim() == 4 else weight[:, :, 0]}
