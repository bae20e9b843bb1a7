#pragma once

#include "launch/options/options.h"
#include "model/search/sampling.h"

namespace t2r::launch {

/// The options that say how tokens are chosen, but for the seed.
inline void bind_sampling(OptionSet& options, model::SamplingOptions& sampling) {
  options.add("temperature", sampling.temperature, "0: greedy").at_least(0.0);
  options.add("top-k", sampling.top_k, "sample among the k most probable; 0: all").at_least(0);
  options.add("top-p", sampling.top_p, "sample among the fewest that reach this probability")
      .above(0.0, 1.0);
}

/// Says which of them have no effect.
inline void say_idle_sampling(const OptionSet& options, const model::SamplingOptions& sampling) {
  for (const char* key : {"top-k", "top-p"})
    options.say_if_idle(key, sampling.temperature == 0.0, "temperature = 0 is greedy");
}

}  // namespace t2r::launch
