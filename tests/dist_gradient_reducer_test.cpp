// What the reducer promises on any communicator; built for LocalCommunicator, MpiCommunicator
// and NcclCommunicator.

#include "dist/gradient_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "tests/dist_ranks.h"

namespace t2r::dist {
namespace {

using testing::HasSubstr;

/// Passes everything on and writes down which part of the arena was launched when.
class RecordingCommunicator : public Communicator {
 public:
  explicit RecordingCommunicator(Communicator& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void all_reduce(torch::Tensor tensor, Reduction reduction) override {
    inner_.all_reduce(tensor, reduction);
  }
  std::unique_ptr<Work> all_reduce_async(torch::Tensor tensor, Reduction reduction) override {
    launched.emplace_back(tensor.storage_offset(), tensor.storage_offset() + tensor.numel());
    return inner_.all_reduce_async(tensor, reduction);
  }
  void broadcast(torch::Tensor tensor, int root) override { inner_.broadcast(tensor, root); }
  void reduce_scatter(torch::Tensor flat, const ShardPlan& plan) override {
    inner_.reduce_scatter(flat, plan);
  }
  void all_gather(torch::Tensor flat, const ShardPlan& plan) override {
    inner_.all_gather(flat, plan);
  }
  std::vector<std::string> all_gather(const std::string& text) override {
    return inner_.all_gather(text);
  }
  void barrier() override { inner_.barrier(); }
  [[noreturn]] void abort(const std::string& reason, int exit_code) override {
    throw Error(static_cast<ExitCode>(exit_code), reason);
  }

  std::vector<std::pair<int64_t, int64_t>> launched;

 private:
  Communicator& inner_;
};

/// Four parameters in one arena, in groups of their own. The caps make five buckets: head; middle
/// with bias; and three pieces of the embedding.
struct Model {
  torch::Tensor head = on_device(torch::arange(6, torch::kFloat32).reshape({3, 2}));
  torch::Tensor middle = on_device(torch::arange(9, torch::kFloat32).reshape({3, 3}) - 4);
  torch::Tensor bias = on_device(torch::ones({3}));
  torch::Tensor embedding = on_device(torch::arange(60, torch::kFloat32).reshape({20, 3}) - 30);
  torch::Tensor arena;
  std::vector<GradientSlice> slices;

  Model() {
    int64_t offset = 0;
    int64_t group = 0;
    for (const auto& [name, parameter] : {std::pair<std::string, torch::Tensor>{"head", head},
                                          {"middle", middle},
                                          {"bias", bias},
                                          {"embedding", embedding}}) {
      parameter.requires_grad_();
      slices.push_back({name, parameter, offset, parameter.numel(), group++});
      offset += parameter.numel();
    }
    arena = on_device(torch::full({offset}, 99.0f));  // begin_step has to clear it
    for (GradientSlice& slice : slices) {
      slice.parameter.mutable_grad() =
          arena.narrow(0, slice.offset, slice.numel).view(slice.parameter.sizes());
    }
  }

  GradientReducerOptions options() const { return {.first_cap_bytes = 4, .cap_bytes = 80}; }

  /// Integer-valued: sums of gradients are exact. The embedding is used twice, as when tied.
  torch::Tensor loss(int seed) const {
    const torch::Tensor ids = on_device((torch::arange(5, torch::kInt64) * (seed + 1)) % 20);
    const torch::Tensor hidden = embedding.index_select(0, ids).matmul(middle) + bias;
    return (hidden.matmul(head)).sum() + hidden.matmul(embedding.t()).sum() * (seed + 1);
  }
};

/// Gradients of one rank's loss, all by name in arena order, computed without a reducer.
torch::Tensor reference_gradient(int seed) {
  Model model;
  model.arena.zero_();
  model.loss(seed).backward();
  return model.arena;
}

torch::Tensor reference_sum(const std::vector<int>& seeds) {
  torch::Tensor sum = torch::zeros_like(Model().arena);
  for (const int seed : seeds) sum += reference_gradient(seed);
  return sum;
}

std::vector<int> seeds_up_to(int size) {
  std::vector<int> seeds;
  for (int r = 0; r < size; ++r) seeds.push_back(r);
  return seeds;
}

template <class Function>
std::string contract_message(const Function& function) {
  try {
    function();
  } catch (const ContractError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(GradientReducer, HoldsGradientThatHandsComputeWhenLossIsLinear) {
  run_on_ranks([](Communicator& communicator) {
    const int size = communicator.size();
    const torch::Tensor weight = on_device(torch::zeros({3})).requires_grad_();
    const torch::Tensor arena = on_device(torch::empty({3}));
    weight.mutable_grad() = arena.view({3});
    GradientReducer reducer({{"weight", weight, 0, 3, 0}}, arena, communicator);
    reducer.begin_step();
    reducer.begin_micro_step(true);
    // d/dw of w . x is x; the sum over ranks of (1, 2, 3) (rank + 1) follows.
    const torch::Tensor x =
        on_device(torch::arange(1, 4, torch::kFloat32) * (communicator.rank() + 1));
    weight.dot(x).backward();
    reducer.finish_step();
    EXPECT_TRUE(
        arena.equal(on_device(torch::arange(1, 4, torch::kFloat32) * (size * (size + 1) / 2.0))));
  });
}

TEST(GradientReducer, SumsOverRanksWhenParametersAreSharedAndCut) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    ASSERT_EQ(reducer.buckets().size(), 5u);
    for (int step = 0; step < 3; ++step) {
      reducer.begin_step();
      reducer.begin_micro_step(true);
      model.loss(communicator.rank()).backward();
      const ReductionReport report = reducer.finish_step();
      EXPECT_EQ(report.num_missing_gradients, 0);
      EXPECT_EQ(report.num_launched_in_backward, 5);
      EXPECT_GE(report.exposed_seconds, 0.0);
      EXPECT_TRUE(model.arena.equal(reference_sum(seeds_up_to(communicator.size()))));
    }
  });
}

TEST(GradientReducer, AccumulatesInPlaceWhenGradIsTheArenasView) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    const void* const before = model.embedding.grad().data_ptr();
    reducer.begin_step();
    reducer.begin_micro_step(true);
    model.loss(0).backward();
    reducer.finish_step();
    EXPECT_EQ(model.embedding.grad().data_ptr(), before);
    EXPECT_TRUE(model.embedding.grad().flatten().equal(model.arena.narrow(0, 18, 60)));
  });
}

TEST(GradientReducer, LaunchesInIndexOrderWhenHooksComeInOtherOrders) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    RecordingCommunicator recorder(communicator);
    GradientReducer reducer(model.slices, model.arena, recorder, model.options());
    std::vector<std::pair<int64_t, int64_t>> in_index_order;
    for (const Bucket& bucket : reducer.buckets()) {
      in_index_order.emplace_back(bucket.begin, bucket.end);
    }
    // Autograd runs later operations first: every rank gets its hooks in an order of its own.
    std::vector<torch::Tensor> terms = {
        model.head.sum(), model.middle.sum(), model.bias.sum(), model.embedding.sum()};
    std::rotate(terms.begin(), terms.begin() + communicator.rank() % 4, terms.end());
    torch::Tensor loss = on_device(torch::zeros({}));
    for (const torch::Tensor& term : terms) loss = loss + (term * 1.0);
    reducer.begin_step();
    reducer.begin_micro_step(true);
    loss.backward();
    reducer.finish_step();
    EXPECT_EQ(recorder.launched, in_index_order);
    EXPECT_TRUE(model.arena.equal(torch::full_like(model.arena, communicator.size())));
  });
}

TEST(GradientReducer, LaunchesBucketBeforeBackwardEndsWhenItIsReady) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    RecordingCommunicator recorder(communicator);
    GradientReducer reducer(model.slices, model.arena, recorder, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(true);
    // Only head and bias get a gradient: head's bucket goes at once, the next waits for middle.
    (model.head.sum() + model.bias.sum()).backward();
    ASSERT_EQ(recorder.launched.size(), 1u);
    EXPECT_EQ(recorder.launched[0], (std::pair<int64_t, int64_t>{0, 6}));
    const ReductionReport report = reducer.finish_step();
    EXPECT_EQ(report.num_launched_in_backward, 1);
    EXPECT_EQ(report.num_missing_gradients, 2);
    EXPECT_EQ(recorder.launched.size(), reducer.buckets().size());
  });
}

TEST(GradientReducer, AddsZeroWhenOneRankDoesNotUseAParameter) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(true);
    torch::Tensor loss = model.head.sum();
    if (communicator.rank() != 0) loss = loss + model.embedding.sum();
    loss.backward();
    reducer.finish_step();
    const float size = static_cast<float>(communicator.size());
    EXPECT_TRUE(model.head.grad().equal(on_device(torch::full({3, 2}, size))));
    EXPECT_TRUE(model.embedding.grad().equal(on_device(torch::full({20, 3}, size - 1))));
    EXPECT_TRUE(model.middle.grad().equal(on_device(torch::zeros({3, 3}))));
  });
}

TEST(GradientReducer, ReducesOnceWhenThreeMicroStepsAccumulate) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    RecordingCommunicator recorder(communicator);
    GradientReducer reducer(model.slices, model.arena, recorder, model.options());
    reducer.begin_step();
    for (int micro = 0; micro < 3; ++micro) {
      EXPECT_TRUE(recorder.launched.empty()) << "before micro-step " << micro;
      reducer.begin_micro_step(micro == 2);
      model.loss(communicator.rank() + micro * communicator.size()).backward();
    }
    reducer.finish_step();
    EXPECT_EQ(recorder.launched.size(), reducer.buckets().size());
    EXPECT_TRUE(model.arena.equal(reference_sum(seeds_up_to(3 * communicator.size()))));
  });
}

TEST(GradientReducer, GivesTheSameBitsOnEveryRankWhenSumsRound) {
  run_on_ranks([](Communicator& communicator) {
    std::set<std::string> hashes;
    for (int repeat = 0; repeat < 3; ++repeat) {
      Model model;
      GradientReducer reducer(model.slices, model.arena, communicator, model.options());
      reducer.begin_step();
      reducer.begin_micro_step(true);
      (model.loss(communicator.rank()).sin() * 0.1 + model.embedding.cos().sum() / 3).backward();
      reducer.finish_step();
      const torch::Tensor host = model.arena.cpu();
      for (const auto& hash : communicator.all_gather(hash_bytes(host.data_ptr(), host.nbytes()))) {
        hashes.insert(hash);
      }
    }
    EXPECT_EQ(hashes.size(), 1u);
  });
}

TEST(GradientReducer, NamesTheParameterWhenItsGradIsNoLongerTheView) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(false);
    model.middle.mutable_grad() = torch::Tensor();
    EXPECT_THAT(contract_message([&] { model.loss(0).backward(); }),
                HasSubstr("grad of parameter middle is no longer the arena's view"));
  });
}

TEST(GradientReducer, NamesTheParameterWhenBackwardKeepsAGraph) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(false);
    // With create_graph AccumulateGrad adds out of place: the arena would silently miss it.
    const auto backward = [&] {
      model.bias.pow(2).sum().backward({}, /*retain_graph=*/true, /*create_graph=*/true);
    };
    EXPECT_THAT(contract_message(backward), HasSubstr("grad of parameter bias is no longer"));
    model.bias.mutable_grad() = torch::Tensor();  // it holds the graph, which holds the parameter
  });
}

TEST(GradientReducer, NamesTheParameterWhenLastMicroStepHasTwoBackwards) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(true);
    model.bias.sum().backward();
    EXPECT_THAT(contract_message([&] { model.bias.sum().backward(); }),
                HasSubstr("parameter bias got a second gradient"));
    reducer.finish_step();
  });
}

TEST(GradientReducer, RefusesCallsWhenOutOfOrder) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    GradientReducer reducer(model.slices, model.arena, communicator, model.options());
    EXPECT_THROW(reducer.begin_micro_step(true), ContractError);
    EXPECT_THROW(reducer.finish_step(), ContractError);
    EXPECT_THAT(contract_message([&] { model.bias.sum().backward(); }),
                HasSubstr("parameter bias got a gradient outside a micro-step"));
    reducer.begin_step();
    EXPECT_THROW(reducer.begin_step(), ContractError);
    reducer.begin_micro_step(false);
    EXPECT_THROW(reducer.finish_step(), ContractError);
    reducer.begin_micro_step(true);
    EXPECT_THROW(reducer.begin_micro_step(true), ContractError);
    reducer.finish_step();
  });
}

TEST(GradientReducer, DiscardsAStepThatNobodyUses) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    RecordingCommunicator recorder(communicator);
    GradientReducer reducer(model.slices, model.arena, recorder, model.options());
    reducer.begin_step();
    reducer.begin_micro_step(false);
    model.loss(communicator.rank()).backward();
    reducer.discard_step();
    EXPECT_TRUE(recorder.launched.empty());
    EXPECT_TRUE(model.arena.equal(reference_gradient(communicator.rank())));
    reducer.begin_step();
    EXPECT_EQ(model.arena.abs().max().item<float>(), 0.0f);
    reducer.begin_micro_step(true);
    EXPECT_THAT(contract_message([&] { reducer.discard_step(); }),
                HasSubstr("discard_step in a last micro-step"));
    reducer.finish_step();
  });
}

TEST(GradientReducer, TellsEveryRankWhenOneRanksModelDiffers) {
  run_on_ranks([](Communicator& communicator) {
    if (communicator.size() == 1) return;  // one model cannot differ
    const int odd = communicator.size() - 1;
    const auto message = [&](const Model& model) {
      return contract_message(
          [&] { GradientReducer(model.slices, model.arena, communicator, model.options()); });
    };
    Model renamed;
    if (communicator.rank() == odd) renamed.slices[1].name = "muddle";
    EXPECT_THAT(message(renamed), HasSubstr(concat("rank ", odd, ": parameter muddle")));
    EXPECT_THAT(message(renamed), HasSubstr("parameter middle Float [3, 3] at 6"));

    Model reshaped;
    if (communicator.rank() == odd) {
      torch::Tensor& bias = reshaped.slices[2].parameter;
      bias = on_device(torch::ones({1, 3})).requires_grad_();
      bias.mutable_grad() = reshaped.arena.narrow(0, 15, 3).view({1, 3});
    }
    EXPECT_THAT(message(reshaped),
                HasSubstr(concat("rank ", odd, ": parameter bias Float [1, 3]")));

    Model shorter;
    if (communicator.rank() == odd) {
      shorter.slices.pop_back();
      shorter.arena = shorter.arena.narrow(0, 0, 18);
    }
    EXPECT_THAT(message(shorter), HasSubstr(concat("rank ", odd, ": no further parameter")));
  });
}

TEST(GradientReducer, TellsEveryRankWhenOneRanksSliceIsWrong) {
  run_on_ranks([](Communicator& communicator) {
    const int odd = communicator.size() - 1;
    const auto message = [&](Model& model) {
      return contract_message(
          [&] { GradientReducer(model.slices, model.arena, communicator, model.options()); });
    };
    Model detached;
    if (communicator.rank() == odd)
      detached.middle.mutable_grad() = on_device(torch::zeros({3, 3}));
    EXPECT_THAT(message(detached), HasSubstr(concat("rank ", odd, ": ")));
    EXPECT_THAT(message(detached), HasSubstr("parameter middle: its grad must be"));

    Model without_gradient;
    if (communicator.rank() == odd) without_gradient.head.set_requires_grad(false);
    EXPECT_THAT(message(without_gradient), HasSubstr("parameter head: must be a leaf"));

    Model with_rest;
    if (communicator.rank() == odd) with_rest.slices.pop_back();
    EXPECT_THAT(message(with_rest), HasSubstr("the slices end at element 18, the arena has 78"));
  });
}

TEST(GradientReducer, LeavesParametersFreeWhenDestroyed) {
  run_on_ranks([](Communicator& communicator) {
    Model model;
    { GradientReducer first(model.slices, model.arena, communicator, model.options()); }
    model.arena.zero_();
    model.loss(0).backward();  // would throw "outside a micro-step" if a hook were left
    EXPECT_TRUE(model.arena.equal(reference_gradient(0)));
    GradientReducer second(model.slices, model.arena, communicator, model.options());
    EXPECT_THAT(contract_message([&] {
                  GradientReducer(model.slices, model.arena, communicator, model.options());
                }),
                HasSubstr("one reducer per parameter"));
  });
}

}  // namespace
}  // namespace t2r::dist
