// Registration of the backward passes and of the loss in videoar._C; see bindings.cpp.
#include "bindings.h"

#include <pybind11/stl.h>

#include "bitwise_cross_entropy.h"
#include "chunk_attention.h"
#include "qk_norm_rope.h"
#include "rms_norm.h"
#include "swiglu.h"

using namespace videoar;

namespace {

void bind_bitwise_cross_entropy(py::module_ &module) {
  // `loss` and `total`, or 0 for one of them.
  module.def(
      "bitwise_cross_entropy",
      [](Address x, Address bits, Address mask, int64_t rows, int64_t num_bits, int64_t stride_x,
         int64_t stride_bits, int dtype, Address loss, Address total) {
        bitwise_cross_entropy({pointer<const void>(x), pointer<const uint8_t>(bits),
                               pointer<const uint8_t>(mask), rows, num_bits, stride_x, stride_bits,
                               DType{dtype}},
                              pointer<float>(loss), pointer<double>(total));
      },
      py::arg("x"), py::arg("bits"), py::arg("mask"), py::arg("rows"), py::arg("num_bits"),
      py::arg("stride_x"), py::arg("stride_bits"), py::arg("dtype"), py::arg("loss"),
      py::arg("total"), Unlocked());
  module.def(
      "bitwise_cross_entropy_backward",
      [](Address x, Address bits, Address mask, int64_t rows, int64_t num_bits, int64_t stride_x,
         int64_t stride_bits, int dtype, Address grad, int64_t stride_grad, float same,
         Address grad_x) {
        bitwise_cross_entropy_backward(
            {pointer<const void>(x), pointer<const uint8_t>(bits), pointer<const uint8_t>(mask),
             rows, num_bits, stride_x, stride_bits, DType{dtype}},
            pointer<const float>(grad), stride_grad, same, pointer<void>(grad_x));
      },
      py::arg("x"), py::arg("bits"), py::arg("mask"), py::arg("rows"), py::arg("num_bits"),
      py::arg("stride_x"), py::arg("stride_bits"), py::arg("dtype"), py::arg("grad"),
      py::arg("stride_grad"), py::arg("same"), py::arg("grad_x"), Unlocked());
}

// Tensors are (address, strides), a sequence the fields of ChunkSequence.
using Tensor = std::pair<Address, Strides>;
using Sequence = std::array<int64_t, 9>;

ChunkAttention chunk_call(const Sequence &s, int64_t heads, int64_t groups, int64_t width,
                          int dtype, const Tensor &q, const Tensor &k, const Tensor &v,
                          const Tensor &out, Address lse, float scale) {
  ChunkAttention call{};
  call.sequence = {s[0],
                   s[1],
                   s[2],
                   pointer<const int64_t>(s[3]),
                   pointer<const int64_t>(s[4]),
                   pointer<const int64_t>(s[5]),
                   pointer<const uint8_t>(s[6]),
                   s[7],
                   s[8]};
  call.heads = heads, call.groups = groups, call.width = width, call.dtype = DType{dtype};
  call.q = pointer<const void>(q.first), call.q_strides = q.second;
  call.k = pointer<const void>(k.first), call.k_strides = k.second;
  call.v = pointer<const void>(v.first), call.v_strides = v.second;
  call.out = pointer<void>(out.first), call.out_strides = out.second;
  call.lse = pointer<float>(lse), call.scale = scale;
  return call;
}

void bind_chunk_attention(py::module_ &module) {
  module.def(
      "chunk_attention",
      [](Sequence sequence, int64_t heads, int64_t groups, int64_t width, int dtype, Tensor q,
         Tensor k, Tensor v, Tensor out, Address lse, float scale) {
        chunk_attention(
            chunk_call(sequence, heads, groups, width, dtype, q, k, v, out, lse, scale));
      },
      py::arg("sequence"), py::arg("heads"), py::arg("groups"), py::arg("width"), py::arg("dtype"),
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("scale"),
      Unlocked());
  // The first arguments are those of chunk_attention.
  module.def(
      "chunk_attention_backward",
      [](Sequence sequence, int64_t heads, int64_t groups, int64_t width, int dtype, Tensor q,
         Tensor k, Tensor v, Tensor out, Address lse, float scale, Tensor grad_out,
         Address grad_lse, Tensor grad_q, Tensor grad_k, Tensor grad_v) {
        ChunkAttentionBackward backward{};
        backward.call = chunk_call(sequence, heads, groups, width, dtype, q, k, v, out, lse, scale);
        backward.grad_out = pointer<const void>(grad_out.first);
        backward.grad_out_strides = grad_out.second;
        backward.grad_lse = pointer<const float>(grad_lse);
        backward.grad_q = pointer<void>(grad_q.first), backward.grad_q_strides = grad_q.second;
        backward.grad_k = pointer<void>(grad_k.first), backward.grad_k_strides = grad_k.second;
        backward.grad_v = pointer<void>(grad_v.first), backward.grad_v_strides = grad_v.second;
        chunk_attention_backward(backward);
      },
      py::arg("sequence"), py::arg("heads"), py::arg("groups"), py::arg("width"), py::arg("dtype"),
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("scale"),
      py::arg("grad_out"), py::arg("grad_lse"), py::arg("grad_q"), py::arg("grad_k"),
      py::arg("grad_v"), Unlocked());
}

void bind_qk_norm_rope_backward(py::module_ &module) {
  using Axes = std::array<int64_t, 3>;
  // The first arguments are those of qk_norm_rope, without its outputs.
  module.def(
      "qk_norm_rope_backward",
      [](Strides q_shape, int64_t groups, int dtype, Address q, Strides q_strides, Address k,
         Strides k_strides, Address positions, Axes position_strides, Axes sections,
         Address frequencies, Address q_weight, Address k_weight, int q_weight_dtype,
         int k_weight_dtype, float eps, Address grad_q, Strides grad_q_strides, Address grad_k,
         Strides grad_k_strides, Address dq, Address dk, Address grad_q_weight,
         Address grad_k_weight) {
        QkNormRopeBackward backward{};
        QkNormRope &call = backward.call;
        call.batch = q_shape[0], call.heads = q_shape[1], call.groups = groups;
        call.length = q_shape[2], call.width = q_shape[3], call.dtype = DType{dtype};
        call.q = pointer<const void>(q), call.q_strides = q_strides;
        call.k = pointer<const void>(k), call.k_strides = k_strides;
        call.positions = pointer<const int64_t>(positions);
        call.position_strides = position_strides, call.sections = sections;
        call.frequencies = pointer<const float>(frequencies);
        call.q_weight = pointer<const void>(q_weight), call.q_weight_dtype = DType{q_weight_dtype};
        call.k_weight = pointer<const void>(k_weight), call.k_weight_dtype = DType{k_weight_dtype};
        call.eps = eps;
        backward.grad_q = pointer<const void>(grad_q), backward.grad_q_strides = grad_q_strides;
        backward.grad_k = pointer<const void>(grad_k), backward.grad_k_strides = grad_k_strides;
        backward.dq = pointer<void>(dq), backward.dk = pointer<void>(dk);
        backward.grad_q_weight = pointer<float>(grad_q_weight);
        backward.grad_k_weight = pointer<float>(grad_k_weight);
        qk_norm_rope_backward(backward);
      },
      py::arg("q_shape"), py::arg("groups"), py::arg("dtype"), py::arg("q"), py::arg("q_strides"),
      py::arg("k"), py::arg("k_strides"), py::arg("positions"), py::arg("position_strides"),
      py::arg("sections"), py::arg("frequencies"), py::arg("q_weight"), py::arg("k_weight"),
      py::arg("q_weight_dtype"), py::arg("k_weight_dtype"), py::arg("eps"), py::arg("grad_q"),
      py::arg("grad_q_strides"), py::arg("grad_k"), py::arg("grad_k_strides"), py::arg("dq"),
      py::arg("dk"), py::arg("grad_q_weight"), py::arg("grad_k_weight"), Unlocked());
}

void bind_rms_norm_backward(py::module_ &module) {
  module.def(
      "rms_norm_backward",
      [](Address s, Address weight, Address grad_y, Address grad_s, Address grad_x,
         Address grad_weight, int64_t rows, int64_t width, int64_t stride_s, int64_t stride_y,
         int64_t stride_grad_s, float eps, int dtype, int weight_dtype) {
        rms_norm_backward(
            {pointer<const void>(s), pointer<const void>(weight), pointer<const void>(grad_y),
             pointer<const void>(grad_s), pointer<void>(grad_x), pointer<float>(grad_weight), rows,
             width, stride_s, stride_y, stride_grad_s, eps, DType{dtype}, DType{weight_dtype}});
      },
      py::arg("s"), py::arg("weight"), py::arg("grad_y"), py::arg("grad_s"), py::arg("grad_x"),
      py::arg("grad_weight"), py::arg("rows"), py::arg("width"), py::arg("stride_s"),
      py::arg("stride_y"), py::arg("stride_grad_s"), py::arg("eps"), py::arg("dtype"),
      py::arg("weight_dtype"), Unlocked());
}

void bind_swiglu_backward(py::module_ &module) {
  module.def(
      "swiglu_backward",
      [](Address gate, Address up, Address grad, Address grad_gate, Address grad_up, int64_t rows,
         int64_t width, int64_t stride_gate, int64_t stride_up, int64_t stride_grad, int dtype) {
        swiglu_backward({pointer<const void>(gate), pointer<const void>(up),
                         pointer<const void>(grad), pointer<void>(grad_gate),
                         pointer<void>(grad_up), rows, width, stride_gate, stride_up, stride_grad,
                         DType{dtype}});
      },
      py::arg("gate"), py::arg("up"), py::arg("grad"), py::arg("grad_gate"), py::arg("grad_up"),
      py::arg("rows"), py::arg("width"), py::arg("stride_gate"), py::arg("stride_up"),
      py::arg("stride_grad"), py::arg("dtype"), Unlocked());
}

} // namespace

void bind_training(py::module_ &module) {
  bind_bitwise_cross_entropy(module);
  bind_chunk_attention(module);
  bind_qk_norm_rope_backward(module);
  bind_rms_norm_backward(module);
  bind_swiglu_backward(module);
}
