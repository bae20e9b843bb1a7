#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "data/tokenizers/tokenizer.h"
#include "launch/backend.h"
#include "launch/cli/continuation.h"
#include "launch/cli/idle_options.h"
#include "launch/cli/model_options.h"
#include "launch/cli/prompts.h"
#include "launch/cli/text_stream.h"
#include "launch/command.h"
#include "launch/options/option_groups.h"
#include "launch/options/options.h"
#include "launch/threads.h"
#include "model/files/generation_defaults.h"
#include "model/files/hugging_face.h"
#include "model/search/generate.h"

namespace t2r::launch {
namespace {

constexpr const char* kSeparator = "---\n";

struct GenerateOptions {
  ModelOptions model;
  PromptOptions prompts;
  std::vector<std::string> stops;
  int64_t max_new_tokens = 128, batch_size = 1, seed = 1;
  model::SamplingOptions sampling;
  bool ignore_end = false, json = false;

  void bind(OptionSet& options) {
    model.bind(options);
    model.backend.bind_cuda_graph(options);
    prompts.bind(options);
    constexpr int64_t kMost = int64_t{1} << 40;  // its sum with a prompt's tokens fits
    options.add("max-new-tokens", max_new_tokens, "tokens to add to each prompt at most")
        .range(1, kMost);
    options.add_repeated(
        "stop", stops, "end a text in front of this string; several: of whichever comes first");
    bind_sampling(options, sampling);
    options
        .add("seed",
             seed,
             "of sampling; prompts behind the first are drawn with seed + 1, + 2, ..., those of a "
             "batch as its rows")
        .at_least(0);
    bind_sequences_at_once(options,
                           batch_size,
                           "prompts continued together, of equally many tokens; of a single prompt "
                           "copies, to measure, the first of which "
                           "is printed");
    options.add(
        "ignore-end",
        ignore_end,
        "go on after the end token; one that the tokenizer does not have as special is part "
        "of the text, as transformers' skip_special_tokens leaves it");
    options.add("json", json, "print one JSON object a prompt instead of the text");
  }

  void validate(const OptionSet& options) {
    prompts.validate();
    say_idle_backend_options(options, model.backend, /*num_ranks=*/1);
    say_idle_sampling(options, sampling);
    options.say_if_idle("seed", sampling.temperature == 0.0, "temperature = 0 draws nothing");
  }
};

/// What a batch took, with the tokens that its texts are made of.
struct BatchTime {
  int64_t num_prompts = 1, prompt_tokens = 0, new_tokens = 0;
  int64_t decoded_tokens = 0;  ///< in decode_seconds
  double prompt_seconds = 0.0, decode_seconds = 0.0;
  int64_t state_bytes = 0, length = 0;  ///< of the longest sequence
  int64_t threads = 0;                  ///< of a step

  double rate() const {
    return decode_seconds > 0.0 ? static_cast<double>(decoded_tokens) / decode_seconds : 0.0;
  }

  void add(const BatchTime& other) {
    num_prompts += other.num_prompts;
    prompt_tokens += other.prompt_tokens;
    new_tokens += other.new_tokens;
    decoded_tokens += other.decoded_tokens;
    prompt_seconds += other.prompt_seconds;
    decode_seconds += other.decode_seconds;
    state_bytes = std::max(state_bytes, other.state_bytes);
    length = std::max(length, other.length);
    threads = std::max(threads, other.threads);
  }
};

/// Continues prompts and prints them in order.
class Writer {
 public:
  Writer(const GenerateOptions& options,
         const model::DecoderLM& model,
         const data::Tokenizer& tokenizer,
         std::vector<Prompt> prompts,
         std::vector<int64_t> end_tokens)
      : options_(options),
        model_(model),
        tokenizer_(tokenizer),
        prompts_(std::move(prompts)),
        end_tokens_(std::move(end_tokens)),
        texts_(std::cout, prompts_.size(), options.json ? "" : kSeparator) {}

  /// @param indices  of prompts of one length; of a single one there may be copies
  BatchTime run(model::DecodeLoop& loop, const std::vector<size_t>& indices, int64_t num_tokens);

 private:
  torch::Tensor prompts_of(const std::vector<size_t>& indices) const;
  BatchTime time_of(const model::GenerationResult& result,
                    const std::vector<Continuation>& rows) const;
  std::string json_of(const Prompt& prompt, const Continuation& row, const BatchTime& time) const;

  const GenerateOptions& options_;
  const model::DecoderLM& model_;
  const data::Tokenizer& tokenizer_;
  std::vector<Prompt> prompts_;
  std::vector<int64_t> end_tokens_;
  OrderedTexts texts_;
  int64_t usable_processors_ = usable_processors();
};

torch::Tensor Writer::prompts_of(const std::vector<size_t>& indices) const {
  std::vector<torch::Tensor> rows;
  for (const size_t index : indices)
    rows.push_back(torch::tensor(prompts_[index].ids, torch::kInt64));
  return torch::stack(rows);
}

BatchTime Writer::run(model::DecodeLoop& loop,
                      const std::vector<size_t>& indices,
                      int64_t num_tokens) {
  std::vector<Continuation> rows;
  for (const size_t index : indices)
    rows.emplace_back(tokenizer_, prompts_[index], end_tokens_, StopStrings(options_.stops));
  const auto print = [&](size_t row, const std::string& text) {
    const bool is_copy = row > 0 && indices[row] == indices[0];
    if (!options_.json && !is_copy) texts_.add(indices[row], text);
  };
  for (size_t row = 0; row < rows.size(); ++row) print(row, prompts_[indices[row]].text);

  const auto threads_of = [&](int64_t tokens) {
    return options_.model.backend.threads > 0
               ? options_.model.backend.threads
               : threads_for(work_of_step(model_, std::ssize(rows) * tokens), usable_processors_);
  };
  set_threads(threads_of(std::ssize(prompts_[indices.front()].ids)));
  model::SamplingOptions sampling = options_.sampling;
  sampling.seed = static_cast<uint64_t>(options_.seed) + indices.front();
  const model::GenerationResult result = model::generate(
      loop, prompts_of(indices), num_tokens, end_tokens_, sampling, [&](const torch::Tensor& ids) {
        set_threads(threads_of(1));
        bool goes_on = false;
        for (size_t row = 0; row < rows.size(); ++row) {
          print(row, rows[row].add(ids[static_cast<int64_t>(row)].item<int64_t>()));
          goes_on = goes_on || !rows[row].has_ended();
        }
        return goes_on;
      });
  for (size_t row = 0; row < rows.size(); ++row) print(row, rows[row].finish() + "\n");

  BatchTime time = time_of(result, rows);
  time.threads = threads_of(1);
  for (size_t row = 0; row < rows.size(); ++row) {
    if (row > 0 && indices[row] == indices[0]) break;  // copies
    if (options_.json) {
      texts_.add(indices[row], json_of(prompts_[indices[row]], rows[row], time) + "\n");
    }
    texts_.finish(indices[row]);
  }
  return time;
}

BatchTime Writer::time_of(const model::GenerationResult& result,
                          const std::vector<Continuation>& rows) const {
  BatchTime time{.num_prompts = std::ssize(rows),
                 .prompt_seconds = result.prompt_seconds,
                 .decode_seconds = result.decode_seconds,
                 .state_bytes = result.state_bytes,
                 .length = result.tokens_BT.size(1)};
  int64_t most = 0;
  for (const Continuation& row : rows) most = std::max(most, std::ssize(row.ids()));
  time.prompt_tokens = std::ssize(rows) * (time.length - most);
  for (const Continuation& row : rows) {
    const int64_t count = std::ssize(row.ids());
    time.new_tokens += count;
    time.decoded_tokens += std::max<int64_t>(0, count - (most - result.num_decoded));
  }
  return time;
}

std::string Writer::json_of(const Prompt& prompt,
                            const Continuation& row,
                            const BatchTime& time) const {
  return nlohmann::ordered_json{{"prompt", prompt.text},
                                {"text", row.text()},
                                {"ended_by", row.reason()},
                                {"begin_of_text", prompt.has_begin_of_text},
                                {"prompt_tokens", prompt.ids.size()},
                                {"tokens", prompt.ids.size() + row.ids().size()},
                                {"token_ids", row.ids()},
                                {"batch_size", time.num_prompts},
                                {"tokens_per_second", time.rate()},
                                {"prompt_seconds", time.prompt_seconds},
                                {"state_bytes", time.state_bytes},
                                {"threads", time.threads}}
      .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void print_report(const BatchTime& total, bool has_begin_of_text) {
  const bool is_one = total.num_prompts == 1;
  std::cerr << total.new_tokens << " tokens after " << total.prompt_tokens << " of "
            << (is_one ? "the prompt" : concat(total.num_prompts, " prompts"))
            << (has_begin_of_text ? ", begin-of-text included" : "") << ": " << total.rate()
            << " tokens/s, " << (is_one ? "prompt " : "prompts ") << total.prompt_seconds
            << " s, state " << total.state_bytes << " bytes at " << total.length << " tokens, "
            << total.threads << " thread(s)\n";
}

std::vector<int64_t> end_tokens_of(const GenerateOptions& options,
                                   const model::GenerationDefaults& defaults,
                                   const data::Tokenizer& tokenizer) {
  if (options.ignore_end) return {};
  if (!defaults.eos_token_ids.empty()) return defaults.eos_token_ids;
  if (tokenizer.end_of_document().has_value()) return {*tokenizer.end_of_document()};
  return {};
}

// The folder's own wishes are not followed: the same command gives the same text for every model.
void say_sampling_defaults(const OptionSet& options, const model::GenerationDefaults& defaults) {
  if (!defaults.do_sample.value_or(false) || options.was_given("temperature")) return;
  log::info(concat("generation_config.json asks for sampling (temperature ",
                   defaults.temperature.value_or(1.0),
                   ", top-k ",
                   defaults.top_k.value_or(50),
                   ", top-p ",
                   defaults.top_p.value_or(1.0),
                   "); this is greedy, as no --temperature is given"));
}

}  // namespace

int run_generate(const Invocation& invocation) {
  GenerateOptions values;
  OptionSet options(
      "generate",
      "Continue prompts: linear layers carry a state, softmax layers a key/value cache.");
  values.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  values.model.backend.resolve(invocation);
  values.validate(options);
  StopStrings checked(values.stops);

  values.model.resolve();
  const auto tokenizer = values.model.open_tokenizer();
  const std::vector<std::string> texts = values.prompts.read();
  const model::LoadedModel loaded = model::load_model(values.model.model_path);
  model::DecoderLM& model = *loaded.model;
  const model::GenerationDefaults defaults =
      model::read_generation_config(values.model.model_path, model.config());
  say_sampling_defaults(options, defaults);
  const std::vector<Prompt> prompts =
      values.prompts.encode(texts, *tokenizer, model.config().vocab_size, defaults.bos_token_id);
  const std::vector<int64_t> counts = tokens_to_add(prompts, model, values.max_new_tokens);
  const model::Placement placement = single_placement(values.model.backend);
  check_model_fits(model.config(), placement);
  model.parameters().move_to(placement);
  model.prepare_generation();

  std::vector<std::vector<size_t>> batches = batches_of(prompts, values.batch_size);
  if (prompts.size() == 1) batches.front().resize(static_cast<size_t>(values.batch_size), 0);
  Writer writer(values, model, *tokenizer, prompts, end_tokens_of(values, defaults, *tokenizer));
  const auto loop = make_decode_loop(model, values.model.backend);
  BatchTime total{.num_prompts = 0};
  for (const std::vector<size_t>& batch : batches)
    total.add(writer.run(*loop, batch, counts[batch.front()]));
  if (!values.json) print_report(total, prompts.front().has_begin_of_text);
  return 0;
}

}  // namespace t2r::launch
