#include "dist/parameter_sync.h"

#include <algorithm>
#include <map>
#include <vector>

#include "base/hash.h"
#include "dist/rank_groups.h"

namespace t2r::dist {
namespace {

using RanksByHash = std::map<std::string, std::vector<int>>;

void check_flat(const torch::Tensor& flat) {
  require(flat.defined() && flat.dim() == 1 && flat.is_contiguous(),
          "parameter sync: the arena must be one contiguous 1-D tensor");
}

std::string describe_difference(const RanksByHash& groups, int size) {
  const auto largest =
      std::max_element(groups.begin(), groups.end(), [](const auto& a, const auto& b) {
        return a.second.size() < b.second.size();
      });
  const bool has_majority = 2 * largest->second.size() > static_cast<size_t>(size);
  std::string text;
  for (const auto& [hash, ranks] : groups) {
    if (has_majority && hash == largest->first) continue;
    text += concat(text.empty() ? "" : "; ", list_ranks(ranks), " (hash ", hash, ")");
  }
  if (!has_majority) return "no majority: " + text;
  return concat(text,
                " against ",
                largest->second.size(),
                " equal ranks of ",
                size,
                " (hash ",
                largest->first,
                ")");
}

}  // namespace

void broadcast_parameters(Communicator& communicator, const torch::Tensor& flat, int root) {
  check_flat(flat);
  communicator.broadcast(flat.detach(), root);
}

void check_replicas_equal(Communicator& communicator,
                          const torch::Tensor& flat,
                          const std::string& what) {
  check_flat(flat);
  if (!flat.device().is_cpu()) communicator.synchronize_device();  // the copy would wait for ever
  const torch::Tensor host = flat.detach().cpu();
  const std::string hash = hash_bytes(host.data_ptr(), host.nbytes());
  const std::vector<std::string> hashes = communicator.all_gather(hash);
  const RanksByHash groups = group_ranks(hashes);
  if (groups.size() == 1) return;
  throw ReplicaError(concat(what,
                            " differ between ranks: ",
                            describe_difference(groups, communicator.size()),
                            "; restart from the newest checkpoint, and check the memory of the "
                            "differing hosts if it happens again"));
}

}  // namespace t2r::dist
