#include "scratch.h"

#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace videoar {
namespace {

constexpr int64_t kFloatsOfLine = 16;
constexpr std::align_val_t kLine{64};

#ifdef _OPENMP
int64_t thread_index() { return omp_get_thread_num(); }
#else
int64_t thread_index() { return 0; }
#endif

} // namespace

#ifdef _OPENMP
int64_t thread_count() { return omp_get_max_threads(); }
#else
int64_t thread_count() { return 1; }
#endif

Scratch::Scratch(int64_t floats, bool parallel)
    : stride_((floats + kFloatsOfLine - 1) / kFloatsOfLine * kFloatsOfLine) {
  const int64_t total = stride_ * (parallel ? thread_count() : 1);
  memory_ = static_cast<float *>(::operator new(sizeof(float) * total, kLine));
}

Scratch::~Scratch() { ::operator delete(memory_, kLine); }

float *Scratch::mine() const { return memory_ + stride_ * thread_index(); }

} // namespace videoar
