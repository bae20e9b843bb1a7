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

/// A step is captured once in a CUDA graph and replayed: position, states, caches and tokens lie on
/// the device, which also chooses them. Steps are queued some at a time ahead of what the caller
/// has seen. The first step is launched kernel by kernel, so that libraries set themselves up.
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
      set_state(model_.new_state(), prompt_BT.size(0));
      const Tensor logits_BV = model_.next_logits(prompt_BT.to(model_.device()), state_);
      num_given_ = state_.position;
      model_.reserve(state_, state_.position + kHeadroom);
      return logits_BV.cpu();
    });
  }

  void resume(model::DecoderState state, int64_t batch) override {
    c10::cuda::getCurrentCUDAStream().synchronize();  // on which the state was made
    on_stream([&] {
      set_state(std::move(state), batch);
      return Tensor();
    });
  }

  void start(const Tensor& tokens_B,
             const model::SamplingOptions& sampling,
             int64_t num_steps) override {
    on_stream([&] {
      stream_.synchronize();
      graph_.reset();  // which has the options of sampling in it
      sampling_ = sampling;
      tokens_B_.copy_(tokens_B);
      end_ = state_.position + num_steps;
      pending_.clear();
      return Tensor();
    });
  }

  Tensor next() override {
    return on_stream([&] {
      if (pending_.empty()) {
        require(state_.position < end_, "next: more steps than start() named");
        model_.check_positions(state_.position + 1);
      }
      const int64_t end = std::min(end_, model_.num_positions());
      while (pending_.size() < 2 && state_.position < end) queue(end);
      Pending& first = pending_.front();
      first.arrived.synchronize();
      ++num_given_;
      const Tensor tokens_B = first.tokens_RB[num_given_ % kQueued].clone();
      if (num_given_ == first.end) pending_.pop_front();
      model::check_drawn(tokens_B);
      return tokens_B;
    });
  }

  int64_t state_bytes() const override { return state_.num_bytes(num_given_); }

 private:
  static constexpr int64_t kQueued = 8;       ///< steps that are queued together
  static constexpr int64_t kHeadroom = 1024;  ///< tokens that buffers have room for beforehand

  /// Steps on their way: the tokens of the step behind which the position is p in row p % kQueued.
  struct Pending {
    Tensor tokens_RB;
    int64_t end;  ///< position behind the last of them
    at::cuda::CUDAEvent arrived;
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
      throw dist::gpu_memory_error(error,
                                   concat(" for ",
                                          tokens_B_.defined() ? tokens_B_.size(0) : 0,
                                          " sequences of ",
                                          state_.position,
                                          " tokens; try a smaller --sequences-at-once"));
    }
  }

  void set_state(model::DecoderState state, int64_t batch) {
    stream_.synchronize();
    graph_.reset();
    pending_.clear();
    state_ = std::move(state);
    num_given_ = state_.position;
    const auto tokens = torch::TensorOptions(model_.device()).dtype(torch::kInt64);
    tokens_B_ = torch::zeros({batch}, tokens);
    history_RB_ = torch::zeros({kQueued, batch}, tokens);
  }

  void queue(int64_t end) {
    const int64_t steps = std::min(kQueued, end - state_.position);
    for (int64_t i = 0; i < steps; ++i) run();
    Pending& pending = pending_.emplace_back();
    pending.end = state_.position;
    pending.tokens_RB = torch::empty(history_RB_.sizes(), pinned(torch::kInt64));
    pending.tokens_RB.copy_(history_RB_, /*non_blocking=*/true);
    pending.arrived.record(stream_);
  }

  void run() {
    model_.check_positions(state_.position + 1);
    make_room();
    if (graph_ != nullptr) {
      graph_->replay();
      state_.set_host_position(state_.position + 1);
      return;
    }
    enqueue();
    if (uses_graph_) capture();
  }

  /// Buffers that move make a new graph.
  void make_room() {
    if (state_.position < model_.capacity(state_)) return;
    stream_.synchronize();
    graph_.reset();
    model_.reserve(state_, std::max(state_.position + kHeadroom, 2 * state_.position));
  }

  void enqueue() {
    const Tensor logits_BV = model_.next_logits(tokens_B_.unsqueeze(1), state_);
    model::gpu::draw_token(logits_BV, tokens_B_, history_RB_, state_.device_position, sampling_);
  }

  void capture() {
    const int64_t position = state_.position;
    state_.set_host_position(position - 1);  // for which there is room
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    enqueue();
    graph->capture_end();
    state_.set_host_position(position);
    graph_ = std::move(graph);
  }

  const model::DecoderLM& model_;
  bool uses_graph_;
  c10::cuda::CUDAStream stream_;
  model::DecoderState state_;
  model::SamplingOptions sampling_;
  int64_t num_given_ = 0;  ///< tokens that the caller has seen
  int64_t end_ = 0;        ///< position behind the last step
  Tensor tokens_B_;        ///< what the next step takes, on the device
  Tensor history_RB_;      ///< the last tokens, on the device
  std::deque<Pending> pending_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

std::unique_ptr<model::DecodeLoop> make_loop(const model::DecoderLM& model, bool uses_graph) {
  return std::make_unique<GpuDecodeLoop>(model, uses_graph);
}

[[maybe_unused]] const bool is_registered = register_gpu_decode_loop(&make_loop);

}  // namespace
}  // namespace t2r::launch
