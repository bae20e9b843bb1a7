#pragma once

#include <exception>
#include <string>

#include "base/error.h"
#include "dist/communicator.h"

namespace t2r::launch {

/// What went wrong on this rank, if anything: exit code 0 means nothing.
struct LocalOutcome {
  int exit_code = 0;
  std::string message;
};

/// Runs `action` and catches what it throws.
template <class Action>
LocalOutcome attempt(const Action& action) {
  try {
    action();
    return {};
  } catch (const Error& error) {
    return {static_cast<int>(error.exit_code()), error.what()};
  } catch (const std::exception& error) {
    return {static_cast<int>(ExitCode::kInternal), error.what()};
  }
}

/// The first rank's failure, or exit code 0: the same on every rank. Collective: every rank, same
/// order.
LocalOutcome agree(dist::Communicator& communicator, const LocalOutcome& outcome);

/// Runs `action` on every rank and throws on all of them if it throws on any. Collective: every
/// rank, same order.
template <class Action>
void on_all_ranks(dist::Communicator& communicator, const Action& action) {
  const LocalOutcome first = agree(communicator, attempt(action));
  if (first.exit_code != 0) throw Error(static_cast<ExitCode>(first.exit_code), first.message);
}

/// Runs `action` on rank 0 alone and throws on all ranks if it throws. Collective: every rank, same
/// order.
template <class Action>
void on_first_rank(dist::Communicator& communicator, const Action& action) {
  on_all_ranks(communicator, [&] {
    if (communicator.rank() == 0) action();
  });
}

}  // namespace t2r::launch
