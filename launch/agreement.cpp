#include "launch/agreement.h"

#include <vector>

namespace t2r::launch {

LocalOutcome agree(dist::Communicator& communicator, const LocalOutcome& outcome) {
  const std::vector<std::string> texts =
      communicator.all_gather(std::to_string(outcome.exit_code) + " " + outcome.message);
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const int code = std::stoi(texts[rank]);
    if (code == 0) continue;
    const std::string message = texts[rank].substr(texts[rank].find(' ') + 1);
    return {code, communicator.size() > 1 ? concat("rank ", rank, ": ", message) : message};
  }
  return {};
}

void throw_first_failure(dist::Communicator& communicator, const LocalOutcome& outcome) {
  const LocalOutcome first = agree(communicator, outcome);
  if (first.exit_code != 0) throw Error(static_cast<ExitCode>(first.exit_code), first.message);
}

}  // namespace t2r::launch
