#pragma once

#include <torch/types.h>

#include <optional>

#include "model/attention/attention.h"
#include "model/config.h"
#include "model/layers/mlp.h"
#include "model/layers/norm.h"
#include "model/parameters.h"

namespace t2r::model {

/// What runs through the blocks.
struct ResidualStream {
  torch::Tensor sum_BTD;    ///< of all branches so far
  torch::Tensor input_BTD;  ///< what the next branch reads: the sum behind that branch's norm, or
                            ///< the sum itself where norms stand behind branches
};

/// x with dropout, from torch's default generator; x itself at rate 0.
torch::Tensor apply_dropout(const torch::Tensor& x, double rate);

/// Attention and MLP of one layer, with their norms, and the order in which they are added.
class Block {
 public:
  Block(const DecoderConfig& config, int64_t layer, ParameterSet& parameters);

  struct ForwardOptions {
    double dropout = 0.0;  ///< on both branches
    Recompute recompute = Recompute::kNothing;
    std::optional<RotaryEmbedding::Tables> rope =
        {};                           ///< of the positions at hand, if there is RoPE
    AttentionState* state = nullptr;  ///< of this layer
  };

  /// The stream behind this block. A branch's addition and the norm behind it are one operation.
  /// @param next  the norm in front of what follows; nullptr: there is none
  ResidualStream forward(const ResidualStream& stream,
                         const Norm* next,
                         const ForwardOptions& options) const;

  /// The sum behind this block with softmax attention, and how far its linear attention is from
  /// that (Attention::forward_transfer); of the sum there are no gradients.
  /// @param counts_BT  bool: which tokens the error has; undefined: all
  struct Transfer {
    torch::Tensor sum_BTD;
    torch::Tensor error_sum;  ///< undefined for a softmax layer
  };
  Transfer forward_transfer(const torch::Tensor& sum_BTD,
                            const std::optional<RotaryEmbedding::Tables>& rope,
                            const torch::Tensor& counts_BT) const;

  /// The sum behind this block for one token of each sequence on a GPU, in five kernels.
  /// @param rope  tables of all positions up to the capacity, if the model has RoPE
  torch::Tensor step(const torch::Tensor& sum_BD,
                     const RotaryEmbedding::Tables* rope,
                     AttentionState& state) const;

  /// The most rows that step() takes; 0: none, as norms behind branches or of queries and keys are
  /// not in its kernels.
  int64_t most_step_rows() const;

  /// Brings the weights into the layout that step() reads, for a model that only generates.
  void make_output_major();

  /// The norm that the block's first branch reads through; nullptr: it reads the sum.
  const Norm* norm_in_front() const { return norms_are_behind_ ? nullptr : &attention_norm_; }

  const Attention& attention() const { return attention_; }
  Attention& attention() { return attention_; }
  const Mlp& mlp() const { return mlp_; }

 private:
  /// A branch as it is added: behind its norm, where norms stand there.
  torch::Tensor added_form(const torch::Tensor& branch_BTD, const Norm& norm) const;

  bool norms_are_behind_;
  Norm attention_norm_;
  Attention attention_;
  Norm mlp_norm_;
  Mlp mlp_;
};

}  // namespace t2r::model
