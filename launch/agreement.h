#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "dist/communicator.h"
#include "launch/gpu_memory.h"

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
  } catch (const c10::OutOfMemoryError& error) {
    const GpuMemoryError ours(error);
    return {static_cast<int>(ours.exit_code()), ours.what()};
  } catch (const c10::Error& error) {
    return {static_cast<int>(ExitCode::kInternal),
            is_out_of_host_memory(error) ? "out of memory" : error.what_without_backtrace()};
  } catch (const std::bad_alloc&) {
    return {static_cast<int>(ExitCode::kInternal), "out of memory"};
  } catch (const std::exception& error) {
    return {static_cast<int>(ExitCode::kInternal), error.what()};
  }
}

/// The first rank's failure, or exit code 0: the same on every rank. Collective: every rank, same
/// order.
LocalOutcome agree(dist::Communicator& communicator, const LocalOutcome& outcome);

/// Throws the first rank's failure on every rank, if any rank has one. Collective: every rank, same
/// order.
void throw_first_failure(dist::Communicator& communicator, const LocalOutcome& outcome);

/// Runs `action` on every rank and throws on all of them if it throws on any. Collective: every
/// rank, same order.
template <class Action>
void on_all_ranks(dist::Communicator& communicator, const Action& action) {
  throw_first_failure(communicator, attempt(action));
}

/// What `make` returns, if it does on every rank; else throws on all of them. Collective: every
/// rank, same order.
template <class Make>
auto made_on_all_ranks(dist::Communicator& communicator, const Make& make) {
  std::optional<decltype(make())> made;
  on_all_ranks(communicator, [&] { made.emplace(make()); });
  return std::move(*made);
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
