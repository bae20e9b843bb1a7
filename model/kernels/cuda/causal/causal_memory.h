#pragma once

#include <initializer_list>

/// How the portable causal kernels lay out a block's shared memory; and so what a device must have
/// for them.
namespace t2r::kernels::cuda {

// That a block can have: compute capability 8.6, 8.9 and 12.0 (RTX 30, 40 and 50, A10, L4, L40S);
// an A100; 9.0 and 10.0.
constexpr int kSmallSharedBytes = 99 * 1024;
constexpr int kAmpereSharedBytes = 163 * 1024;
constexpr int kHopperSharedBytes = 227 * 1024;

/// Shared memory of the forward kernel, in bytes from its start.
template <int kHead, int kFeatures, int kChunk, bool kMap>
struct ForwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;  // columns of q and k
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kChunk * kInput * 2;
  static constexpr int kV = kK + kChunk * kInput * 2;
  static constexpr int kStage = kV + kChunk * kHead * 2;
  static constexpr int kStages = 2;
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK = kWeight + (kMap ? kFeatures * kHead * 2 : 0);
  static constexpr int kScratch =
      kPhiK + (kMap ? kChunk * kFeatures * 2 : 0);  // the rows of q serve if they are wide enough
  static constexpr bool kOwnScratch = kInput < kHead;
  static constexpr int kState =
      kScratch + (kOwnScratch ? kChunk * kHead * 2 : 0);  // a state record: S hi, S lo, z
  static constexpr int kZ = kState + 4 * kFeatures * kHead;
  static constexpr int kZSplit = kZ + 4 * kFeatures;
  static constexpr int kBias = kZSplit + 4 * kFeatures;
  static constexpr int kBytes =
      kBias +
      (kMap ? 4 * kFeatures : 0);  // 64 x 128 given features: two blocks just fit a multiprocessor
};

/// Shared memory of the backward kernel with kStages chunks of inputs in flight, in bytes from its
/// start.
template <int kHead, int kFeatures, int kChunk, bool kMap, int kStages>
struct BackwardMemory {
  static constexpr int kInput = kMap ? kHead : kFeatures;
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kChunk * kInput * 2;
  static constexpr int kV = kK + kChunk * kInput * 2;
  static constexpr int kGradO = kV + kChunk * kHead * 2;
  static constexpr int kStage = kGradO + kChunk * kHead * 2;
  static constexpr int kFeatureTile = kChunk * kFeatures * 2;
  static constexpr int kRecord =
      4 * kFeatures * kHead + 4 * kFeatures;  // S or dS: hi, lo, z in float32
  static constexpr int kWeight = kStages * kStage;
  static constexpr int kPhiK =
      kWeight + (kMap ? kFeatures * kHead * 2 : 0);         // later d y of the keys
  static constexpr int kScaledPhiQ = kPhiK + kFeatureTile;  // R = phi(q) / denominator
  static constexpr int kGradYQ = kScaledPhiQ + kFeatureTile;
  static constexpr int kState = kGradYQ + (kMap ? kFeatureTile : 0);
  static constexpr int kGradState = kState + kRecord;
  static constexpr int kBias = kGradState + kRecord;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kScratch = kE + 4 * kChunk;
  static constexpr int kBytes = kScratch + (kMap ? kChunk * kHead * 2 : 0);
};

/// The largest of these that a device with `shared_bytes` has: kernels are laid out for them. 0: it
/// has less.
constexpr int known_shared_bytes(int shared_bytes) {
  for (const int known : {kHopperSharedBytes, kAmpereSharedBytes, kSmallSharedBytes}) {
    if (shared_bytes >= known) return known;
  }
  return 0;
}

/// How many chunks of inputs the backward keeps in flight with `shared_bytes` for a block; 0: one
/// of the passes does not fit.
template <int kHead, int kFeatures, int kChunk, bool kMap>
constexpr int backward_stages(int shared_bytes) {
  if (ForwardMemory<kHead, kFeatures, kChunk, kMap>::kBytes > shared_bytes) return 0;
  if (BackwardMemory<kHead, kFeatures, kChunk, kMap, 2>::kBytes <= shared_bytes) return 2;
  return BackwardMemory<kHead, kFeatures, kChunk, kMap, 1>::kBytes <= shared_bytes ? 1 : 0;
}

/// The chunks of the shape wherever they fit (causal_instances.h has shorter ones, too).
constexpr int long_chunk(int head_size, int features) {
  return head_size <= 64 && head_size * features <= 64 * 64 ? 128 : 64;
}

/// Whether some device keeps so many in chunks of this length.
template <int kHead, int kFeatures, int kChunk, bool kMap>
constexpr bool has_backward_stages(int stages) {
  constexpr int kLong = long_chunk(kHead, kFeatures);
  for (const int known : {kHopperSharedBytes, kAmpereSharedBytes, kSmallSharedBytes}) {
    const bool takes_long = backward_stages<kHead, kFeatures, kLong, kMap>(known) > 0;
    if (takes_long == (kChunk == kLong) &&
        backward_stages<kHead, kFeatures, kChunk, kMap>(known) == stages)
      return true;
  }
  return false;
}

}  // namespace t2r::kernels::cuda
