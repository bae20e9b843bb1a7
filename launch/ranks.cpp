#include "launch/ranks.h"

#include <ATen/Version.h>

#include <filesystem>
#include <iterator>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "dist/agreement.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/threads.h"
#include "model/files/hugging_face.h"
#include "model/kernels/cpu/dispatch.h"

namespace t2r::launch {

int64_t usable_processors(const dist::World& world, dist::Communicator& communicator) {
  std::ostringstream own;
  for (const int processor : allowed_processors()) own << processor << " ";
  const std::vector<std::string> texts = communicator.all_gather(own.str());
  std::vector<std::vector<int>> masks;  // of this host's ranks
  size_t own_index = 0;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    if (world.hosts()[rank] != world.hosts()[static_cast<size_t>(world.rank())]) continue;
    if (rank == static_cast<size_t>(world.rank())) own_index = masks.size();
    std::istringstream in(texts[rank]);
    masks.emplace_back(std::istream_iterator<int>(in), std::istream_iterator<int>());
  }
  return share_of_processors(masks, own_index, granted_processors());
}

void check_same_options(dist::Communicator& communicator, const OptionSet& options) {
  const std::vector<std::string> texts = communicator.all_gather(options.dump());
  for (size_t rank = 1; rank < texts.size(); ++rank) {
    std::istringstream first(texts[0]), other(texts[rank]);
    std::string line_first, line_other;
    while (std::getline(first, line_first) && std::getline(other, line_other)) {
      if (line_first != line_other) {
        throw ConfigError(concat("ranks were started with different options: rank 0 has ",
                                 line_first,
                                 ", rank ",
                                 rank,
                                 " has ",
                                 line_other));
      }
    }
  }
}

void check_same_kernels(dist::Communicator& communicator) {
  const std::vector<std::string> kinds = communicator.all_gather(
      concat(model::kernels::cpu_kernels().name, ", LibTorch's ", at::get_cpu_capability()));
  for (size_t rank = 1; rank < kinds.size(); ++rank) {
    if (kinds[rank] == kinds[0]) continue;
    throw ConfigError(concat("the ranks' processors differ: rank 0 has kernels for ",
                             kinds[0],
                             ", rank ",
                             rank,
                             " for ",
                             kinds[rank],
                             "; their parameters would not stay the same bits. Use hosts of one "
                             "kind, or give all ranks T2R_CPU_ISA=avx2 and "
                             "ATEN_CPU_CAPABILITY=avx2"));
  }
}

void check_same_on_ranks(dist::Communicator& communicator,
                         const dist::World& world,
                         const std::string& value,
                         const std::string& what,
                         const std::string& remedy) {
  const std::vector<std::string> values = communicator.all_gather(value);
  for (size_t rank = 1; rank < values.size(); ++rank) {
    if (values[rank] == values[0]) continue;
    throw ConfigError(concat(what,
                             " differs between ranks: rank 0 on ",
                             world.hosts()[0],
                             " has ",
                             values[0],
                             ", rank ",
                             rank,
                             " on ",
                             world.hosts()[rank],
                             " has ",
                             values[rank],
                             "; ",
                             remedy));
  }
}

void check_same_model(dist::Communicator& communicator,
                      const dist::World& world,
                      const model::Trainable& model,
                      const std::string& folder) {
  if (communicator.size() == 1) return;
  Hasher hasher;
  hasher.update(model::write_config(model.config(), ""));
  hasher.update(model.parameters().content_hash());
  check_same_on_ranks(communicator,
                      world,
                      "config and weights of hash " + hasher.hex(),
                      concat("the model at ", folder),
                      "give every host the same model folder");
}

std::filesystem::path resolve_on_first_rank(dist::Communicator& communicator,
                                            const std::string& folder) {
  std::string found;
  dist::on_first_rank(communicator, [&] { found = resolve_checkpoint(folder).string(); });
  return communicator.all_gather(found).front();
}

data::Corpus open_corpus(const std::vector<std::string>& names,
                         const dist::World& world,
                         dist::Communicator& communicator) {
  const std::vector<std::filesystem::path> paths(names.begin(), names.end());
  std::optional<data::Corpus> corpus;
  // A host's other ranks wait for the one that verifies: nothing is parsed that is not verified.
  for (const bool verifies : {true, false}) {
    dist::on_all_ranks(communicator, [&] {
      if (verifies == (world.local_rank() == 0))
        corpus.emplace(paths, data::CorpusOptions{verifies});
    });
  }
  if (communicator.rank() == 0 && corpus->num_unsealed() > 0) {
    log::warning(concat(names.front(),
                        ": ",
                        corpus->num_unsealed(),
                        " shard(s) were made by an earlier version of t2r, and cannot be verified "
                        "before HDF5 reads them; `t2r prepare lm --overwrite` makes them anew"));
  }
  check_same_on_ranks(communicator,
                      world,
                      "tokens of hash " + corpus->content_hash(),
                      concat("the content of the shards ", names.front()),
                      "give every host the same shards");
  return std::move(*corpus);
}

}  // namespace t2r::launch
