"""Bilinear sampling of maps inside a Triton kernel, for `next_scale` and `bsq_quantize`.

The weights are those of `resample_matrix(..., "bilinear")`: the source coordinate
(i + 1/2) in / out - 1/2 is the exact fraction ((2i + 1) in - out) / (2 out), whose integer part and
rest are found in integers and divided once.
"""

from videoar.kernels.jit import jit, tl


@jit
def bilinear_taps(index, length_in, length_out):
    """Lower and upper source index of a target index, and the weight of the upper."""
    numerator = tl.maximum((2 * index + 1) * length_in - length_out, 0)
    lower = numerator // (2 * length_out)
    rest = (numerator - lower * (2 * length_out)).to(tl.float32)
    # An IEEE division is a call that costs registers; this corrects the fast one to its rounding.
    whole = tl.cast(2 * length_out, tl.float32)
    inverse = 1.0 / whole
    weight = rest * inverse
    weight = tl.fma(tl.fma(-weight, whole, rest), inverse, weight)
    return lower, tl.minimum(lower + 1, length_in - 1), weight


@jit
def load_bilinear(
    base_ptr,
    offs_d,
    mask_d,
    cell,
    mask_n,
    height_in,
    width_in,
    height_out,
    width_out,
    stride_cell,
    gain,
    shift,
):
    """Values `gain v + shift` of maps `[height_in, width_in]` in memory at cells of another grid.

    `offs_d` [D] are the offsets of the first cells of D maps from `base_ptr`, in 32 bits; the next
    cell is `stride_cell` further; `cell` [N] counts the target grid row by row. Returns float32
    [N, D], four loads each.
    """
    row = cell // width_out
    top, bottom, weight_h = bilinear_taps(row, height_in, height_out)
    left, right, weight_w = bilinear_taps(cell - row * width_out, width_in, width_out)
    mask = mask_n[:, None] & mask_d[None, :]
    top, bottom, offs = (top * width_in)[:, None], (bottom * width_in)[:, None], offs_d[None, :]
    left, right = left[:, None], right[:, None]
    top_left = tl.load(base_ptr + (offs + (top + left) * stride_cell), mask=mask, other=0)
    bottom_left = tl.load(base_ptr + (offs + (bottom + left) * stride_cell), mask=mask, other=0)
    top_right = tl.load(base_ptr + (offs + (top + right) * stride_cell), mask=mask, other=0)
    bottom_right = tl.load(base_ptr + (offs + (bottom + right) * stride_cell), mask=mask, other=0)
    upper, lower = (1.0 - weight_h)[:, None], weight_h[:, None]
    on_left = (top_left.to(tl.float32) * gain + shift) * upper + (
        bottom_left.to(tl.float32) * gain + shift
    ) * lower
    on_right = (top_right.to(tl.float32) * gain + shift) * upper + (
        bottom_right.to(tl.float32) * gain + shift
    ) * lower
    return on_left * (1.0 - weight_w)[:, None] + on_right * weight_w[:, None]
