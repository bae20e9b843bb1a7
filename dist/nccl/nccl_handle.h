#pragma once

#include <nccl.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "dist/nccl/nccl_error.h"

namespace t2r::dist {

/// A fresh name for NCCL to meet under, for rank 0 to give to all. Local.
std::string make_nccl_id(const RankPlace& place);

/// Owner of one ncclComm_t, which is non-blocking, so that no call of it can hang: calls return at
/// once, and what they started is waited for here, up to a time. Errors become NcclError.
///
/// One thread at a time. Does not set the device; NCCL remembers that of init().
class NcclHandle {
 public:
  /// @param patience  how long operations may take to be queued; 0 means for ever
  NcclHandle(RankPlace place, std::chrono::milliseconds patience);

  /// abort() unless close() was called.
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  /// Joins the other ranks. Collective: every rank.
  void init(const std::string& id, int size, std::chrono::milliseconds patience);

  /// Queues the operation on `stream` and returns when it is there, so that an event recorded next
  /// comes behind it. Collective: every rank, same order.
  void all_reduce(
      void* data, size_t count, ncclDataType_t type, ncclRedOp_t op, cudaStream_t stream);
  void broadcast(void* data, size_t count, ncclDataType_t type, int root, cudaStream_t stream);

  /// A part of a buffer, for one rank.
  struct Part {
    void* data;
    size_t count;
  };

  /// Sums each part into its rank's buffer, parts in rank order; queues as above.
  /// Collective: every rank, same order.
  void reduce_scatter(const std::vector<Part>& parts, ncclDataType_t type, cudaStream_t stream);

  /// Copies each part from its rank to all others; queues as above. Collective: every rank, same
  /// order.
  void all_gather(const std::vector<Part>& parts, ncclDataType_t type, cudaStream_t stream);

  /// Throws if NCCL has found since that something cannot go on. Local.
  void check();

  /// Ends operations in progress here, and the handle: later ones throw. Bounded. Local.
  void abort() noexcept;

  /// Waits for all operations and leaves. CUDA graphs with operations of it must be gone.
  /// Collective: every rank.
  void close(std::chrono::milliseconds patience);

  bool is_open() const { return comm_ != nullptr; }
  const RankPlace& place() const { return place_; }

 private:
  void require_open() const;

  /// One launch of an operation a part; none of them has begun when `each` returns.
  template <class Each>
  void in_one_group(const std::vector<Part>& parts, const char* call, const Each& each);
  void wait_until_done(ncclResult_t code, const char* call, std::chrono::milliseconds patience);
  [[noreturn]] void fail(ncclResult_t code, const char* call) const;

  RankPlace place_;
  std::chrono::milliseconds patience_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace t2r::dist
