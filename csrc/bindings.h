// What the files that register kernels in videoar._C share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

using Address = uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename T> T *pointer(Address address) { return reinterpret_cast<T *>(address); }

// The kernels that only training calls (bindings_training.cpp).
void bind_training(py::module_ &module);
