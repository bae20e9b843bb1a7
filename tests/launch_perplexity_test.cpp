#include "launch/train/perplexity.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "base/error.h"
#include "data/corpus_writer.h"
#include "dist/local_communicator.h"
#include "model/nets/decoder_lm.h"
#include "tests/data_shards.h"
#include "tests/model_support.h"
#include "tests/support.h"

namespace t2r::launch {
namespace {

constexpr int64_t kVocabSize = 61;
constexpr int32_t kBegin = 3;  // the token that documents begin with, where they do

class PerplexityTest : public ::testing::Test {
 protected:
  /// A shard of documents of 11, 12, ... random tokens, `num_tokens` in all.
  void write(int64_t num_tokens, std::optional<int32_t> begin_of_text = std::nullopt) {
    data::CorpusWriter writer(folder_ / "shard.h5",
                              {.vocab_size = kVocabSize + 1,
                               .tokenizer_hash = "t",
                               .source = "s",
                               .begin_of_text = begin_of_text});
    std::mt19937 random(7);
    for (int64_t length = 11; num_tokens > 0; ++length) {
      std::vector<int32_t> document;
      for (int64_t i = 0; i < std::min(length, num_tokens); ++i)
        document.push_back(static_cast<int32_t>(random() % kVocabSize));
      if (begin_of_text.has_value()) document.front() = *begin_of_text;
      num_tokens -= static_cast<int64_t>(document.size());
      writer.append(document);
      writer.end_document();
    }
    writer.commit();
  }

  data::Corpus corpus() const { return data::Corpus({folder_ / "shard.h5"}); }

  static model::DecoderLM make_model() {
    model::DecoderLM model(test::tiny_config("llama"));
    model.initialize(3);
    return model;
  }

  /// By definition, a target at a time: -log p(token j + 1 | tokens begin to j), where `begin` is
  /// that of the window in which target j counts.
  static PerplexityResult expected(const data::Corpus& corpus, const PerplexityProtocol& protocol) {
    const torch::NoGradGuard no_grad;
    const model::DecoderLM model = make_model();
    const std::vector<int64_t> tokens = test::read_all(corpus);
    int64_t num_targets = corpus.num_tokens() - 1;
    if (protocol.max_tokens > 0) num_targets = std::min(num_targets, protocol.max_tokens);
    PerplexityResult result;
    for (int64_t j = 0; j < num_targets; ++j) {
      if (tokens[j + 1] == corpus.begin_of_text()) continue;
      const int64_t window = std::max<int64_t>(0, j - protocol.context + protocol.scored) /
                             protocol.scored;  // 0: the first, of which all targets count
      const int64_t end = std::min(protocol.context + window * protocol.scored, num_targets);
      const int64_t begin = std::max<int64_t>(0, end - protocol.context);
      const torch::Tensor context =
          torch::tensor(std::vector<int64_t>(tokens.begin() + begin, tokens.begin() + j + 1));
      const torch::Tensor logits = model.logits(model.hidden(context.unsqueeze(0)))[0][-1];
      result.loss_sum -= logits.to(torch::kFloat64).log_softmax(0)[tokens[j + 1]].item<double>();
      ++result.num_tokens;
    }
    return result;
  }

  /// What every one of `world` ranks is told.
  PerplexityResult scored(const PerplexityProtocol& protocol, int world) const {
    std::vector<PerplexityResult> results(static_cast<size_t>(world));
    dist::run_local_ranks(world, [&](dist::Communicator& communicator) {
      const model::DecoderLM model = make_model();
      results[static_cast<size_t>(communicator.rank())] =
          score_corpus(model, corpus(), protocol, communicator);
    });
    for (const PerplexityResult& result : results) {
      EXPECT_EQ(result.loss_sum, results.front().loss_sum);
      EXPECT_EQ(result.num_tokens, results.front().num_tokens);
      EXPECT_FALSE(result.is_stopped);
    }
    return results.front();
  }

  void compare(const PerplexityProtocol& protocol, int world) const {
    compare(protocol, world, expected(corpus(), protocol));
  }

  void compare(const PerplexityProtocol& protocol,
               int world,
               const PerplexityResult& wanted) const {
    const PerplexityResult result = scored(protocol, world);
    EXPECT_EQ(result.num_tokens, wanted.num_tokens);
    // Losses are float32; a window that is another's by one token differs by far more.
    EXPECT_NEAR(result.loss(), wanted.loss(), 1e-5)
        << "context " << protocol.context << ", scored " << protocol.scored << ", batch "
        << protocol.batch_size << ", " << world << " ranks";
  }

  test::TemporaryFolder folder_;
};

TEST_F(PerplexityTest, IsTheFormulasForEveryProtocolBatchAndWorld) {
  write(52);  // 51 targets: no multiple of any of these
  for (const int64_t scored : {8, 5, 1}) {
    const PerplexityResult wanted = expected(corpus(), {.context = 8, .scored = scored});
    for (const int64_t batch_size : {1, 3, 100}) {
      for (const int world : {1, 2, 4})
        compare({.context = 8, .scored = scored, .batch_size = batch_size}, world, wanted);
    }
  }
}

TEST_F(PerplexityTest, EndsWithTheTextOrAfterSoManyTokens) {
  write(40);
  compare({.context = 64, .scored = 64, .batch_size = 2}, 2);  // one window, shorter than allowed
  for (const int64_t max_tokens : {1, 8, 19, 39, 400})
    compare({.context = 8, .scored = 4, .batch_size = 2, .max_tokens = max_tokens}, 2);
}

TEST_F(PerplexityTest, TokensThatDocumentsBeginWithDoNotCount) {
  write(60, kBegin);
  const PerplexityProtocol protocol{.context = 8, .scored = 8, .batch_size = 2};
  compare(protocol, 2);
  // 60 tokens are documents of 11, 12, 13, 14 and 10; the first one's begin is no target.
  EXPECT_LE(scored(protocol, 1).num_tokens, 59 - 4);
}

TEST_F(PerplexityTest, MoreRanksThanWindowsAreNoHarm) {
  write(9);
  compare({.context = 4, .scored = 4, .batch_size = 1}, 4);
}

TEST_F(PerplexityTest, OneTokenIsNothingToScore) {
  write(1);
  dist::run_local_ranks(2, [&](dist::Communicator& communicator) {
    EXPECT_THROW(score_corpus(make_model(), corpus(), {}, communicator), DataError);
  });
}

TEST_F(PerplexityTest, AStopOnAnyRankEndsItOnAll) {
  write(400);
  std::atomic<int> num_stopped = 0;
  dist::run_local_ranks(3, [&](dist::Communicator& communicator) {
    int num_asked = 0;
    int64_t last_done = 0;
    ScoringHooks hooks;
    hooks.is_stop_requested = [&] { return communicator.rank() == 1 && ++num_asked == 3; };
    hooks.on_progress = [&](int64_t done, int64_t total) {
      EXPECT_GT(done, last_done);
      EXPECT_EQ(total, 399);
      last_done = done;
    };
    const PerplexityResult result = score_corpus(
        make_model(), corpus(), {.context = 8, .scored = 8, .batch_size = 1}, communicator, hooks);
    EXPECT_LT(result.num_tokens, 399);
    EXPECT_LT(last_done, 399);
    num_stopped += result.is_stopped;
  });
  EXPECT_EQ(num_stopped, 3);
}

TEST_F(PerplexityTest, AFailureOnOneRankIsEveryRanks) {
  std::vector<int32_t> tokens(100, 5);
  tokens[45] = kVocabSize;  // in the shard's vocabulary, not in the model's
  test::write_shard(folder_ / "shard.h5", {tokens}, kVocabSize + 1, "t");
  std::atomic<int> num_told = 0;
  dist::run_local_ranks(3, [&](dist::Communicator& communicator) {
    try {
      score_corpus(
          make_model(), corpus(), {.context = 8, .scored = 8, .batch_size = 1}, communicator);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("61"), std::string::npos) << error.what();
      ++num_told;
    }
  });
  EXPECT_EQ(num_told, 3);
}

TEST(PerplexityProtocol, ScoresAtMostAWindow) {
  EXPECT_NO_THROW((PerplexityProtocol{.context = 8, .scored = 8}.validate()));
  EXPECT_THROW((PerplexityProtocol{.context = 8, .scored = 9}.validate()), ConfigError);
  EXPECT_THROW((PerplexityProtocol{.context = 8, .scored = 0}.validate()), ConfigError);
}

}  // namespace
}  // namespace t2r::launch
