// What every communicator promises; built for LocalCommunicator, MpiCommunicator and
// NcclCommunicator.

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "tests/dist_ranks.h"

namespace t2r::dist {
namespace {

const std::vector<int64_t> kSizes = {0, 1, 7, 1000, 16385, 300007};

torch::Tensor normal(int64_t numel, uint64_t seed) {
  return on_device(torch::empty({numel}).normal_(0, 1, at::detail::createCPUGenerator(seed)));
}

// Small integers: every partial sum is exact in every dtype, so the order cannot matter.
torch::Tensor small_integers(int64_t numel, int rank, torch::ScalarType type) {
  return on_device((torch::arange(numel, torch::kInt64) % 13 + rank).to(type));
}

std::string hash_of(const torch::Tensor& tensor) {
  const torch::Tensor host = tensor.cpu();
  return hash_bytes(host.data_ptr(), host.nbytes());
}

void expect_same_on_all_ranks(Communicator& communicator, const torch::Tensor& tensor) {
  const auto hashes = communicator.all_gather(hash_of(tensor));
  EXPECT_EQ(std::set<std::string>(hashes.begin(), hashes.end()).size(), 1u)
      << tensor.numel() << " elements on " << communicator.size() << " ranks";
}

TEST(Communicator, SumsExactlyWhenInputsAreIntegers) {
  run_on_ranks([](Communicator& communicator) {
    const int size = communicator.size();
    for (const auto type :
         {torch::kFloat32, torch::kFloat64, torch::kInt32, torch::kInt64, torch::kUInt8}) {
      for (const int64_t numel : kSizes) {
        const torch::Tensor tensor = small_integers(numel, communicator.rank(), type);
        const torch::Tensor expected = on_device(
            ((torch::arange(numel, torch::kInt64) % 13) * size + size * (size - 1) / 2).to(type));
        communicator.all_reduce(tensor, Reduction::kSum);
        EXPECT_TRUE(tensor.equal(expected)) << torch::toString(type) << " x " << numel;
      }
    }
  });
}

TEST(Communicator, GivesLargestAndSmallestWhenAsked) {
  run_on_ranks([](Communicator& communicator) {
    for (const int64_t numel : kSizes) {
      const torch::Tensor largest = small_integers(numel, communicator.rank(), torch::kFloat32);
      const torch::Tensor smallest = largest.clone();
      communicator.all_reduce(largest, Reduction::kMax);
      communicator.all_reduce(smallest, Reduction::kMin);
      EXPECT_TRUE(largest.equal(small_integers(numel, communicator.size() - 1, torch::kFloat32)));
      EXPECT_TRUE(smallest.equal(small_integers(numel, 0, torch::kFloat32)));
    }
  });
}

TEST(Communicator, GivesTheSameBitsOnEveryRankWhenSumsRound) {
  run_on_ranks([](Communicator& communicator) {
    for (const int64_t numel : {1, 3, 17, 1000, 2500, 16385, 70001, 1048579}) {
      const torch::Tensor own = normal(numel, 100 + communicator.rank());
      const torch::Tensor first = own.clone();
      communicator.all_reduce(first, Reduction::kSum);
      expect_same_on_all_ranks(communicator, first);
      EXPECT_EQ(first.equal(own), communicator.size() == 1);
      for (int repeat = 0; repeat < 3; ++repeat) {
        const torch::Tensor again = own.clone();
        communicator.all_reduce(again, Reduction::kSum);
        EXPECT_EQ(hash_of(again), hash_of(first)) << "repeat " << repeat << " of " << numel;
      }
    }
  });
}

TEST(Communicator, KeepsReductionsApartWhenManyAreInFlight) {
  run_on_ranks([](Communicator& communicator) {
    std::vector<torch::Tensor> tensors;
    std::vector<torch::Tensor> expected;
    std::vector<std::unique_ptr<Work>> works;
    for (const int64_t numel : {300007, 5, 16385, 0, 1}) {
      const torch::Tensor own = normal(numel, 7 * numel + communicator.rank());
      expected.push_back(own.clone());
      communicator.all_reduce(expected.back(), Reduction::kSum);
      tensors.push_back(own);
    }
    for (const auto& tensor : tensors) {
      works.push_back(communicator.all_reduce_async(tensor, Reduction::kSum));
    }
    communicator.barrier();
    for (auto work = works.rbegin(); work != works.rend(); ++work) (*work)->wait();
    works.front()->wait();  // a second wait is allowed and changes nothing
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(tensors[i].equal(expected[i])) << i;
  });
}

TEST(Communicator, CopiesRootsTensorWhenBroadcasting) {
  run_on_ranks([](Communicator& communicator) {
    for (int root = 0; root < communicator.size(); ++root) {
      const torch::Tensor tensor = normal(1001, communicator.rank());
      communicator.broadcast(tensor, root);
      EXPECT_TRUE(tensor.equal(normal(1001, root))) << "root " << root;
    }
    EXPECT_THROW(communicator.broadcast(on_device(torch::zeros({1})), communicator.size()),
                 ContractError);
  });
}

TEST(Communicator, SumsIntoShardsExactlyWhenInputsAreIntegers) {
  run_on_ranks([](Communicator& communicator) {
    for (const auto type : {torch::kFloat32, torch::kFloat64, torch::kInt64, torch::kUInt8}) {
      for (const int64_t numel : kSizes) {
        const ShardPlan plan(numel, communicator.size());
        const Shard own = plan.of(communicator.rank());
        const torch::Tensor flat = small_integers(numel, communicator.rank(), type);
        const torch::Tensor expected = flat.clone();
        communicator.all_reduce(expected, Reduction::kSum);
        communicator.reduce_scatter(flat, plan);
        EXPECT_TRUE(own.of(flat).equal(own.of(expected)))
            << torch::toString(type) << " x " << numel;
        communicator.all_gather(flat, plan);
        EXPECT_TRUE(flat.equal(expected)) << torch::toString(type) << " x " << numel;
      }
    }
  });
}

TEST(Communicator, GathersEachShardFromItsRank) {
  run_on_ranks([](Communicator& communicator) {
    for (const int64_t numel : kSizes) {
      const ShardPlan plan(numel, communicator.size());
      const torch::Tensor flat = on_device(torch::full({numel}, communicator.rank() + 1.0f));
      communicator.all_gather(flat, plan);
      for (int rank = 0; rank < communicator.size(); ++rank)
        EXPECT_TRUE(plan.of(rank).of(flat).eq(rank + 1.0f).all().item<bool>()) << rank;
    }
  });
}

TEST(Communicator, RefusesAShardPlanThatDoesNotFit) {
  run_on_ranks([](Communicator& communicator) {
    const ShardPlan plan(6, communicator.size());
    const torch::Tensor longer = on_device(torch::zeros({7})),
                        square = on_device(torch::zeros({2, 3})),
                        good = on_device(torch::zeros({6}));
    EXPECT_THROW(communicator.reduce_scatter(longer, plan), ContractError);
    EXPECT_THROW(communicator.all_gather(square, plan), ContractError);
    EXPECT_THROW(communicator.all_gather(good, ShardPlan(6, communicator.size() + 1)),
                 ContractError);
  });
}

TEST(Communicator, GathersTextsByRankWhenLengthsDiffer) {
  run_on_ranks([](Communicator& communicator) {
    // Rank 0 has an empty text; a zero byte must survive.
    const auto text_of = [](int rank) {
      return rank == 0 ? std::string() : std::string(100 * rank, 'x') + std::string("\0y", 2);
    };
    const auto texts = communicator.all_gather(text_of(communicator.rank()));
    ASSERT_EQ(texts.size(), static_cast<size_t>(communicator.size()));
    for (int r = 0; r < communicator.size(); ++r) EXPECT_EQ(texts[r], text_of(r));
  });
}

TEST(Communicator, RefusesTensorWhenNotContiguous) {
  run_on_ranks([](Communicator& communicator) {
    const torch::Tensor transposed = on_device(torch::zeros({3, 2})).t();
    EXPECT_THROW(communicator.all_reduce(transposed, Reduction::kSum), ContractError);
    EXPECT_THROW(communicator.broadcast(transposed, 0), ContractError);
    EXPECT_THROW(communicator.all_reduce(torch::Tensor(), Reduction::kSum), ContractError);
  });
}

}  // namespace
}  // namespace t2r::dist
