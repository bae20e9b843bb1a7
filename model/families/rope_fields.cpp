#include "model/families/rope_fields.h"

#include "base/quoted_name.h"

namespace t2r::model {
namespace {

/// The section that says how positions rotate, chosen as transformers 5 does: rope_scaling unless
/// it is empty, else rope_parameters; nullptr if there is neither.
const char* rope_section(const Fields& fields) {
  const auto is_there = [&](const char* name) {
    return fields.has(name) && !fields.section(name).json().empty();
  };
  if (is_there("rope_scaling")) return "rope_scaling";
  return is_there("rope_parameters") ? "rope_parameters" : nullptr;
}

/// transformers 5 takes no base from a rope_parameters beside rope_scaling, but the default:
/// refused where that is another one, as nobody can have meant it.
void check_base_beside_scaling(const Fields& fields, const Fields& scaling, double otherwise) {
  if (scaling.has("rope_theta") || fields.has("rope_theta") || !fields.has("rope_parameters"))
    return;
  const Fields parameters = fields.section("rope_parameters");
  const double theta = parameters.get_or("rope_theta", otherwise);
  if (theta != otherwise)
    fields.refuse(
        "rope_scaling",
        concat(value_text(scaling.json()), " beside rope_parameters"),
        concat("one of the two, or rope_scaling with a rope_theta of its own (rope_parameters: ",
               theta,
               ")"));
}

}  // namespace

RopeConfig read_rope(const Fields& fields, double theta, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = fields.positive_or("rope_theta", theta);
  const char* section = rope_section(fields);
  if (section == nullptr) return rope;
  const Fields inner = fields.section(section);
  for (const auto& [name, value] : inner.json().items()) {
    if (value.is_object())
      inner.refuse(quoted_name(name).c_str(), value_text(value), "one rotation for all layers");
  }
  check_base_beside_scaling(fields, inner, theta);
  if (inner.has("rope_theta")) rope.theta = inner.positive_or("rope_theta", rope.theta);
  rope.type = inner.get_or<std::string>("rope_type", inner.get_or<std::string>("type", "default"));
  if (rope.type != "default" && rope.type != "linear" && rope.type != "llama3")
    inner.refuse("rope_type", quoted_name(rope.type), "default, linear, llama3");
  if (inner.get_or("partial_rotary_factor", 1.0) != 1.0) inner.refuse("partial_rotary_factor", "1");
  if (rope.type == "default") return rope;
  inner.get<double>("factor");
  rope.factor = inner.positive_or("factor", 1.0);
  if (rope.type != "llama3") return rope;
  inner.get<double>("low_freq_factor");
  rope.low_freq_factor = inner.positive_or("low_freq_factor", 1.0);
  rope.high_freq_factor = inner.get<double>("high_freq_factor");
  if (!(rope.high_freq_factor > rope.low_freq_factor))
    inner.refuse("high_freq_factor", concat("above low_freq_factor = ", rope.low_freq_factor));
  constexpr const char* kOriginal = "original_max_position_embeddings";
  rope.original_max_positions = fields.get_or(kOriginal, inner.get_or(kOriginal, max_positions));
  if (rope.original_max_positions < 1)
    inner.refuse(kOriginal, std::to_string(rope.original_max_positions), "1 or more");
  return rope;
}

void write_rope(const RopeConfig& rope, Fields::Json& json) {
  json["rope_theta"] = rope.theta;
  if (rope.type == "default") return;
  Fields::Json& scaling = json["rope_scaling"];
  scaling = {{"rope_type", rope.type}, {"factor", rope.factor}};
  if (rope.type == "llama3") {
    scaling["low_freq_factor"] = rope.low_freq_factor;
    scaling["high_freq_factor"] = rope.high_freq_factor;
    scaling["original_max_position_embeddings"] = rope.original_max_positions;
  }
}

}  // namespace t2r::model
