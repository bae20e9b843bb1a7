#include "model/ops/draw_token_op.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "model/kernels/cuda/decode/draw_token.h"
#include "model/ops/op_support.h"
#include "model/ops/training_inputs.h"

namespace t2r::ops {
namespace {

constexpr int64_t kMostTokens = 1 << 23, kMostRows = 1 << 24;
constexpr int64_t kSharedTokens = 4096;  // from which on a row is worth a cluster

void check_inputs(const DrawTokenInputs& in) {
  constexpr const char* kOp = "draw_token";
  const Tensor& logits = in.logits_NV;
  check_leading(logits, kOp, "logits", 2);
  TORCH_CHECK(logits.dim() == 2 && logits.size(0) >= 1 && logits.size(1) >= 1 &&
                  logits.size(0) <= kMostRows && logits.size(1) <= kMostTokens,
              "t2r: draw_token: logits has shape ",
              logits.sizes(),
              ", allowed: [rows, vocabulary], 1 to ",
              kMostRows,
              " and 1 to ",
              kMostTokens);
  TORCH_CHECK(in.history_RN.dim() == 2 && in.history_RN.size(0) >= 1,
              "t2r: draw_token: history has shape ",
              in.history_RN.sizes(),
              ", allowed: [steps, rows], not empty");
  check_other(in.tokens_N, kOp, "tokens", {logits.size(0)}, at::kLong, logits);
  check_other(
      in.history_RN, kOp, "history", {in.history_RN.size(0), logits.size(0)}, at::kLong, logits);
  check_other(in.position_1, kOp, "position", {1}, at::kLong, logits);
  TORCH_CHECK(in.tokens_N.is_contiguous() && in.history_RN.is_contiguous(),
              "t2r: draw_token: tokens or history is not contiguous");
  TORCH_CHECK(in.temperature >= 0,
              "t2r: draw_token: temperature is ",
              in.temperature,
              ", allowed: 0 (greedy) or more");
  TORCH_CHECK(in.top_k >= 0, "t2r: draw_token: top_k is ", in.top_k, ", allowed: 0 (all) or more");
  TORCH_CHECK(in.top_p > 0 && in.top_p <= 1,
              "t2r: draw_token: top_p is ",
              in.top_p,
              ", allowed: above 0, up to 1");
}

}  // namespace

void draw_token(const DrawTokenInputs& in) {
  check_inputs(in);
  const c10::cuda::CUDAGuard guard(in.logits_NV.device());
  const Tensor logits = in.logits_NV.contiguous();
  const kernels::cuda::Device device = current_device();
  kernels::cuda::DrawToken a;
  a.rows = logits.size(0);
  a.vocabulary = logits.size(1);
  a.is_bf16 = logits.scalar_type() == at::kBFloat16;
  a.logits = pointer<void>(logits);
  a.tokens = mutable_pointer<int64_t>(in.tokens_N);
  a.history = mutable_pointer<int64_t>(in.history_RN);
  a.history_rows = in.history_RN.size(0);
  a.position = pointer<int64_t>(in.position_1);
  a.rule = kernels::DrawRule::make(in.temperature, in.top_k, in.top_p, in.seed);
  a.shares_rows =
      device.hopper && a.vocabulary > kSharedTokens && a.rows < 2 * device.multiprocessors;
  a.overlaps = device.hopper;
  check_launch(kernels::cuda::draw_token(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel that draws tokens");
}

}  // namespace t2r::ops
