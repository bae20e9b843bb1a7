#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "data/corpus.h"
#include "data/prepare_lm.h"
#include "dist/agreement.h"
#include "launch/cli/idle_options.h"
#include "launch/cli/model_options.h"
#include "launch/cli/text_corpus.h"
#include "launch/cli/tokenizer_check.h"
#include "launch/command.h"
#include "launch/options/option_groups.h"
#include "launch/options/option_value.h"
#include "launch/options/options.h"
#include "launch/ranks.h"
#include "launch/session.h"
#include "launch/train/perplexity.h"
#include "launch/train/progress.h"
#include "model/files/hugging_face.h"

namespace t2r::launch {
namespace {

struct EvaluateOptions {
  ModelOptions model;
  std::vector<std::string> data, text;
  TextOptions tokens;  ///< of `text`
  PerplexityProtocol protocol;
  bool json = false;

  void bind(OptionSet& options);
};

void EvaluateOptions::bind(OptionSet& options) {
  model.bind(options);
  options.add("data", data, "shards (files or folders) of `t2r prepare lm`");
  options.add("text", text, "text files instead of shards, cut by --tokenizer");
  tokens.bind(options, "file", "for --text: ");
  options.add("context", protocol.context, "tokens that the model sees at once").at_least(1);
  options
      .add("scored",
           protocol.scored,
           "targets scored per window, the last ones; 0: all (windows side by side)")
      .at_least(0);
  bind_sequences_at_once(options, protocol.batch_size, "windows that a rank scores at once");
  options.add("max-tokens", protocol.max_tokens, "score at most this many; 0: all").at_least(0);
  options.add("json", json, "print one JSON object");
}

// Opens the shards, or the text as if it had been prepared, and refuses those of another tokenizer.
data::Corpus open_data(const EvaluateOptions& options, Session& session) {
  dist::Communicator& communicator = session.communicator();
  if (options.text.empty()) {
    data::Corpus corpus = open_corpus(options.data, session.world(), communicator);
    dist::on_all_ranks(communicator, [&] {
      const std::string& tokenizer = options.model.tokenizer;
      if (!tokenizer.empty())
        check_tokenizer(*options.model.open_tokenizer(), tokenizer, corpus);
      else
        check_model_tokenizer(options.model.model_path,
                              corpus.tokenizer_hash(),
                              concat("the shards in ", options.data.front(), " were made with"));
    });
    return corpus;
  }
  std::unique_ptr<data::Tokenizer> tokenizer;
  data::PrepareLmOptions prepare;
  dist::on_all_ranks(communicator, [&] {
    tokenizer = options.model.open_tokenizer();
    prepare.add_begin_of_text =
        begin_of_text(options.tokens.begin_of_text, *tokenizer).of_text.has_value();
  });
  if (options.tokens.end_of_document && !tokenizer->end_of_document().has_value() &&
      communicator.rank() == 0) {
    log::warning("the tokenizer names no token that ends a document: texts are not ended");
  }
  prepare.inputs.assign(options.text.begin(), options.text.end());
  prepare.append_end_of_document = options.tokens.end_of_document;
  prepare.allow_invalid_utf8 = options.tokens.allow_invalid_utf8;
  data::Corpus corpus = corpus_of_text(*tokenizer, prepare, session.world(), communicator);
  check_same_on_ranks(communicator,
                      session.world(),
                      "tokens of hash " + corpus.content_hash(),
                      concat("the text ", options.text.front()),
                      "give every host the same text and tokenizer");
  return corpus;
}

void check_result(const PerplexityResult& result) {
  if (result.num_tokens == 0)
    throw DataError("the data have begin-of-text tokens alone: nothing to score");
  if (std::isfinite(result.loss_sum)) return;
  throw NumericError(concat("the loss over ",
                            result.num_tokens,
                            " tokens is ",
                            result.loss_sum,
                            ": the model's weights are damaged or its training has diverged"));
}

PerplexityResult score(const model::Trainable& model,
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
  const int64_t limit = options.protocol.max_tokens;
  const bool is_whole = limit == 0 || limit >= corpus.num_tokens() - 1;
  const double per_token = std::exp(result.loss());
  const double per_word = std::exp(result.loss_sum / static_cast<double>(corpus.num_words()));
  const double per_byte = result.loss_sum / std::log(2.0) / static_cast<double>(corpus.num_bytes());
  if (options.json) {
    nlohmann::ordered_json json{{"perplexity_per_token", per_token},
                                {"loss_nats_per_token", result.loss()},
                                {"tokens", result.num_tokens},
                                {"context", options.protocol.context},
                                {"scored", options.protocol.scored},
                                {"begin_of_text", nullptr},
                                {"seconds", seconds}};
    if (corpus.begin_of_text().has_value()) json["begin_of_text"] = *corpus.begin_of_text();
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
            << (corpus.begin_of_text().has_value() ? concat("documents begin with token ",
                                                            *corpus.begin_of_text(),
                                                            ", which is not scored; ")
                                                   : std::string())
            << seconds << " s, " << static_cast<double>(result.num_tokens) / seconds
            << " tokens/s\n";
}

}  // namespace

int run_evaluate(const Invocation& invocation) {
  EvaluateOptions values;
  values.protocol.scored = 0;
  OptionSet options("evaluate",
                    "Perplexity per token and per word; under mpirun, ranks share the windows.");
  values.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (values.data.empty() == values.text.empty())
    throw UsageError("give exactly one of --data and --text");
  if (values.protocol.scored == 0) values.protocol.scored = values.protocol.context;
  values.protocol.validate();
  const int64_t batch_tokens = checked_product(
      "sequences-at-once x context", {values.protocol.batch_size, values.protocol.context});
  values.model.backend.resolve(invocation);
  TextOptions::say_idle(options, values.text.empty(), "--data are shards, whose tokens are made");

  Session session(invocation, options, values.model.backend);
  dist::Communicator& communicator = session.communicator();
  values.model.resolve(communicator);
  const model::LoadedModel loaded = dist::made_on_all_ranks(
      communicator, [&] { return model::load_model(values.model.model_path); });
  check_same_model(communicator, session.world(), *loaded.model, values.model.folder);
  check_model_fits(loaded.model->config(), session.backend().placement());
  loaded.model->parameters().move_to(session.backend().placement());
  session.fit_threads(work_of_step(*loaded.model, batch_tokens));
  const data::Corpus corpus = open_data(values, session);
  // Windows are no longer than the data: a short text fits whatever the context is.
  const int64_t window = std::min(values.protocol.context, corpus.num_tokens() - 1);
  if (window > std::min(loaded.model->num_positions(), loaded.model->config().max_positions))
    check_length("context", values.protocol.context, *loaded.model);
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
  check_result(result);
  if (session.world().rank() == 0) print_result(values, corpus, result, seconds);
  return 0;
}

}  // namespace t2r::launch
