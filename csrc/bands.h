// Separable resampling as banded matrices (kernels/resample.py).
#pragma once

#include <cstdint>
#include <vector>

namespace videoar {

enum class ResampleMode : int { area = 0, bilinear = 1, nearest = 2 };

struct Grid {
  int64_t height;
  int64_t width;

  int64_t cells() const { return height * width; }
};

inline bool operator==(const Grid &a, const Grid &b) {
  return a.height == b.height && a.width == b.width;
}

// Throws std::invalid_argument for a side below 1 or above 2^30.
void check_grid(const char *name, const Grid &grid);

// One axis, as a kernel reads it: y[i] = sum_{a < taps} weights[i taps + a] x[starts[i] + a].
// Every starts[i] + taps is at most length_in; weights that a row does not use are zero.
struct Band {
  const int32_t *starts;
  const float *weights;
  int64_t taps;
  int64_t length_in;
  int64_t length_out;
};

// The matrix of one axis, or its transpose, with the weights of resample_matrix().
class BandTable {
public:
  // Throws std::invalid_argument for a length below 1 or above 2^30, or an unknown mode.
  BandTable(int64_t length_in, int64_t length_out, ResampleMode mode, bool transposed = false);

  Band view() const { return {starts_.data(), weights_.data(), taps_, length_in_, length_out_}; }

private:
  std::vector<int32_t> starts_;
  std::vector<float> weights_;
  int64_t taps_;
  int64_t length_in_;
  int64_t length_out_;
};

} // namespace videoar
