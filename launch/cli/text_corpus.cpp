#include "launch/cli/text_corpus.h"

#include <signal.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "dist/agreement.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGHUP};
std::atomic<int> received_signal{0};

void on_signal(int number) {
  received_signal.store(number);
}

struct Interrupted {};

// While it lives, signals that would end the process are kept; its end lets them through.
class DeferredSignals {
 public:
  DeferredSignals() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  ~DeferredSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
    if (const int number = received_signal.exchange(0); number != 0) ::raise(number);
  }
  DeferredSignals(const DeferredSignals&) = delete;
  DeferredSignals& operator=(const DeferredSignals&) = delete;

 private:
  std::array<struct sigaction, kSignals.size()> before_{};
};

// A folder that goes away with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (fs::temp_directory_path() / "t2r-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      throw WriteError(concat(pattern, ": cannot create a temporary folder (TMPDIR names where)"));
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

void write_shards(const data::Tokenizer& tokenizer, const data::PrepareLmOptions& options) {
  try {
    const data::PrepareSummary summary = data::prepare_lm(tokenizer, options, [](int64_t, int64_t) {
      if (received_signal.load() != 0) throw Interrupted();
    });
    if (!summary.empty_inputs.empty()) {
      log::warning(concat(summary.empty_inputs.size(),
                          " text(s) give no tokens and are left out: ",
                          summary.empty_inputs.front().string(),
                          summary.empty_inputs.size() > 1 ? ", ..." : ""));
    }
  } catch (const WriteError& error) {
    throw WriteError(concat(error.what(),
                            "; the text's tokens are written to a temporary folder: set TMPDIR to "
                            "one with more room, or use `t2r prepare lm` and --data"));
  }
}

// Of each rank, the rank of its host that tokenises.
size_t host_leader(const dist::World& world, const std::vector<std::string>& folders) {
  for (size_t rank = 0; rank < folders.size(); ++rank) {
    const bool is_here = world.hosts()[rank] == world.hosts()[static_cast<size_t>(world.rank())];
    if (!folders[rank].empty() && is_here) return rank;
  }
  throw ContractError("host_leader: no rank of this host has local rank 0");
}

}  // namespace

data::Corpus corpus_of_text(const data::Tokenizer& tokenizer,
                            data::PrepareLmOptions options,
                            const dist::World& world,
                            dist::Communicator& communicator) {
  const DeferredSignals deferred;
  const bool is_leader = world.local_rank() == 0;
  options.fill_shards = true;
  std::optional<ScratchFolder> scratch;
  std::optional<data::Corpus> corpus;
  const auto step = [&](const auto& action) {
    const auto stoppable = [&] {
      try {
        action();
      } catch (const Interrupted&) {
        throw Error(ExitCode::kInternal, "stopped by a signal");
      }
    };
    dist::on_all_ranks_or(communicator, stoppable, [&] { scratch.reset(); });
  };
  step([&] {
    if (!is_leader) return;
    scratch.emplace();
    options.output = scratch->path() / "shards";
    write_shards(tokenizer, options);
  });
  const std::vector<std::string> folders =
      communicator.all_gather(is_leader ? options.output.string() : std::string());
  step([&] {
    const fs::path folder = folders[host_leader(world, folders)];
    corpus.emplace(std::vector{folder}, data::CorpusOptions{.verify = false, .keep_open = true});
  });
  return std::move(*corpus);
}

}  // namespace t2r::launch
