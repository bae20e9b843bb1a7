#include "dist/agreement.h"

#include <gtest/gtest.h>

#include <functional>
#include <new>
#include <string>
#include <typeinfo>

#include "dist/torch_error.h"
#include "tests/dist_ranks.h"

namespace t2r::dist {
namespace {

struct Thrown {
  std::string type;
  int exit_code = 0;
  std::string message;

  bool operator==(const Thrown&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Thrown& thrown) {
  return out << thrown.type << ", " << thrown.exit_code << ", " << thrown.message;
}

template <class Type>
Thrown thrown_as(ExitCode code, const std::string& message) {
  return {typeid(Type).name(), static_cast<int>(code), message};
}

/// What `body` throws on this rank.
Thrown caught(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return {typeid(error).name(), static_cast<int>(error.exit_code()), error.what()};
  }
  return {"nothing", 0, ""};
}

/// The last rank throws, and only that.
Thrown thrown_when_last_rank(Communicator& communicator, const std::function<void()>& fail) {
  return caught([&] {
    on_all_ranks(communicator, [&] {
      if (communicator.rank() + 1 == communicator.size()) fail();
    });
  });
}

/// The message as it arrives: with the rank, where there are several.
std::string of_last_rank(const Communicator& communicator, const std::string& message) {
  return communicator.size() == 1 ? message
                                  : concat("rank ", communicator.size() - 1, ": ", message);
}

template <class Type>
void expect_kept(Communicator& communicator, const Type& error) {
  EXPECT_EQ(thrown_when_last_rank(communicator, [&] { throw error; }),
            thrown_as<Type>(error.exit_code(), of_last_rank(communicator, error.what())));
}

TEST(Agreement, KeepsTheClassOfWhatOneRankThrew) {
  run_on_ranks([](Communicator& communicator) {
    expect_kept(communicator, UsageError("a usage"));
    expect_kept(communicator, ConfigError("a config"));
    expect_kept(communicator, DataError("a 7 byte header\nof two lines"));
    expect_kept(communicator, UnreadableError("stale"));
    expect_kept(communicator, WriteError("full"));
    expect_kept(communicator, NumericError("nan"));
    expect_kept(communicator, GpuMemoryError("out of GPU memory"));
    expect_kept(communicator, ContractError("ours"));
    expect_kept(communicator, Error(ExitCode::kHang, ""));
  });
}

TEST(Agreement, CallsABugWhatIsNoErrorOfOurs) {
  run_on_ranks([](Communicator& communicator) {
    const auto expect_bug = [&](const std::string& message, const std::function<void()>& fail) {
      EXPECT_EQ(thrown_when_last_rank(communicator, fail),
                thrown_as<ContractError>(ExitCode::kInternal, of_last_rank(communicator, message)));
    };
    expect_bug("bad index", [] { throw std::out_of_range("bad index"); });
    expect_bug("out of memory", [] { throw std::bad_alloc(); });
    const c10::SourceLocation here{__func__, __FILE__, __LINE__};
    expect_bug("sizes differ", [&] { throw c10::Error(here, "sizes differ"); });
    expect_bug("out of memory", [&] {
      throw c10::Error(here, "DefaultCPUAllocator: can't allocate memory: you tried 8 bytes");
    });
  });
}

TEST(Agreement, SaysThatAGpuHasNoMemory) {
  run_on_ranks([](Communicator& communicator) {
    const auto fail = [] {
      throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__},
                                  "CUDA out of memory. Tried to allocate 2.00 GiB.");
    };
    EXPECT_EQ(thrown_when_last_rank(communicator, fail),
              thrown_as<GpuMemoryError>(
                  ExitCode::kInternal,
                  of_last_rank(communicator, "out of GPU memory (CUDA out of memory)")));
  });
}

TEST(Agreement, TellsAllRanksThatOneHasNoMemory) {
  run_on_ranks([](Communicator& communicator) {
    const auto agreed = [&](const std::function<void()>& fail) {
      return agree(communicator, attempt([&] {
                     if (communicator.rank() == communicator.size() - 1) fail();
                   }));
    };
    EXPECT_TRUE(agreed([] { throw std::bad_alloc(); }).is_out_of_memory());
    EXPECT_TRUE(agreed([] { throw GpuMemoryError("full"); }).is_out_of_memory());
    EXPECT_FALSE(agreed([] { throw std::out_of_range("bad index"); }).is_out_of_memory());
  });
}

TEST(Agreement, SpeaksForTheFirstRankThatFails) {
  run_on_ranks([](Communicator& communicator) {
    const std::string prefix = communicator.size() == 1 ? "" : "rank 0: ";
    EXPECT_EQ(caught([&] {
                on_all_ranks(communicator, [&] {
                  if (communicator.rank() == 0) throw WriteError("full");
                  throw DataError(concat("cut on ", communicator.rank()));
                });
              }),
              thrown_as<WriteError>(ExitCode::kCannotWrite, prefix + "full"));
  });
}

TEST(Agreement, LetsGoOnWhenNobodyFails) {
  run_on_ranks([](Communicator& communicator) {
    int num_runs = 0;
    on_all_ranks(communicator, [&] { ++num_runs; });
    on_first_rank(communicator, [&] { ++num_runs; });
    EXPECT_EQ(num_runs, communicator.rank() == 0 ? 2 : 1);
    EXPECT_EQ(made_on_all_ranks(communicator, [&] { return communicator.rank(); }),
              communicator.rank());
    on_all_ranks_or(
        communicator, [] {}, [] { FAIL() << "nothing is to be taken back"; });
    EXPECT_EQ(problems_of_ranks(communicator, {}), "");
  });
}

TEST(Agreement, TakesBackOnEveryRankBeforeAnyThrows) {
  run_on_ranks([](Communicator& communicator) {
    bool is_taken_back = false;
    const Thrown thrown = caught([&] {
      on_all_ranks_or(
          communicator,
          [&] {
            if (communicator.rank() + 1 == communicator.size()) throw WriteError("full");
          },
          [&] { is_taken_back = true; });
    });
    EXPECT_EQ(thrown,
              thrown_as<WriteError>(ExitCode::kCannotWrite, of_last_rank(communicator, "full")));
    EXPECT_TRUE(is_taken_back);
  });
}

TEST(Agreement, ListsEveryRanksProblemWhenStarting) {
  run_on_ranks([](Communicator& communicator) {
    const std::string who = communicator.size() == 1   ? "rank 0"
                            : communicator.size() == 2 ? "ranks 0, 1"
                            : communicator.size() == 3 ? "ranks 0, 1, 2"
                                                       : "ranks 0, 1, 2, 3";
    EXPECT_EQ(caught([&] {
                start_on_all_ranks<ConfigError>(
                    communicator, "no start", [] { throw std::runtime_error("no link"); });
              }),
              thrown_as<ConfigError>(ExitCode::kConfig, concat("no start: ", who, ": no link")));
  });
}

/// No class of ours or the library's: it is the program's way out, and nobody's to hold up.
struct Interrupted {};

TEST(Agreement, LeavesAloneWhatIsNoException) {
  EXPECT_THROW(attempt([] { throw Interrupted(); }), Interrupted);
}

}  // namespace
}  // namespace t2r::dist
