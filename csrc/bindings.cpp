// The Python module videoar._C: registration only. Tensors arrive as addresses
// (`Tensor.data_ptr()`), so that the extension needs no libtorch.
#include <pybind11/pybind11.h>

#include "philox.h"

namespace py = pybind11;

namespace {

template <typename T> T *pointer(uintptr_t address) { return reinterpret_cast<T *>(address); }

} // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of videoar. Pointers are addresses of contiguous CPU memory.";

  module.def(
      "philox_uniform",
      [](uintptr_t seeds, uintptr_t frames, int64_t rows, int64_t scale, int64_t num_tokens,
         int64_t num_bits, uintptr_t out) {
        videoar::philox_uniform(pointer<const int64_t>(seeds), pointer<const int64_t>(frames), rows,
                                scale, num_tokens, num_bits, pointer<float>(out));
      },
      py::arg("seeds"), py::arg("frames"), py::arg("rows"), py::arg("scale"), py::arg("num_tokens"),
      py::arg("num_bits"), py::arg("out"), py::call_guard<py::gil_scoped_release>());
}
