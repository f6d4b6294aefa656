// When a kernel shares its work among threads.
#pragma once

namespace videoar {

// Waking threads that sleep takes tens of microseconds. Between the operations of one decoding step
// they wait awake, for about a microsecond, and a piece of work this much smaller pays.
constexpr int kAwake = 32;

// `least` is the work from which waking others costs less than it saves.
template <typename Work> bool shares(Work work, Work least, bool awake) {
  return work >= (awake ? least / kAwake : least);
}

} // namespace videoar
