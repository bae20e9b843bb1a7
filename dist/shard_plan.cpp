#include "dist/shard_plan.h"

#include "base/error.h"

namespace t2r::dist {

ShardPlan::ShardPlan(int64_t numel, int num_ranks) : numel_(numel), num_ranks_(num_ranks) {
  require(numel >= 0 && num_ranks >= 1,
          concat("shard plan: ",
                 numel,
                 " elements for ",
                 num_ranks,
                 " ranks; allowed are 0 or more for 1 or more"));
}

// numel * rank / num_ranks, which are the slices of the checkpoints, without the product.
Shard ShardPlan::of(int rank) const {
  require(rank >= 0 && rank < num_ranks_,
          concat("shard plan: rank ", rank, "; allowed 0..", num_ranks_ - 1));
  const int64_t whole = numel_ / num_ranks_, rest = numel_ % num_ranks_;
  const auto edge = [&](int64_t before) { return whole * before + rest * before / num_ranks_; };
  return {edge(rank), edge(int64_t{rank} + 1)};
}

void ShardPlan::check(const torch::Tensor& flat, int num_ranks) const {
  require(flat.defined() && flat.dim() == 1 && flat.is_contiguous() && flat.numel() == numel_,
          concat("shard plan: a contiguous 1-D tensor of ", numel_, " elements is needed"));
  require(num_ranks == num_ranks_,
          concat("shard plan: made for ", num_ranks_, " ranks, used by ", num_ranks));
}

}  // namespace t2r::dist
