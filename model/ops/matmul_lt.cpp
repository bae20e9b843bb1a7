#include "model/ops/matmul_lt.h"

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <optional>

#include "model/kernels/cuda/pointwise/column_sum.h"
#include "model/ops/op_support.h"

namespace t2r::ops {
namespace {

constexpr size_t kMaxWorkspaceBytes =
    size_t{64} << 20;  // more than the 32 MiB that NVIDIA recommends for Hopper

void check_status(cublasStatus_t status, const char* what) {
  TORCH_CHECK(
      status == CUBLAS_STATUS_SUCCESS, "t2r: ", what, " failed: ", cublasLtGetStatusName(status));
}

template <class T>
void set(cublasLtMatmulDescOpaque_t& description,
         cublasLtMatmulDescAttributes_t attribute,
         const T& value) {
  check_status(cublasLtMatmulDescSetAttribute(&description, attribute, &value, sizeof(value)),
               "an attribute of a matrix product");
}

/// A matrix in memory: row-major with rows of `stride` elements, or that of its transpose.
struct Operand {
  Tensor tensor;
  bool transposed;
  int64_t stride;
};

bool is_row_major(const Tensor& matrix) {
  return (matrix.size(1) == 1 || matrix.stride(1) == 1) &&
         (matrix.size(0) == 1 || matrix.stride(0) >= matrix.size(1));
}
int64_t row_stride(const Tensor& matrix) {
  return matrix.size(0) == 1 ? matrix.size(1) : matrix.stride(0);
}

Operand operand_of(const Tensor& matrix) {
  if (is_row_major(matrix)) return {matrix, false, row_stride(matrix)};
  if (is_row_major(matrix.t())) return {matrix, true, row_stride(matrix.t())};
  const Tensor copy = matrix.contiguous();
  return {copy, false, row_stride(copy)};
}

/// The largest power of two, up to 256, that divides the address: what cuBLASLt may assume. 0: no
/// pointer.
uint32_t alignment_of(const void* pointer) {
  if (pointer == nullptr) return 0;
  uint32_t alignment = 256;
  while (reinterpret_cast<uintptr_t>(pointer) % alignment != 0) alignment /= 2;
  return alignment;
}

bool is_left_out(std::string_view epilogue) {
  const char* const list = std::getenv("T2R_UNFUSED");
  if (list == nullptr) return false;
  std::string_view rest = list;
  while (true) {
    const size_t comma = rest.find(',');
    if (rest.substr(0, comma) == epilogue) return true;
    if (comma == std::string_view::npos) return false;
    rest.remove_prefix(comma + 1);
  }
}

/// cuBLASLt's name of the epilogue; none if the shape does not allow it or T2R_UNFUSED names it.
std::optional<cublasLtEpilogue_t> fused_epilogue(const Matmul& p) {
  const auto unless = [](const char* name, bool impossible, cublasLtEpilogue_t epilogue) {
    return impossible || is_left_out(name) ? std::nullopt : std::optional(epilogue);
  };
  // cuBLASLt does not say how exact its gelu is: what bfloat16 hides, float32 may not.
  const bool no_gelu =
      p.out.scalar_type() == at::kFloat || (p.aux.defined() && p.out.size(1) % 8 != 0);
  switch (p.epilogue) {
    case Epilogue::kNone:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::kBias:
      return unless("bias", false, CUBLASLT_EPILOGUE_BIAS);
    case Epilogue::kGelu:
      return unless(
          "gelu",
          no_gelu,
          p.aux.defined() ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS);
    case Epilogue::kDGelu:
      return unless("dgelu", no_gelu, CUBLASLT_EPILOGUE_DGELU);
  }
  return std::nullopt;
}

struct Algorithm {
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace_bytes;
};

/// Everything on which the choice of an algorithm depends.
using Key = std::array<int64_t, 17>;

/// The algorithms that cuBLASLt's heuristic has chosen; nothing where it has none.
class AlgorithmCache {
 public:
  template <class Choose>
  std::optional<Algorithm> get(const Key& key, Choose choose) {
    const std::lock_guard lock(mutex_);
    const auto found = algorithms_.find(key);
    if (found != algorithms_.end()) return found->second;
    return algorithms_.emplace(key, choose()).first->second;
  }

  void forget(const Key& key) {
    const std::lock_guard lock(mutex_);
    algorithms_[key] = std::nullopt;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::optional<Algorithm>> algorithms_;
};

AlgorithmCache& algorithm_cache() {
  static AlgorithmCache cache;
  return cache;
}

/// One product as cuBLASLt sees it: column-major, its A is our b.
class LtProduct {
 public:
  LtProduct(const Matmul& p, cublasLtEpilogue_t epilogue)
      : a_(operand_of(p.b)), b_(operand_of(p.a)), out_(p.out), accumulate_(p.accumulate) {
    const bool bf16 = p.a.scalar_type() == at::kBFloat16;
    const bool tf32 = !bf16 && at::globalContext().allowTF32CuBLAS();
    const int32_t type = bf16 ? CUDA_R_16BF : CUDA_R_32F,
                  out_type = p.out.scalar_type() == at::kBFloat16 ? CUDA_R_16BF : CUDA_R_32F;
    const int64_t m = p.out.size(1), n = p.out.size(0), k = p.a.size(1),
                  out_stride = row_stride(p.out);
    void* const bias_pointer =
        p.bias.defined() ? const_cast<void*>(p.bias.const_data_ptr()) : nullptr;
    void* const aux_pointer = p.aux.defined() ? const_cast<void*>(p.aux.const_data_ptr()) : nullptr;
    check_status(
        cublasLtMatmulDescInit(
            &description_, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "the description of a matrix product");
    set(description_,
        CUBLASLT_MATMUL_DESC_TRANSA,
        int32_t{a_.transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(description_,
        CUBLASLT_MATMUL_DESC_TRANSB,
        int32_t{b_.transposed ? CUBLAS_OP_T : CUBLAS_OP_N});
    set(description_, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue));
    if (bias_pointer != nullptr) {
      set(description_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias_pointer);
      set(description_, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
    }
    if (aux_pointer != nullptr) {
      set(description_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux_pointer);
      set(description_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t{m});
      set(description_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, type);
    }
    const auto layout = [&](cublasLtMatrixLayoutOpaque_t& to,
                            int32_t of,
                            int64_t rows,
                            int64_t columns,
                            int64_t stride) {
      check_status(
          cublasLtMatrixLayoutInit(&to, static_cast<cudaDataType_t>(of), rows, columns, stride),
          "the layout of a matrix");
    };
    layout(a_layout_, type, a_.transposed ? k : m, a_.transposed ? m : k, a_.stride);
    layout(b_layout_, type, b_.transposed ? n : k, b_.transposed ? k : n, b_.stride);
    layout(out_layout_, out_type, m, n, out_stride);
    key_ = {c10::cuda::current_device(),
            int64_t{out_type} << 32 | type,
            tf32,
            epilogue,
            m,
            n,
            k,
            a_.transposed,
            b_.transposed,
            a_.stride,
            b_.stride,
            out_stride,
            accumulate_,
            alignment_of(a_.tensor.const_data_ptr()),
            alignment_of(b_.tensor.const_data_ptr()),
            alignment_of(out_.const_data_ptr()),
            int64_t{alignment_of(bias_pointer)} << 32 | alignment_of(aux_pointer)};
  }

  /// False if cuBLASLt has no way to compute this.
  bool run() {
    const cublasLtHandle_t handle = at::cuda::getCurrentCUDABlasLtHandle();
    const std::optional<Algorithm> choice =
        algorithm_cache().get(key_, [&] { return choose(handle); });
    if (!choice.has_value()) return false;
    const auto bytes = static_cast<int64_t>(choice->workspace_bytes);
    Tensor workspace;  // the caching allocator gives it to others on this stream once the product
                       // is under way
    if (bytes > 0)
      workspace = at::empty({bytes}, out_.options().dtype(at::kByte).requires_grad(false));
    void* const out = out_.mutable_data_ptr();
    const float alpha = 1.0F, beta = accumulate_ ? 1.0F : 0.0F;
    const cublasStatus_t status = cublasLtMatmul(handle,
                                                 &description_,
                                                 &alpha,
                                                 a_.tensor.const_data_ptr(),
                                                 &a_layout_,
                                                 b_.tensor.const_data_ptr(),
                                                 &b_layout_,
                                                 &beta,
                                                 out,
                                                 &out_layout_,
                                                 out,
                                                 &out_layout_,
                                                 &choice->algorithm,
                                                 mutable_pointer<void>(workspace),
                                                 choice->workspace_bytes,
                                                 c10::cuda::getCurrentCUDAStream());
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    TORCH_CHECK(status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE,
                "t2r: a matrix product failed: ",
                cublasLtGetStatusName(status));
    algorithm_cache().forget(key_);
    return false;
  }

 private:
  std::optional<Algorithm> choose(cublasLtHandle_t handle) {
    cublasLtMatmulPreferenceOpaque_t preference;
    check_status(cublasLtMatmulPreferenceInit(&preference), "the preferences of a matrix product");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check_status(
          cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
          "a preference of a matrix product");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMaxWorkspaceBytes);
    // Sums of a split K in float32 and in a fixed order; not in place, where blocks of threads
    // would take turns.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(a_.tensor.const_data_ptr()));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(b_.tensor.const_data_ptr()));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(out_.const_data_ptr()));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(out_.const_data_ptr()));
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle,
                                                                 &description_,
                                                                 &a_layout_,
                                                                 &b_layout_,
                                                                 &out_layout_,
                                                                 &out_layout_,
                                                                 &preference,
                                                                 1,
                                                                 &result,
                                                                 &found);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS)
      return std::nullopt;
    return Algorithm{result.algo, result.workspaceSize};
  }

  Operand a_, b_;
  Tensor out_;
  bool accumulate_;
  cublasLtMatmulDescOpaque_t description_;
  cublasLtMatrixLayoutOpaque_t a_layout_, b_layout_, out_layout_;
  Key key_;
};

/// The same result in several operations, each fused as far as it goes.
void run_unfused(const Matmul& p) {
  Tensor out = p.out;
  Matmul rest = p;
  switch (p.epilogue) {
    case Epilogue::kNone:
      if (p.a.scalar_type() == out.scalar_type()) {
        p.accumulate ? at::addmm_out(out, out, p.a, p.b) : at::mm_out(out, p.a, p.b);
      } else {
        p.accumulate ? at::addmm_out(out, out, p.a, p.b, out.scalar_type())
                     : at::mm_out(out, p.a, p.b, out.scalar_type());
      }
      return;
    case Epilogue::kBias:
      at::addmm_out(out, p.bias, p.a, p.b);
      return;
    case Epilogue::kGelu:
      rest.epilogue = Epilogue::kBias;
      rest.aux = Tensor();
      if (p.aux.defined()) rest.out = p.aux;
      matmul_lt(rest);
      at::gelu_out(out, rest.out, "tanh");
      return;
    case Epilogue::kDGelu:
      rest.epilogue = Epilogue::kNone;
      rest.aux = Tensor();
      matmul_lt(rest);
      at::gelu_backward_out(out, out, p.aux, "tanh");
      return;
  }
}

}  // namespace

bool matmul_lt(const Matmul& p) {
  TORCH_INTERNAL_ASSERT(p.a.dim() == 2 && p.b.dim() == 2 && p.a.size(1) == p.b.size(0) &&
                        p.out.dim() == 2 && p.out.size(0) == p.a.size(0) &&
                        p.out.size(1) == p.b.size(1) && is_row_major(p.out));
  TORCH_INTERNAL_ASSERT(p.b.scalar_type() == p.a.scalar_type() &&
                        (p.a.scalar_type() == at::kBFloat16 || p.a.scalar_type() == at::kFloat) &&
                        (p.out.scalar_type() == p.a.scalar_type() ||
                         (p.out.scalar_type() == at::kFloat && p.epilogue == Epilogue::kNone)));
  TORCH_INTERNAL_ASSERT(!p.accumulate || p.epilogue == Epilogue::kNone);
  const std::optional<cublasLtEpilogue_t> epilogue = fused_epilogue(p);
  const bool is_empty =
      p.out.numel() == 0 || p.a.size(1) == 0;  // ATen knows what an empty product is
  if (epilogue.has_value() && !is_empty && LtProduct(p, *epilogue).run()) return true;
  run_unfused(p);
  return false;
}

Tensor column_sum(const Tensor& matrix) {
  const Tensor x = is_row_major(matrix) ? matrix : matrix.contiguous();
  const int64_t rows = x.size(0), columns = x.size(1);
  const Tensor sums = at::empty({columns}, x.options().requires_grad(false));
  const Tensor partials = at::empty({kernels::cuda::column_sum_parts(rows, columns), columns},
                                    sums.options().dtype(at::kFloat));
  check_launch(kernels::cuda::column_sum({.x = x.const_data_ptr(),
                                          .bf16 = x.scalar_type() == at::kBFloat16,
                                          .rows = rows,
                                          .columns = columns,
                                          .row_stride = row_stride(x),
                                          .partials = mutable_pointer<float>(partials),
                                          .sums = mutable_pointer<void>(sums)},
                                         c10::cuda::getCurrentCUDAStream()),
               "the sum over rows");
  return sums;
}

}  // namespace t2r::ops
