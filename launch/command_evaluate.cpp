#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "data/corpus.h"
#include "data/prepare_lm.h"
#include "launch/agreement.h"
#include "launch/command.h"
#include "launch/model_options.h"
#include "launch/options.h"
#include "launch/perplexity.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/session.h"
#include "model/hugging_face.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

// A folder that goes away with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (fs::temp_directory_path() / "t2r-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      throw WriteError(concat(pattern, ": cannot create a temporary folder"));
    path_ = pattern;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct EvaluateOptions {
  ModelOptions model;
  std::vector<std::string> data, text;
  PerplexityProtocol protocol;
  bool end_of_document = false;
  bool json = false;
};

data::Corpus corpus_of_text(const EvaluateOptions& options, const fs::path& scratch) {
  const auto tokenizer = options.model.open_tokenizer();
  data::PrepareLmOptions prepare;
  prepare.inputs.assign(options.text.begin(), options.text.end());
  prepare.output = scratch / "shards";
  prepare.append_end_of_document = options.end_of_document;
  data::prepare_lm(*tokenizer, prepare, 0, 1);
  return data::Corpus({prepare.output});
}

PerplexityResult score(const model::DecoderLM& model,
                       const data::Corpus& corpus,
                       const PerplexityProtocol& protocol,
                       dist::Communicator& communicator) {
  ProgressLine line;
  PassingProgress progress(line);
  ScoringHooks hooks;
  if (communicator.rank() == 0) {
    hooks.on_progress = [&](int64_t done, int64_t total) {
      progress.show(done, total, "evaluating");
    };
  }
  return score_corpus(model, corpus, protocol, communicator, hooks);
}

void print_result(const EvaluateOptions& options,
                  const data::Corpus& corpus,
                  const PerplexityResult& result,
                  double seconds) {
  const bool is_whole = result.num_tokens == corpus.num_tokens() - 1;
  const double per_token = std::exp(result.loss());
  const double per_word = std::exp(result.loss_sum / static_cast<double>(corpus.num_words()));
  const double per_byte = result.loss_sum / std::log(2.0) / static_cast<double>(corpus.num_bytes());
  if (options.json) {
    nlohmann::ordered_json json{{"perplexity_per_token", per_token},
                                {"loss_nats_per_token", result.loss()},
                                {"tokens", result.num_tokens},
                                {"context", options.protocol.context},
                                {"scored", options.protocol.scored},
                                {"seconds", seconds}};
    if (is_whole) {
      json["perplexity_per_word"] = per_word;
      json["words"] = corpus.num_words();
      json["bits_per_byte"] = per_byte;
    }
    std::cout << json.dump() << "\n";
    return;
  }
  std::cout << "perplexity per token " << per_token << "  (" << result.num_tokens
            << " tokens scored, loss " << result.loss() << " nats)\n";
  if (is_whole) {
    std::cout << "perplexity per word  " << per_word << "  (" << corpus.num_words()
              << " whitespace-separated words), " << per_byte << " bits per byte\n";
  }
  std::cout << "protocol: windows of " << options.protocol.context << " tokens, the last "
            << options.protocol.scored << " of each scored, the first token of the text not; "
            << seconds << " s, " << static_cast<double>(result.num_tokens) / seconds
            << " tokens/s\n";
}

}  // namespace

int run_evaluate(const Invocation& invocation) {
  EvaluateOptions values;
  values.protocol.scored = 0;
  OptionSet options("evaluate",
                    "Perplexity per token and per word; under mpirun, ranks share the windows.");
  values.model.bind(options);
  options.add("data", values.data, "shards (files or folders) of `t2r prepare lm`");
  options.add("text", values.text, "text files instead of shards, cut by --tokenizer");
  options.add("end-of-document",
              values.end_of_document,
              "for --text: end each file with the tokenizer's end token");
  options.add("context", values.protocol.context, "tokens that the model sees at once");
  options.add("scored",
              values.protocol.scored,
              "targets scored per window, the last ones; 0: all (windows side by side)");
  options.add("batch-size", values.protocol.batch_size, "windows at once");
  options.add("max-tokens", values.protocol.max_tokens, "score at most this many; 0: all");
  options.add("json", values.json, "print one JSON object");
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (values.data.empty() == values.text.empty())
    throw UsageError("give exactly one of --data and --text");
  if (values.protocol.scored == 0) values.protocol.scored = values.protocol.context;
  values.protocol.validate();
  values.model.backend.resolve(invocation);

  Session session(invocation, options, values.model.backend, values.model.threads);
  dist::Communicator& communicator = session.communicator();
  const model::LoadedModel loaded = made_on_all_ranks(
      communicator, [&] { return model::load_model(values.model.resolved_folder()); });
  check_same_model(communicator, session.world(), *loaded.model, values.model.folder);
  check_model_fits(loaded.model->config(), session.backend().placement());
  loaded.model->parameters().move_to(session.backend().placement());
  session.fit_threads(
      work_of_step(*loaded.model, values.protocol.batch_size * values.protocol.context));
  std::optional<ScratchFolder> scratch;
  if (!values.text.empty()) scratch.emplace();
  const data::Corpus corpus =
      scratch.has_value()
          ? made_on_all_ranks(communicator, [&] { return corpus_of_text(values, scratch->path()); })
          : open_corpus(values.data, session.world(), communicator);
  if (scratch.has_value()) {
    check_same_on_ranks(communicator,
                        session.world(),
                        "tokens of hash " + corpus.content_hash(),
                        concat("the text ", values.text.front()),
                        "give every host the same text and tokenizer");
  }
  if (corpus.vocab_size() > loaded.model->config().vocab_size) {
    throw ConfigError(concat("the data have token ids up to ",
                             corpus.vocab_size() - 1,
                             ", the model's vocabulary has ",
                             loaded.model->config().vocab_size,
                             " entries: they do not belong together"));
  }
  const auto start = std::chrono::steady_clock::now();
  const PerplexityResult result = score(*loaded.model, corpus, values.protocol, communicator);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (session.world().rank() == 0) print_result(values, corpus, result, seconds);
  return 0;
}

}  // namespace t2r::launch
