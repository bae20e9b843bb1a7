#include "base/json.h"

#include <limits>
#include <utility>
#include <vector>

#include "base/durable_file.h"
#include "base/foreign_file.h"

namespace t2r {
namespace {

using Json = nlohmann::ordered_json;

/// Builds the value from the reader's events. The open objects and arrays are a stack of pointers:
/// nothing is appended to one of them before what it holds is closed, so they stay valid.
class JsonBuilder final : public StrictJsonReader {
 public:
  using StrictJsonReader::StrictJsonReader;

  Json take() { return std::move(root_); }

 private:
  void enter_object() override { open_.push_back(add(Json::object())); }
  void leave_object() override { open_.pop_back(); }
  void enter_array() override { open_.push_back(add(Json::array())); }
  void leave_array() override { open_.pop_back(); }
  void on_key() override {}
  void on_string(std::string& value) override { add(std::move(value)); }
  void on_unsigned(uint64_t value) override { add(value); }
  void on_integer(int64_t value) override { add(value); }
  void on_float(double value, const std::string&) override { add(value); }
  void on_boolean(bool value) override { add(value); }
  void on_null() override { add(nullptr); }

  Json* add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      auto& elements = parent.get_ref<Json::array_t&>();
      return &elements.emplace_back(std::move(value));
    }
    // Not the map's own emplace, which looks through all keys; the reader knows that it differs.
    Json::object_t::Container& members = parent.get_ref<Json::object_t&>();
    return &members.emplace_back(last_key(), std::move(value)).second;
  }

  Json root_;
  std::vector<Json*> open_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& file, JsonLimits limits) {
  refuse_foreign_content(text, file);
  JsonBuilder builder(file, 0, limits);
  builder.read(text);
  return builder.take();
}

std::optional<int64_t> integer_of(const Json& value) {
  constexpr uint64_t kLargest = std::numeric_limits<int64_t>::max();
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > kLargest) return std::nullopt;
  return value.get<int64_t>();
}

Json read_json_file(const std::filesystem::path& path, JsonLimits limits) {
  return parse_json(read_file(path), path.string(), limits);
}

}  // namespace t2r
