#include "dist/bucket_plan.h"

#include <algorithm>

#include "base/error.h"

namespace t2r::dist {
namespace {

void check_slices(const std::vector<PlannedSlice>& slices) {
  int64_t expected = 0;
  for (size_t i = 0; i < slices.size(); ++i) {
    require(slices[i].offset == expected && slices[i].numel >= 1,
            concat("bucket plan: slice ",
                   i,
                   " has offset ",
                   slices[i].offset,
                   " and ",
                   slices[i].numel,
                   " elements; allowed are offset ",
                   expected,
                   " (where the slice before ends) and at least 1 element"));
    expected += slices[i].numel;
  }
}

void check_options(const BucketPlanOptions& options) {
  require(options.element_bytes > 0 && options.first_cap_bytes > 0 &&
              options.cap_bytes >= options.element_bytes,
          concat("bucket plan: element_bytes ",
                 options.element_bytes,
                 ", first_cap_bytes ",
                 options.first_cap_bytes,
                 ", cap_bytes ",
                 options.cap_bytes,
                 "; all must be positive, and a bucket must hold an element"));
}

class Planner {
 public:
  explicit Planner(const BucketPlanOptions& options)
      : first_cap_((options.first_cap_bytes + options.element_bytes - 1) / options.element_bytes),
        cap_(options.cap_bytes / options.element_bytes) {}

  // A group that fits into one bucket is not torn apart by what already lies in the open one.
  void begin_group(int64_t numel) {
    if (!buckets_.empty() && open_numel() + numel > cap_) close();
  }

  void add(const PlannedSlice& slice, int64_t index) {
    if (slice.numel > cap_) {
      close();
      cut(slice, index);
      return;
    }
    if (open_numel() + slice.numel > cap_) close();
    if (open_numel() == 0) open_ = Bucket{slice.offset, slice.offset, index, index};
    open_.end = slice.offset + slice.numel;
    open_.last_slice = index;
    if (buckets_.empty() && open_numel() >= first_cap_) close();
  }

  std::vector<Bucket> finish() {
    close();
    return std::move(buckets_);
  }

 private:
  int64_t open_numel() const { return open_.end - open_.begin; }

  void close() {
    if (open_numel() > 0) buckets_.push_back(open_);
    open_ = Bucket{};
  }

  void cut(const PlannedSlice& slice, int64_t index) {
    const int64_t num_pieces = (slice.numel + cap_ - 1) / cap_;
    for (int64_t piece = 0; piece < num_pieces; ++piece) {
      const int64_t begin = slice.offset + slice.numel / num_pieces * piece +
                            std::min(piece, slice.numel % num_pieces);
      const int64_t length = slice.numel / num_pieces + (piece < slice.numel % num_pieces ? 1 : 0);
      buckets_.push_back({begin, begin + length, index, index});
    }
  }

  int64_t first_cap_;
  int64_t cap_;
  Bucket open_{};
  std::vector<Bucket> buckets_;
};

}  // namespace

std::vector<Bucket> plan_buckets(const std::vector<PlannedSlice>& slices,
                                 const BucketPlanOptions& options) {
  check_options(options);
  check_slices(slices);
  Planner planner(options);
  for (size_t begin = 0; begin < slices.size();) {
    size_t end = begin;
    int64_t group_numel = 0;
    while (end < slices.size() && slices[end].group == slices[begin].group) {
      group_numel += slices[end++].numel;
    }
    planner.begin_group(group_numel);
    for (; begin < end; ++begin) planner.add(slices[begin], static_cast<int64_t>(begin));
  }
  return planner.finish();
}

}  // namespace t2r::dist
