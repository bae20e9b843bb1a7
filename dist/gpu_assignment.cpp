#include "dist/gpu_assignment.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "dist/rank_groups.h"

namespace t2r::dist {
namespace {

std::vector<std::string> hosts_of(const std::vector<VisibleGpus>& gpus_of_rank) {
  std::vector<std::string> hosts;
  for (const VisibleGpus& gpus : gpus_of_rank) hosts.push_back(gpus.host);
  return hosts;
}

void check_every_rank_sees_one(const std::vector<VisibleGpus>& gpus_of_rank) {
  std::vector<std::string> problems;
  for (const VisibleGpus& gpus : gpus_of_rank) {
    if (!gpus.ids.empty()) {
      problems.emplace_back();
    } else {
      problems.push_back(concat("no GPU was found on host ",
                                gpus.host,
                                gpus.why_none.empty() ? "" : concat(" (", gpus.why_none, ")")));
    }
  }
  const std::string text = list_problems(problems);
  if (text.empty()) return;
  throw ConfigError(concat(text,
                           ": run with --device cpu, or see whether nvidia-smi lists a GPU there "
                           "and CUDA_VISIBLE_DEVICES allows it"));
}

[[noreturn]] void refuse(const std::vector<VisibleGpus>& gpus_of_rank, const std::string& host) {
  const std::vector<int> ranks = group_ranks(hosts_of(gpus_of_rank)).at(host);
  std::set<std::string> ids;
  for (const int rank : ranks) {
    ids.insert(gpus_of_rank[rank].ids.begin(), gpus_of_rank[rank].ids.end());
  }
  const bool are_enough = ids.size() >= ranks.size();
  throw ConfigError(concat(
      "host ",
      host,
      " has ",
      ids.size(),
      ids.size() == 1 ? " GPU" : " GPUs",
      " but ",
      ranks.size(),
      " ranks",
      are_enough ? ", and not every rank sees one of its own" : "",
      ": every rank needs a GPU of its own. ",
      are_enough ? "Set CUDA_VISIBLE_DEVICES to the same for all ranks, or to another GPU for each"
                 : "Start fewer ranks there (mpirun -n, --map-by ppr:N:node), or run with "
                   "--device cpu"));
}

}  // namespace

std::vector<int> assign_gpus(const std::vector<VisibleGpus>& gpus_of_rank) {
  check_every_rank_sees_one(gpus_of_rank);
  std::set<std::string> taken;
  std::vector<int> devices;
  for (const VisibleGpus& gpus : gpus_of_rank) {
    const auto free = std::find_if(gpus.ids.begin(), gpus.ids.end(), [&](const std::string& id) {
      return taken.count(id) == 0;
    });
    if (free == gpus.ids.end()) refuse(gpus_of_rank, gpus.host);
    taken.insert(*free);
    devices.push_back(static_cast<int>(free - gpus.ids.begin()));
  }
  return devices;
}

void check_no_gpu_is_shared(const std::vector<UsedGpu>& gpu_of_rank) {
  std::vector<std::string> ids;
  for (const UsedGpu& gpu : gpu_of_rank) ids.push_back(gpu.id);
  std::string text;
  for (const auto& [id, ranks] : group_ranks(ids)) {
    if (ranks.size() == 1) continue;
    const UsedGpu& gpu = gpu_of_rank[ranks.front()];
    text += concat(text.empty() ? "" : "; ",
                   list_ranks(ranks),
                   " use one GPU of host ",
                   gpu.host,
                   " (device ",
                   gpu.device,
                   ", ",
                   gpu.bus_id,
                   ", ",
                   id,
                   ")");
  }
  if (text.empty()) return;
  throw ConfigError(concat(text,
                           ": every rank needs a GPU of its own. Start fewer ranks there, or give "
                           "each another device"));
}

}  // namespace t2r::dist
