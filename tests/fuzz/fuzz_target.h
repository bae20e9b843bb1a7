#pragma once

#include "base/error.h"

namespace t2r::fuzz {

/// Stops the fuzzer, which keeps the input, when a promise is broken.
inline void demand(bool condition) {
  if (!condition) __builtin_trap();
}

/// Runs `action`, which may refuse its input with one of `Refusals`; anything else that it throws
/// ends the fuzzer.
template <class... Refusals, class Action>
void read_or_refuse(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    if (!(... || (dynamic_cast<const Refusals*>(&error) != nullptr))) throw;
  }
}

}  // namespace t2r::fuzz
