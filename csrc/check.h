// Argument checks: a failed one throws std::invalid_argument (ValueError in Python) that carries
// the file, the line, the condition and the offending values.
#pragma once

#include <sstream>
#include <stdexcept>

namespace videoar {

template <typename... Values>
[[noreturn]] void fail_check(const char *file, int line, const char *condition,
                             const Values &...values) {
  std::ostringstream message;
  message << file << ":" << line << ": check failed: " << condition << ": ";
  (message << ... << values);
  throw std::invalid_argument(message.str());
}

} // namespace videoar

#define VIDEOAR_CHECK(condition, ...)                                                              \
  do {                                                                                             \
    if (!(condition))                                                                              \
      ::videoar::fail_check(__FILE__, __LINE__, #condition, __VA_ARGS__);                          \
  } while (false)
