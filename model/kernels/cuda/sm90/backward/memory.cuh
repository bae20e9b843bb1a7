#pragma once

// What the roles of the backward kernels for Hopper share: where tiles and accumulators lie in
// shared memory, and every pipeline between two roles.

#include "model/kernels/cuda/sm90/causal_sm90.cuh"

namespace t2r::kernels::cuda::sm90 {

/// A ring of `stages` places, filled by one role and read by others. Every stage has two barriers:
/// it is full (what a turn needs lies there), and it is empty again (its readers are done). A
/// turn's stage is turn % stages.
///
/// A barrier tells two phases apart, so nobody may arrive twice at one before everybody has waited
/// there once.
struct Pipeline {
  int at;  ///< byte of shared memory where its barriers begin: first those of full stages
  int stages;

  constexpr int full() const { return at; }
  constexpr int empty() const { return at + 8 * stages; }
  constexpr int end() const { return at + 16 * stages; }

  /// Byte of shared memory of the barrier of a turn's stage; the parity of the phase that ends
  /// when the turn's stage is full (and, the next one, when it has served).
  constexpr int full(int turn) const { return full() + 8 * stage(turn); }
  constexpr int empty(int turn) const { return empty() + 8 * stage(turn); }
  constexpr int parity(int turn) const { return turn / stages & 1; }
  constexpr int stage(int turn) const { return turn % stages; }
};

/// All pipelines of a backward kernel, with barriers from byte kAt of shared memory on. From the
/// producer to the consumers:
///   kQ, kK, kV, kGradO  a tensor's tiles; they come back empty or with a gradient to be stored
///   kState              S - z m^T, z and m, to the rows
///   kMapReady           W and b, once, never emptied (head size 64; the rows' warp 0 brings b)
/// Between consumers:
///   kPhiK               phi(k), from the columns (head size 64) or the rows (128), to both
///   kRows               R and e, from the rows to the columns and the sums
///   kGradState          dS and dz, from the sums to the columns
///   kGradYQ, kGradYK    d y of queries and keys, from the rows and the columns to the sums
///   kGradOSummed        never emptied: the sums have read d o, so d k may take its place
template <int kAt, int kInputStages, int kValueStages, int kPhiKStages, int kStages>
struct BackwardPipelines {
  static constexpr Pipeline kQ{kAt, kInputStages}, kK{kQ.end(), kInputStages};
  static constexpr Pipeline kV{kK.end(), kValueStages}, kGradO{kV.end(), kValueStages};
  static constexpr Pipeline kState{kGradO.end(), kStages};
  static constexpr Pipeline kRows{kState.end(), kStages};
  static constexpr Pipeline kPhiK{kRows.end(), kPhiKStages};
  static constexpr Pipeline kGradState{kPhiK.end(), kStages};
  static constexpr Pipeline kGradYQ{kGradState.end(), 1}, kGradYK{kGradYQ.end(), 1};
  static constexpr Pipeline kGradOSummed{kGradYK.end(), kStages};
  static constexpr Pipeline kMapReady{kGradOSummed.end(), 1};
  static constexpr int kEnd = kMapReady.end();
};

constexpr int kBackwardThreads = 512;

/// Shared memory of a backward kernel, in bytes from its start. kInputStages tiles of q and k,
/// kValueStages of v and d o; kStages of what else passes from role to role.
template <int kHeadSize, int kFeatures, bool kMap>
struct BackwardMemory;

/// Head size 64: every tensor has a ring of tiles of its own. A role may be a chunk ahead of the
/// next one.
template <int kFeatures, bool kMap>
struct BackwardMemory<64, kFeatures, kMap> {
  static constexpr int kTile = kWalkTokens * kHead * 2, kFeatureTile = kWalkTokens * kFeatures * 2;
  static constexpr int kInputTiles = 1;
  static constexpr int kInputTile = kMap ? kTile : kFeatureTile, kMapTile = kMap ? kFeatureTile : 0;
  // Inputs of the map are wanted two chunks before the rest, and their sums come last.
  static constexpr int kInputStages = kFeatures == 32 ? 5 : 3, kInputStride = kInputTile;
  static constexpr int kValueStages = kFeatures == 32 ? 4 : 3, kValueStride = kTile;
  // Features of keys are made so many chunks, less one, ahead.
  static constexpr int kPhiKStages = kFeatures == 32 ? 3 : 2;
  static constexpr int kStages = 2;
  static constexpr int kQ = 0;  // later d q
  static constexpr int kK = kQ + kInputStages * kInputTile;
  static constexpr int kV = kK + kInputStages * kInputTile;  // later d v
  static constexpr int kGradO = kV + kValueStages * kTile;   // later d k
  static constexpr int kWeight = kGradO + kValueStages * kTile;
  static constexpr int kWeightTile = kMap ? kFeatures * kHead * 2 : 0;
  static constexpr int kPhiK = kWeight + kWeightTile;
  static constexpr int kScaledPhiQ = kPhiK + kPhiKStages * kMapTile;  // R
  static constexpr int kState = kScaledPhiQ + kStages * kFeatureTile;
  static constexpr int kStateStride = round_up(kRecordBytes<kHead, kFeatures>, 1024);
  static constexpr int kGradState = kState + kStages * kStateStride,
                       kGradStateStride = 4 * kFeatures * kHead;  // dS, high and low halves
  static constexpr int kGradYQ = kGradState + kStages * kGradStateStride;
  static constexpr int kGradYK = kGradYQ + kMapTile;
  static constexpr int kBias = kGradYK + kMapTile;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kDz = kE + kStages * 4 * kWalkTokens, kDzFloats = kFeatures;
  using Pipelines = BackwardPipelines<kDz + kStages * 4 * kDzFloats,
                                      kInputStages,
                                      kValueStages,
                                      kPhiKStages,
                                      kStages>;
  static constexpr int kBytes = Pipelines::kEnd + 1024;  // the base is rounded up
  static_assert(kBytes <= 227 * 1024);
};

/// Head size 128: a head's 128 columns are two tiles; two stages with a tile pair of every tensor,
/// one of what else passes.
template <int kFeatures, bool kMap>
struct BackwardMemory<128, kFeatures, kMap> {
  static constexpr int kTile = kWalkTokens * kHead * 2, kFeatureTile = kWalkTokens * kFeatures * 2;
  static constexpr int kInputTiles = kMap ? 2 : 1;
  static constexpr int kInputTile = kMap ? kTile : kFeatureTile, kMapTile = kMap ? kFeatureTile : 0;
  static constexpr int kInputStages = 2, kValueStages = 2, kPhiKStages = 1, kStages = 1;
  static constexpr int kQ = 0;  // later d q
  static constexpr int kK = kQ + kInputTiles * kInputTile;
  static constexpr int kV = kK + kInputTiles * kInputTile;  // later d v
  static constexpr int kGradO = kV + 2 * kTile;             // later d k
  static constexpr int kInputStride = kGradO + 2 * kTile, kValueStride = kInputStride;
  static constexpr int kWeight = 2 * kInputStride;
  static constexpr int kWeightTile = kMap ? kFeatures * kHead * 2 : 0;
  static constexpr int kScaledPhiQ = kWeight + 2 * kWeightTile;  // R
  static constexpr int kPhiK = kScaledPhiQ + kFeatureTile;
  static constexpr int kGradYQ = kPhiK + kMapTile;
  static constexpr int kGradYK = kGradYQ + kMapTile;
  static constexpr int kGradState = kGradYK + kMapTile;  // dS, the high halves alone
  static constexpr int kState = kGradState + 2 * kFeatures * 128;
  static constexpr int kStateStride = 0, kGradStateStride = 0;  // there is one
  static constexpr int kBias = kState + kRecordBytes<128, kFeatures>;
  static constexpr int kE = kBias + 4 * kFeatures;
  static constexpr int kDz = kE + 4 * kWalkTokens,
                       kDzFloats = 4 * kFeatures;  // [warp of the sums][kFeatures]
  using Pipelines =
      BackwardPipelines<kDz + 4 * kDzFloats, kInputStages, kValueStages, kPhiKStages, kStages>;
  static constexpr int kBytes = Pipelines::kEnd + 1024;  // the base is rounded up
  static_assert(kBytes <= 227 * 1024);
};

}  // namespace t2r::kernels::cuda::sm90
