// libFuzzer target of config.json and generation_config.json, which a downloaded model brings.
//
// Beyond memory errors it checks that an accepted config holds together and is read back unchanged
// from what is written of it, and that its sizes are bounded: no product of them overflows.
//
//   cmake --preset dev -DT2R_FUZZ=ON && cmake --build build/dev --target t2r_config_fuzz
//   build/dev/tests/fuzz/t2r_config_fuzz -max_total_time=180 <folder for findings>
//       tests/fuzz/corpus_config
//
// Without clang, the test fuzz_corpus_config runs it over the stored corpus alone.

#include <string>

#include "model/files/config_json.h"
#include "model/files/generation_defaults.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

using t2r::fuzz::demand;
using t2r::fuzz::read_or_refuse;
using t2r::model::DecoderConfig;

/// Bytes of all parameters of the largest kind; traps if they do not fit in 63 bits.
void check_sizes(const DecoderConfig& config) {
  const auto times = [](int64_t a, int64_t b) {
    int64_t product = 0;
    demand(!__builtin_mul_overflow(a, b, &product));
    return product;
  };
  const auto plus = [](int64_t a, int64_t b) {
    int64_t sum = 0;
    demand(!__builtin_add_overflow(a, b, &sum));
    return sum;
  };
  const int64_t width = times(config.num_heads, config.head_dim);
  int64_t layer = plus(times(4 * config.hidden_size, width),
                       times(3 * config.hidden_size, config.intermediate_size));
  if (config.linear.has_value()) layer = plus(layer, times(width, config.linear->feature_size));
  int64_t all = times(layer, config.num_layers);
  all = plus(all, times(2 * config.vocab_size, config.hidden_size));
  all = plus(all, times(config.max_positions, config.hidden_size));
  times(all, 4);
}

void check_config(const std::string& text) {
  const DecoderConfig config = t2r::model::parse_config(text, "fuzz");
  config.validate();
  check_sizes(config);
  const std::string written = t2r::model::write_config(config, text, t2r::model::DType::bf16);
  demand(t2r::model::parse_config(written, "written") == config);
  demand(t2r::model::parse_config(t2r::model::write_config(config, ""), "anew") == config);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  read_or_refuse<t2r::DataError, t2r::ConfigError>([&] { check_config(text); });
  read_or_refuse<t2r::DataError, t2r::ConfigError>(
      [&] { t2r::model::parse_generation_config(text, "fuzz", {}); });
  return 0;
}
