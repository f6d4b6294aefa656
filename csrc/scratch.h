// Memory for the intermediate values of a kernel, apart for every thread.
#pragma once

#include <cstdint>

namespace videoar {

// Threads of a parallel region.
int64_t thread_count();

// `floats` uninitialised values a thread, from a 64-byte boundary: one allocation, made before the
// parallel region in which the threads ask for mine().
class Scratch {
public:
  Scratch(int64_t floats, bool parallel);
  ~Scratch();
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;

  float *mine() const;

private:
  int64_t stride_;
  float *memory_;
};

} // namespace videoar
