#pragma once

#include "launch/options.h"
#include "model/sampling.h"

namespace t2r::launch {

/// The options that say how tokens are chosen, but for the seed.
inline void bind_sampling(OptionSet& options, model::SamplingOptions& sampling) {
  options.add("temperature", sampling.temperature, "0: greedy");
  options.add("top-k", sampling.top_k, "sample among the k most probable; 0: all");
  options.add("top-p", sampling.top_p, "sample among the fewest that reach this probability");
}

}  // namespace t2r::launch
