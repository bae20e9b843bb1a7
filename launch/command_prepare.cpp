#include <functional>
#include <iostream>

#include "base/error.h"
#include "base/log.h"
#include "data/prepare_lm.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/tokenizer.h"
#include "dist/mpi_communicator.h"
#include "dist/world.h"
#include "launch/agreement.h"
#include "launch/command.h"
#include "launch/options.h"
#include "launch/progress.h"
#include "launch/ranks.h"
#include "launch/threads.h"

namespace t2r::launch {
namespace {

std::vector<std::filesystem::path> as_paths(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
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
                                              static_cast<int64_t>(own.shards.size())},
                                             torch::kInt64);
  communicator.all_reduce(counts, dist::Reduction::kSum);
  const int64_t* count = counts.data_ptr<int64_t>();
  data::PrepareSummary all{count[0], count[1], count[2], count[3], count[4], {}};
  all.shards.resize(static_cast<size_t>(count[5]));
  return all;
}

}  // namespace

int run_prepare_vocab(const Invocation& invocation) {
  std::vector<std::string> inputs;
  std::string output, type = "unigram";
  int64_t vocab_size = 8000, seed = 1, threads = 0;
  double coverage = 0.9995;
  OptionSet options("prepare vocab", "Train a sentencepiece vocabulary on text files.");
  options.add("inputs", inputs, "text files, UTF-8 (required)");
  options.add_required("output", output, "file to write, e.g. tokenizer.model");
  options.add("vocab-size", vocab_size, "pieces");
  options.add_choice("type", type, {"unigram", "bpe"}, "algorithm");
  options.add("character-coverage",
              coverage,
              "share of characters that get pieces of their own; the rest is bytes");
  options.add("seed", seed, "of the sampling of sentences");
  options.add("threads", threads, "0: all processors");
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (inputs.empty()) throw UsageError("--inputs is required (t2r prepare vocab --help)");
  check_at_least("threads", threads, 0);
  if (threads == 0) threads = usable_processors();
  data::train_sentencepiece({.inputs = as_paths(inputs),
                             .output_model = output,
                             .vocab_size = static_cast<int>(vocab_size),
                             .model_type = type,
                             .character_coverage = coverage,
                             .seed = static_cast<uint64_t>(seed),
                             .threads = static_cast<int>(threads)});
  std::cout << output << ": " << data::open_tokenizer(output)->vocab_size() << " pieces\n";
  return 0;
}

int run_prepare_lm(const Invocation& invocation) {
  std::vector<std::string> inputs;
  std::string tokenizer_path, output;
  data::PrepareLmOptions prepare;
  OptionSet options(
      "prepare lm",
      "Turn text files into HDF5 shards of tokens; under mpirun, ranks share the files.");
  options.add("inputs", inputs, "text files, UTF-8 (required)");
  options.add_required("tokenizer",
                       tokenizer_path,
                       "folder or file: tokenizer.json, vocab.json + merges.txt, *.model");
  options.add_required("output", output, "folder of the shards");
  options.add_choice("documents",
                     prepare.document_mode,
                     {"file", "line", "blank-line", "wikitext"},
                     "where a document begins");
  options.add("tokens-per-shard",
              prepare.tokens_per_shard,
              "cut a shard after this many tokens; 0: one per input");
  options.add("append-end-of-document",
              prepare.append_end_of_document,
              "end each document with the tokenizer's end token");
  options.add("overwrite", prepare.overwrite, "replace shards that are there");
  options.add("allow-invalid-utf8",
              prepare.allow_invalid_utf8,
              "take bytes that are not UTF-8 as they are");
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  if (inputs.empty()) throw UsageError("--inputs is required (t2r prepare lm --help)");
  prepare.inputs = as_paths(inputs);
  prepare.output = output;

  dist::World world(invocation.argc, invocation.argv);
  log::set_rank(world.rank(), world.size());
  dist::MpiCommunicator communicator(world);
  check_same_options(communicator, options);
  data::PrepareSummary own;
  on_all_ranks(communicator, [&] {
    const auto tokenizer = data::open_tokenizer(tokenizer_path);
    PrepareProgressLine line;
    data::PrepareProgress progress;
    if (world.rank() == 0) progress = std::ref(line);
    own = data::prepare_lm(*tokenizer, prepare, world.rank(), world.size(), progress);
  });
  const data::PrepareSummary all = sum_over_ranks(communicator, own);
  if (world.rank() == 0) {
    std::cout << output << ": " << all.num_tokens << " tokens, " << all.num_documents
              << " documents, " << all.num_words << " words in " << all.shards.size()
              << " shard(s)\n";
  }
  return 0;
}

}  // namespace t2r::launch
