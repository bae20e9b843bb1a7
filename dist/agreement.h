#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "dist/communicator.h"

namespace t2r::dist {

/// What went wrong on this rank, if anything, in a form that travels: the class of base/error.h
/// that was thrown, so that others can throw the same.
struct LocalOutcome {
  enum class Kind {
    kGood,
    kUsage,
    kConfig,
    kData,
    kUnreadable,
    kWrite,
    kNumeric,
    kGpuMemory,
    kHostMemory,  ///< a rank ran out of its host's memory
    kContract,    ///< ours, LibTorch's or the library's: a bug
    kOther,       ///< an Error without a class of its own, by its code
  };

  Kind kind = Kind::kGood;
  ExitCode exit_code = ExitCode::kDone;
  std::string message = {};

  bool is_good() const { return kind == Kind::kGood; }
  bool is_out_of_memory() const { return kind == Kind::kHostMemory || kind == Kind::kGpuMemory; }

  /// Throws what went wrong, as its class. @throws Error  unless all is good
  void throw_if_failed() const;
};

/// The exception that is being handled; rethrows what is no std::exception. Local.
LocalOutcome outcome_of_current_exception();

/// Runs `action` and catches what it throws. Local.
template <class Action>
LocalOutcome attempt(const Action& action) {
  try {
    action();
    return {};
  } catch (...) {
    return outcome_of_current_exception();
  }
}

/// Every rank's outcome, by rank. Collective: every rank, same order.
std::vector<LocalOutcome> gather_outcomes(Communicator& communicator, const LocalOutcome& outcome);

/// The first rank's failure, its rank in front of the message where there are several; or good. The
/// same on every rank. Collective: every rank, same order.
LocalOutcome agree(Communicator& communicator, const LocalOutcome& outcome);

/// Runs `action` on every rank and throws on all of them, the same class, if it throws on any.
/// Collective: every rank, same order.
template <class Action>
void on_all_ranks(Communicator& communicator, const Action& action) {
  agree(communicator, attempt(action)).throw_if_failed();
}

/// The same; before any rank throws, all have run `take_back`: the first rank that ends may end the
/// others. Collective: every rank, same order.
template <class Action, class TakeBack>
void on_all_ranks_or(Communicator& communicator, const Action& action, const TakeBack& take_back) {
  const LocalOutcome outcome = agree(communicator, attempt(action));
  if (outcome.is_good()) return;
  take_back();
  communicator.barrier();
  outcome.throw_if_failed();
}

/// What `make` returns, if it does on every rank; else throws on all of them. Collective: every
/// rank, same order.
template <class Make>
auto made_on_all_ranks(Communicator& communicator, const Make& make) {
  std::optional<decltype(make())> made;
  on_all_ranks(communicator, [&] { made.emplace(make()); });
  return std::move(*made);
}

/// Runs `action` on rank 0 alone and throws on all ranks if it throws. Collective: every rank, same
/// order.
template <class Action>
void on_first_rank(Communicator& communicator, const Action& action) {
  on_all_ranks(communicator, [&] {
    if (communicator.rank() == 0) action();
  });
}

/// What ranks did not manage, in one line, with the ranks of each; empty if all did. Collective:
/// every rank, same order.
std::string problems_of_ranks(Communicator& communicator, const LocalOutcome& outcome);

/// Runs `action` on every rank and throws ErrorType on all of them if it throws on any: `what`, and
/// every rank's problem. For starts, where ranks fail for reasons of their own. Collective: every
/// rank, same order.
template <class ErrorType, class Action>
void start_on_all_ranks(Communicator& communicator, const std::string& what, const Action& action) {
  const std::string problems = problems_of_ranks(communicator, attempt(action));
  if (!problems.empty()) throw ErrorType(concat(what, ": ", problems));
}

}  // namespace t2r::dist
