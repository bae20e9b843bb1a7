// GoogleTest's main for several MPI processes: one verdict for all ranks.
//
// Every rank runs every test; ranks meet after each. A failure, a skip or an empty run on any rank
// makes every rank exit with 1. Rank 0 prints the report, the others only their failures. A rank
// that fails and is left alone (the others wait in a collective that it never reached) ends the job
// after kGracePeriod instead of a hang.

#include "tests/mpi_main.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/error.h"
#include "dist/mpi_communicator.h"

namespace t2r::dist {
namespace {

constexpr std::chrono::seconds kGracePeriod{10};

World* current_world = nullptr;

/// Ends the process unless disarmed in time. From its own thread without MPI, which is not ours to
/// call there: mpirun ends the other ranks when one leaves without MPI_Finalize.
class Deadline {
 public:
  explicit Deadline(const std::string& message) : thread_([this, message] { run(message); }) {}

  ~Deadline() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_disarmed_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  void run(const std::string& message) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (changed_.wait_for(lock, kGracePeriod, [this] { return is_disarmed_; })) return;
    std::cerr << message << std::endl;
    std::_Exit(1);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_disarmed_ = false;
  std::thread thread_;
};

class RankListener : public testing::EmptyTestEventListener {
 public:
  explicit RankListener(Communicator* communicator) : communicator_(communicator) {}

  // Kept, because GoogleTest holds its lock while it reports a result and would wait for itself.
  void OnTestStart(const testing::TestInfo& test) override {
    test_name_ = concat(test.test_suite_name(), ".", test.name());
  }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed() || communicator_->size() == 1) return;
    const std::string prefix = concat("[rank ", communicator_->rank(), "] ");
    if (communicator_->rank() != 0) {
      std::cerr << prefix << (result.file_name() != nullptr ? result.file_name() : "no file") << ":"
                << result.line_number() << ": " << result.message() << std::endl;
    }
    if (!deadline_) {
      deadline_ = std::make_unique<Deadline>(
          concat(prefix,
                 "failed ",
                 test_name_,
                 " and the other ranks did not come to its end in time; ending the job"));
    }
  }

  void OnTestEnd(const testing::TestInfo& /*test*/) override {
    communicator_->barrier();
    deadline_.reset();
  }

 private:
  Communicator* communicator_;
  std::string test_name_ = "the set-up";
  std::unique_ptr<Deadline> deadline_;
};

int common_verdict(Communicator& communicator, bool is_passed) {
  const testing::UnitTest& run = *testing::UnitTest::GetInstance();
  const int num_run = run.successful_test_count() + run.failed_test_count();
  torch::Tensor is_bad = torch::zeros({3}, torch::kInt32);
  int* flags = is_bad.data_ptr<int>();
  flags[0] = is_passed ? 0 : 1;
  flags[1] = run.skipped_test_count() > 0 ? 1 : 0;
  flags[2] = num_run == 0 ? 1 : 0;
  communicator.all_reduce(is_bad, Reduction::kMax);
  if (communicator.rank() == 0) {
    std::cout << "verdict of " << communicator.size() << " ranks: ";
    if (flags[0] != 0) std::cout << "a test failed; ";
    if (flags[1] != 0) std::cout << "a test was skipped, which counts as failure; ";
    if (flags[2] != 0) std::cout << "no test ran, which counts as failure; ";
    std::cout << (flags[0] + flags[1] + flags[2] == 0 ? "passed" : "FAILED") << std::endl;
  }
  return flags[0] + flags[1] + flags[2] == 0 ? 0 : 1;
}

int run_tests(int argc, char** argv) {
  World world(&argc, &argv);
  current_world = &world;
  testing::InitGoogleTest(&argc, argv);
  MpiCommunicator communicator(world);
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world.rank() != 0) delete listeners.Release(listeners.default_result_printer());
  auto listener = std::make_unique<RankListener>(&communicator);
  listeners.Append(listener.get());
  // Failures outside tests (set-up of a suite) are in the return value only.
  const bool is_passed = RUN_ALL_TESTS() == 0;
  listeners.Release(listener.get());
  return common_verdict(communicator, is_passed);
}

}  // namespace

World& test_world() {
  return *current_world;
}

}  // namespace t2r::dist

int main(int argc, char** argv) {
  try {
    return t2r::dist::run_tests(argc, argv);
  } catch (const t2r::Error& error) {
    t2r::dist::abort_job(error.what(), static_cast<int>(error.exit_code()));
  } catch (const std::exception& error) {
    t2r::dist::abort_job(error.what(), static_cast<int>(t2r::ExitCode::kInternal));
  }
}
