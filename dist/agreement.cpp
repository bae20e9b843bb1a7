#include "dist/agreement.h"

#include <algorithm>
#include <charconv>
#include <new>

#include "dist/rank_groups.h"
#include "dist/torch_error.h"

namespace t2r::dist {
namespace {

using Kind = LocalOutcome::Kind;

LocalOutcome failure(Kind kind, const Error& error) {
  return {kind, error.exit_code(), error.what()};
}

LocalOutcome bug(const std::string& message) {
  return {Kind::kContract, ExitCode::kInternal, message};
}

LocalOutcome out_of_host_memory() {
  return {Kind::kHostMemory, ExitCode::kInternal, "out of memory"};
}

std::string text_of(const LocalOutcome& outcome) {
  return concat(static_cast<int>(outcome.kind),
                " ",
                static_cast<int>(outcome.exit_code),
                " ",
                outcome.message);
}

LocalOutcome parse(const std::string& text) {
  int kind = 0, code = 0;
  const char* const end = text.data() + text.size();
  const auto after_kind = std::from_chars(text.data(), end, kind);
  const auto after_code = std::from_chars(after_kind.ptr + 1, end, code);
  return {
      static_cast<Kind>(kind), static_cast<ExitCode>(code), std::string(after_code.ptr + 1, end)};
}

}  // namespace

void LocalOutcome::throw_if_failed() const {
  switch (kind) {
    case Kind::kGood:
      return;
    case Kind::kUsage:
      throw UsageError(message);
    case Kind::kConfig:
      throw ConfigError(message);
    case Kind::kData:
      throw DataError(message);
    case Kind::kUnreadable:
      throw UnreadableError(message);
    case Kind::kWrite:
      throw WriteError(message);
    case Kind::kNumeric:
      throw NumericError(message);
    case Kind::kGpuMemory:
      throw GpuMemoryError(message);
    case Kind::kHostMemory:
    case Kind::kContract:
      throw ContractError(message);
    case Kind::kOther:
      break;
  }
  throw Error(exit_code, message);
}

LocalOutcome outcome_of_current_exception() {
  try {
    throw;
  } catch (const UsageError& error) {
    return failure(Kind::kUsage, error);
  } catch (const ConfigError& error) {
    return failure(Kind::kConfig, error);
  } catch (const UnreadableError& error) {
    return failure(Kind::kUnreadable, error);
  } catch (const DataError& error) {
    return failure(Kind::kData, error);
  } catch (const WriteError& error) {
    return failure(Kind::kWrite, error);
  } catch (const NumericError& error) {
    return failure(Kind::kNumeric, error);
  } catch (const GpuMemoryError& error) {
    return failure(Kind::kGpuMemory, error);
  } catch (const ContractError& error) {
    return failure(Kind::kContract, error);
  } catch (const Error& error) {
    return failure(Kind::kOther, error);
  } catch (const c10::OutOfMemoryError& error) {
    return failure(Kind::kGpuMemory, gpu_memory_error(error));
  } catch (const c10::Error& error) {
    return is_out_of_host_memory(error) ? out_of_host_memory()
                                        : bug(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return out_of_host_memory();
  } catch (const std::exception& error) {
    return bug(*error.what() == '\0' ? "an error without a text" : error.what());
  }
}

std::vector<LocalOutcome> gather_outcomes(Communicator& communicator, const LocalOutcome& outcome) {
  std::vector<LocalOutcome> outcomes;
  for (const std::string& text : communicator.all_gather(text_of(outcome)))
    outcomes.push_back(parse(text));
  return outcomes;
}

LocalOutcome agree(Communicator& communicator, const LocalOutcome& outcome) {
  const std::vector<LocalOutcome> outcomes = gather_outcomes(communicator, outcome);
  const auto first = std::ranges::find_if_not(outcomes, &LocalOutcome::is_good);
  if (first == outcomes.end()) return {};
  LocalOutcome agreed = *first;
  if (communicator.size() > 1)
    agreed.message = concat("rank ", first - outcomes.begin(), ": ", agreed.message);
  return agreed;
}

std::string problems_of_ranks(Communicator& communicator, const LocalOutcome& outcome) {
  return list_problems(communicator.all_gather(outcome.message));
}

}  // namespace t2r::dist
