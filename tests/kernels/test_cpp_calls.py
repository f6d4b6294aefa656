"""Which calls the C++ kernels serve, their instruction sets, and what the bindings refuse."""

import platform

import pytest
import torch

from videoar import _C
from videoar.kernels import qk_norm_rope_cpp, resample_matrix
from videoar.kernels.bitwise_cross_entropy import bitwise_cross_entropy
from videoar.kernels.dispatch import use_backend
from videoar.kernels.group_norm_silu import group_norm_silu
from videoar.kernels.next_scale import next_scale
from videoar.kernels.qk_norm_rope import qk_norm_rope
from videoar.kernels.resample import resample
from videoar.kernels.rms_norm import rms_norm, rms_norm_ref
from videoar.kernels.swiglu import swiglu

SIZES = ((1, 1), (2, 2))

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
NORM_BACKWARD_ARGUMENTS = {
    **dict.fromkeys(("s", "weight", "grad_y", "grad_s", "grad_x", "grad_weight"), 64),
    **dict.fromkeys(("stride_s", "stride_y", "stride_grad_s", "width"), 4),
    **dict.fromkeys(("dtype", "weight_dtype"), 0),
    "rows": 1,
    "eps": 1e-6,
}
SWIGLU_BACKWARD_ARGUMENTS = {
    **dict.fromkeys(("gate", "up", "grad", "grad_gate", "grad_up"), 64),
    **dict.fromkeys(("stride_gate", "stride_up", "stride_grad", "width"), 4),
    "rows": 1,
    "dtype": 0,
}
LOSS_ARGUMENTS = {
    **dict.fromkeys(("x", "bits", "loss", "total"), 64),
    **dict.fromkeys(("mask", "dtype"), 0),
    **dict.fromkeys(("num_bits", "stride_bits"), 4),
    "rows": 1,
    "stride_x": 8,
}
ROPE_BACKWARD_ARGUMENTS = {
    **dict.fromkeys(("q", "k", "positions", "frequencies", "q_weight", "k_weight"), 64),
    **dict.fromkeys(("grad_q", "grad_k", "dq", "dk", "grad_q_weight", "grad_k_weight"), 64),
    **dict.fromkeys(("q_strides", "k_strides", "grad_q_strides", "grad_k_strides"), (8, 8, 8, 1)),
    **dict.fromkeys(("dtype", "q_weight_dtype", "k_weight_dtype"), 0),
    "q_shape": (1, 1, 1, 8),
    "groups": 1,
    "position_strides": (0, 3, 1),
    "sections": (2, 1, 1),
    "eps": 1e-6,
}
ARGUMENTS = {
    "rms_norm": NORM_ARGUMENTS,
    "rms_norm_backward": NORM_BACKWARD_ARGUMENTS,
    "swiglu": SWIGLU_ARGUMENTS,
    "swiglu_backward": SWIGLU_BACKWARD_ARGUMENTS,
    "bitwise_cross_entropy": LOSS_ARGUMENTS,
    "qk_norm_rope_backward": ROPE_BACKWARD_ARGUMENTS,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_reference_serves_other_dtypes_and_cpp_refuses_them(dtype):
    x, weight = torch.randn(3, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    assert torch.equal(rms_norm(x, weight), rms_norm_ref(x, weight))
    with use_backend("cpp"), pytest.raises(ValueError, match=rf"^rms_norm: .*computes .*{dtype}"):
        rms_norm(x, weight)


def test_reference_serves_what_autograd_records_without_a_backward_and_cpp_refuses_it():
    x, weight, bias = torch.randn(3, 2, 2, 8, requires_grad=True), torch.ones(8), torch.zeros(8)
    assert group_norm_silu(x, weight, bias, 2).requires_grad
    with use_backend("cpp"):
        with pytest.raises(ValueError, match=r"^group_norm_silu: .*no backward"):
            group_norm_silu(x, weight, bias, 2)
        with torch.no_grad():
            assert not group_norm_silu(x, weight, bias, 2).requires_grad
        with torch.inference_mode():
            group_norm_silu(x, weight, bias, 2)


def recorded_calls():
    """Every op with a C++ backward, of float32 leaves of 8 channels; all are one function's x."""
    bits = torch.rand(2, 3, 5, 4) < 0.5
    positions = torch.arange(15).view(5, 3)

    def rope(x):
        return qk_norm_rope(x, x * 2, positions, sections=(2, 1, 1))[0]

    return {
        "rms_norm": lambda x: rms_norm(x, torch.ones(8)),
        "swiglu": lambda x: swiglu(x, x + 1),
        "qk_norm_rope": rope,
        "bitwise_cross_entropy": lambda x: bitwise_cross_entropy(x, bits),
    }


@pytest.mark.parametrize("op", recorded_calls())
def test_what_is_recorded_has_a_first_derivative_and_no_second(op):
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    call = recorded_calls()[op]
    with use_backend("cpp"):
        out = call(x)
        with torch.no_grad():
            plain = call(x)
    assert not plain.requires_grad
    assert torch.equal(out, plain)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_tensor_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"^weight: expected on cpu, got on meta"):
        rms_norm(torch.ones(3, 8), torch.ones(8, device="meta"))
    with pytest.raises(ValueError, match=r"^up: expected on cpu, got on meta"):
        swiglu(torch.ones(3, 8), torch.ones(3, 8, device="meta"))


def test_instruction_sets():
    arm = platform.machine() in ("aarch64", "arm64")
    x86 = ["baseline", "avx2", "avx512", "avx512_bf16"]
    names = ["neon", "neon_bf16"] if arm else x86
    assert _C.isas() == names[: len(_C.isas())]
    assert _C.isa() == _C.isas()[-1]
    try:
        _C.set_isa(names[0])
        assert _C.isa() == names[0]
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
        ("rms_norm_backward", {"rows": -1}, "rows -1"),
        ("rms_norm_backward", {"grad_y": 0}, "grad_y "),
        ("rms_norm_backward", {"weight_dtype": 3}, "dtype 3"),
        ("swiglu_backward", {"width": -4}, "width -4"),
        ("swiglu_backward", {"grad_up": 0}, "grad_up "),
        ("bitwise_cross_entropy", {"num_bits": -1}, "num_bits -1"),
        ("bitwise_cross_entropy", {"bits": 0}, "bits "),
        ("qk_norm_rope_backward", {"groups": -1}, "groups -1"),
        ("qk_norm_rope_backward", {"dq": 0}, "dq "),
        ("qk_norm_rope_backward", {"grad_k_strides": (8, 8, 8, 2)}, "grad_k 2 elements apart"),
        ("qk_norm_rope_backward", {"k_weight": 0}, "k_weight "),
        ("qk_norm_rope_backward", {"grad_q_weight": 0}, "grad_q_weight "),
        ("qk_norm_rope_backward", {"sections": (2, 2, 1)}, "sections 2, 2, 1"),
    ],
)
def test_bindings_check_before_they_touch_memory(op, change, message):
    """Address 64 holds nothing: a kernel that went on would crash."""
    file = op.removesuffix("_backward")
    pattern = rf"{file}\.cpp:\d+: .*{message}|dtype\.h:\d+: .*{message}"
    with pytest.raises(ValueError, match=pattern):
        getattr(_C, op)(**(ARGUMENTS[op] | change))


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


def float32_results() -> list[torch.Tensor]:
    """Of calls whose results are float32, whatever comes in, gradients of weights among them."""
    made = {"dtype": torch.float32, "device": "cpu"}
    x = torch.linspace(-2, 3, 48, **made).view(2, 3, 8).requires_grad_()
    weight = torch.linspace(0.5, 1.5, 8, **made).requires_grad_()
    bits = x.detach() > 0
    norm = rms_norm(x, weight)
    positions = torch.arange(18, device="cpu").view(2, 3, 3)
    scales = {"q_weight": weight, "k_weight": weight}
    turned = qk_norm_rope(x[:, None], x[:, None], positions, sections=(2, 1, 1), **scales)
    losses = bitwise_cross_entropy(x.detach().repeat(1, 1, 2), bits, reduction="none")
    step = next_scale(
        torch.linspace(-1, 1, 32, **made).view(2, 1, 16),
        torch.zeros(2, 8, 2, 2, **made),
        SIZES,
        0,
        seeds=torch.arange(2, device="cpu"),
        temperature=0.7,
    )
    gradients = torch.autograd.grad(norm.sum() + turned[0].sum() - turned[1].max(), (x, weight))
    scaled = resample(x.detach()[:, None].contiguous(), (5, 7), "area")
    return [norm.detach(), losses, *step, *gradients, scaled]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_do_not_take_the_default_dtype_or_device(dtype: torch.dtype) -> None:
    """C++ writes float32 into them."""
    expected = float32_results()
    kept = (resample_matrix._matrix, qk_norm_rope_cpp.frequencies)
    for function in kept:
        function.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            results = float32_results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [x.dtype for x in results] == [x.dtype for x in expected]
    assert all(map(torch.equal, results, expected))
