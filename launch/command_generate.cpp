#include <ATen/Parallel.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/tokenizer.h"
#include "launch/backend.h"
#include "launch/command.h"
#include "launch/model_options.h"
#include "launch/options.h"
#include "launch/sampling_options.h"
#include "model/generate.h"
#include "model/hugging_face.h"

namespace t2r::launch {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::string prompt, prompt_file;
  int64_t max_new_tokens = 128, batch_size = 1, seed = 1;
  model::SamplingOptions sampling;
  bool ignore_end = false, json = false;
};

// Prints text as tokens arrive: decodes everything again, so that characters cut by a token come
// out whole.
class StreamedText {
 public:
  explicit StreamedText(const data::Tokenizer& tokenizer, std::vector<int32_t> ids)
      : tokenizer_(tokenizer), ids_(std::move(ids)), num_printed_(tokenizer_.decode(ids_).size()) {}

  void add(int32_t id) {
    ids_.push_back(id);
    const std::string text = tokenizer_.decode(ids_);
    size_t end = text.size();
    // Hold back an unfinished UTF-8 sequence of up to three bytes.
    for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
      const auto byte = static_cast<unsigned char>(text[text.size() - back]);
      if (byte < 0x80) break;
      if (byte >= 0xC0) {
        const size_t wanted = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
        if (back < wanted) end = text.size() - back;
        break;
      }
    }
    if (end > num_printed_) {
      std::cout << text.substr(num_printed_, end - num_printed_) << std::flush;
      num_printed_ = end;
    }
    if (ids_.size() > kWindow) {  // decoding stays cheap: forget what is long printed
      ids_.erase(ids_.begin(), ids_.end() - kWindow / 2);
      num_printed_ = tokenizer_.decode(ids_).size() - (text.size() - num_printed_);
    }
  }

 private:
  static constexpr size_t kWindow = 64;
  const data::Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t num_printed_;
};

void print_report(const GenerateOptions& options,
                  const model::GenerationResult& result,
                  int64_t prompt_tokens) {
  const int64_t total = result.tokens_BT.size(1);
  const double rate = result.decode_seconds > 0.0
                          ? static_cast<double>(result.num_decoded * result.tokens_BT.size(0)) /
                                result.decode_seconds
                          : 0.0;
  if (options.json) {
    std::cout << nlohmann::ordered_json{{"prompt_tokens", prompt_tokens},
                                        {"tokens", total},
                                        {"batch_size", result.tokens_BT.size(0)},
                                        {"tokens_per_second", rate},
                                        {"prompt_seconds", result.prompt_seconds},
                                        {"state_bytes", result.state_bytes}}
                     .dump()
              << "\n";
  } else {
    std::cerr << total - prompt_tokens << " tokens after " << prompt_tokens
              << " of the prompt: " << rate << " tokens/s, prompt " << result.prompt_seconds
              << " s, state " << result.state_bytes << " bytes at " << total << " tokens\n";
  }
}

}  // namespace

int run_generate(const Invocation& invocation) {
  GenerateOptions values;
  OptionSet options(
      "generate",
      "Continue a prompt: linear layers carry a state, softmax layers a key/value cache.");
  values.model.bind(options);
  values.model.backend.bind_cuda_graph(options);
  options.add("prompt", values.prompt, "text to continue");
  options.add("prompt-file", values.prompt_file, "file with the text to continue");
  options.add("max-new-tokens", values.max_new_tokens, "tokens to add at most");
  bind_sampling(options, values.sampling);
  options.add("seed", values.seed, "of sampling");
  options.add("batch-size",
              values.batch_size,
              "continue the prompt this many times at once; the first is printed");
  options.add("ignore-end", values.ignore_end, "go on after the end token");
  options.add("json", values.json, "print the measurements as one JSON object instead of the text");
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (values.prompt.empty() == values.prompt_file.empty())
    throw UsageError("give exactly one of --prompt and --prompt-file");
  if (values.batch_size < 1)
    throw ConfigError(concat("batch-size = ", values.batch_size, ", allowed: 1 or more"));
  if (values.max_new_tokens < 1)
    throw ConfigError(concat("max-new-tokens = ", values.max_new_tokens, ", allowed: 1 or more"));
  values.sampling.seed = static_cast<uint64_t>(values.seed);
  values.sampling.validate();
  values.model.backend.resolve(invocation);
  check_at_least("threads", values.model.threads, 0);
  if (values.model.threads > 0) at::set_num_threads(static_cast<int>(values.model.threads));

  const auto tokenizer = values.model.open_tokenizer();
  const model::LoadedModel loaded = model::load_model(values.model.folder);
  const std::string text =
      values.prompt_file.empty() ? values.prompt : read_file(values.prompt_file);
  const std::vector<int32_t> ids = tokenizer->encode(text);
  if (ids.empty()) throw DataError("the prompt has no tokens");
  const model::Placement placement = single_placement(values.model.backend);
  check_model_fits(loaded.model->config(), placement);
  loaded.model->parameters().move_to(placement);
  loaded.model->prepare_generation();
  const torch::Tensor prompt =
      torch::tensor(std::vector<int64_t>(ids.begin(), ids.end()), torch::kInt64)
          .unsqueeze(0)
          .expand({values.batch_size, -1})
          .contiguous();
  std::vector<int64_t> end_tokens;
  if (!values.ignore_end) end_tokens = loaded.model->config().eos_token_ids;
  if (!values.ignore_end && end_tokens.empty() && tokenizer->end_of_document().has_value()) {
    end_tokens.push_back(*tokenizer->end_of_document());
  }
  if (!values.json) std::cout << text << std::flush;
  StreamedText stream(*tokenizer, ids);
  const auto loop = make_decode_loop(*loaded.model, values.model.backend);
  const model::GenerationResult result =
      model::generate(*loop,
                      prompt,
                      values.max_new_tokens,
                      end_tokens,
                      values.sampling,
                      [&](const torch::Tensor& tokens_B) {
                        if (!values.json)
                          stream.add(static_cast<int32_t>(tokens_B[0].item<int64_t>()));
                      });
  if (!values.json) std::cout << std::endl;
  print_report(values, result, prompt.size(1));
  return 0;
}

}  // namespace t2r::launch
