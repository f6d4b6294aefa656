"""The C++ kernel of `resample` and its adjoint: float64, instruction sets, threads, strides."""

import pytest
import torch

from videoar import _C
from videoar.kernels.dispatch import use_backend
from videoar.kernels.resample import (
    resample,
    resample_adjoint,
    resample_adjoint_ref,
    resample_ref,
)
from videoar.kernels.resample_matrix import MODES

pytestmark = pytest.mark.usefixtures("poisoned")
SHAPES = [((8, 8), (4, 4)), ((8, 8), (3, 3)), ((5, 7), (2, 3)), ((3, 3), (8, 8)), ((2, 5), (4, 9))]
SHAPES += [((1, 1), (6, 4)), ((17, 63), (5, 13)), ((4, 4), (1, 1)), ((24, 42), (9, 16))]
SHAPES += [((64, 64), (7, 9)), ((1, 130), (3, 1)), ((4, 7), (4, 3)), ((64, 63), (63, 64))]


@pytest.fixture(autouse=True)
def cpp():
    with use_backend("cpp"):
        yield


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("maps", [1, 16, 21])
def test_float32_against_float64(source, target, mode, maps, assert_near):
    # Positive, for a sum that cancels has no relative precision.
    x, g = torch.rand(maps, *source), torch.rand(maps, *target)
    assert_near(resample(x, target, mode), resample_ref(x.double(), target, mode))
    expected = resample_adjoint_ref(g.double(), source, mode)
    assert_near(resample_adjoint(g, source, mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_rounded_once(mode):
    x = torch.randn(2, 9, 5, 7).bfloat16()
    assert torch.equal(resample(x, (3, 9), mode), resample(x.float(), (3, 9), mode).bfloat16())
    adjoint = resample_adjoint(x.float(), (6, 3), mode)
    assert torch.equal(resample_adjoint(x, (6, 3), mode), adjoint.bfloat16())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_maps(mode, dtype):
    x = torch.randn(3, 7, 6, 5).to(dtype)
    views = [x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)]
    views += [x.mT.contiguous().mT, x.repeat_interleave(2, 1)[:, ::2], x[:1].expand(3, 7, 6, 5)]
    for view in views:
        assert torch.equal(resample(view, (4, 8), mode), resample(view.clone(), (4, 8), mode))


@pytest.mark.parametrize("maps", [40, 700])
def test_every_instruction_set_and_thread_count_agree(maps, on_every_cpu):
    """700 maps are enough work for several threads."""
    x = torch.randn(maps, 33, 34)
    for mode in MODES:
        for function in (resample, resample_adjoint):
            first, *others = on_every_cpu(lambda f=function, m=mode: f(x, (30, 39), m))
            assert all(torch.equal(first, other) for other in others)


def test_a_map_does_not_depend_on_its_neighbours():
    x = torch.randn(37, 9, 4)
    x[5] = torch.nan
    whole = resample(x, (4, 9), "area")
    for m in (0, 4, 6, 36):
        assert torch.equal(whole[m], resample(x[m], (4, 9), "area"))


def test_nearest_is_exact():
    x = torch.randn(18, 5, 9)
    assert torch.equal(resample(x, (10, 3), "nearest"), resample_ref(x, (10, 3), "nearest"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": -1}, "maps -1"),
        ({"height": 0}, "from 0 x 1"),
        ({"out_width": 2**31}, "to 1 x 2147483648"),
        ({"mode": 3}, "mode 3"),
        ({"x": 0}, "x 0"),
        ({"dtype": 9}, "dtype 9"),
    ],
)
def test_extension_names_file_line_and_values(change, message):
    x, out = torch.zeros(1), torch.zeros(1)
    arguments = {
        **dict.fromkeys(("maps", "height", "width", "out_height", "out_width"), 1),
        **dict.fromkeys(("stride_map", "stride_row", "stride_column"), 1),
        **dict.fromkeys(("mode", "dtype"), 0),
        "x": x.data_ptr(),
        "out": out.data_ptr(),
        "adjoint": False,
    }
    _C.resample(**arguments)
    with pytest.raises(ValueError, match=rf"\.(cpp|h):\d+: .*{message}"):
        _C.resample(**{**arguments, **change})
