// What is said when memory runs out.
#include <gtest/gtest.h>

#include "dist/agreement.h"
#include "launch/gpu_memory.h"

namespace t2r::launch {
namespace {

[[noreturn]] void run_out() {
  throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__},
                              "CUDA out of memory. Tried to allocate 2.00 GiB.");
}

TEST(GpuMemory, AMessageSaysWhatItWasForAndWhatToTry) {
  EXPECT_EQ(or_say_what_for(" for nothing", [] { return 7; }), 7);
  const dist::LocalOutcome outcome = dist::attempt(
      [] { or_say_what_for(" for 8 windows; try a smaller --batch-size", [] { run_out(); }); });
  EXPECT_EQ(outcome.kind, dist::LocalOutcome::Kind::kGpuMemory);
  EXPECT_EQ(outcome.message,
            "out of GPU memory for 8 windows; try a smaller --batch-size (CUDA out of memory)");
}

TEST(GpuMemory, OtherErrorsStayAsTheyAre) {
  const dist::LocalOutcome outcome = dist::attempt(
      [] { or_say_what_for(" for 8 windows", [] { throw DataError("a shard is cut"); }); });
  EXPECT_EQ(outcome.kind, dist::LocalOutcome::Kind::kData);
  EXPECT_EQ(outcome.message, "a shard is cut");
}

}  // namespace
}  // namespace t2r::launch
