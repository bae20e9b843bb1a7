#include "launch/checkpoints/checkpoint_manifest.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "base/error.h"

namespace t2r::launch {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxCount = int64_t{1} << 60;
constexpr int64_t kMaxWorld = 99999;  // what a part's name can say
constexpr const char* kPartPrefix = "optimizer-";

/// Takes fields one by one and refuses those of another type or out of range.
class FieldReader {
 public:
  FieldReader(const Json& fields, const std::string& file) : fields_(fields), file_(file) {}

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    return integer_in(fields_, key, low, high);
  }

  /// {"step", "loss"}, or null; a loss that is not finite is null, too.
  std::optional<Evaluation> evaluation(const char* key, int64_t last_step) const {
    const Json& value = at(fields_, key);
    if (value.is_null()) return std::nullopt;
    if (!value.is_object()) refuse(key, value, "an object or null");
    const Json& loss = at(value, "loss");
    if (!loss.is_number() && !loss.is_null()) refuse(key, loss, "a number or null as loss");
    return Evaluation{integer_in(value, "step", 0, last_step),
                      loss.is_null() ? NAN : loss.get<double>()};
  }

  RunFacts facts(const char* key) const {
    const Json& value = at(fields_, key);
    if (!value.is_object()) refuse(key, value, "an object");
    RunFacts facts;
    for (const auto& [name, entry] : value.items()) {
      if (!entry.is_string()) refuse(key, entry, "strings as values");
      facts.emplace_back(name, entry.get<std::string>());
    }
    return facts;
  }

  const Json& at(const Json& object, const char* key) const {
    const auto found = object.find(key);
    if (found == object.end()) throw DataError(concat(file_, ": ", key, " is missing"));
    return *found;
  }

  [[noreturn]] void refuse(const char* key, const Json& value, const std::string& allowed) const {
    throw DataError(
        concat(file_, ": ", key, " = ", value.dump().substr(0, 80), ", allowed: ", allowed));
  }

 private:
  int64_t integer_in(const Json& object, const char* key, int64_t low, int64_t high) const {
    const Json& value = at(object, key);
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= kMaxCount) &&
                      value.get<int64_t>() >= low && value.get<int64_t>() <= high;
    if (!fits) refuse(key, value, low == high ? std::to_string(low) : concat(low, " to ", high));
    return value.get<int64_t>();
  }

  const Json& fields_;
  const std::string& file_;
};

Json evaluation_json(const std::optional<Evaluation>& evaluation) {
  if (!evaluation.has_value()) return nullptr;
  return {{"step", evaluation->step},
          {"loss", evaluation->is_finite() ? Json(evaluation->loss) : Json(nullptr)}};
}

Json facts_json(const RunFacts& facts) {
  Json json = Json::object();
  for (const auto& [key, value] : facts) json[key] = value;
  return json;
}

/// "key = value" a line, as version 1 has it.
RunFacts parse_identity_text(const std::string& text) {
  RunFacts facts;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t sign = line.find(" = ");
    if (sign != std::string::npos) facts.emplace_back(line.substr(0, sign), line.substr(sign + 3));
  }
  return facts;
}

void check_files(const FolderManifest& manifest, int world, const std::string& file) {
  const auto must_list = [&](const std::string& name) {
    if (!manifest.files.contains(name))
      throw DataError(concat(file, ": files must list ", name, ", which a checkpoint has"));
  };
  must_list("config.json");
  if (!manifest.files.contains("model.safetensors.index.json")) must_list("model.safetensors");
  for (int rank = 0; rank < world; ++rank) must_list(optimizer_part(rank, world));
  const auto is_part = [](const auto& entry) { return is_optimizer_part(entry.first); };
  const int64_t num_parts = std::count_if(manifest.files.begin(), manifest.files.end(), is_part);
  if (num_parts != world)
    throw DataError(concat(
        file, ": files list ", num_parts, " parts of the optimizer, ", world, " are its own"));
}

}  // namespace

bool Evaluation::is_finite() const {
  return std::isfinite(loss);
}

TrainingPosition TrainingPosition::as_saved() const {
  TrainingPosition saved = *this;
  if (evaluated.has_value() && evaluated->step == step && evaluated->is_finite() &&
      (!best.has_value() || evaluated->loss < best->loss))
    saved.best = evaluated;
  return saved;
}

std::optional<int64_t> TrainingPosition::best_step() const {
  if (best.has_value()) return best->step;
  if (evaluated.has_value() && evaluated->step == step && !evaluated->is_finite())
    return std::nullopt;
  return step;
}

std::string optimizer_part(int rank, int world) {
  char name[64];
  std::snprintf(name, sizeof(name), "%s%05d-of-%05d.safetensors", kPartPrefix, rank, world);
  return name;
}

bool is_optimizer_part(const std::string& name) {
  return name.starts_with(kPartPrefix) && name.ends_with(".safetensors");
}

Json CheckpointManifest::to_fields() const {
  return {{"step", position.step},
          {"num_updates", position.num_updates},
          {"sample_cursor", position.sample_cursor},
          {"num_tokens", position.num_tokens},
          {"best", evaluation_json(position.best)},
          {"evaluated", evaluation_json(position.evaluated)},
          {"world_size", world},
          {"identity", facts_json(identity)},
          {"options", facts_json(options)}};
}

CheckpointManifest parse_checkpoint_manifest(const FolderManifest& manifest,
                                             int64_t step,
                                             const std::string& file) {
  const FieldReader reader(manifest.fields, file);
  CheckpointManifest result;
  TrainingPosition& position = result.position;
  position.step = reader.integer("step", step, step);
  position.num_updates = reader.integer("num_updates", 0, step);
  position.sample_cursor = reader.integer("sample_cursor", 0, kMaxCount);
  position.num_tokens = reader.integer("num_tokens", 0, kMaxCount);
  result.world = static_cast<int>(reader.integer("world_size", 1, kMaxWorld));
  check_files(manifest, result.world, file);
  if (manifest.has_own_hash) {
    position.best = reader.evaluation("best", step);
    position.evaluated = reader.evaluation("evaluated", step);
    if (position.best.has_value() && !position.best->is_finite())
      reader.refuse("best", nullptr, "a finite loss");
    result.identity = reader.facts("identity");
    result.options = reader.facts("options");
  } else {
    // Version 1 says the best loss alone (null where it was not finite); the link says the step.
    const Json& best_loss = reader.at(manifest.fields, "best_loss");
    if (reader.at(manifest.fields, "has_best") == true && best_loss.is_number())
      position.best = {kUnknownStep, best_loss.get<double>()};
    const Json& identity = reader.at(manifest.fields, "identity");
    if (!identity.is_string()) reader.refuse("identity", identity, "a text");
    result.identity = parse_identity_text(identity.get<std::string>());
  }
  return result;
}

}  // namespace t2r::launch
