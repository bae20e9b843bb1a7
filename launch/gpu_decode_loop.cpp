// Generation on a GPU: what t2r_gpu adds to t2r for it. Linked into that program alone.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <deque>

#include "base/error.h"
#include "launch/backend.h"
#include "launch/gpu_memory.h"
#include "model/gpu_ops.h"

namespace t2r::launch {
namespace {

using torch::Tensor;

/// A step is captured once in a CUDA graph and replayed: position, states, caches and, where tokens
/// are the most probable ones, tokens lie on the device. Such steps are queued some at a time ahead
/// of what the caller has seen. The first step is launched kernel by kernel, so that libraries set
/// themselves up.
class GpuDecodeLoop : public model::DecodeLoop {
 public:
  GpuDecodeLoop(const model::DecoderLM& model, bool uses_graph)
      : model_(model),
        uses_graph_(uses_graph && model.has_captured_step()),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, model.device().index())) {
    c10::cuda::getCurrentCUDAStream().synchronize();  // the parameters are there
  }

  ~GpuDecodeLoop() override { cudaStreamSynchronize(stream_); }
  GpuDecodeLoop(const GpuDecodeLoop&) = delete;
  GpuDecodeLoop& operator=(const GpuDecodeLoop&) = delete;

  Tensor begin(const Tensor& prompt_BT) override {
    model_.check_tokens(prompt_BT);
    return on_stream([&] {
      start(model_.new_state(), prompt_BT.size(0));
      const Tensor logits_BV = model_.next_logits(prompt_BT.to(model_.device()), state_);
      num_given_ = state_.position;
      model_.reserve(state_, state_.position + kHeadroom);
      return logits_BV.cpu();
    });
  }

  void resume(model::DecoderState state, int64_t batch) override {
    c10::cuda::getCurrentCUDAStream().synchronize();  // on which the state was made
    on_stream([&] {
      start(std::move(state), batch);
      return Tensor();
    });
  }

  Tensor step(const Tensor& tokens_B) override {
    return on_stream([&] {
      tokens_B_.copy_(tokens_B);
      const Tensor logits_BV = run(Kind::kLogits);
      if (!host_logits_BV_.defined())
        host_logits_BV_ = torch::empty(logits_BV.sizes(), pinned(logits_BV.scalar_type()));
      host_logits_BV_.copy_(logits_BV, /*non_blocking=*/true);
      stream_.synchronize();
      ++num_given_;
      return host_logits_BV_;
    });
  }

  void start_greedy(const Tensor& tokens_B, int64_t num_steps) override {
    on_stream([&] {
      tokens_B_.copy_(tokens_B);
      greedy_end_ = state_.position + num_steps;
      pending_.clear();
      return Tensor();
    });
  }

  Tensor greedy_step() override {
    return on_stream([&] {
      if (pending_.empty()) {
        require(state_.position < greedy_end_, "greedy_step: more steps than start_greedy() named");
        model_.check_positions(state_.position + 1);
      }
      const int64_t end = std::min(greedy_end_, model_.num_positions());
      while (pending_.size() < 2 && state_.position < end) queue(end);
      Pending& first = pending_.front();
      first.arrived.synchronize();
      ++num_given_;
      const Tensor tokens_B = first.tokens_RB[num_given_ % kQueued].clone();
      if (num_given_ == first.end) pending_.pop_front();
      return tokens_B;
    });
  }

  int64_t state_bytes() const override { return state_.num_bytes(num_given_); }

 private:
  static constexpr int64_t kQueued = 8;       ///< steps that are queued together
  static constexpr int64_t kHeadroom = 1024;  ///< tokens that buffers have room for beforehand

  enum class Kind { kLogits, kGreedy, kKinds };

  /// Steps on their way: the tokens of the step behind which the position is p in row p % kQueued.
  struct Pending {
    Tensor tokens_RB;
    int64_t end;  ///< position behind the last of them
    at::cuda::CUDAEvent arrived;
  };

  struct Program {
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    Tensor logits_BV;
  };

  static torch::TensorOptions pinned(torch::ScalarType type) {
    return torch::TensorOptions().dtype(type).pinned_memory(true);
  }

  template <class Body>
  Tensor on_stream(const Body& body) {
    const torch::InferenceMode inference;
    const c10::cuda::CUDAStreamGuard guard(stream_);
    try {
      return body();
    } catch (const c10::OutOfMemoryError& error) {
      throw GpuMemoryError(error,
                           concat(" for ",
                                  tokens_B_.defined() ? tokens_B_.size(0) : 0,
                                  " sequences of ",
                                  state_.position,
                                  " tokens; try a smaller --batch-size"));
    }
  }

  void start(model::DecoderState state, int64_t batch) {
    stream_.synchronize();
    for (Program& program : programs_) program = {};
    pending_.clear();
    state_ = std::move(state);
    num_given_ = state_.position;
    const auto tokens = torch::TensorOptions(model_.device()).dtype(torch::kInt64);
    tokens_B_ = torch::zeros({batch}, tokens);
    history_RB_ = torch::zeros({kQueued, batch}, tokens);
    host_logits_BV_ = Tensor();
  }

  void queue(int64_t end) {
    const int64_t steps = std::min(kQueued, end - state_.position);
    for (int64_t i = 0; i < steps; ++i) run(Kind::kGreedy);
    Pending& pending = pending_.emplace_back();
    pending.end = state_.position;
    pending.tokens_RB = torch::empty(history_RB_.sizes(), pinned(torch::kInt64));
    pending.tokens_RB.copy_(history_RB_, /*non_blocking=*/true);
    pending.arrived.record(stream_);
  }

  /// One step; the logits are overwritten by the next.
  Tensor run(Kind kind) {
    model_.check_positions(state_.position + 1);
    make_room();
    Program& program = programs_[static_cast<size_t>(kind)];
    if (program.graph != nullptr) {
      program.graph->replay();
      state_.set_host_position(state_.position + 1);
      return program.logits_BV;
    }
    const Tensor logits_BV = enqueue(kind);
    if (uses_graph_) capture(kind, program);
    return logits_BV;
  }

  /// Buffers that move make new graphs.
  void make_room() {
    if (state_.position < model_.capacity(state_)) return;
    stream_.synchronize();
    for (Program& program : programs_) program = {};
    model_.reserve(state_, std::max(state_.position + kHeadroom, 2 * state_.position));
  }

  Tensor enqueue(Kind kind) {
    const Tensor logits_BV = model_.next_logits(tokens_B_.unsqueeze(1), state_);
    if (kind == Kind::kGreedy)
      model::gpu::greedy_token(logits_BV, tokens_B_, history_RB_, state_.device_position);
    return logits_BV;
  }

  void capture(Kind kind, Program& program) {
    const int64_t position = state_.position;
    state_.set_host_position(position - 1);  // for which there is room
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    program.logits_BV = enqueue(kind);
    graph->capture_end();
    state_.set_host_position(position);
    program.graph = std::move(graph);
  }

  const model::DecoderLM& model_;
  bool uses_graph_;
  c10::cuda::CUDAStream stream_;
  model::DecoderState state_;
  int64_t num_given_ = 0;   ///< tokens that the caller has seen
  int64_t greedy_end_ = 0;  ///< position behind the last greedy step
  Tensor tokens_B_;         ///< what the next step takes, on the device
  Tensor history_RB_;       ///< the last greedy tokens, on the device
  Tensor host_logits_BV_;
  std::deque<Pending> pending_;
  Program programs_[static_cast<size_t>(Kind::kKinds)];
};

std::unique_ptr<model::DecodeLoop> make_loop(const model::DecoderLM& model, bool uses_graph) {
  return std::make_unique<GpuDecodeLoop>(model, uses_graph);
}

[[maybe_unused]] const bool is_registered = register_gpu_decode_loop(&make_loop);

}  // namespace
}  // namespace t2r::launch
