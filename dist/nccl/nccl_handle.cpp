#include "dist/nccl/nccl_handle.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "base/log.h"

namespace t2r::dist {
namespace {

using Clock = std::chrono::steady_clock;

// Aborting frees device memory, which waits for kernels: of a damaged device it may never return.
constexpr std::chrono::seconds kAbortPatience{5};

std::string last_error(ncclComm_t comm) {
  const char* text = ncclGetLastError(comm);
  return text == nullptr ? "" : text;
}

// Busy at first, because most waits are for a thread of NCCL's that launches one kernel.
void pause_after(Clock::duration waited) {
  if (waited < std::chrono::microseconds(100)) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(
        std::min<Clock::duration>(waited / 10, std::chrono::milliseconds(2)));
  }
}

}  // namespace

std::string make_nccl_id(const RankPlace& place) {
  ncclUniqueId id;
  const ncclResult_t code = ncclGetUniqueId(&id);
  if (code != ncclSuccess) {
    throw NcclError(describe_nccl_failure(
        "ncclGetUniqueId", place, code, ncclGetErrorString(code), last_error(nullptr)));
  }
  return std::string(id.internal, sizeof(id.internal));
}

NcclHandle::NcclHandle(RankPlace place, std::chrono::milliseconds patience)
    : place_(std::move(place)), patience_(patience) {}

NcclHandle::~NcclHandle() {
  abort();
}

void NcclHandle::init(const std::string& id, int size, std::chrono::milliseconds patience) {
  require(comm_ == nullptr, "NcclHandle: init was called before");
  ncclUniqueId unique_id;
  require(id.size() == sizeof(unique_id.internal), "NcclHandle: this is not an id of NCCL");
  std::memcpy(unique_id.internal, id.data(), id.size());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t code = ncclCommInitRankConfig(&comm_, size, unique_id, place_.rank, &config);
  wait_until_done(code, "ncclCommInitRankConfig", patience);
}

void NcclHandle::all_reduce(
    void* data, size_t count, ncclDataType_t type, ncclRedOp_t op, cudaStream_t stream) {
  require_open();
  wait_until_done(
      ncclAllReduce(data, data, count, type, op, comm_, stream), "ncclAllReduce", patience_);
}

void NcclHandle::broadcast(
    void* data, size_t count, ncclDataType_t type, int root, cudaStream_t stream) {
  require_open();
  wait_until_done(
      ncclBroadcast(data, data, count, type, root, comm_, stream), "ncclBroadcast", patience_);
}

template <class Each>
void NcclHandle::in_one_group(const std::vector<Part>& parts, const char* call, const Each& each) {
  require_open();
  const ncclResult_t opened = ncclGroupStart();
  if (opened != ncclSuccess) fail(opened, "ncclGroupStart");
  ncclResult_t first = ncclSuccess;
  for (size_t rank = 0; rank < parts.size() && first == ncclSuccess; ++rank) {
    const ncclResult_t code = each(parts[rank], static_cast<int>(rank));
    if (code != ncclInProgress) first = code;
  }
  const ncclResult_t closed = ncclGroupEnd();
  if (first != ncclSuccess) fail(first, call);
  wait_until_done(closed, call, patience_);
}

void NcclHandle::reduce_scatter(const std::vector<Part>& parts,
                                ncclDataType_t type,
                                cudaStream_t stream) {
  in_one_group(parts, "ncclReduce of shards", [&](const Part& part, int root) {
    return ncclReduce(part.data, part.data, part.count, type, ncclSum, root, comm_, stream);
  });
}

void NcclHandle::all_gather(const std::vector<Part>& parts,
                            ncclDataType_t type,
                            cudaStream_t stream) {
  in_one_group(parts, "ncclBroadcast of shards", [&](const Part& part, int root) {
    return ncclBroadcast(part.data, part.data, part.count, type, root, comm_, stream);
  });
}

void NcclHandle::check() {
  require_open();
  ncclResult_t state = ncclSuccess;
  const ncclResult_t code = ncclCommGetAsyncError(comm_, &state);
  if (code != ncclSuccess) fail(code, "ncclCommGetAsyncError");
  if (state != ncclSuccess && state != ncclInProgress) fail(state, "a collective of NCCL");
}

void NcclHandle::abort() noexcept {
  if (comm_ == nullptr) return;
  const ncclComm_t comm = std::exchange(comm_, nullptr);
  try {
    const auto done = std::make_shared<std::promise<ncclResult_t>>();
    std::future<ncclResult_t> result = done->get_future();
    std::thread([comm, done] { done->set_value(ncclCommAbort(comm)); }).detach();
    if (result.wait_for(kAbortPatience) != std::future_status::ready) {
      log::error(concat("ncclCommAbort on ", to_string(place_), " does not end; left to itself"));
    }
  } catch (const std::exception& error) {
    log::error(concat("NCCL was not aborted on ", to_string(place_), ": ", error.what()));
  }
}

void NcclHandle::close(std::chrono::milliseconds patience) {
  require_open();
  wait_until_done(ncclCommFinalize(comm_), "ncclCommFinalize", patience);
  const ncclResult_t code = ncclCommDestroy(std::exchange(comm_, nullptr));
  if (code != ncclSuccess) fail(code, "ncclCommDestroy");
}

void NcclHandle::require_open() const {
  if (comm_ == nullptr) throw NcclError(concat("NCCL was ended before, on ", to_string(place_)));
}

void NcclHandle::wait_until_done(ncclResult_t code,
                                 const char* call,
                                 std::chrono::milliseconds patience) {
  const Clock::time_point start = Clock::now();
  while (code == ncclInProgress) {
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &code);
    if (asked != ncclSuccess) fail(asked, "ncclCommGetAsyncError");
    if (code != ncclInProgress) break;
    const Clock::duration waited = Clock::now() - start;
    if (patience.count() > 0 && waited > patience) {
      throw NcclError(
          describe_nccl_hang(call, place_, std::chrono::duration<double>(patience).count()));
    }
    pause_after(waited);
  }
  if (code != ncclSuccess) fail(code, call);
}

void NcclHandle::fail(ncclResult_t code, const char* call) const {
  throw NcclError(
      describe_nccl_failure(call, place_, code, ncclGetErrorString(code), last_error(comm_)));
}

}  // namespace t2r::dist
