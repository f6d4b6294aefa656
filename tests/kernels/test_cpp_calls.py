"""Which calls the C++ kernels serve, their instruction sets, and what the bindings refuse."""

import pytest
import torch

from videoar import _C
from videoar.kernels.dispatch import use_backend
from videoar.kernels.rms_norm import rms_norm, rms_norm_ref
from videoar.kernels.swiglu import swiglu

NORM_ARGUMENTS = {
    **dict.fromkeys(("x", "weight", "y"), 64),
    **dict.fromkeys(("residual", "s", "stride_residual", "dtype", "weight_dtype"), 0),
    "rows": 1,
    "width": 4,
    "stride_x": 4,
    "eps": 1e-6,
}
SWIGLU_ARGUMENTS = {
    **dict.fromkeys(("gate", "up", "y"), 64),
    "rows": 1,
    "width": 4,
    "stride_gate": 4,
    "stride_up": 4,
    "dtype": 0,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_reference_serves_other_dtypes_and_cpp_refuses_them(dtype):
    x, weight = torch.randn(3, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    assert torch.equal(rms_norm(x, weight), rms_norm_ref(x, weight))
    with use_backend("cpp"), pytest.raises(ValueError, match=rf"^rms_norm: .*computes .*{dtype}"):
        rms_norm(x, weight)


def test_reference_serves_what_autograd_records_and_cpp_refuses_it():
    x, weight = torch.randn(3, 8), torch.randn(8, requires_grad=True)
    assert rms_norm(x, weight).requires_grad
    with use_backend("cpp"):
        with pytest.raises(ValueError, match=r"^rms_norm: .*no backward"):
            rms_norm(x, weight)
        with torch.no_grad():
            assert not rms_norm(x, weight).requires_grad
        with torch.inference_mode():
            rms_norm(x, weight)


def test_a_tensor_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"^weight: expected on cpu, got on meta"):
        rms_norm(torch.ones(3, 8), torch.ones(8, device="meta"))
    with pytest.raises(ValueError, match=r"^up: expected on cpu, got on meta"):
        swiglu(torch.ones(3, 8), torch.ones(3, 8, device="meta"))


def test_instruction_sets():
    names = ["baseline", "avx2", "avx512", "avx512_bf16"]
    assert _C.isas() == names[: len(_C.isas())]
    assert _C.isa() == _C.isas()[-1]
    try:
        _C.set_isa("baseline")
        assert _C.isa() == "baseline"
    finally:
        _C.set_isa(names[len(_C.isas()) - 1])
    with pytest.raises(ValueError, match="no instruction set 'sse9'"):
        _C.set_isa("sse9")
    assert _C.isa() == _C.isas()[-1]


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("rms_norm", {"rows": -1}, "rows -1"),
        ("rms_norm", {"width": -4}, "width -4"),
        ("rms_norm", {"y": 0}, "y "),
        ("rms_norm", {"residual": 64}, "residual "),
        ("rms_norm", {"dtype": 7}, "dtype 7"),
        ("rms_norm", {"weight_dtype": -1}, "dtype -1"),
        ("swiglu", {"rows": -1}, "rows -1"),
        ("swiglu", {"up": 0}, "up "),
        ("swiglu", {"dtype": 2}, "dtype 2"),
    ],
)
def test_bindings_check_before_they_touch_memory(op, change, message):
    """Address 64 holds nothing: a kernel that went on would crash."""
    arguments = {"rms_norm": NORM_ARGUMENTS, "swiglu": SWIGLU_ARGUMENTS}[op]
    with pytest.raises(ValueError, match=rf"{op}\.cpp:\d+: .*{message}|dtype\.h:\d+: .*{message}"):
        getattr(_C, op)(**(arguments | change))


@pytest.mark.parametrize(
    "pairs",
    [[[0, 5], [4, 2]], [[20, 4], [0, 1]], [[-1, 3], [5, 1]], [[3, -1], [5, 1]]],
    ids=["overlap", "beyond the capacity", "before the cache", "negative length"],
)
def test_attention_binding_checks_segments(pairs):
    q, cache = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 23, 8)
    segments = torch.tensor([pairs], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cached_attention\.cpp:\d+: .*segments\[0\]"):
        _C.cached_attention(
            *(q.shape, cache.shape, 0, q.data_ptr(), q.stride()),
            *(cache.data_ptr(), cache.stride(), cache.data_ptr(), cache.stride()),
            *(segments.data_ptr(), 2, 1.0, q.data_ptr(), q.stride()),
        )
