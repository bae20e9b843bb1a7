#include "model/nets/decoder_lm.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "model/files/convert.h"
#include "model/files/hugging_face.h"
#include "model/search/generate.h"
#include "tests/model_support.h"
#include "tests/support.h"

namespace t2r::model {
namespace {

using test::max_relative_error;
using test::TemporaryFolder;
using test::text_loss;
using test::tiny_config;
using torch::Tensor;

struct Variant {
  const char* name;
  std::string family;
  std::optional<LinearAttentionConfig> linear;
};

std::vector<Variant> variants() {
  const LinearAttentionConfig t2r{.feature_map = "t2r", .feature_size = 5};
  LinearAttentionConfig per_query = t2r, mixed = t2r;
  per_query.map_per_query_head = true;
  mixed.softmax_layers = {1};
  const LinearAttentionConfig elu{.feature_map = "elu", .feature_size = 6};
  LinearAttentionConfig hedgehog{.feature_map = "hedgehog", .feature_size = 8};
  LinearAttentionConfig hedgehog_per_query = hedgehog;
  hedgehog_per_query.map_per_query_head = true;
  return {{"gpt2 softmax", "gpt2", std::nullopt},
          {"gpt2 t2r", "gpt2", t2r},
          {"gpt2 elu", "gpt2", elu},
          {"gpt2 mixed", "gpt2", mixed},
          {"llama softmax", "llama", std::nullopt},
          {"llama t2r", "llama", t2r},
          {"llama per query head", "llama", per_query},
          {"llama elu", "llama", elu},
          {"llama mixed", "llama", mixed},
          {"gpt2 hedgehog", "gpt2", hedgehog},
          {"llama hedgehog", "llama", hedgehog},
          {"llama hedgehog per query head", "llama", hedgehog_per_query},
          {"qwen2 softmax", "qwen2", std::nullopt},
          {"qwen2 t2r", "qwen2", t2r},
          {"qwen3 softmax", "qwen3", std::nullopt},
          {"qwen3 t2r", "qwen3", t2r},
          {"qwen3 hedgehog", "qwen3", hedgehog},
          {"olmo2 softmax", "olmo2", std::nullopt},
          {"olmo2 t2r", "olmo2", t2r},
          {"olmo2 mixed", "olmo2", mixed},
          {"smollm3 softmax", "smollm3", std::nullopt},
          {"smollm3 t2r", "smollm3", t2r},
          {"smollm3 hedgehog", "smollm3", hedgehog},
          {"starcoder2 softmax", "starcoder2", std::nullopt},
          {"starcoder2 t2r", "starcoder2", t2r},
          {"starcoder2 mixed", "starcoder2", mixed}};
}

std::unique_ptr<DecoderLM> make(const Variant& variant) {
  DecoderConfig config = tiny_config(variant.family);
  config.linear = variant.linear;
  if (variant.family == "smollm3") config.block.layers_without_rope = {1};
  auto model = std::make_unique<DecoderLM>(config);
  model->initialize(3);
  const torch::NoGradGuard no_grad;
  for (Parameter& parameter : model->parameters().all()) {  // biases and norms away from 0 and 1
    if (!parameter.decays) parameter.value.add_(torch::randn_like(parameter.value) * 0.1);
  }
  return model;
}

Tensor random_tokens(int64_t batch, int64_t length) {
  return torch::randint(61, {batch, length}, torch::kInt64);
}

TEST(DecoderLM, TokenByTokenGivesWhatTheWholeSequenceGives) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(1);
    const auto model = make(variant);
    const Tensor tokens = random_tokens(2, 90);
    const torch::NoGradGuard no_grad;
    const Tensor whole = model->logits(model->hidden(tokens));
    for (const bool merges : {false, true}) {
      if (merges) model->prepare_generation();
      DecoderState state = model->new_state();
      std::vector<Tensor> parts;
      for (const auto& [begin, count] :
           {std::pair<int64_t, int64_t>{0, 70}, {70, 1}, {71, 1}, {72, 13}, {85, 5}}) {
        parts.push_back(model->logits(
            model->hidden(tokens.narrow(1, begin, count).contiguous(), {.state = &state})));
      }
      EXPECT_LE(max_relative_error(torch::cat(parts, 1), whole), 2e-5)
          << variant.name << " merged " << merges;
      EXPECT_EQ(state.position, 90);
    }
  }
}

TEST(DecoderLM, LossIsTheCrossEntropyOfTheLogits) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(2);
    const auto model = make(variant);
    const Tensor tokens = random_tokens(2, 40), targets = random_tokens(2, 40);
    const Tensor logits = model->logits(model->hidden(tokens)).flatten(0, 1);
    const double expected =
        at::cross_entropy_loss(logits, targets.flatten(), {}, at::Reduction::Sum).item<double>();
    EXPECT_NEAR(text_loss(*model, tokens, targets).item<double>(), expected, 1e-5 * expected)
        << variant.name;
    EXPECT_NEAR(
        model->target_losses({tokens, targets}).sum().item<double>(), expected, 1e-5 * expected)
        << variant.name;
  }
}

TEST(DecoderLM, RecomputingGivesTheSameBits) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(3);
    const auto model = make(variant);
    const Tensor tokens = random_tokens(2, 70), targets = random_tokens(2, 70);
    const auto loss_and_gradients = [&](Recompute recompute) {
      torch::manual_seed(4);  // of the dropout
      const Tensor loss =
          text_loss(*model, tokens, targets, {.dropout = 0.2, .recompute = recompute});
      loss.backward();
      std::vector<Tensor> all{loss.detach()};
      for (Parameter& parameter : model->parameters().all()) {
        all.push_back(parameter.value.grad().clone());
        parameter.value.mutable_grad().zero_();
      }
      return all;
    };
    const std::vector<Tensor> kept = loss_and_gradients(Recompute::kNothing);
    for (const Recompute recompute : {Recompute::kMlps, Recompute::kAll}) {
      const std::vector<Tensor> recomputed = loss_and_gradients(recompute);
      for (size_t i = 0; i < kept.size(); ++i)
        EXPECT_TRUE(kept[i].equal(recomputed[i])) << variant.name << ", tensor " << i;
    }
  }
}

TEST(DecoderLM, EveryParameterGetsTheGradientThatDifferencesGive) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(3);
    const auto model = make(variant);
    for (Parameter& parameter : model->parameters().all()) {
      // Features away from relu's kink and denominators away from the floor: differences need a
      // smooth function.
      const torch::NoGradGuard no_grad;
      if (parameter.pieces.front().is_new && !parameter.decays) parameter.value.add_(3.0);
    }
    const Tensor tokens = random_tokens(2, 70), targets = random_tokens(2, 70);
    text_loss(*model, tokens, targets).backward();
    for (const Parameter& parameter : model->parameters().all()) {
      ASSERT_TRUE(parameter.value.grad().defined())
          << variant.name << " " << parameter.pieces.front().name;
      // Along the gradient's own direction the loss must change by the gradient's norm.
      const Tensor gradient = parameter.value.grad().clone();
      const double norm = gradient.norm().item<double>();
      if (norm < 1e-3)
        continue;  // nothing to measure in float32 (softmax does not see a bias of its keys)
      const torch::NoGradGuard no_grad;
      const Tensor kept = parameter.value.detach().clone();
      Tensor value = parameter.value.detach();
      const double step = 2e-2 / std::sqrt(static_cast<double>(gradient.numel()));
      const auto loss_at = [&](double distance) {
        value.copy_(kept + gradient * (distance / norm));
        return model->target_losses({tokens, targets}).sum(torch::kFloat64).item<double>();
      };
      // Richardson: removes the cubic term of the central difference.
      const double coarse = (loss_at(step) - loss_at(-step)) / (2 * step);
      const double fine = (loss_at(step / 2) - loss_at(-step / 2)) / step;
      value.copy_(kept);
      EXPECT_NEAR((4 * fine - coarse) / 3, norm, 0.03 * norm + 0.02)
          << variant.name << " " << parameter.pieces.front().name;
    }
  }
}

TEST(DecoderLM, FoldersGoOutAndInUnchanged) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(4);
    const auto model = make(variant);
    const TemporaryFolder folder;
    save_model(*model, {}, folder.path() / "first");
    const LoadedModel loaded = load_model(folder.path() / "first");
    save_model(*loaded.model, loaded.format, folder.path() / "second");
    const SafetensorsFile first(folder.path() / "first/model.safetensors"),
        second(folder.path() / "second/model.safetensors");
    ASSERT_EQ(first.tensors().size(), second.tensors().size());
    for (size_t i = 0; i < first.tensors().size(); ++i) {
      const TensorView &a = first.tensors()[i], &b = second.tensors()[i];
      EXPECT_EQ(a.name, b.name);
      ASSERT_EQ(a.num_bytes, b.num_bytes);
      EXPECT_EQ(std::memcmp(a.data, b.data, a.num_bytes), 0) << variant.name << " " << a.name;
    }
    const Tensor tokens = random_tokens(1, 20);
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(model->hidden(tokens).equal(loaded.model->hidden(tokens))) << variant.name;
  }
}

TEST(DecoderLM, ImportAndExportOfTheFixturesGivesTheSameBytes) {
  const std::filesystem::path fixtures = test::shared_folder() / "fixtures";
  if (!std::filesystem::exists(fixtures)) return;
  for (const char* name : {"gpt2-tiny", "llama-tiny"}) {
    const std::filesystem::path source = fixtures / name;
    const TemporaryFolder folder;
    const LoadedModel loaded = load_model(source);
    save_model(*loaded.model, loaded.format, folder.path() / "out");
    const SafetensorsFile first(source / "model.safetensors"),
        second(folder.path() / "out/model.safetensors");
    ASSERT_EQ(first.tensors().size(), second.tensors().size());
    for (const TensorView& view : first.tensors()) {
      const TensorView& other = second.at(view.name);
      ASSERT_EQ(view.num_bytes, other.num_bytes);
      EXPECT_EQ(std::memcmp(view.data, other.data, view.num_bytes), 0) << view.name;
    }
  }
}

void expect_conversion_keeps_every_bit(const LinearAttentionConfig& linear, int64_t new_in_a_map) {
  for (const std::string family : {"gpt2", "llama"}) {
    const auto model = make({"", family, std::nullopt});
    const TemporaryFolder folder;
    save_model(*model, {}, folder.path() / "soft");
    const Conversion conversion = convert_to_linear(ModelSource(folder.path() / "soft"), linear, 1);
    std::map<std::string, Tensor> kept;
    for (const Parameter& parameter : model->parameters().all()) {
      for (const ParameterPiece& piece : parameter.pieces)
        kept[piece.name] = parameter.piece_value(piece);
    }
    for (const Parameter& parameter : conversion.converted.model->parameters().all()) {
      for (const ParameterPiece& piece : parameter.pieces) {
        if (piece.is_new) continue;
        EXPECT_TRUE(parameter.piece_value(piece).equal(kept.at(piece.name))) << piece.name;
      }
    }
    const int64_t maps = family == "gpt2" ? 4 : 2;
    EXPECT_EQ(conversion.num_new, 3 * maps * new_in_a_map);
    EXPECT_EQ(conversion.new_tensors.size(), 6u);
  }
}

TEST(DecoderLM, ConversionKeepsEveryPretrainedBit) {
  expect_conversion_keeps_every_bit({.feature_map = "t2r", .feature_size = 5}, 5 * 6 + 5);
  expect_conversion_keeps_every_bit({.feature_map = "hedgehog", .feature_size = 8}, 4 * 6 + 4);
}

TEST(DecoderLM, Gpt2FilesWithoutThePrefixAreRead) {
  const auto model = make({"", "gpt2", std::nullopt});
  const TemporaryFolder folder;
  SourceFormat format;
  format.name_prefix_removed = "transformer.";
  save_model(*model, format, folder.path() / "bare");
  EXPECT_NE(
      SafetensorsFile(folder.path() / "bare/model.safetensors").find("h.0.attn.c_attn.weight"),
      nullptr);
  const LoadedModel loaded = load_model(folder.path() / "bare");
  const Tensor tokens = random_tokens(1, 10);
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(model->hidden(tokens).equal(loaded.model->hidden(tokens)));
}

TEST(DecoderLM, GreedyEqualsArgmaxOfTheWholeSequence) {
  for (const Variant& variant : variants()) {
    torch::manual_seed(6);
    const auto model = make(variant);
    const Tensor prompt = random_tokens(2, 5);
    const GenerationResult result = generate(*make_decode_loop(*model), prompt, 20, {}, {});
    ASSERT_EQ(result.tokens_BT.size(1), 25);
    const torch::NoGradGuard no_grad;
    const Tensor logits = model->logits(model->hidden(result.tokens_BT));
    EXPECT_TRUE(logits.argmax(-1).narrow(1, 4, 20).equal(result.tokens_BT.narrow(1, 5, 20)))
        << variant.name;
  }
}

TEST(DecoderLM, TransferLossIsTheDistanceToSoftmaxAndTrainsMapsAlone) {
  const LinearAttentionConfig t2r{.feature_size = 5, .softmax_layers = {1}};
  const LinearAttentionConfig hedgehog{
      .feature_map = "hedgehog", .feature_size = 8, .softmax_layers = {1}};
  const std::vector<std::pair<std::string, LinearAttentionConfig>> cases{
      {"gpt2", t2r}, {"llama", t2r}, {"gpt2", hedgehog}, {"llama", hedgehog}};
  for (const auto& [family, linear] : cases) {
    torch::manual_seed(8);
    const auto model = make({"", family, linear});
    const Tensor tokens = random_tokens(2, 70);
    double first = 0.0, last = 0.0;
    for (int step = 0; step < 60; ++step) {
      const Tensor loss = model->loss({tokens, tokens}, {.objective = &kTransfer}).sum;
      loss.backward();
      last = loss.item<double>();
      if (step == 0) first = last;
      const torch::NoGradGuard no_grad;
      for (Parameter& parameter : model->parameters().all()) {
        ASSERT_EQ(parameter.value.grad().defined(), parameter.pieces.front().is_new)
            << parameter.pieces.front().name;
        if (!parameter.value.grad().defined()) continue;
        parameter.value.sub_(parameter.value.grad() *
                             (0.03 / parameter.value.grad().norm().item<double>()));
        parameter.value.mutable_grad().reset();
      }
    }
    EXPECT_GT(first, 0.0);
    EXPECT_LT(last, 0.9 * first);
  }
  const auto softmax = make({"", "gpt2", std::nullopt});
  EXPECT_THROW(softmax->transfer_error_sum({random_tokens(1, 4), random_tokens(1, 4)}),
               ConfigError);
}

TEST(DecoderLM, DistillationLearnsTheTeacherOfTheSameVocabulary) {
  torch::manual_seed(9);
  const auto teacher = make({"", "llama", std::nullopt});
  const auto student = make({"", "gpt2", LinearAttentionConfig{.feature_size = 5}});
  const Tensor tokens = random_tokens(2, 40), targets = random_tokens(2, 40);
  const auto loss = [&](const DecoderLM& of, const DecoderLM& to, double share) {
    const LossOptions options{.objective = &kDistillation, .teacher = &to, .teacher_share = share};
    return of.loss({tokens, targets}, options).sum;
  };
  EXPECT_NEAR(loss(*teacher, *teacher, 1.0).item<double>(), 0.0, 1e-3);
  EXPECT_NEAR(loss(*student, *teacher, 0.0).item<double>(),
              text_loss(*student, tokens, targets).item<double>(),
              1e-3);
  const double first = loss(*student, *teacher, 1.0).item<double>();
  for (int step = 0; step < 40; ++step) {
    loss(*student, *teacher, 1.0).backward();
    const torch::NoGradGuard no_grad;
    for (Parameter& parameter : student->parameters().all()) {
      parameter.value.sub_(parameter.value.grad() *
                           (0.05 / (1e-6 + parameter.value.grad().norm().item<double>())));
      parameter.value.mutable_grad().reset();
    }
  }
  EXPECT_LT(loss(*student, *teacher, 1.0).item<double>(), 0.7 * first);
  for (const Parameter& parameter : teacher->parameters().all())
    EXPECT_FALSE(parameter.value.grad().defined());
}

TEST(DecoderLM, StateOfLinearLayersIsConstant) {
  const auto model =
      make(variants()[5]);  // llama t2r: 3 layers, 2 key/value heads, 5 features, 6 values
  const auto loop = make_decode_loop(*model);
  const GenerationResult few = generate(*loop, random_tokens(1, 3), 2, {}, {}),
                         many = generate(*loop, random_tokens(1, 3), 90, {}, {});
  EXPECT_EQ(few.state_bytes, 3 * 2 * (5 * 6 + 5) * 4);
  EXPECT_EQ(many.state_bytes, few.state_bytes);
}

TEST(DecoderLM, TokensAndPositionsOutsideAreRefused) {
  const auto model = make({"", "gpt2", std::nullopt});
  EXPECT_THROW(model->hidden(torch::full({1, 2}, 61, torch::kInt64)), DataError);
  EXPECT_THROW(model->hidden(torch::full({1, 2}, -1, torch::kInt64)), DataError);
  EXPECT_THROW(model->hidden(random_tokens(1, 129)), ConfigError);
}

TEST(DecoderConfig, RopeScalingAndOptionsAreReadAndOthersRefused) {
  const std::string llama =
      R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1,
      "num_attention_heads": 2, "intermediate_size": 8, )";
  const DecoderConfig scaled = parse_config(
      llama + R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
      "rope_theta": 5e5, "eos_token_id": [1, 2]})",
      "c");
  EXPECT_EQ(scaled.rope.type, "llama3");
  EXPECT_EQ(scaled.rope.theta, 5e5);
  EXPECT_EQ(scaled.num_kv_heads, 2);
  EXPECT_EQ(scaled.eos_token_ids, (std::vector<int64_t>{1, 2}));
  EXPECT_THROW(
      parse_config(llama + R"("rope_scaling": {"rope_type": "yarn", "factor": 8.0}})", "c"),
      ConfigError);
  EXPECT_THROW(parse_config(llama + R"("num_key_value_heads": 3})", "c"), ConfigError);
  EXPECT_THROW(parse_config(llama + R"("hidden_act": "tanh"})", "c"), ConfigError);
  EXPECT_THROW(parse_config(llama + R"("vocab_size": "8"})", "c"), DataError);
}

}  // namespace
}  // namespace t2r::model
