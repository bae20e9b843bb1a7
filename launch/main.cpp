#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <new>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "dist/torch_error.h"
#include "dist/world.h"
#include "launch/command.h"
#include "launch/options/options.h"
#include "launch/stop_signal.h"
#include "launch/version.h"

namespace {

using namespace t2r;

struct Command {
  std::vector<std::string> words;
  const char* summary;
  int (*run)(const launch::Invocation&);
  bool runs_on_ranks = false;       ///< shares its work among mpirun's processes
  std::string memory_option = {};   ///< that takes less memory if it is smaller
  bool saves_when_stopped = false;  ///< a signal that stops it is heard, from its first lines on
};

const std::vector<Command> kCommands = {
    {{"prepare", "vocab"},
     "train a sentencepiece vocabulary on text files",
     launch::run_prepare_vocab},
    {{"prepare", "lm"},
     "turn text files into HDF5 shards of tokens",
     launch::run_prepare_lm,
     /*runs_on_ranks=*/true},
    {{"convert"},
     "swap a pretrained model's softmax attention for linear attention",
     launch::run_convert},
    {{"verify"},
     "compare a model with stored logits, gradients and greedy tokens",
     launch::run_verify},
    {{"train"},
     "pretrain or finetune a model, alone or under mpirun",
     launch::run_train,
     /*runs_on_ranks=*/true,
     "--micro-batch-size",
     /*saves_when_stopped=*/true},
    {{"evaluate"},
     "perplexity of a model, per token and per word",
     launch::run_evaluate,
     /*runs_on_ranks=*/true,
     "--sequences-at-once"},
    {{"generate"},
     "continue a prompt",
     launch::run_generate,
     /*runs_on_ranks=*/false,
     "--sequences-at-once"},
    {{"bench", "attention"},
     "time attention on this GPU beside its peers",
     launch::run_bench_attention},
    {{"bench", "generate"},
     "time generation at given context lengths: microseconds a token, state, memory",
     launch::run_bench_generate,
     /*runs_on_ranks=*/false,
     "--sequences-at-once"},
    {{"bench", "train"},
     "time training steps on 1..n ranks: tokens/s, MFU, memory, phases",
     launch::run_bench_train,
     /*runs_on_ranks=*/true,
     "--micro-batch-size"},
};

std::string name_of(const Command& command) {
  return joined(command.words, " ");
}

bool is_help(const std::string& word) {
  return word == "--help" || word == "-h" || word == "help";
}

/// The commands that begin with `group`, all for "".
void print_usage(const std::string& group) {
  if (group.empty()) {
    std::cout << "t2r: pretrained transformers into RNNs\n\nusage: t2r COMMAND [--help] [--config "
                 "FILE] [options]\n\n";
  } else {
    std::cout << "usage: t2r " << group << " COMMAND [--help] [--config FILE] [options]\n\n";
  }
  for (const Command& command : kCommands) {
    if (!group.empty() && command.words[0] != group) continue;
    const std::string name = name_of(command);
    std::cout << "  " << name << std::string(18 - name.size(), ' ') << command.summary << "\n";
  }
  std::cout << "\nt2r COMMAND --help lists a command's options"
            << (group.empty() ? "; t2r --version says what this was built with" : "") << "\n";
}

bool is_group(const std::string& word) {
  return std::any_of(kCommands.begin(), kCommands.end(), [&](const Command& command) {
    return command.words.size() == 2 && command.words[0] == word;
  });
}

const Command* find_command(const std::vector<std::string>& arguments) {
  for (const Command& command : kCommands) {
    if (arguments.size() >= command.words.size() &&
        std::equal(command.words.begin(), command.words.end(), arguments.begin()))
      return &command;
  }
  return nullptr;
}

[[noreturn]] void refuse_unknown(const std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (const Command& command : kCommands) names.push_back(name_of(command));
  const bool has_group = is_group(arguments[0]);
  if (has_group && arguments.size() == 1)
    throw UsageError(concat(
        "t2r ", arguments[0], " is several commands; t2r ", arguments[0], " --help lists them"));
  const std::string word = has_group ? arguments[0] + " " + arguments[1] : arguments[0];
  const std::string near = launch::nearest(word, names);
  throw UsageError(concat("unknown command \"",
                          word,
                          "\"",
                          near.empty() ? "" : concat("; did you mean ", near, "?"),
                          " (t2r --help lists all)"));
}

/// What to try when the command that argv names has run out of memory, behind "out of memory".
std::string memory_hint(int argc, char** argv) {
  const Command* const command = find_command({argv + 1, argv + argc});
  if (command == nullptr || command->memory_option.empty()) return "";
  return concat("; try a smaller ", command->memory_option);
}

/// What the launcher says before MPI has started.
dist::LauncherPlace place() {
  return dist::launcher_place(dist::environment_variable).value_or(dist::LauncherPlace{});
}

bool is_first_rank() {
  return place().rank.value_or(0) == 0;
}

/// The log knows its rank before MPI has started, so that one line is said once.
void set_rank_of_log() {
  if (place().size > 1) log::set_rank(place().rank.value_or(0), place().size);
}

int dispatch(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) throw UsageError("no command; t2r --help lists them");
  if (arguments[0] == "--version") {
    std::cout << launch::version_text();
    return 0;
  }
  if (is_help(arguments[0])) {  // "help train" is "train --help"
    if (arguments.size() == 1) arguments.push_back("");
    std::rotate(arguments.begin(), arguments.begin() + 1, arguments.end());
    arguments.back() = "--help";
  }
  if (arguments[0].empty() || is_group(arguments[0])) {
    if (arguments.size() == 2 && is_help(arguments[1])) {
      print_usage(arguments[0]);
      return 0;
    }
  }
  const Command* const command = find_command(arguments);
  if (command == nullptr) refuse_unknown(arguments);
  if (!command->runs_on_ranks)
    dist::check_started_alone(dist::environment_variable, name_of(*command));
  if (command->saves_when_stopped) launch::install_stop_signals(/*says=*/is_first_rank());
  arguments.erase(arguments.begin(),
                  arguments.begin() + static_cast<std::ptrdiff_t>(command->words.size()));
  return command->run({arguments, &argc, &argv});
}

// What was printed is buffered: that a disk is full may show at the end only.
void check_output() {
  if (!std::cout.flush() || std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw WriteError("standard output: cannot write");
}

}  // namespace

int main(int argc, char** argv) {
  launch::ignore_file_size_signal();
  try {
    set_rank_of_log();
    const int code = dispatch(argc, argv);
    check_output();
    return code;
  } catch (const Error& error) {
    dist::end_job(error.what(), static_cast<int>(error.exit_code()));
  } catch (const c10::OutOfMemoryError& error) {
    const GpuMemoryError ours = dist::gpu_memory_error(error, memory_hint(argc, argv));
    dist::end_job(ours.what(), static_cast<int>(ours.exit_code()));
  } catch (const c10::Error& error) {
    dist::end_job(dist::is_out_of_host_memory(error)
                      ? concat("out of memory", memory_hint(argc, argv))
                      : concat("internal error: ", error.what_without_backtrace()),
                  static_cast<int>(ExitCode::kInternal));
  } catch (const std::bad_alloc&) {
    dist::end_job(concat("out of memory", memory_hint(argc, argv)),
                  static_cast<int>(ExitCode::kInternal));
  } catch (const std::exception& error) {
    dist::end_job(concat("internal error: ", error.what()), static_cast<int>(ExitCode::kInternal));
  }
}
