#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/config.h"

namespace t2r::launch {

/// What a run was made with: key and value, in the order in which they are shown.
using RunFacts = std::vector<std::pair<std::string, std::string>>;

/// A key whose values differ between two runs; "none" where a run has no such key.
struct FactDifference {
  std::string key, there, here;
};

std::vector<FactDifference> differences(const RunFacts& there, const RunFacts& here);

/// "seed = 1 there, seed = 9 here; ...", with the word `there` for the first; of many, the first.
std::string text_of(const std::vector<FactDifference>& differences, const std::string& there);

/// Every field of a config that the model's function depends on.
RunFacts model_facts(const model::DecoderConfig& config);

}  // namespace t2r::launch
