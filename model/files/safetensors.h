#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace t2r::model {

/// Limits of the reader, and so of the writer; the first is the safetensors library's own.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxSafetensorsTensors = 1 << 18;
inline constexpr size_t kMaxSafetensorsRank = 16;

/// Key that holds metadata where the other keys of a header name tensors.
inline constexpr const char* kSafetensorsMetadataKey = "__metadata__";

/// Element types of safetensors, in the order (last first) in which its writer lays tensors out:
/// by rising alignment. "bool" is a C++ keyword. Source: enum Dtype of the safetensors library,
/// version 0.8.
enum class DType {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

/// The type's name in a safetensors header, e.g. "BF16".
std::string_view dtype_name(DType dtype);

/// Bits of one element; below 8 for f4 and f6.
int64_t bits_per_element(DType dtype);

/// Bytes of a tensor; empty if a size is negative, the bytes are not whole (f4, f6), or the size or
/// a stride does not fit in 63 bits.
std::optional<uint64_t> tensor_bytes(DType dtype, const std::vector<int64_t>& shape);

/// "[2,3]"
std::string shape_text(const std::vector<int64_t>& shape);

/// A named tensor, row-major and little-endian, in memory that something else owns.
///
/// `data` has no particular alignment: files of old writers place float32 at odd addresses.
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t num_bytes = 0;
};

/// Free text of a file's "__metadata__", in file order; empty if there is none.
using Metadata = std::vector<std::pair<std::string, std::string>>;

/// What a safetensors file holds; `tensors` by rising offset.
struct SafetensorsContent {
  std::vector<TensorView> tensors;
  Metadata metadata;
};

/// Checks a whole safetensors file in memory and finds its tensors; they point into `bytes`.
///
/// Checked before anything is allocated or used: header length, JSON without duplicate keys, known
/// types, shape x type = bytes without overflow, tensors cover the data without hole or overlap.
/// @param file  name for messages
/// @throws DataError  names file, byte and rule
/// Source: "Format" in the README of huggingface/safetensors
SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& file);

/// A safetensors file, mapped read-only and checked as parse_safetensors() does.
/// @note  The file must not be cut short while it is open: touching a lost page ends the process.
class SafetensorsFile {
 public:
  /// @throws DataError  if the file cannot be read or breaks its format
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  /// By rising offset in the file; valid as long as this object.
  const std::vector<TensorView>& tensors() const { return content_.tensors; }
  const Metadata& metadata() const { return content_.metadata; }

  /// The tensor of this name, or nullptr.
  const TensorView* find(std::string_view name) const;
  /// @throws DataError  if there is no tensor of this name
  const TensorView& at(std::string_view name) const;

 private:
  struct Mapping;
  std::filesystem::path path_;
  std::unique_ptr<Mapping> mapping_;
  SafetensorsContent content_;
  std::map<std::string_view, const TensorView*> by_name_;
};

/// Writes a file with the layout of the safetensors library, byte for byte: the widest types first,
/// then by name; compact header, "__metadata__" first, padded with spaces to 8 bytes.
///
/// Streams from the views: nothing is copied. Appears under its name only when complete.
/// @param metadata  written in this order; an empty one is left out
/// @throws WriteError     if the file cannot be written
/// @throws ContractError  if names repeat or are not UTF-8, or a view's bytes do not fit its shape
void write_safetensors(const std::filesystem::path& path,
                       std::vector<TensorView> tensors,
                       const Metadata& metadata = {});

}  // namespace t2r::model
