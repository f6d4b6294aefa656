// The Python module videoar._C: registration only. Tensors arrive as addresses
// (`Tensor.data_ptr()`), so that the extension needs no libtorch; 0 stands for a missing one.
#include "bindings.h"

#include <pybind11/stl.h>

#include "bsq_quantize.h"
#include "cached_attention.h"
#include "decoding_layers.h"
#include "group_norm_silu.h"
#include "isa.h"
#include "next_scale.h"
#include "pack_bits.h"
#include "packed_linear.h"
#include "philox.h"
#include "qk_norm_rope.h"
#include "resample.h"
#include "rms_norm.h"
#include "swiglu.h"

using namespace videoar;

namespace {

void bind_bsq_quantize(py::module_ &module) {
  module.def(
      "bsq_quantize",
      [](Address x, Address flips, Address targets, Address bits, Address reconstruction,
         Address inputs, Address scale_inputs, int64_t batch, int64_t frames, int64_t num_bits,
         float code, int64_t stride_batch, int64_t stride_bit, int64_t stride_frame,
         int64_t stride_row, int64_t stride_column, int dtype,
         const std::vector<std::pair<int64_t, int64_t>> &sizes) {
        std::vector<Grid> grids;
        for (const auto &[height, width] : sizes)
          grids.push_back({height, width});
        bsq_quantize({pointer<const void>(x), pointer<const uint8_t>(flips),
                      pointer<uint8_t>(targets), pointer<uint8_t>(bits),
                      pointer<void>(reconstruction), pointer<void>(inputs),
                      pointer<float>(scale_inputs), batch, frames, num_bits, code, stride_batch,
                      stride_bit, stride_frame, stride_row, stride_column, DType{dtype}},
                     grids);
      },
      py::arg("x"), py::arg("flips"), py::arg("targets"), py::arg("bits"),
      py::arg("reconstruction"), py::arg("inputs"), py::arg("scale_inputs"), py::arg("batch"),
      py::arg("frames"), py::arg("num_bits"), py::arg("code"), py::arg("stride_batch"),
      py::arg("stride_bit"), py::arg("stride_frame"), py::arg("stride_row"),
      py::arg("stride_column"), py::arg("dtype"), py::arg("sizes"), Unlocked());
}

void bind_cached_attention(py::module_ &module) {
  // q_shape is [B,H,L,D], cache_shape [B,G,capacity,D].
  module.def(
      "cached_attention",
      [](Strides q_shape, Strides cache_shape, int dtype, Address q, Strides q_strides,
         Address k_cache, Strides k_strides, Address v_cache, Strides v_strides, Address segments,
         int64_t segments_of_row, float scale, Address out, Strides out_strides) {
        CachedAttention call{};
        call.batch = q_shape[0], call.heads = q_shape[1], call.groups = cache_shape[1];
        call.length = q_shape[2], call.width = q_shape[3], call.capacity = cache_shape[2];
        call.segments_of_row = segments_of_row, call.dtype = DType{dtype};
        call.q = pointer<const void>(q), call.q_strides = q_strides;
        call.k_cache = pointer<const void>(k_cache), call.k_strides = k_strides;
        call.v_cache = pointer<const void>(v_cache), call.v_strides = v_strides;
        call.segments = pointer<const int32_t>(segments), call.scale = scale;
        call.out = pointer<void>(out), call.out_strides = out_strides;
        cached_attention(call);
      },
      py::arg("q_shape"), py::arg("cache_shape"), py::arg("dtype"), py::arg("q"),
      py::arg("q_strides"), py::arg("k_cache"), py::arg("k_strides"), py::arg("v_cache"),
      py::arg("v_strides"), py::arg("segments"), py::arg("segments_of_row"), py::arg("scale"),
      py::arg("out"), py::arg("out_strides"), Unlocked());
}

std::vector<const void *> pointers(const std::vector<Address> &addresses) {
  std::vector<const void *> result;
  for (Address address : addresses)
    result.push_back(pointer<const void>(address));
  return result;
}

void bind_decoding_layers(py::module_ &module) {
  using Axes = std::array<int64_t, 3>;
  const auto build = [](int64_t width, int64_t heads, int64_t groups, int64_t head_dim,
                        int64_t mlp_width, int dtype, float eps, Axes sections, Address frequencies,
                        const std::vector<Address> &norms, const std::vector<Address> &q_norms,
                        const std::vector<Address> &k_norms,
                        const std::vector<std::array<Address, 4>> &weights, int64_t capacity_rows,
                        Address sum, Address normed, Address q, Address k, Address attended,
                        Address activated, Address product) {
    std::vector<LayerWeights> packed;
    for (const auto &[qkv, output, gate_up, down] : weights)
      packed.push_back({pointer<const void>(qkv), pointer<const void>(output),
                        pointer<const void>(gate_up), pointer<const void>(down)});
    return DecodingLayers({width,
                           heads,
                           groups,
                           head_dim,
                           mlp_width,
                           DType{dtype},
                           eps,
                           sections,
                           pointer<const float>(frequencies),
                           pointers(norms),
                           pointers(q_norms),
                           pointers(k_norms),
                           std::move(packed),
                           capacity_rows,
                           pointer<void>(sum),
                           pointer<void>(normed),
                           pointer<void>(q),
                           pointer<void>(k),
                           pointer<void>(attended),
                           pointer<void>(activated),
                           pointer<void>(product)});
  };
  const auto begin = [](DecodingLayers &self, int64_t batch, int64_t length, Address positions,
                        Axes position_strides, Address starts, Address segments,
                        int64_t segments_of_row, Address keys, Address values,
                        Strides cache_strides, int64_t layer_stride, int64_t capacity, Address x) {
    self.begin({batch, length, pointer<const int64_t>(positions), position_strides,
                pointer<const int64_t>(starts), pointer<const int32_t>(segments), segments_of_row,
                pointer<void>(keys), pointer<void>(values), cache_strides, layer_stride, capacity},
               pointer<const void>(x));
  };
  // Positional: these are called a hundred times a decoding step.
  py::class_<DecodingLayers>(module, "DecodingLayers")
      .def(py::init(build), py::kw_only(), py::arg("width"), py::arg("heads"), py::arg("groups"),
           py::arg("head_dim"), py::arg("mlp_width"), py::arg("dtype"), py::arg("eps"),
           py::arg("sections"), py::arg("frequencies"), py::arg("norms"), py::arg("q_norms"),
           py::arg("k_norms"), py::arg("weights"), py::arg("capacity_rows"), py::arg("sum"),
           py::arg("normed"), py::arg("q"), py::arg("k"), py::arg("attended"), py::arg("activated"),
           py::arg("product"))
      .def("begin", begin, Unlocked())
      .def("run", &DecodingLayers::run, Unlocked())
      .def(
          "attend",
          [](DecodingLayers &self, int64_t layer, Address qkv) {
            self.attend(layer, pointer<const void>(qkv));
          },
          Unlocked())
      .def(
          "add_norm",
          [](DecodingLayers &self, int64_t index, Address x) {
            self.add_norm(index, pointer<const void>(x));
          },
          Unlocked())
      .def(
          "activate",
          [](DecodingLayers &self, Address gate_up) {
            self.activate(pointer<const void>(gate_up));
          },
          Unlocked());
}

void bind_group_norm_silu(py::module_ &module) {
  module.def(
      "group_norm_silu",
      [](Address x, Address weight, Address bias, Address y, int64_t frames, int64_t pixels,
         int64_t width, int64_t groups, int64_t stride_x, int64_t stride_y, float eps, int dtype) {
        group_norm_silu({pointer<const void>(x), pointer<const float>(weight),
                         pointer<const float>(bias), pointer<void>(y), frames, pixels, width,
                         groups, stride_x, stride_y, eps, DType{dtype}});
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("frames"),
      py::arg("pixels"), py::arg("width"), py::arg("groups"), py::arg("stride_x"),
      py::arg("stride_y"), py::arg("eps"), py::arg("dtype"), Unlocked());
}

void bind_isa(py::module_ &module) {
  module.def("isa", &isa_name, "Instruction set that the kernels use.");
  module.def("isas", &isa_names, "Instruction sets this processor has, narrowest first.");
  module.def("set_isa", &set_isa, py::arg("name"), "Use one of `isas()` in the whole process.");
}

void bind_next_scale(py::module_ &module) {
  module.def(
      "next_scale",
      [](Address logits, Address uncond, Address accumulator, Address noise, Address seeds,
         Address frames, Address guidances, Address temperatures, Address bits, Address sum,
         Address inputs, Address failed, int64_t rows, int64_t num_bits, int64_t scale,
         int64_t frame, float guidance, float temperature, float code, int64_t height,
         int64_t width, int64_t full_height, int64_t full_width, int64_t next_height,
         int64_t next_width, int64_t logits_stride_row, int64_t logits_stride_token,
         int64_t uncond_stride_row, int64_t uncond_stride_token, int64_t bits_stride_row,
         int dtype) {
        next_scale({pointer<const void>(logits),
                    pointer<const void>(uncond),
                    pointer<const float>(accumulator),
                    pointer<const float>(noise),
                    pointer<const int64_t>(seeds),
                    pointer<const int64_t>(frames),
                    pointer<const float>(guidances),
                    pointer<const float>(temperatures),
                    pointer<uint8_t>(bits),
                    pointer<float>(sum),
                    pointer<float>(inputs),
                    pointer<uint8_t>(failed),
                    rows,
                    num_bits,
                    scale,
                    frame,
                    guidance,
                    temperature,
                    code,
                    {height, width},
                    {full_height, full_width},
                    {next_height, next_width},
                    logits_stride_row,
                    logits_stride_token,
                    uncond_stride_row,
                    uncond_stride_token,
                    bits_stride_row,
                    DType{dtype}});
      },
      py::arg("logits"), py::arg("uncond"), py::arg("accumulator"), py::arg("noise"),
      py::arg("seeds"), py::arg("frames"), py::arg("guidances"), py::arg("temperatures"),
      py::arg("bits"), py::arg("sum"), py::arg("inputs"), py::arg("failed"), py::arg("rows"),
      py::arg("num_bits"), py::arg("scale"), py::arg("frame"), py::arg("guidance"),
      py::arg("temperature"), py::arg("code"), py::arg("height"), py::arg("width"),
      py::arg("full_height"), py::arg("full_width"), py::arg("next_height"), py::arg("next_width"),
      py::arg("logits_stride_row"), py::arg("logits_stride_token"), py::arg("uncond_stride_row"),
      py::arg("uncond_stride_token"), py::arg("bits_stride_row"), py::arg("dtype"), Unlocked());
}

void bind_pack_bits(py::module_ &module) {
  module.def(
      "pack_bits",
      [](Address bits, Address words, int64_t rows, int64_t num_bits, int64_t stride_row) {
        pack_bits(pointer<const uint8_t>(bits), pointer<uint32_t>(words), rows, num_bits,
                  stride_row);
      },
      py::arg("bits"), py::arg("words"), py::arg("rows"), py::arg("num_bits"),
      py::arg("stride_row"), Unlocked());
  module.def(
      "unpack_bits",
      [](Address words, Address bits, int64_t rows, int64_t num_bits, int64_t stride_row) {
        unpack_bits(pointer<const uint32_t>(words), pointer<uint8_t>(bits), rows, num_bits,
                    stride_row);
      },
      py::arg("words"), py::arg("bits"), py::arg("rows"), py::arg("num_bits"),
      py::arg("stride_row"), Unlocked());
}

void bind_packed_linear(py::module_ &module) {
  module.attr("PANEL") = kPanel;
  module.def(
      "packed_linear",
      [](Address x, Address weight, Address y, int64_t rows, int64_t in, int64_t out, int dtype) {
        packed_linear({pointer<const void>(x), pointer<const void>(weight), pointer<void>(y), rows,
                       in, out, DType{dtype}});
      },
      py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("rows"), py::arg("in_features"),
      py::arg("out_features"), py::arg("dtype"), Unlocked());
}

void bind_philox(py::module_ &module) {
  module.def(
      "philox_uniform",
      [](Address seeds, Address frames, int64_t rows, int64_t scale, int64_t num_tokens,
         int64_t num_bits, Address out) {
        philox_uniform(pointer<const int64_t>(seeds), pointer<const int64_t>(frames), rows, scale,
                       num_tokens, num_bits, pointer<float>(out));
      },
      py::arg("seeds"), py::arg("frames"), py::arg("rows"), py::arg("scale"), py::arg("num_tokens"),
      py::arg("num_bits"), py::arg("out"), Unlocked());
}

void bind_qk_norm_rope(py::module_ &module) {
  using Axes = std::array<int64_t, 3>;
  // Shapes are [B,H,L,D], [B,G,L,D] and [B,G,capacity,D]; no cache write without `v`.
  module.def(
      "qk_norm_rope",
      [](Strides q_shape, int64_t groups, int dtype, Address q, Strides q_strides, Address k,
         Strides k_strides, Address q_out, Address k_out, Address positions, Axes position_strides,
         Axes sections, Address frequencies, Address q_weight, Address k_weight, int q_weight_dtype,
         int k_weight_dtype, float eps, Address v, Strides v_strides, Address k_cache,
         Strides k_cache_strides, Address v_cache, Strides v_cache_strides, int64_t capacity,
         int cache_dtype, Address starts, int64_t start) {
        QkNormRope call{};
        call.batch = q_shape[0], call.heads = q_shape[1], call.groups = groups;
        call.length = q_shape[2], call.width = q_shape[3], call.capacity = capacity;
        call.dtype = DType{dtype}, call.cache_dtype = DType{cache_dtype};
        call.q = pointer<const void>(q), call.q_strides = q_strides;
        call.k = pointer<const void>(k), call.k_strides = k_strides;
        call.q_out = pointer<void>(q_out), call.k_out = pointer<void>(k_out);
        call.positions = pointer<const int64_t>(positions);
        call.position_strides = position_strides, call.sections = sections;
        call.frequencies = pointer<const float>(frequencies);
        call.q_weight = pointer<const void>(q_weight), call.q_weight_dtype = DType{q_weight_dtype};
        call.k_weight = pointer<const void>(k_weight), call.k_weight_dtype = DType{k_weight_dtype};
        call.eps = eps;
        call.v = pointer<const void>(v), call.v_strides = v_strides;
        call.k_cache = pointer<void>(k_cache), call.k_cache_strides = k_cache_strides;
        call.v_cache = pointer<void>(v_cache), call.v_cache_strides = v_cache_strides;
        call.starts = pointer<const int64_t>(starts), call.start = start;
        qk_norm_rope(call);
      },
      py::arg("q_shape"), py::arg("groups"), py::arg("dtype"), py::arg("q"), py::arg("q_strides"),
      py::arg("k"), py::arg("k_strides"), py::arg("q_out"), py::arg("k_out"), py::arg("positions"),
      py::arg("position_strides"), py::arg("sections"), py::arg("frequencies"), py::arg("q_weight"),
      py::arg("k_weight"), py::arg("q_weight_dtype"), py::arg("k_weight_dtype"), py::arg("eps"),
      py::arg("v"), py::arg("v_strides"), py::arg("k_cache"), py::arg("k_cache_strides"),
      py::arg("v_cache"), py::arg("v_cache_strides"), py::arg("capacity"), py::arg("cache_dtype"),
      py::arg("starts"), py::arg("start"), Unlocked());
}

void bind_resample(py::module_ &module) {
  module.def(
      "resample",
      [](Address x, Address out, int64_t maps, int64_t height, int64_t width, int64_t out_height,
         int64_t out_width, int64_t stride_map, int64_t stride_row, int64_t stride_column, int mode,
         bool adjoint, int dtype) {
        resample({pointer<const void>(x),
                  pointer<void>(out),
                  maps,
                  {height, width},
                  {out_height, out_width},
                  stride_map,
                  stride_row,
                  stride_column,
                  ResampleMode{mode},
                  adjoint,
                  DType{dtype}});
      },
      py::arg("x"), py::arg("out"), py::arg("maps"), py::arg("height"), py::arg("width"),
      py::arg("out_height"), py::arg("out_width"), py::arg("stride_map"), py::arg("stride_row"),
      py::arg("stride_column"), py::arg("mode"), py::arg("adjoint"), py::arg("dtype"), Unlocked());
}

void bind_rms_norm(py::module_ &module) {
  module.def(
      "rms_norm",
      [](Address x, Address residual, Address weight, Address y, Address s, int64_t rows,
         int64_t width, int64_t stride_x, int64_t stride_residual, float eps, int dtype,
         int weight_dtype) {
        rms_norm({pointer<const void>(x), pointer<const void>(residual),
                  pointer<const void>(weight), pointer<void>(y), pointer<void>(s), rows, width,
                  stride_x, stride_residual, eps, DType{dtype}, DType{weight_dtype}});
      },
      py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("y"), py::arg("s"),
      py::arg("rows"), py::arg("width"), py::arg("stride_x"), py::arg("stride_residual"),
      py::arg("eps"), py::arg("dtype"), py::arg("weight_dtype"), Unlocked());
}

void bind_swiglu(py::module_ &module) {
  module.def(
      "swiglu",
      [](Address gate, Address up, Address y, int64_t rows, int64_t width, int64_t stride_gate,
         int64_t stride_up, int dtype) {
        swiglu({pointer<const void>(gate), pointer<const void>(up), pointer<void>(y), rows, width,
                stride_gate, stride_up, DType{dtype}});
      },
      py::arg("gate"), py::arg("up"), py::arg("y"), py::arg("rows"), py::arg("width"),
      py::arg("stride_gate"), py::arg("stride_up"), py::arg("dtype"), Unlocked());
}

} // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of videoar. Pointers are addresses of CPU memory.";
  bind_cached_attention(module);
  bind_bsq_quantize(module);
  bind_decoding_layers(module);
  bind_group_norm_silu(module);
  bind_isa(module);
  bind_next_scale(module);
  bind_pack_bits(module);
  bind_packed_linear(module);
  bind_philox(module);
  bind_qk_norm_rope(module);
  bind_resample(module);
  bind_rms_norm(module);
  bind_swiglu(module);
  bind_training(module);
}
