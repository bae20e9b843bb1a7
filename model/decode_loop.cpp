#include "model/decode_loop.h"

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

  Tensor step(const Tensor& tokens_B) override {
    const torch::InferenceMode inference;
    return model_.next_logits(tokens_B.to(model_.device()).unsqueeze(1), state_);
  }

  void start_greedy(const Tensor& tokens_B, int64_t) override { last_B_ = tokens_B; }

  Tensor greedy_step() override {
    last_B_ = step(last_B_).argmax(-1).cpu();
    return last_B_;
  }

  int64_t state_bytes() const override { return state_.num_bytes(); }

 private:
  const DecoderLM& model_;
  DecoderState state_;
  Tensor last_B_;
};

}  // namespace

std::unique_ptr<DecodeLoop> make_decode_loop(const DecoderLM& model) {
  return std::make_unique<PlainLoop>(model);
}

}  // namespace t2r::model
