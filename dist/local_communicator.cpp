#include "dist/local_communicator.h"

#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"

namespace t2r::dist {
namespace {

// One collective: what each rank brought, and how it ended.
struct Operation {
  explicit Operation(int size) : tensors(size), texts(size), calls(size) {}

  std::vector<torch::Tensor> tensors;
  std::vector<std::string> texts;
  std::vector<std::string> calls;
  int num_arrived = 0;
  bool is_done = false;
  std::string failure;
};

using Completion = std::function<void(Operation&)>;

std::string describe(const torch::Tensor& tensor) {
  return concat(torch::toString(tensor.scalar_type()), " ", tensor.sizes());
}

void check_tensor(const torch::Tensor& tensor) {
  require(tensor.defined(), "LocalCommunicator: the tensor is undefined");
  require(tensor.is_contiguous(), "LocalCommunicator: the tensor must be contiguous");
}

void reduce_in_rank_order(std::vector<torch::Tensor>& tensors, Reduction reduction) {
  const torch::NoGradGuard no_grad;
  torch::Tensor result = tensors[0].clone();
  for (size_t r = 1; r < tensors.size(); ++r) {
    switch (reduction) {
      case Reduction::kSum:
        result.add_(tensors[r]);
        break;
      case Reduction::kMax:
        result = torch::maximum(result, tensors[r]);
        break;
      case Reduction::kMin:
        result = torch::minimum(result, tensors[r]);
        break;
    }
  }
  for (torch::Tensor& tensor : tensors) tensor.copy_(result);
}

// Each rank's tensor keeps its own numbers outside its shard.
void reduce_shards(const std::vector<torch::Tensor>& tensors, const ShardPlan& plan) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> sums;
  for (int rank = 0; rank < plan.num_ranks(); ++rank) {
    const Shard shard = plan.of(rank);
    torch::Tensor sum = shard.of(tensors[0]).clone();
    for (size_t r = 1; r < tensors.size(); ++r) sum.add_(shard.of(tensors[r]));
    sums.push_back(sum);
  }
  for (int rank = 0; rank < plan.num_ranks(); ++rank)
    plan.of(rank).of(tensors[static_cast<size_t>(rank)]).copy_(sums[static_cast<size_t>(rank)]);
}

void gather_shards(const std::vector<torch::Tensor>& tensors, const ShardPlan& plan) {
  const torch::NoGradGuard no_grad;
  for (int rank = 0; rank < plan.num_ranks(); ++rank) {
    const torch::Tensor source = plan.of(rank).of(tensors[static_cast<size_t>(rank)]);
    for (const torch::Tensor& target : tensors) {
      if (!target.is_same(tensors[static_cast<size_t>(rank)]))
        plan.of(rank).of(target).copy_(source);
    }
  }
}

std::string mismatch(const std::vector<std::string>& calls) {
  for (size_t r = 1; r < calls.size(); ++r) {
    if (calls[r] != calls[0]) {
      return concat(
          "the ranks call different operations: rank 0 ", calls[0], ", rank ", r, " ", calls[r]);
    }
  }
  return "";
}

}  // namespace

struct LocalCommunicator::Group {
  explicit Group(int num_ranks) : size(num_ranks) {}

  std::shared_ptr<Operation> join(int64_t index,
                                  int rank,
                                  const std::string& call,
                                  const torch::Tensor& tensor,
                                  const std::string& text,
                                  const Completion& complete);
  void wait(const Operation& operation);
  void abort(int rank, const std::string& why, int code);
  void throw_if_aborted() const;

  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<int64_t, std::shared_ptr<Operation>> pending;
  bool is_aborted = false;
  std::string reason;
  int exit_code = 0;
};

std::shared_ptr<Operation> LocalCommunicator::Group::join(int64_t index,
                                                          int rank,
                                                          const std::string& call,
                                                          const torch::Tensor& tensor,
                                                          const std::string& text,
                                                          const Completion& complete) {
  const std::lock_guard<std::mutex> lock(mutex);
  throw_if_aborted();
  std::shared_ptr<Operation>& slot = pending[index];
  if (!slot) slot = std::make_shared<Operation>(size);
  const std::shared_ptr<Operation> operation = slot;
  operation->calls[rank] = call;
  operation->tensors[rank] = tensor;
  operation->texts[rank] = text;
  if (++operation->num_arrived < size) return operation;

  operation->failure = mismatch(operation->calls);
  try {
    if (operation->failure.empty()) complete(*operation);
  } catch (const std::exception& error) {
    operation->failure = error.what();  // every rank shall hear of it, not only the last to come
  }
  operation->tensors.clear();
  operation->is_done = true;
  pending.erase(index);
  changed.notify_all();
  return operation;
}

void LocalCommunicator::Group::wait(const Operation& operation) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.wait(lock, [&] { return operation.is_done || is_aborted; });
  if (!operation.is_done) throw_if_aborted();
  if (!operation.failure.empty()) throw ContractError(operation.failure);
}

void LocalCommunicator::Group::abort(int rank, const std::string& why, int code) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (is_aborted) return;
  is_aborted = true;
  reason = concat("rank ", rank, " aborted: ", why);
  exit_code = code;
  changed.notify_all();
}

void LocalCommunicator::Group::throw_if_aborted() const {
  if (is_aborted) throw Error(static_cast<ExitCode>(exit_code), reason);
}

namespace {

class LocalWork : public Work {
 public:
  LocalWork(std::shared_ptr<LocalCommunicator::Group> group, std::shared_ptr<Operation> operation)
      : group_(std::move(group)), operation_(std::move(operation)) {}
  void wait() override { group_->wait(*operation_); }

 private:
  std::shared_ptr<LocalCommunicator::Group> group_;
  std::shared_ptr<Operation> operation_;
};

}  // namespace

LocalCommunicator::LocalCommunicator(std::shared_ptr<Group> group, int rank)
    : group_(std::move(group)), rank_(rank) {}

int LocalCommunicator::size() const {
  return group_->size;
}

void LocalCommunicator::all_reduce(torch::Tensor tensor, Reduction reduction) {
  all_reduce_async(std::move(tensor), reduction)->wait();
}

std::unique_ptr<Work> LocalCommunicator::all_reduce_async(torch::Tensor tensor,
                                                          Reduction reduction) {
  check_tensor(tensor);
  const std::string call =
      concat("all_reduce(", static_cast<int>(reduction), ") of ", describe(tensor));
  const auto complete = [reduction](Operation& operation) {
    reduce_in_rank_order(operation.tensors, reduction);
  };
  return std::make_unique<LocalWork>(
      group_, group_->join(num_operations_++, rank_, call, tensor, "", complete));
}

void LocalCommunicator::broadcast(torch::Tensor tensor, int root) {
  check_tensor(tensor);
  require(root >= 0 && root < size(),
          concat("broadcast: root ", root, "; allowed 0..", size() - 1));
  const std::string call = concat("broadcast from ", root, " of ", describe(tensor));
  const auto complete = [root](Operation& operation) {
    const torch::NoGradGuard no_grad;
    const torch::Tensor source = operation.tensors[root];
    for (torch::Tensor& target : operation.tensors) {
      if (!target.is_same(source)) target.copy_(source);
    }
  };
  group_->wait(*group_->join(num_operations_++, rank_, call, tensor, "", complete));
}

void LocalCommunicator::reduce_scatter(torch::Tensor flat, const ShardPlan& plan) {
  check_tensor(flat);
  plan.check(flat, size());
  const auto complete = [plan](Operation& operation) { reduce_shards(operation.tensors, plan); };
  group_->wait(*group_->join(
      num_operations_++, rank_, "reduce_scatter of " + describe(flat), flat, "", complete));
}

void LocalCommunicator::all_gather(torch::Tensor flat, const ShardPlan& plan) {
  check_tensor(flat);
  plan.check(flat, size());
  const auto complete = [plan](Operation& operation) { gather_shards(operation.tensors, plan); };
  group_->wait(*group_->join(
      num_operations_++, rank_, "all_gather of " + describe(flat), flat, "", complete));
}

std::vector<std::string> LocalCommunicator::all_gather(const std::string& text) {
  const auto operation =
      group_->join(num_operations_++, rank_, "all_gather", {}, text, [](Operation&) {});
  group_->wait(*operation);
  return operation->texts;
}

void LocalCommunicator::barrier() {
  group_->wait(*group_->join(num_operations_++, rank_, "barrier", {}, "", [](Operation&) {}));
}

void LocalCommunicator::abort(const std::string& reason, int exit_code) {
  group_->abort(rank_, reason, exit_code);
  throw Error(static_cast<ExitCode>(exit_code), reason);
}

std::vector<std::unique_ptr<LocalCommunicator>> make_local_communicators(int size) {
  require(size >= 1, concat("make_local_communicators: size ", size, "; allowed >= 1"));
  const auto group = std::make_shared<LocalCommunicator::Group>(size);
  std::vector<std::unique_ptr<LocalCommunicator>> communicators;
  for (int r = 0; r < size; ++r) {
    communicators.push_back(std::make_unique<LocalCommunicator>(group, r));
  }
  return communicators;
}

void run_local_ranks(int size, const std::function<void(Communicator&)>& body) {
  const auto communicators = make_local_communicators(size);
  std::mutex mutex;
  std::exception_ptr first;
  const auto run_rank = [&](int rank) {
    try {
      body(*communicators[rank]);
    } catch (const std::exception& error) {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!first) first = std::current_exception();
      }
      try {
        communicators[rank]->abort(error.what(), static_cast<int>(ExitCode::kInternal));
      } catch (const Error&) {
        // abort() throws on purpose; the others were woken, and the first exception is kept.
      }
    }
  };
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) threads.emplace_back(run_rank, r);
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace t2r::dist
