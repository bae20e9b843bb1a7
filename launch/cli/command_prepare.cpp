#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/log.h"
#include "data/prepare_lm.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/tokenizers/tokenizer.h"
#include "data/tokenizers/tokenizer_config.h"
#include "dist/agreement.h"
#include "dist/mpi_communicator.h"
#include "dist/world.h"
#include "launch/cli/tokenizer_check.h"
#include "launch/command.h"
#include "launch/options/option_groups.h"
#include "launch/options/options.h"
#include "launch/ranks.h"
#include "launch/threads.h"
#include "launch/train/progress.h"

namespace t2r::launch {

template <>
struct OptionNames<data::DocumentMode> {
  static constexpr std::pair<const char*, data::DocumentMode> kNames[] = {
      {"file", data::DocumentMode::kFile},
      {"line", data::DocumentMode::kLine},
      {"blank-line", data::DocumentMode::kBlankLine},
      {"wikitext", data::DocumentMode::kWikitext}};
};

template <>
struct OptionNames<data::SentencePieceType> {
  static constexpr std::pair<const char*, data::SentencePieceType> kNames[] = {
      {"unigram", data::SentencePieceType::kUnigram}, {"bpe", data::SentencePieceType::kBpe}};
};

namespace {

std::vector<std::filesystem::path> as_paths(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
}

// Finds out now, and not behind the training, that a file cannot be written.
void check_can_write(const std::string& path) {
  if (std::filesystem::is_directory(path))
    throw WriteError(concat(path, ": is a folder; --output is the file to write"));
  const DurableFile probe(path);  // goes away without commit()
}

// Shows every percent on a terminal, every tenth elsewhere.
class PrepareProgressLine {
 public:
  void operator()(int64_t done, int64_t total) {
    const int64_t percent = total > 0 ? 100 * done / total : 100;
    if (percent < next_) return;
    next_ = percent + (line_.is_terminal() ? 1 : 10);
    line_.show(done, total, concat("prepared ", percent, " % of ", total, " bytes"));
  }

 private:
  ProgressLine line_;
  int64_t next_ = 0;
};

data::PrepareSummary sum_over_ranks(dist::Communicator& communicator,
                                    const data::PrepareSummary& own) {
  const torch::Tensor counts = torch::tensor({own.num_inputs,
                                              own.num_tokens,
                                              own.num_documents,
                                              own.num_words,
                                              own.num_bytes,
                                              static_cast<int64_t>(own.shards.size()),
                                              static_cast<int64_t>(own.empty_inputs.size())},
                                             torch::kInt64);
  communicator.all_reduce(counts, dist::Reduction::kSum);
  const int64_t* count = counts.data_ptr<int64_t>();
  data::PrepareSummary all{count[0], count[1], count[2], count[3], count[4], {}, {}};
  all.shards.resize(static_cast<size_t>(count[5]));
  all.empty_inputs.resize(static_cast<size_t>(count[6]));
  return all;
}

// One line about all inputs that were left out, with the first few names.
void say_empty_inputs(dist::Communicator& communicator, const data::PrepareSummary& own) {
  std::string names;
  for (const auto& path : own.empty_inputs) {
    if (names.size() < 200) names += path.string() + "\n";
  }
  const std::vector<std::string> of_ranks = communicator.all_gather(names);
  const auto num_empty =
      static_cast<int64_t>(sum_over_ranks(communicator, own).empty_inputs.size());
  if (communicator.rank() != 0 || num_empty == 0) return;
  std::string shown;
  int64_t num_shown = 0;
  for (const std::string& lines : of_ranks) {
    std::istringstream in(lines);
    for (std::string name; num_shown < 3 && std::getline(in, name); ++num_shown) {
      shown += (shown.empty() ? "" : ", ") + name;
    }
  }
  log::warning(concat(num_empty,
                      " input(s) give no tokens and are left out: ",
                      shown,
                      num_shown < num_empty ? ", ..." : ""));
}

// What documents begin and end with, if that is not what the options say.
void say_document_tokens(const data::Tokenizer& tokenizer,
                         const std::string& path,
                         const data::PrepareLmOptions& options) {
  if (options.append_end_of_document && !tokenizer.end_of_document().has_value()) {
    log::warning(concat(path,
                        " names no token that ends a document: documents follow each other without "
                        "one (--end-of-document=false says that this is wanted)"));
  }
  if (options.add_begin_of_text) {
    log::info(concat("each document begins with token ",
                     *tokenizer.begin_of_text(),
                     ", as the tokenizer's configuration says (--begin-of-text false: without)"));
  }
}

// Throws on all ranks if `action` throws on any, when nothing of this run is left on any of them.
template <class Action>
void or_take_back(dist::Communicator& communicator,
                  std::optional<data::StagedLm>& staged,
                  const Action& action) {
  dist::on_all_ranks_or(communicator, action, [&] { staged.reset(); });
}

struct PrepareLmCommand {
  std::vector<std::string> inputs;
  std::string tokenizer, output;
  TextOptions tokens{.end_of_document = true};
  data::PrepareLmOptions prepare;

  void bind(OptionSet& options);
};

void PrepareLmCommand::bind(OptionSet& options) {
  options.add("inputs", inputs, "text files, UTF-8 (required)");
  options
      .add("tokenizer",
           tokenizer,
           "folder or file: tokenizer.json, vocab.json + merges.txt, *.model")
      .required();
  options.add("output", output, "folder of the shards").required();
  options.add("documents", prepare.document_mode, "where a document begins");
  options
      .add("tokens-per-shard",
           prepare.tokens_per_shard,
           "end a shard with the document that brings it to this many tokens; 0: never")
      .at_least(0);
  options.add("fill-shards",
              prepare.fill_shards,
              concat("several inputs in one shard; auto: if there are more than ",
                     data::kMaxSeparateInputs));
  tokens.bind(options, "document");
  options.renamed("append-end-of-document", "end-of-document", "as on t2r evaluate");
  options.add("overwrite",
              prepare.overwrite,
              "replace shards that are there: those of these inputs, and all that hold several");
}

// Stages and publishes this rank's share; returns what all ranks wrote. Collective.
data::PrepareSummary prepare_on_ranks(dist::Communicator& communicator,
                                      const data::Tokenizer& tokenizer,
                                      const data::LmPlan& plan) {
  std::optional<data::StagedLm> staged;
  or_take_back(communicator, staged, [&] {
    PrepareProgressLine line;
    data::PrepareProgress progress;
    if (communicator.rank() == 0) progress = std::ref(line);
    staged.emplace(
        data::stage_lm(tokenizer, plan, communicator.rank(), communicator.size(), progress));
  });
  const data::PrepareSummary all = sum_over_ranks(communicator, staged->summary());
  or_take_back(communicator, staged, [&] { data::check_any_tokens(plan, all); });
  say_empty_inputs(communicator, staged->summary());
  or_take_back(communicator, staged, [&] { staged->publish(); });
  dist::on_all_ranks(communicator, [&] { staged->complete(); });
  return all;
}

}  // namespace

int run_prepare_vocab(const Invocation& invocation) {
  std::vector<std::string> inputs;
  std::string output;
  data::SentencePieceType type = data::SentencePieceType::kUnigram;
  int64_t vocab_size = 8000, seed = 1, threads = 0;
  double coverage = 0.9995;
  OptionSet options("prepare vocab", "Train a sentencepiece vocabulary on text files.");
  options.add("inputs", inputs, "text files, UTF-8 (required)");
  options.add("output", output, "file to write, e.g. tokenizer.model").required();
  options.add("vocab-size", vocab_size, "pieces").range(1, data::kMaxTokenId + 1);
  options.add("type", type, "algorithm");
  options
      .add("character-coverage",
           coverage,
           "share of characters that get pieces of their own; the rest is bytes")
      .above(0.0, 1.0);
  options.add("seed", seed, "of the sampling of sentences").at_least(0);
  options.add("threads", threads, "0: all processors").range(0, kMostThreads);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (inputs.empty()) throw UsageError("--inputs is required (t2r prepare vocab --help)");
  for (const std::string& input : inputs) data::look_at_input(input, false);
  check_can_write(output);
  if (threads == 0) threads = usable_processors();
  data::train_sentencepiece({.inputs = as_paths(inputs),
                             .output_model = output,
                             .vocab_size = static_cast<int>(vocab_size),
                             .type = type,
                             .character_coverage = coverage,
                             .seed = static_cast<uint64_t>(seed),
                             .threads = static_cast<int>(threads)});
  std::cout << output << ": " << data::open_tokenizer(output)->vocab_size() << " pieces\n";
  return 0;
}

int run_prepare_lm(const Invocation& invocation) {
  PrepareLmCommand command;
  OptionSet options(
      "prepare lm",
      "Turn text files into HDF5 shards of tokens; under mpirun, ranks share the files.");
  command.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (command.inputs.empty()) throw UsageError("--inputs is required (t2r prepare lm --help)");
  data::PrepareLmOptions& prepare = command.prepare;
  prepare.inputs = as_paths(command.inputs);
  prepare.output = command.output;
  prepare.append_end_of_document = command.tokens.end_of_document;
  prepare.allow_invalid_utf8 = command.tokens.allow_invalid_utf8;

  dist::World world(invocation.argc, invocation.argv);
  log::set_rank(world.rank(), world.size());
  dist::MpiCommunicator communicator(world);
  check_same_options(communicator, options);
  std::unique_ptr<data::Tokenizer> tokenizer;
  data::LmPlan plan;
  dist::on_all_ranks(communicator, [&] {
    tokenizer = data::open_tokenizer(command.tokenizer);
    prepare.add_begin_of_text =
        begin_of_text(command.tokens.begin_of_text, *tokenizer).of_text.has_value();
    plan = data::plan_lm(prepare);
  });
  dist::on_first_rank(communicator, [&] { data::clear_lm_output(plan); });
  if (world.rank() == 0) say_document_tokens(*tokenizer, command.tokenizer, prepare);
  const data::PrepareSummary all = prepare_on_ranks(communicator, *tokenizer, plan);
  if (world.rank() == 0) {
    std::cout << command.output << ": " << all.num_tokens << " tokens, " << all.num_documents
              << " documents, " << all.num_words << " words in " << all.shards.size()
              << " shard(s)\n";
  }
  return 0;
}

}  // namespace t2r::launch
