#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>
#include <vector>

#include "model/config.h"
#include "model/nets/block.h"
#include "model/parameters.h"
#include "model/trainable.h"

namespace t2r::model {

/// What generation carries: one attention state per layer and the number of tokens seen.
struct DecoderState {
  std::vector<AttentionState> layers;
  int64_t position = 0;
  torch::Tensor device_position;  ///< on a GPU the same number there, int64 [1]: steps read it

  /// Bytes of all layers that hold information after `tokens` tokens.
  int64_t num_bytes(int64_t tokens) const;
  int64_t num_bytes() const { return num_bytes(position); }

  /// What the host believes, where a replayed graph has moved the state on; the device knows.
  void set_host_position(int64_t tokens);
};

/// Decoder-only language model; families and attention kinds by config.
///
/// Legend: B batch, T tokens, D hidden size, V vocabulary.
class DecoderLM : public Trainable {
 public:
  /// Parameters are uninitialised: load them (hugging_face.h) or call initialize().
  /// @param device  torch::kMeta: a model of names and shapes alone, without memory
  /// @throws ConfigError  if the config does not hold together
  explicit DecoderLM(const DecoderConfig& config, torch::Device device = torch::kCPU);

  /// Random parameters: normal(0, initializer_range), residual outputs scaled by 1 / sqrt(2
  /// layers), norms one, biases zero, feature maps their own. Depends on the seed alone.
  void initialize(uint64_t seed);

  /// Random parameters of the feature maps only: what conversion does to a pretrained model.
  void initialize_feature_maps(uint64_t seed);

  struct ForwardOptions {
    double dropout = 0.0;  ///< on embeddings and residual branches; torch's default generator
    Recompute recompute = Recompute::kNothing;
    DecoderState* state = nullptr;  ///< continue from, and move on
  };

  /// tokens_BT int64 -> normalised hidden states [B, T, D] of the last layer.
  /// @throws DataError    if a token is outside the vocabulary (checked on the CPU only: a GPU
  /// would
  ///                      have to be waited for; callers check what they upload)
  /// @throws ConfigError  if positions run past a learned position table
  torch::Tensor hidden(const torch::Tensor& tokens_BT, const ForwardOptions& options) const;
  torch::Tensor hidden(const torch::Tensor& tokens_BT) const { return hidden(tokens_BT, {}); }

  /// hidden [.., D] -> logits [.., V].
  torch::Tensor logits(const torch::Tensor& hidden) const;

  /// Logits [B, V] behind the last of tokens_BT, which continue the state: hidden() and logits(),
  /// or on a GPU for one token of few sequences five kernels a layer (prepare_generation() decides)
  /// and float32. A step on a GPU, one token behind others, finds its position on the device.
  torch::Tensor next_logits(const torch::Tensor& tokens_BT, DecoderState& state) const;

  /// hidden() of kInputs.
  torch::Tensor target_states(const TensorBatch& batch, const LossOptions& options) const override;
  const torch::Tensor& output_weight() const override { return head_VD_; }
  torch::Tensor transfer_error_sum(const TensorBatch& batch) const override;

  /// Empty state for generation.
  DecoderState new_state() const;

  /// A state as `length` tokens of `batch` sequences leave it, of random numbers, with room for
  /// `capacity` tokens: to measure what a step costs.
  DecoderState random_state(int64_t batch, int64_t length, int64_t capacity) const;

  /// Tokens that the state's buffers and the position tables have room for.
  int64_t capacity(const DecoderState& state) const;

  /// Makes room for `tokens` tokens; buffers move.
  void reserve(DecoderState& state, int64_t tokens) const;

  /// Merges the feature maps into the projections where that is exact, and on a GPU brings the
  /// weights into the layout of a step. The model can only generate afterwards.
  void prepare_generation();

  /// Whether a step on a GPU can be captured once and replayed at every position.
  bool has_captured_step() const;

  int64_t num_positions() const override;

  /// @throws ConfigError  if positions before `end` run past a learned position table
  void check_positions(int64_t end) const;

  const DecoderConfig& config() const override { return config_; }

  /// @throws DataError  if a token of a tensor on the CPU is outside the vocabulary
  void check_tokens(const torch::Tensor& tokens) const;

  torch::Device device() const override { return token_embedding_VD_.device(); }
  ParameterSet& parameters() override { return parameters_; }
  const ParameterSet& parameters() const override { return parameters_; }

 private:
  torch::Tensor embed(const torch::Tensor& tokens_BT, const DecoderState* state) const;
  bool is_step(const torch::Tensor& tokens_BT, const DecoderState& state) const;
  torch::Tensor step(const torch::Tensor& tokens_BT, DecoderState& state) const;
  std::optional<RotaryEmbedding::Tables> rope_of(const torch::Tensor& tokens_BT,
                                                 const DecoderState* state) const;

  DecoderConfig config_;
  ParameterSet parameters_;
  torch::Tensor token_embedding_VD_;
  torch::Tensor position_embedding_;  ///< [max_positions, D], if learned
  std::vector<Block> blocks_;
  Norm final_norm_;
  torch::Tensor head_VD_;  ///< the token embedding itself if tied
  mutable std::unique_ptr<RotaryEmbedding> rope_;
  int64_t most_step_rows_ = 0;  ///< sequences that step() takes
};

}  // namespace t2r::model
