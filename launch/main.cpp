#include <c10/util/Exception.h>

#include <algorithm>
#include <iostream>
#include <new>

#include "base/error.h"
#include "dist/world.h"
#include "launch/command.h"
#include "launch/gpu_memory.h"
#include "launch/options.h"
#include "launch/stop_signal.h"

namespace {

using namespace t2r;

struct Command {
  std::vector<std::string> words;
  const char* summary;
  int (*run)(const launch::Invocation&);
};

const std::vector<Command> kCommands = {
    {{"prepare", "vocab"},
     "train a sentencepiece vocabulary on text files",
     launch::run_prepare_vocab},
    {{"prepare", "lm"}, "turn text files into HDF5 shards of tokens", launch::run_prepare_lm},
    {{"convert"},
     "swap a pretrained model's softmax attention for linear attention",
     launch::run_convert},
    {{"verify"},
     "compare a model with stored logits, gradients and greedy tokens",
     launch::run_verify},
    {{"train"}, "pretrain or finetune a model, alone or under mpirun", launch::run_train},
    {{"evaluate"}, "perplexity of a model, per token and per word", launch::run_evaluate},
    {{"generate"}, "continue a prompt", launch::run_generate},
    {{"bench", "attention"},
     "time attention on this GPU beside its peers",
     launch::run_bench_attention},
    {{"bench", "generate"},
     "time generation at given context lengths: microseconds a token, state, memory",
     launch::run_bench_generate},
    {{"bench", "train"},
     "time training steps on 1..n ranks: tokens/s, MFU, memory, phases",
     launch::run_bench_train},
};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

void print_usage(std::ostream& out) {
  out << "t2r: pretrained transformers into RNNs\n\nusage: t2r COMMAND [--help] [--config FILE] "
         "[options]\n\n";
  for (const Command& command : kCommands) {
    const std::string name = joined(command.words);
    out << "  " << name << std::string(18 - name.size(), ' ') << command.summary << "\n";
  }
}

int dispatch(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) throw UsageError("no command; t2r --help lists them");
  if (arguments[0] == "--help" || arguments[0] == "-h" || arguments[0] == "help") {
    print_usage(std::cout);
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    names.push_back(joined(command.words));
    const size_t count = command.words.size();
    if (arguments.size() >= count &&
        std::equal(command.words.begin(), command.words.end(), arguments.begin())) {
      arguments.erase(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(count));
      return command.run({arguments, &argc, &argv});
    }
  }
  const std::string word =
      (arguments[0] == "prepare" || arguments[0] == "bench") && arguments.size() > 1
          ? arguments[0] + " " + arguments[1]
          : arguments[0];
  const std::string near = launch::nearest(word, names);
  throw UsageError(concat("unknown command \"",
                          word,
                          "\"",
                          near.empty() ? "" : concat("; did you mean ", near, "?"),
                          " (t2r --help lists all)"));
}

}  // namespace

int main(int argc, char** argv) {
  launch::ignore_file_size_signal();
  try {
    return dispatch(argc, argv);
  } catch (const Error& error) {
    dist::abort_job(error.what(), static_cast<int>(error.exit_code()));
  } catch (const c10::OutOfMemoryError& error) {
    const launch::GpuMemoryError ours(error);
    dist::abort_job(ours.what(), static_cast<int>(ours.exit_code()));
  } catch (const c10::Error& error) {
    dist::abort_job(concat("internal error: ", error.what_without_backtrace()),
                    static_cast<int>(ExitCode::kInternal));
  } catch (const std::bad_alloc&) {
    dist::abort_job("out of memory; try a smaller --batch-size or --micro-batch-size",
                    static_cast<int>(ExitCode::kInternal));
  } catch (const std::exception& error) {
    dist::abort_job(concat("internal error: ", error.what()),
                    static_cast<int>(ExitCode::kInternal));
  }
}
