#include <torch/types.h>
#include <algorithm>

#include <cstdio>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/quoted_name.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/command.h"
#include "launch/options/options.h"
#include "model/files/generation_defaults.h"
#include "model/files/hugging_face.h"
#include "model/files/safetensors.h"
#include "model/objectives/objectives.h"
#include "model/search/generate.h"

namespace t2r::launch {
namespace {

using torch::Tensor;

constexpr const char* kGradientPrefix = "grad.";

Tensor load(const model::SafetensorsFile& file, const std::string& name) {
  const model::TensorView& view = file.at(name);
  torch::ScalarType type;
  switch (view.dtype) {
    case model::DType::f32:
      type = torch::kFloat32;
      break;
    case model::DType::f64:
      type = torch::kFloat64;
      break;
    case model::DType::f16:
      type = torch::kFloat16;
      break;
    case model::DType::bf16:
      type = torch::kBFloat16;
      break;
    case model::DType::i64:
      type = torch::kInt64;
      break;
    case model::DType::i32:
      type = torch::kInt32;
      break;
    default:
      throw DataError(concat("expected tensor ",
                             quoted_name(name),
                             " has type ",
                             model::dtype_name(view.dtype),
                             ", allowed: F32, F64, F16, BF16, I64, I32"));
  }
  Tensor tensor = torch::empty(view.shape, type);
  std::memcpy(tensor.data_ptr(), view.data, view.num_bytes);
  return tensor.is_floating_point() ? tensor.to(torch::kFloat64) : tensor.to(torch::kInt64);
}

/// Compares entry by entry and remembers whether all were within tolerance.
class Report {
 public:
  // Passes if the maximum absolute error is at most tolerance x max(1, largest expected magnitude)
  // or, for gradients, at most tolerance x largest expected magnitude.
  void numbers(const std::string& name,
               const Tensor& actual_in,
               const Tensor& expected,
               double tolerance,
               bool is_relative) {
    const Tensor actual = actual_in.detach().to(torch::kFloat64);
    if (actual.sizes() != expected.sizes()) {
      throw DataError(concat("expected tensor ",
                             quoted_name(name),
                             " has shape ",
                             expected.sizes(),
                             ", the model gives ",
                             actual.sizes()));
    }
    const double absolute = (actual - expected).abs().max().item<double>();
    const double magnitude = expected.abs().max().item<double>();
    const double relative = magnitude > 0.0 ? absolute / magnitude : absolute;
    const bool passes = (is_relative ? relative : absolute) <= tolerance;  // false for NaN
    std::string note;
    if (name == "logits") {
      const double agreement =
          (actual.argmax(-1) == expected.argmax(-1)).to(torch::kFloat64).mean().item<double>();
      note = concat("top-1 agreement ", 100.0 * agreement, " %");
    }
    line(name, passes, absolute, relative, note);
  }

  void sequences(const std::string& name, bool is_equal, const std::string& note) {
    std::printf("%-56s %s  %s\n", name.c_str(), is_equal ? "ok  " : "FAIL", note.c_str());
    all_pass_ = all_pass_ && is_equal;
    ++num_entries_;
  }

  bool all_pass() const { return all_pass_; }
  int64_t num_entries() const { return num_entries_; }

 private:
  void line(const std::string& name,
            bool passes,
            double absolute,
            double relative,
            const std::string& note) {
    std::printf("%-56s %s  max abs %.3e  rel %.3e  %s\n",
                name.c_str(),
                passes ? "ok  " : "FAIL",
                absolute,
                relative,
                note.c_str());
    all_pass_ = all_pass_ && passes;
    ++num_entries_;
  }

  bool all_pass_ = true;
  int64_t num_entries_ = 0;
};

struct VerifyOptions {
  std::string model, expected;
  double tolerance = 1e-4, gradient_tolerance = 1e-4;
};

// The greedy tokens were generated from a prefix of input_ids: as far as they agree, it makes no
// difference where the prompt ended.
void verify_greedy(model::DecoderLM& model,
                   const std::vector<int64_t>& eos_token_ids,
                   const Tensor& input_ids,
                   const Tensor& expected,
                   Report& report) {
  if (expected.dim() != 2 || expected.is_floating_point() ||
      expected.size(0) != input_ids.size(0)) {
    throw DataError(concat("expected tensor \"greedy\" has shape ",
                           expected.sizes(),
                           ", wanted integers [",
                           input_ids.size(0),
                           ", T]"));
  }
  const int64_t limit = std::min(input_ids.size(1), expected.size(1));
  int64_t prefix = limit;
  for (int64_t b = 0; b < expected.size(0); ++b) {
    int64_t common = 0;
    while (common < limit &&
           input_ids[b][common].item<int64_t>() == expected[b][common].item<int64_t>())
      ++common;
    prefix = std::min(prefix, common);
  }
  if (prefix == 0)
    throw DataError("expected tensor \"greedy\" does not begin with a prefix of \"input_ids\"");
  if (prefix == expected.size(1)) throw DataError("expected tensor \"greedy\" continues nothing");
  const auto loop = model::make_decode_loop(model);
  const model::GenerationResult result = model::generate(
      *loop, expected.narrow(1, 0, prefix).contiguous(), expected.size(1) - prefix, {}, {});
  int64_t num_equal = 0;
  for (int64_t b = 0; b < expected.size(0); ++b) {
    int64_t end = expected.size(1);  // behind an end token another framework pads
    for (int64_t t = prefix; t < expected.size(1); ++t) {
      for (const int64_t eos : eos_token_ids) {
        if (expected[b][t].item<int64_t>() == eos) end = std::min(end, t + 1);
      }
    }
    num_equal += result.tokens_BT[b].narrow(0, 0, end).equal(expected[b].narrow(0, 0, end)) ? 1 : 0;
  }
  report.sequences("greedy",
                   num_equal == expected.size(0),
                   concat(num_equal,
                          " of ",
                          expected.size(0),
                          " sequences equal, ",
                          expected.size(1) - prefix,
                          " tokens each"));
}

void verify_gradients(model::DecoderLM& model,
                      const model::SafetensorsFile& file,
                      const std::string& removed_prefix,
                      double tolerance,
                      Report& report) {
  std::map<std::string, Tensor> gradients;
  for (const model::Parameter& parameter : model.parameters().all()) {
    for (const model::ParameterPiece& piece : parameter.pieces) {
      const Tensor grad = parameter.value.grad();
      std::string name = piece.name;
      if (name.starts_with(removed_prefix)) name.erase(0, removed_prefix.size());
      if (grad.defined())
        gradients[name] = grad.narrow(0, piece.begin_row, piece.end_row - piece.begin_row);
    }
  }
  for (const model::TensorView& view : file.tensors()) {
    if (!view.name.starts_with(kGradientPrefix)) continue;
    const auto found = gradients.find(view.name.substr(std::strlen(kGradientPrefix)));
    if (found == gradients.end())
      throw DataError(
          concat("expected tensor ", quoted_name(view.name), ": the model has no such parameter"));
    report.numbers(
        view.name, found->second, load(file, view.name), tolerance, /*is_relative=*/true);
  }
}

void say_idle_options(const OptionSet& options, const model::SafetensorsFile& file) {
  const auto& tensors = file.tensors();
  const bool has_gradients = std::any_of(tensors.begin(), tensors.end(), [](const auto& view) {
    return view.name.starts_with(kGradientPrefix);
  });
  const bool has_others = std::any_of(tensors.begin(), tensors.end(), [](const auto& view) {
    return view.name == "logits" || view.name == "loss" || view.name == "last_hidden";
  });
  options.say_if_idle("gradient-tolerance", !has_gradients, "--expected has no grad.NAME");
  options.say_if_idle("tolerance", !has_others, "--expected has no logits, loss or last_hidden");
}

void verify_entries(const VerifyOptions& options,
                    const model::SafetensorsFile& file,
                    Report& report) {
  for (const model::TensorView& view : file.tensors()) {
    const bool is_known = view.name == "input_ids" || view.name == "logits" ||
                          view.name == "loss" || view.name == "greedy" ||
                          view.name == "last_hidden" || view.name.starts_with(kGradientPrefix);
    if (!is_known) {
      throw DataError(concat(
          options.expected,
          ": tensor ",
          quoted_name(view.name),
          " is not known, allowed: input_ids, logits, loss, last_hidden, greedy, grad.NAME"));
    }
  }
  if (file.find("input_ids") == nullptr)
    throw DataError(concat(options.expected, ": tensor \"input_ids\" is missing"));
  const std::filesystem::path folder = resolve_checkpoint(options.model);
  model::LoadedModel loaded = model::load_model(folder);
  model::DecoderLM& model = *loaded.model;
  const Tensor input_ids = load(file, "input_ids");
  if (input_ids.dim() != 2 || input_ids.numel() == 0 || input_ids.is_floating_point())
    throw DataError(concat(
        options.expected, ": input_ids has shape ", input_ids.sizes(), ", wanted integers [B, T]"));
  {
    const torch::NoGradGuard no_grad;
    const Tensor hidden = model.hidden(input_ids);
    if (file.find("last_hidden") != nullptr) {
      report.numbers("last_hidden", hidden, load(file, "last_hidden"), options.tolerance, false);
    }
    if (file.find("logits") != nullptr) {
      report.numbers(
          "logits", model.logits(hidden), load(file, "logits"), options.tolerance, false);
    }
  }
  bool has_gradients = false;
  for (const model::TensorView& view : file.tensors())
    has_gradients = has_gradients || view.name.starts_with(kGradientPrefix);
  if (file.find("loss") != nullptr || has_gradients) {
    const int64_t length = input_ids.size(1) - 1;
    if (length < 1) throw DataError(concat(options.expected, ": a loss needs two tokens or more"));
    const model::LossTerms terms = model.loss(
        {input_ids.narrow(1, 0, length).contiguous(), input_ids.narrow(1, 1, length).contiguous()},
        {.objective = &model::kText});
    const Tensor loss = terms.sum / terms.targets.item<double>();
    if (file.find("loss") != nullptr)
      report.numbers("loss", loss, load(file, "loss"), options.tolerance, false);
    if (has_gradients) {
      loss.backward();
      verify_gradients(
          model, file, loaded.format.name_prefix_removed, options.gradient_tolerance, report);
    }
  }
  if (file.find("greedy") != nullptr) {
    model.prepare_generation();
    const std::vector<int64_t> ends =
        model::read_generation_config(folder, model.config()).eos_token_ids;
    verify_greedy(model, ends, input_ids, load(file, "greedy"), report);
  }
}

}  // namespace

int run_verify(const Invocation& invocation) {
  VerifyOptions values;
  OptionSet options(
      "verify",
      "Compare a model with what another framework computed; exit 0 only within tolerance.");
  options.add("model", values.model, "Hugging Face folder").required();
  options
      .add("expected",
           values.expected,
           "safetensors file with input_ids and any of logits, loss, last_hidden, greedy, "
           "grad.NAME")
      .required();
  options.add("tolerance", values.tolerance, "largest absolute error of logits, loss, last_hidden")
      .range(0.0, 1e9);
  options
      .add("gradient-tolerance",
           values.gradient_tolerance,
           "largest error of a gradient over its largest element")
      .range(0.0, 1e9);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  Report report;
  const model::SafetensorsFile file(values.expected);
  say_idle_options(options, file);
  verify_entries(values, file, report);
  if (report.num_entries() == 0)
    throw DataError(concat(values.expected, ": nothing to compare besides input_ids"));
  std::printf("%lld entries: %s\n",
              static_cast<long long>(report.num_entries()),
              report.all_pass() ? "all within tolerance" : "NOT all within tolerance");
  return report.all_pass() ? 0 : static_cast<int>(ExitCode::kBadData);
}

}  // namespace t2r::launch
