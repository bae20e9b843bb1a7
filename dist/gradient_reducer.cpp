#include "dist/gradient_reducer.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <chrono>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "dist/agreement.h"
#include "dist/rank_groups.h"

namespace t2r::dist {
namespace {

bool is_arena_view(const GradientSlice& slice, const torch::Tensor& arena) {
  const torch::Tensor& grad = slice.parameter.grad();
  if (!grad.defined() || grad.numel() != slice.numel) return false;
  const auto* expected =
      static_cast<const char*>(arena.data_ptr()) + slice.offset * arena.element_size();
  return grad.data_ptr() == expected && grad.scalar_type() == arena.scalar_type();
}

// Empty on the CPU, which has no streams.
std::optional<c10::Stream> current_stream(const torch::Device& device) {
  if (device.is_cpu()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

void check_slice(const GradientSlice& slice, const torch::Tensor& arena) {
  const auto require_of = [&slice](bool condition, const char* rule) {
    require(condition, concat("parameter ", slice.name, ": ", rule));
  };
  require_of(slice.parameter.defined(), "is undefined");
  require_of(slice.parameter.is_leaf() && slice.parameter.requires_grad(),
             "must be a leaf that requires a gradient");
  require_of(slice.parameter.is_contiguous() && slice.parameter.numel() == slice.numel,
             "must be contiguous and have as many elements as its slice");
  require_of(slice.offset >= 0 && slice.offset + slice.numel <= arena.numel(),
             "its slice must lie inside the arena");
  require_of(is_arena_view(slice, arena) && slice.parameter.grad().is_contiguous(),
             "its grad must be the contiguous view of the arena at the slice's offset, of the "
             "arena's dtype");
  require_of(torch::autograd::impl::post_acc_grad_hooks(slice.parameter) == nullptr,
             "has a post-accumulate hook already; one reducer per parameter");
}

void check_arena(const std::vector<GradientSlice>& slices, const torch::Tensor& arena) {
  require(arena.defined() && arena.dim() == 1 && arena.is_contiguous(),
          "the arena must be one contiguous 1-D tensor");
  require(!slices.empty(), "there are no parameters");
  for (const GradientSlice& slice : slices) check_slice(slice, arena);
  require(slices.back().offset + slices.back().numel == arena.numel(),
          concat("the slices end at element ",
                 slices.back().offset + slices.back().numel,
                 ", the arena has ",
                 arena.numel()));
}

std::vector<Bucket> plan(const std::vector<GradientSlice>& slices,
                         const torch::Tensor& arena,
                         const GradientReducerOptions& options) {
  std::vector<PlannedSlice> planned;
  for (const GradientSlice& slice : slices) {
    planned.push_back({slice.offset, slice.numel, slice.group});
  }
  return plan_buckets(planned,
                      {.element_bytes = arena.element_size(),
                       .first_cap_bytes = options.first_cap_bytes,
                       .cap_bytes = options.cap_bytes});
}

// One line per parameter, so that two ranks' texts can be compared line by line.
std::string describe(const std::vector<GradientSlice>& slices,
                     const torch::Tensor& arena,
                     const GradientReducerOptions& options) {
  std::string text = concat("arena of ",
                            torch::toString(arena.scalar_type()),
                            ", caps ",
                            options.first_cap_bytes,
                            " and ",
                            options.cap_bytes,
                            " bytes\n");
  for (const GradientSlice& slice : slices) {
    text += concat("parameter ",
                   slice.name,
                   " ",
                   torch::toString(slice.parameter.scalar_type()),
                   " ",
                   slice.parameter.sizes(),
                   " at ",
                   slice.offset,
                   " in group ",
                   slice.group,
                   "\n");
  }
  return text;
}

std::string first_difference(const std::vector<std::string>& texts) {
  std::vector<std::istringstream> streams;
  for (const std::string& text : texts) streams.emplace_back(text);
  while (true) {
    std::vector<std::string> lines(texts.size());
    bool is_any_left = false;
    for (size_t r = 0; r < streams.size(); ++r) {
      if (std::getline(streams[r], lines[r])) {
        is_any_left = true;
      } else {
        lines[r] = "no further parameter";
      }
    }
    if (!is_any_left) return "none";
    const auto groups = group_ranks(lines);
    if (groups.size() == 1) continue;
    std::string difference;
    for (const auto& [line, ranks] : groups) {
      difference += concat(difference.empty() ? "" : "; ", list_ranks(ranks), ": ", line);
    }
    return difference;
  }
}

void check_same(Communicator& communicator, const std::string& text) {
  const auto hashes = communicator.all_gather(hash_bytes(text.data(), text.size()));
  if (group_ranks(hashes).size() == 1) return;
  throw ContractError(concat("gradient reducer: the ranks' parameters differ; the first: ",
                             first_difference(communicator.all_gather(text))));
}

}  // namespace

class GradientReducer::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(GradientReducer* reducer, size_t slice) : reducer_(reducer), slice_(slice) {}
  void operator()(const torch::autograd::Variable& /*tensor*/) override {
    reducer_->on_gradient(slice_);
  }

 private:
  GradientReducer* reducer_;
  size_t slice_;
};

GradientReducer::GradientReducer(std::vector<GradientSlice> slices,
                                 torch::Tensor arena,
                                 Communicator& communicator,
                                 const GradientReducerOptions& options)
    : slices_(std::move(slices)), arena_(std::move(arena)), communicator_(communicator) {
  std::string text;
  start_on_all_ranks<ContractError>(communicator_, "gradient reducer", [&] {
    check_arena(slices_, arena_);
    buckets_ = plan(slices_, arena_, options);
    text = describe(slices_, arena_, options);
  });
  check_same(communicator_, text);

  buckets_of_slice_.resize(slices_.size());
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Bucket& bucket = buckets_[b];
    bucket_views_.push_back(arena_.narrow(0, bucket.begin, bucket.end - bucket.begin));
    for (int64_t s = bucket.first_slice; s <= bucket.last_slice; ++s) {
      buckets_of_slice_[s].push_back(b);
    }
  }
  attach_hooks();
}

GradientReducer::~GradientReducer() {
  for (const GradientSlice& slice : slices_) {
    torch::autograd::impl::set_post_acc_grad_hooks(slice.parameter, nullptr);
  }
}

void GradientReducer::attach_hooks() {
  for (size_t s = 0; s < slices_.size(); ++s) {
    torch::autograd::impl::set_post_acc_grad_hooks(slices_[s].parameter,
                                                   std::make_unique<Hook>(this, s));
  }
}

void GradientReducer::begin_step() {
  require(phase_ == Phase::kIdle,
          "gradient reducer: begin_step before finish_step of the step before");
  const torch::NoGradGuard no_grad;
  arena_.zero_();
  is_ready_.assign(slices_.size(), false);
  num_unready_.clear();
  for (const Bucket& bucket : buckets_) {
    num_unready_.push_back(bucket.last_slice - bucket.first_slice + 1);
  }
  next_bucket_ = 0;
  phase_ = Phase::kStep;
}

void GradientReducer::begin_micro_step(bool is_last) {
  require(phase_ == Phase::kStep || phase_ == Phase::kMicroStep,
          "gradient reducer: begin_micro_step outside a step, or after the last micro-step");
  phase_ = is_last ? Phase::kLastMicroStep : Phase::kMicroStep;
  stream_ = current_stream(arena_.device());
}

void GradientReducer::on_gradient(size_t slice) {
  require(phase_ == Phase::kMicroStep || phase_ == Phase::kLastMicroStep,
          concat("gradient reducer: parameter ",
                 slices_[slice].name,
                 " got a gradient outside a micro-step"));
  check_gradient_view(slice);
  check_stream(slice);
  if (phase_ != Phase::kLastMicroStep) return;
  require(!is_ready_[slice],
          concat("gradient reducer: parameter ",
                 slices_[slice].name,
                 " got a second gradient in the last micro-step, which is one backward: its sum "
                 "may be under way already"));
  mark_ready(slice);
  launch_ready_buckets();
}

void GradientReducer::check_gradient_view(size_t slice) const {
  require(is_arena_view(slices_[slice], arena_),
          concat("gradient reducer: the grad of parameter ",
                 slices_[slice].name,
                 " is no longer the arena's view; somebody reset it (zero_grad with set_to_none, "
                 "create_graph) instead of calling begin_step"));
}

// A bucket waits for the stream of the hook that completes it, so all its gradients must be there.
void GradientReducer::check_stream(size_t slice) const {
  require(current_stream(arena_.device()) == stream_,
          concat("gradient reducer: the gradient of parameter ",
                 slices_[slice].name,
                 " was added on another stream than that of begin_micro_step; run forward on the "
                 "same one, and keep no graph of a forward that ran on another"));
}

void GradientReducer::mark_ready(size_t slice) {
  is_ready_[slice] = true;
  for (const size_t bucket : buckets_of_slice_[slice]) --num_unready_[bucket];
}

void GradientReducer::launch_ready_buckets() {
  while (next_bucket_ < buckets_.size() && num_unready_[next_bucket_] == 0) {
    in_flight_.push_back(
        communicator_.all_reduce_async(bucket_views_[next_bucket_], Reduction::kSum));
    ++next_bucket_;
  }
}

ReductionReport GradientReducer::finish_step() {
  require(phase_ == Phase::kLastMicroStep,
          "gradient reducer: finish_step without a last micro-step");
  ReductionReport report;
  report.num_launched_in_backward = static_cast<int64_t>(next_bucket_);
  for (size_t s = 0; s < slices_.size(); ++s) {
    if (is_ready_[s]) continue;
    check_gradient_view(s);
    ++report.num_missing_gradients;
    mark_ready(s);
  }
  if (arena_.device().is_cpu()) {
    wait_on_host(report);
  } else {
    wait_on_device(report);
  }
  in_flight_.clear();
  phase_ = Phase::kIdle;
  return report;
}

void GradientReducer::discard_step() {
  require(in_flight_.empty() && phase_ != Phase::kLastMicroStep,
          "gradient reducer: discard_step in a last micro-step, whose buckets may be under way");
  phase_ = Phase::kIdle;
}

void GradientReducer::wait_on_host(ReductionReport& report) {
  const auto start = std::chrono::steady_clock::now();
  launch_ready_buckets();
  for (const std::unique_ptr<Work>& work : in_flight_) work->wait();
  report.exposed_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void GradientReducer::wait_on_device(ReductionReport& report) {
  const bool is_capturing = communicator_.is_capturing();
  if (!is_capturing && unread_marks_ && unread_marks_->end.query()) {
    constexpr double kSecondsPerMillisecond = 1e-3;
    device_exposed_seconds_ =
        unread_marks_->begin.elapsedTime(unread_marks_->end) * kSecondsPerMillisecond;
    unread_marks_.reset();
  }
  report.exposed_seconds = device_exposed_seconds_;
  std::optional<WaitMarks> marks;
  if (!is_capturing && !unread_marks_) {
    const torch::DeviceType type = arena_.device().type();
    marks = WaitMarks{.begin = c10::Event(type, c10::EventFlag::BACKEND_DEFAULT),
                      .end = c10::Event(type, c10::EventFlag::BACKEND_DEFAULT)};
    marks->begin.record(*current_stream(arena_.device()));
  }
  launch_ready_buckets();
  for (const std::unique_ptr<Work>& work : in_flight_) work->wait();
  if (marks) {
    marks->end.record(*current_stream(arena_.device()));
    unread_marks_ = std::move(marks);
  }
}

}  // namespace t2r::dist
