#include "model/search/decode_loop.h"

#include "base/error.h"

namespace t2r::model {
namespace {

using torch::Tensor;

class PlainLoop : public DecodeLoop {
 public:
  explicit PlainLoop(const DecoderLM& model) : model_(model) {}

  Tensor begin(const Tensor& prompt_BT) override {
    model_.check_tokens(prompt_BT);
    const torch::InferenceMode inference;
    state_ = model_.new_state();
    return model_.next_logits(prompt_BT.to(model_.device()), state_);
  }

  void resume(DecoderState state, int64_t) override { state_ = std::move(state); }

  void start(const Tensor& tokens_B, const SamplingOptions& sampling, int64_t) override {
    last_B_ = tokens_B;
    sampling_ = sampling;
  }

  Tensor next() override {
    const torch::InferenceMode inference;
    const Tensor logits_BV = model_.next_logits(last_B_.to(model_.device()).unsqueeze(1), state_);
    last_B_ = draw_tokens(logits_BV, state_.position, sampling_);
    return last_B_;
  }

  int64_t state_bytes() const override { return state_.num_bytes(); }

 private:
  const DecoderLM& model_;
  DecoderState state_;
  Tensor last_B_;
  SamplingOptions sampling_;
};

}  // namespace

std::unique_ptr<DecodeLoop> make_decode_loop(const DecoderLM& model) {
  return std::make_unique<PlainLoop>(model);
}

}  // namespace t2r::model
