#include "dist/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "dist/mpi_error.h"
#include "dist/world.h"

namespace t2r::dist {

// Shared with every Work: dies with the last of them.
struct MpiCommunicator::Handle {
  Handle(World& owner, int64_t count) : world(owner), max_count(count) {}
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  World& world;
  int64_t max_count;
  MPI_Comm comm = MPI_COMM_NULL;
  int exceptions_at_start = std::uncaught_exceptions();
  int64_t num_abandoned = 0;
};

MpiCommunicator::Handle::~Handle() {
  if (num_abandoned > 0) {
    world.forbid_finalize(concat(num_abandoned, " reductions were started and never waited for"));
    return;
  }
  if (comm == MPI_COMM_NULL || std::uncaught_exceptions() > exceptions_at_start) return;
  const int code = MPI_Comm_free(&comm);
  if (code != MPI_SUCCESS) log::error(concat("MPI_Comm_free failed with code ", code));
}

namespace {

MPI_Datatype mpi_type(torch::ScalarType type) {
  switch (type) {
    case torch::kFloat32:
      return MPI_FLOAT;
    case torch::kFloat64:
      return MPI_DOUBLE;
    case torch::kInt32:
      return MPI_INT32_T;
    case torch::kInt64:
      return MPI_INT64_T;
    case torch::kUInt8:
      return MPI_UINT8_T;
    default:
      throw ContractError(concat("MpiCommunicator: dtype ",
                                 torch::toString(type),
                                 "; allowed are float32, float64, int32, int64 and uint8"));
  }
}

MPI_Op mpi_op(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum:
      return MPI_SUM;
    case Reduction::kMax:
      return MPI_MAX;
    case Reduction::kMin:
      return MPI_MIN;
  }
  throw ContractError("MpiCommunicator: unknown reduction");
}

void check_tensor(const torch::Tensor& tensor) {
  require(tensor.defined(), "MpiCommunicator: the tensor is undefined");
  require(tensor.device().is_cpu(),
          concat("MpiCommunicator: tensor on ", tensor.device().str(), "; only cpu is allowed"));
  require(tensor.is_contiguous(), "MpiCommunicator: the tensor must be contiguous");
}

struct Chunk {
  void* data;
  int count;
};

std::vector<Chunk> chunks_of(const torch::Tensor& tensor, int64_t max_count) {
  std::vector<Chunk> chunks;
  auto* bytes = static_cast<char*>(tensor.data_ptr());
  for (int64_t begin = 0; begin < tensor.numel(); begin += max_count) {
    const int64_t count = std::min(max_count, tensor.numel() - begin);
    chunks.push_back({bytes + begin * tensor.element_size(), static_cast<int>(count)});
  }
  return chunks;
}

class FinishedWork : public Work {
 public:
  void wait() override {}
};

// MPI may write into a tensor whose operation nobody waited for; never destroyed on purpose.
void keep_forever(torch::Tensor tensor) {
  static auto* const kept = new std::vector<torch::Tensor>();
  kept->push_back(std::move(tensor));
}

class MpiWork : public Work {
 public:
  MpiWork(torch::Tensor tensor, int64_t* num_abandoned, std::shared_ptr<void> owner)
      : tensor_(std::move(tensor)), num_abandoned_(num_abandoned), owner_(std::move(owner)) {}

  ~MpiWork() override {
    if (requests_.empty()) return;
    int is_done = 0;
    const int code = MPI_Testall(
        static_cast<int>(requests_.size()), requests_.data(), &is_done, MPI_STATUSES_IGNORE);
    if (code == MPI_SUCCESS && is_done != 0) return;
    ++*num_abandoned_;
    keep_forever(std::move(tensor_));
  }
  MpiWork(const MpiWork&) = delete;
  MpiWork& operator=(const MpiWork&) = delete;

  /// @param begin  the call of MPI that `call` names, which gets a place for its request
  template <class Begin>
  void start(const char* call, const Begin& begin) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(begin(&request), call);
    requests_.push_back(request);
  }

  void wait() override {
    if (requests_.empty()) return;
    const int code =
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE);
    check_mpi(code, "MPI_Waitall");
    requests_.clear();
  }

 private:
  torch::Tensor tensor_;
  int64_t* num_abandoned_;
  std::shared_ptr<void> owner_;  // of num_abandoned_
  std::vector<MPI_Request> requests_;
};

}  // namespace

MpiCommunicator::MpiCommunicator(World& world, const MpiCommunicatorOptions& options)
    : handle_(std::make_shared<Handle>(world, options.max_count)) {
  require(options.max_count > 0 && options.max_count <= std::numeric_limits<int>::max(),
          concat("MpiCommunicatorOptions.max_count ", options.max_count, ": allowed 1..2^31-1"));
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &handle_->comm), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(handle_->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

int MpiCommunicator::rank() const {
  return handle_->world.rank();
}

int MpiCommunicator::size() const {
  return handle_->world.size();
}

void MpiCommunicator::all_reduce(torch::Tensor tensor, Reduction reduction) {
  all_reduce_async(std::move(tensor), reduction)->wait();
}

std::unique_ptr<Work> MpiCommunicator::all_reduce_async(torch::Tensor tensor, Reduction reduction) {
  check_tensor(tensor);
  const MPI_Datatype type = mpi_type(tensor.scalar_type());
  const MPI_Op op = mpi_op(reduction);
  if (size() == 1) return std::make_unique<FinishedWork>();
  auto work = std::make_unique<MpiWork>(tensor, &handle_->num_abandoned, handle_);
  for (const Chunk& chunk : chunks_of(tensor, handle_->max_count)) {
    work->start("MPI_Iallreduce", [&](MPI_Request* request) {
      return MPI_Iallreduce(
          MPI_IN_PLACE, chunk.data, chunk.count, type, op, handle_->comm, request);
    });
  }
  return work;
}

void MpiCommunicator::broadcast(torch::Tensor tensor, int root) {
  check_tensor(tensor);
  require(root >= 0 && root < size(),
          concat("broadcast: root ", root, "; allowed 0..", size() - 1));
  const MPI_Datatype type = mpi_type(tensor.scalar_type());
  if (size() == 1) return;
  for (const Chunk& chunk : chunks_of(tensor, handle_->max_count)) {
    check_mpi(MPI_Bcast(chunk.data, chunk.count, type, root, handle_->comm), "MPI_Bcast");
  }
}

// One reduction a shard: shards may differ in size by one, and MPI_Reduce_scatter moves what it
// leaves to the front.
void MpiCommunicator::reduce_scatter(torch::Tensor flat, const ShardPlan& plan) {
  check_tensor(flat);
  plan.check(flat, size());
  const MPI_Datatype type = mpi_type(flat.scalar_type());
  if (size() == 1) return;
  MpiWork work(flat, &handle_->num_abandoned, handle_);
  for (int root = 0; root < size(); ++root) {
    for (const Chunk& chunk : chunks_of(plan.of(root).of(flat), handle_->max_count)) {
      const bool is_root = root == rank();
      work.start("MPI_Ireduce", [&](MPI_Request* request) {
        return MPI_Ireduce(is_root ? MPI_IN_PLACE : chunk.data,
                           is_root ? chunk.data : nullptr,
                           chunk.count,
                           type,
                           MPI_SUM,
                           root,
                           handle_->comm,
                           request);
      });
    }
  }
  work.wait();
}

void MpiCommunicator::all_gather(torch::Tensor flat, const ShardPlan& plan) {
  check_tensor(flat);
  plan.check(flat, size());
  const MPI_Datatype type = mpi_type(flat.scalar_type());
  if (size() == 1) return;
  MpiWork work(flat, &handle_->num_abandoned, handle_);
  for (int root = 0; root < size(); ++root) {
    for (const Chunk& chunk : chunks_of(plan.of(root).of(flat), handle_->max_count)) {
      work.start("MPI_Ibcast", [&](MPI_Request* request) {
        return MPI_Ibcast(chunk.data, chunk.count, type, root, handle_->comm, request);
      });
    }
  }
  work.wait();
}

std::vector<std::string> MpiCommunicator::all_gather(const std::string& text) {
  if (size() == 1) return {text};
  const auto own_length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(static_cast<size_t>(size()));
  check_mpi(
      MPI_Allgather(&own_length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, handle_->comm),
      "MPI_Allgather of lengths");
  const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  require(total <= std::numeric_limits<int>::max(),
          concat("all_gather: ", total, " bytes over all ranks; allowed are 2^31-1"));
  const std::vector<int> counts(lengths.begin(), lengths.end());
  std::vector<int> offsets(counts.size(), 0);
  std::partial_sum(counts.begin(), counts.end() - 1, offsets.begin() + 1);
  std::string all(static_cast<size_t>(total), '\0');
  check_mpi(MPI_Allgatherv(text.data(),
                           static_cast<int>(text.size()),
                           MPI_CHAR,
                           all.data(),
                           counts.data(),
                           offsets.data(),
                           MPI_CHAR,
                           handle_->comm),
            "MPI_Allgatherv of texts");
  std::vector<std::string> texts;
  for (size_t r = 0; r < counts.size(); ++r) {
    texts.push_back(all.substr(static_cast<size_t>(offsets[r]), static_cast<size_t>(counts[r])));
  }
  return texts;
}

void MpiCommunicator::barrier() {
  if (size() > 1) check_mpi(MPI_Barrier(handle_->comm), "MPI_Barrier");
}

void MpiCommunicator::abort(const std::string& reason, int exit_code) {
  handle_->world.abort(reason, exit_code);
}

}  // namespace t2r::dist
