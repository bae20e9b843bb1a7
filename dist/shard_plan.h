#pragma once

#include <torch/types.h>

#include <cstdint>

namespace t2r::dist {

/// Elements [begin, end) of a flat buffer.
struct Shard {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t numel() const { return end - begin; }
  torch::Tensor of(const torch::Tensor& flat) const { return flat.narrow(0, begin, numel()); }

  bool operator==(const Shard&) const = default;
};

/// Which elements of a flat buffer each rank answers for: in rank order, without holes, as equal as
/// they can be. Whoever shares out an arena (collectives, moments, checkpoints) asks this one.
/// Pure. Local.
class ShardPlan {
 public:
  /// @throws ContractError  if numel < 0 or num_ranks < 1
  ShardPlan(int64_t numel, int num_ranks);

  int64_t numel() const { return numel_; }
  int num_ranks() const { return num_ranks_; }

  /// The shard of a rank; empty for some, where there are more ranks than elements.
  /// @throws ContractError  if the plan has no such rank
  Shard of(int rank) const;

  /// @throws ContractError  unless `flat` is contiguous, 1-D, of numel() elements, and the plan is
  ///                        made for num_ranks
  void check(const torch::Tensor& flat, int num_ranks) const;

 private:
  int64_t numel_;
  int num_ranks_;
};

}  // namespace t2r::dist
