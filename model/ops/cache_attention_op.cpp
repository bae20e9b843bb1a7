#include "model/ops/cache_attention_op.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "model/kernels/cuda/decode/cache_attention.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::CacheAttention;
using kernels::cuda::kMaxCacheHead;

void check_on_device(const Tensor& tensor, const char* name, at::ScalarType type, const Tensor& q) {
  TORCH_CHECK(tensor.device() == q.device(),
              "t2r: ",
              name,
              " is on ",
              tensor.device(),
              ", q is on ",
              q.device(),
              ", allowed: one device");
  TORCH_CHECK(tensor.scalar_type() == type,
              "t2r: ",
              name,
              " has dtype ",
              tensor.scalar_type(),
              ", allowed: ",
              type);
  TORCH_CHECK(tensor.is_contiguous(),
              "t2r: ",
              name,
              " has strides ",
              tensor.strides(),
              ", allowed: contiguous");
}

void check_inputs(const CacheAttentionInputs& in) {
  const Tensor& q = in.q_BHd;
  TORCH_CHECK(q.is_cuda(), "t2r: q is on ", q.device(), ", allowed: cuda");
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kFloat,
              "t2r: q has dtype ",
              q.scalar_type(),
              ", allowed: bfloat16, float32");
  for (const auto& [tensor, name, dimensions] : {std::tuple{&q, "q", 3},
                                                 std::tuple{&in.k_BHd, "k", 3},
                                                 std::tuple{&in.v_BHd, "v", 3},
                                                 std::tuple{&in.keys_BHCd, "keys", 4},
                                                 std::tuple{&in.values_BHCd, "values", 4}}) {
    TORCH_CHECK(tensor->dim() == dimensions,
                "t2r: ",
                name,
                " has ",
                tensor->dim(),
                " dimensions, allowed: ",
                dimensions);
  }
  const int64_t batch = q.size(0), query_heads = q.size(1), key_heads = in.k_BHd.size(1),
                head_size = q.size(2), capacity = in.keys_BHCd.size(2);
  TORCH_CHECK(batch >= 1 && batch < (1 << 16),
              "t2r: q has size ",
              batch,
              " in dimension 0, allowed: 1 to 2^16 - 1");
  TORCH_CHECK(head_size >= 8 && head_size <= kMaxCacheHead && head_size % 8 == 0,
              "t2r: q has head size ",
              head_size,
              ", allowed: multiples of 8 up to ",
              kMaxCacheHead);
  TORCH_CHECK(key_heads >= 1 && query_heads >= key_heads && query_heads % key_heads == 0 &&
                  query_heads < (1 << 12),
              "t2r: heads of q, k are ",
              query_heads,
              ", ",
              key_heads,
              ", allowed: q's a multiple of k's, below 2^12");
  TORCH_CHECK(
      capacity >= 1, "t2r: keys has size ", capacity, " in dimension 2, allowed: 1 or more");
  check_input(in.k_BHd, "k", {batch, key_heads, head_size}, q);
  check_input(in.v_BHd, "v", {batch, key_heads, head_size}, q);
  for (const auto& [tensor, name] :
       {std::pair{&in.keys_BHCd, "keys"}, std::pair{&in.values_BHCd, "values"}}) {
    check_input(*tensor, name, {batch, key_heads, capacity, head_size}, q);
    check_on_device(*tensor, name, q.scalar_type(), q);
    TORCH_CHECK(
        is_aligned(*tensor),
        "t2r: ",
        name,
        " begins at an address that is not a multiple of 16 bytes, allowed: multiples of 16");
  }
  check_on_device(in.length_1, "length", at::kLong, q);
  TORCH_CHECK(
      in.length_1.numel() == 1, "t2r: length has ", in.length_1.numel(), " elements, allowed: 1");
  check_on_device(in.tickets, "tickets", at::kInt, q);
  TORCH_CHECK(in.tickets.numel() >= batch * query_heads,
              "t2r: tickets has ",
              in.tickets.numel(),
              " elements, allowed: at least ",
              batch * query_heads);
  TORCH_CHECK(in.scale > 0, "t2r: scale is ", in.scale, ", allowed: positive");
}

}  // namespace

Tensor cache_attention_step(const CacheAttentionInputs& in) {
  check_inputs(in);
  const c10::cuda::CUDAGuard guard(in.q_BHd.device());
  const Tensor q = with_contiguous_columns(in.q_BHd), k = with_contiguous_columns(in.k_BHd),
               v = with_contiguous_columns(in.v_BHd);
  const Tensor o = at::empty(q.sizes(), q.options().requires_grad(false));
  const kernels::cuda::Device device = current_device();
  CacheAttention a;
  a.batch = static_cast<int>(q.size(0));
  a.query_heads = static_cast<int>(q.size(1));
  a.key_heads = static_cast<int>(k.size(1));
  a.head_size = static_cast<int>(q.size(2));
  a.capacity = in.keys_BHCd.size(2);
  a.is_bf16 = q.scalar_type() == at::kBFloat16;
  const kernels::cuda::CacheGroup group = kernels::cuda::cache_group(a.query_heads, a.key_heads);
  const int64_t slots = int64_t{a.batch} * a.key_heads * group.rounds;
  a.parts = kernels::cuda::cache_attention_parts(slots, device);
  a.scale = static_cast<float>(in.scale);
  a.q = token_view_of(q);
  a.k = token_view_of(k);
  a.v = token_view_of(v);
  a.o = token_view_of(o);
  a.keys = mutable_pointer<void>(in.keys_BHCd);
  a.values = mutable_pointer<void>(in.values_BHCd);
  a.length = pointer<int64_t>(in.length_1);
  const Tensor partial =
      at::empty({a.parts > 1 ? slots * a.parts * group.queries * (a.head_size + 4) : 0},
                q.options().dtype(at::kFloat));
  a.partial = mutable_pointer<float>(partial);
  a.tickets = mutable_pointer<int>(in.tickets);
  a.overlaps = device.hopper;
  check_launch(kernels::cuda::cache_attention(a, c10::cuda::getCurrentCUDAStream()),
               "the kernel of attention over a cache");
  return o;
}

}  // namespace t2r::ops
