"""The convolutions of the fast decoder: upsampling folded into them, weights packed once.

Maps are `x_THWC`, channels last, which is what the convolutions of oneDNN and cuDNN read fastest.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def fold_upsample(weight: Tensor, temporal: bool) -> Tensor:
    """The kernels that make each phase of a x2 upsampled and convolved map from the small map.

    An output cell `2i + a` of a nearest x2 upsample and a 3-tap convolution reads two cells of the
    small map, `i - 1 + a` and `i + a`: taps that read the same cell are added, which is exact but
    for the rounding of the sums, in float32 or wider. In time, with one padding frame less in front
    (t -> 2t - 1), frame t of the small map makes two frames, both from frames t - 1 and t.

    Args:
        weight: `[out,in,3,3]`, or `[out,in,k,3,3]` with k taps over time.
        temporal: whether frames are repeated as well (k = 3).

    Returns:
        `[S,2,2,out,in,k',2,2]`: phases in time (S = 2 and k' = 2 if `temporal`, else S = 1 and
        k' = k), rows and columns. On a map padded by one on every side, the output of phase
        (s,a,b) at cell (i,j) is the product with the window that starts at cell (i + a, j + b).
    """
    if weight.dim() == 4:
        weight = weight[:, :, None]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    folded = _fold(_fold(weight, axis=-1), axis=-2)
    # Less padding in front makes the first frame of a pair what an odd cell is in space.
    return _fold(folded, axis=-3).flip(0) if temporal else folded[None]


def _fold(weight: Tensor, axis: int) -> Tensor:
    """Two taps on `axis` instead of three, on a new first axis: for the even and the odd cells."""
    a, b, c = weight.unbind(axis)
    return torch.stack([torch.stack(taps, axis) for taps in ((a, b + c), (a + b, c))])


def interleave(phases_THWC: Tensor, time: int, out: Tensor) -> Tensor:
    """Put the phases of a folded upsample where they belong.

    Args:
        phases_THWC: `[T,h+1,w+1,S 2 2 C]`, contiguous: what the folded kernels make of a map padded
            by one on every side.
        time: S, phases in time.
        out: `[T S,2h,2w,C]`, contiguous.
    """
    frames, rows, columns, channels = phases_THWC.shape
    C = out.shape[3]
    row = columns * channels
    # Axes T, S, i, a, j, b, C: phase (a,b) of cell (i,j) stands at cell (i + a, j + b).
    shape = (frames, time, rows - 1, 2, columns - 1, 2, C)
    strides = (rows * row, 4 * C, row, row + 2 * C, channels, channels + C, 1)
    out.view(shape).copy_(phases_THWC.as_strided(shape, strides))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvShape:
    """One convolution as it is run, stride 1.

    Attributes:
        weight: `(out,in,k,k)`, over frames as a batch, or `(out,in,taps,k,k)` over time.
        input: `(T,H,W,in)`, the carried frames in front included.
    """

    weight: tuple[int, ...]
    input: tuple[int, int, int, int]

    @property
    def padding(self) -> int:
        """Cells of zeros on every side of a map; there is none in time."""
        return self.weight[-1] // 2

    @property
    def output(self) -> tuple[int, int, int, int]:
        """`(T',H',W',out)`."""
        frames, height, width, _ = self.input
        taps = self.weight[2] if len(self.weight) == 5 else 1
        grown = 2 * self.padding - self.weight[-1] + 1
        return frames - taps + 1, height + grown, width + grown, self.weight[0]

    @property
    def flops(self) -> int:
        """Two for each product, those with the zeros of the padding included."""
        frames, height, width, out = self.output
        product = 2 * out
        for size in self.weight[1:]:
            product *= size
        return frames * height * width * product


class PackedConv:
    """A convolution whose weights lie as the device's library wants them.

    On a CPU they are packed by oneDNN for the given input, and the result is added by oneDNN itself
    to what stands in a given buffer, so that a call allocates nothing. Elsewhere torch's
    convolution allocates the result (inside a CUDA graph: once, in the graph's pool).

    Args:
        shape: as it will be run.
        weight: of `shape.weight`, any floating dtype.
        bias: `[out]`.
        dtype: of inputs, weights and results.
    """

    def __init__(
        self,
        shape: ConvShape,
        weight: Tensor,
        bias: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        assert tuple(weight.shape) == shape.weight, (weight.shape, shape)
        self.shape = shape
        spatial = len(shape.weight) == 4
        format = torch.channels_last if spatial else torch.channels_last_3d
        self._axes = (0, 3, 1, 2) if spatial else (3, 0, 1, 2)
        self.padding = [shape.padding] * 2 if spatial else [0, shape.padding, shape.padding]
        self.bias = bias.to(device, dtype)
        self.weight = weight.to(device, dtype).contiguous(memory_format=format)
        self.packed = packs_on(device, dtype)
        if self.packed:
            ones = [1] * len(self.padding)
            size = list(self._view(torch.empty(shape.input, device="meta")).shape)
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self.weight = pack(self.weight, self.padding, ones, ones, 1, size)
            self._arguments = (self.bias, self.padding, ones, ones, 1, "add", None, None, [], None)

    def _view(self, x_THWC: Tensor) -> Tensor:
        x = x_THWC.permute(self._axes)
        return x if len(self.padding) == 2 else x[None]

    def __call__(self, x_THWC: Tensor, out_THWC: Tensor, add: bool) -> Tensor:
        """`out + conv(x)` in place if `add`, else `conv(x)`, in `out` where the library can.

        Args:
            x_THWC: contiguous; any number of frames and any size.
            out_THWC: contiguous, of the result's shape.
        """
        if self.packed:
            out = out_THWC if add else out_THWC.zero_()
            accumulate = torch.ops.mkldnn._convolution_pointwise_.binary
            accumulate(self._view(out), self._view(x_THWC), self.weight, *self._arguments)
            return out
        convolve = F.conv2d if len(self.padding) == 2 else F.conv3d
        y = convolve(self._view(x_THWC), self.weight, self.bias, padding=self.padding)
        y_THWC = y.permute(0, 2, 3, 1) if y.dim() == 4 else y[0].permute(1, 2, 3, 0)
        return out_THWC.add_(y_THWC) if add else y_THWC.contiguous()


def packs_on(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether oneDNN serves this device and dtype."""
    if torch.device(device).type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
