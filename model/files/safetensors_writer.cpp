#include "model/files/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r::model {
namespace {

std::string printable(const std::string& name) {
  return nlohmann::json(name).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

/// JSON string with the escapes of the safetensors library.
std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw ContractError("write_safetensors: " + printable(text) + " must be UTF-8");
  }
}

/// Refuses whatever parse_safetensors() would refuse to read back.
void require_readable(const std::vector<TensorView>& tensors, const Metadata& metadata) {
  require(tensors.size() <= kMaxSafetensorsTensors, "write_safetensors: too many tensors");
  std::set<std::string_view> names = {kSafetensorsMetadataKey};
  for (const TensorView& tensor : tensors) {
    const std::string who = "write_safetensors: tensor " + printable(tensor.name);
    require(names.insert(tensor.name).second, who + " is there twice or has a reserved name");
    require(tensor.shape.size() <= kMaxSafetensorsRank,
            concat(who, " may have at most ", kMaxSafetensorsRank, " dimensions"));
    require(
        tensor_bytes(tensor.dtype, tensor.shape) == tensor.num_bytes,
        concat(
            who, ": ", tensor.num_bytes, " bytes do not fit its shape ", shape_text(tensor.shape)));
    require(tensor.data != nullptr || tensor.num_bytes == 0, who + " has no data");
  }
  std::set<std::string_view> keys;
  for (const auto& [key, value] : metadata)
    require(keys.insert(key).second,
            "write_safetensors: metadata " + printable(key) + " is there twice");
}

std::string encode_header(const std::vector<TensorView>& tensors, const Metadata& metadata) {
  std::string header = "{";
  const auto append_key = [&](const std::string& key) {
    if (header.size() > 1) header += ',';
    header += json_string(key) + ':';
  };
  if (!metadata.empty()) {
    append_key(kSafetensorsMetadataKey);
    for (const auto& [key, value] : metadata)
      header += (&key == &metadata.front().first ? '{' : ',') + json_string(key) + ':' +
                json_string(value);
    header += '}';
  }
  uint64_t begin = 0;
  for (const TensorView& tensor : tensors) {
    const uint64_t end = begin + tensor.num_bytes;
    append_key(tensor.name);
    header += concat(R"({"dtype":")",
                     dtype_name(tensor.dtype),
                     R"(","shape":)",
                     shape_text(tensor.shape),
                     R"(,"data_offsets":[)",
                     begin,
                     ',',
                     end,
                     "]}");
    begin = end;
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

}  // namespace

void write_safetensors(const std::filesystem::path& path,
                       std::vector<TensorView> tensors,
                       const Metadata& metadata) {
  require_readable(tensors, metadata);
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name);
  });
  const std::string header = encode_header(tensors, metadata);
  const uint64_t header_bytes = header.size();
  require(header_bytes <= kMaxSafetensorsHeaderBytes, "write_safetensors: header over 100 MB");
  DurableFile file(path);
  file.write(&header_bytes, sizeof(header_bytes));
  file.write(header);
  for (const TensorView& tensor : tensors) file.write(tensor.data, tensor.num_bytes);
  file.commit();
}

}  // namespace t2r::model
