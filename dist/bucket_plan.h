#pragma once

#include <cstdint>
#include <vector>

namespace t2r::dist {

/// Where one parameter's gradient lies in the flat arena, counted in elements.
struct PlannedSlice {
  int64_t offset;
  int64_t numel;
  int64_t group;  ///< layer: neighbours of the same group stay together where the cap allows it
};

struct BucketPlanOptions {
  int64_t element_bytes = 4;
  int64_t first_cap_bytes = int64_t{1} << 20;
  int64_t cap_bytes = int64_t{25} << 20;
};

/// Elements [begin, end) of the arena, reduced together once all slices
/// [first_slice, last_slice] have their gradient.
struct Bucket {
  int64_t begin;
  int64_t end;
  int64_t first_slice;
  int64_t last_slice;
};

/// Cuts the arena into buckets, in the order in which they are launched. Pure. Local.
///
/// The first bucket is small, so that communication starts early: it ends at the first parameter
/// edge at or after first_cap_bytes. Every later one holds at most cap_bytes and ends at the edge
/// of a group, of a parameter only inside a group that is larger than the cap. A parameter larger
/// than the cap (a tied embedding) is cut into equal buckets that it shares with nobody. Together
/// they cover the arena without holes.
///
/// @param slices  in arena order, each starting where the one before ends; numel >= 1
/// @throws ContractError  naming the slice that leaves a hole, overlaps or is empty, or the option
///                        that is not positive
/// Source: buckets of c10d's Reducer (Li et al. 2020, "PyTorch Distributed", section 3.2)
std::vector<Bucket> plan_buckets(const std::vector<PlannedSlice>& slices,
                                 const BucketPlanOptions& options);

}  // namespace t2r::dist
