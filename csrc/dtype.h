// Element types of the kernels' tensors.
#pragma once

#include <cstdint>

#include "check.h"

namespace videoar {

// The upper half of a float32, as torch.bfloat16 stores it.
struct bf16 {
  uint16_t bits;
};

// Codes that the Python side passes (kernels/cpp.py).
enum class DType : int { float32 = 0, bfloat16 = 1 };

// function(T{}) with T the element type that `dtype` stands for.
template <typename Function> void with_type(DType dtype, Function &&function) {
  VIDEOAR_CHECK(dtype == DType::float32 || dtype == DType::bfloat16, "dtype ",
                static_cast<int>(dtype));
  if (dtype == DType::float32)
    function(float{});
  else
    function(bf16{});
}

} // namespace videoar
