#include "model/files/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/foreign_file.h"
#include "base/quoted_name.h"
#include "base/strict_json.h"

namespace t2r::model {
namespace {

static_assert(std::endian::native == std::endian::little, "views are used without byte swapping");

constexpr uint64_t kPrefixBytes = 8;
/// One more than the format needs, so that the message can say what stands at the wrong place.
constexpr size_t kMaxDepth = 4;
/// A tensor has its name and three fields; the rest is for metadata.
constexpr size_t kMaxKeys = 4 * kMaxSafetensorsTensors + (1 << 16);

struct DTypeInfo {
  std::string_view name;
  int64_t bits;
};

/// Indexed by DType.
constexpr std::array<DTypeInfo, 22> kDTypes = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};
static_assert(kDTypes[static_cast<size_t>(DType::u64)].name == "U64");
static_assert(kDTypes[static_cast<size_t>(DType::i16)].name == "I16");

std::optional<DType> dtype_of(std::string_view name) {
  for (size_t i = 0; i < kDTypes.size(); ++i)
    if (kDTypes[i].name == name) return static_cast<DType>(i);
  return std::nullopt;
}

std::string all_dtype_names() {
  std::string names;
  for (const DTypeInfo& info : kDTypes) names.append(names.empty() ? "" : ", ").append(info.name);
  return names;
}

/// One tensor as the header describes it; offsets in bytes from the start of the data.
struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::vector<uint64_t> offsets;
};

/// Collects the entries of a header and checks each by itself.
class HeaderReader final : public StrictJsonReader {
 public:
  HeaderReader(std::string file, uint64_t num_data_bytes)
      : StrictJsonReader(std::move(file), kPrefixBytes, {kMaxDepth, kMaxKeys}),
        num_data_bytes_(num_data_bytes) {}

  std::vector<Entry> entries;
  Metadata metadata;

 private:
  enum class Place { kFile, kTop, kMetadata, kTensor, kShape, kOffsets };

  [[noreturn]] void refuse_type(const std::string& found) const {
    switch (place_) {
      case Place::kFile:
        refuse("the header must be a JSON object, not " + found);
      case Place::kTop:
        refuse(concat(quoted_name(last_key()), " must be an object, not ", found));
      case Place::kMetadata:
        refuse(concat("metadata ", quoted_name(last_key()), " must be a string, not ", found));
      case Place::kTensor:
        if (last_key() == "dtype") refuse(concat(tensor(), "dtype must be a string, not ", found));
        [[fallthrough]];
      default:
        refuse(concat(tensor(), last_key(), " must be an array of integers >= 0, not ", found));
    }
  }

  std::string tensor() const { return concat("tensor ", quoted_name(entries.back().name), ": "); }

  void enter_object() override {
    if (place_ == Place::kFile) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop && last_key() == kSafetensorsMetadataKey) {
      place_ = Place::kMetadata;
    } else if (place_ == Place::kTop) {
      if (entries.size() == kMaxSafetensorsTensors)
        refuse(concat("a file may hold at most ", kMaxSafetensorsTensors, " tensors"));
      place_ = Place::kTensor;
      entries.push_back({.name = last_key(), .dtype = {}, .shape = {}, .offsets = {}});
    } else {
      refuse_type("an object");
    }
  }

  void leave_object() override {
    if (place_ == Place::kTensor) check_entry(entries.back());
    place_ = place_ == Place::kTop ? Place::kFile : Place::kTop;
  }

  void enter_array() override {
    if (place_ == Place::kTensor && last_key() == "shape") {
      place_ = Place::kShape;
      entries.back().shape.emplace();
    } else if (place_ == Place::kTensor && last_key() == "data_offsets") {
      place_ = Place::kOffsets;
    } else {
      refuse_type("an array");
    }
  }

  void leave_array() override { place_ = Place::kTensor; }

  void on_key() override {
    if (place_ != Place::kTensor) return;
    if (last_key() != "dtype" && last_key() != "shape" && last_key() != "data_offsets")
      refuse(concat(tensor(),
                    "unknown field ",
                    quoted_name(last_key()),
                    "; allowed are dtype, shape, data_offsets"));
  }

  void on_string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      metadata.emplace_back(last_key(), std::move(value));
    } else if (place_ == Place::kTensor && last_key() == "dtype") {
      Entry& entry = entries.back();
      entry.dtype = dtype_of(value);
      if (!entry.dtype)
        refuse(
            concat(tensor(), "unknown dtype ", quoted_name(value), "; known: ", all_dtype_names()));
    } else {
      refuse_type("a string");
    }
  }

  void on_unsigned(uint64_t value) override {
    Entry* entry = entries.empty() ? nullptr : &entries.back();
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(INT64_MAX))
        refuse(concat(tensor(), "size ", value, " in shape must be at most 2^63 - 1"));
      if (entry->shape->size() == kMaxSafetensorsRank)
        refuse(concat(tensor(), "shape may have at most ", kMaxSafetensorsRank, " dimensions"));
      entry->shape->push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::kOffsets) {
      if (entry->offsets.size() == 2) refuse(tensor() + "data_offsets must be two integers");
      entry->offsets.push_back(value);
    } else {
      refuse_type("a number");
    }
  }

  void on_other(const std::string& value) override { refuse_type(value); }

  void check_entry(const Entry& entry) const {
    if (!entry.dtype) refuse(tensor() + "dtype is missing");
    if (!entry.shape) refuse(tensor() + "shape is missing");
    if (entry.offsets.size() != 2) refuse(tensor() + "data_offsets must be two integers");
    const uint64_t begin = entry.offsets[0];
    const uint64_t end = entry.offsets[1];
    const std::string offsets = concat("data_offsets [", begin, ",", end, "] ");
    if (begin > end) refuse(concat(tensor(), offsets, "must not fall"));
    if (end > num_data_bytes_)
      refuse(concat(tensor(),
                    offsets,
                    "must end within the ",
                    num_data_bytes_,
                    " bytes of data; is the file cut short?"));
    const std::string kind = concat(dtype_name(*entry.dtype), " ", shape_text(*entry.shape));
    const std::optional<uint64_t> num_bytes = tensor_bytes(*entry.dtype, *entry.shape);
    if (!num_bytes) refuse(concat(tensor(), kind, " must fill whole bytes, fewer than 2^60"));
    if (*num_bytes != end - begin)
      refuse(concat(tensor(), offsets, "must span the ", *num_bytes, " bytes of ", kind));
  }

  uint64_t num_data_bytes_;
  Place place_ = Place::kFile;
};

/// Length of the header without its padding spaces, and where the data starts.
std::pair<std::string_view, uint64_t> find_header(std::span<const std::byte> bytes,
                                                  const std::string& file) {
  refuse_foreign_content({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file);
  if (bytes.size() < kPrefixBytes)
    throw DataError(concat(file,
                           ": byte 0: a safetensors file starts with 8 bytes of header length, "
                           "this one has only ",
                           bytes.size()));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  const uint64_t allowed = std::min(kMaxSafetensorsHeaderBytes, bytes.size() - kPrefixBytes);
  if (length > allowed)
    throw DataError(
        concat(file,
               ": byte 0: header length ",
               length,
               " must be at most ",
               allowed,
               length > kMaxSafetensorsHeaderBytes ? " (100 MB)" : " (the rest of the file)"));
  std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes, length);
  if (header.empty() || header.front() != '{')
    throw DataError(concat(file, ": byte ", kPrefixBytes, ": the header must start with '{'"));
  const size_t last = header.find_last_not_of(' ');
  if (header[last] != '}')
    throw DataError(concat(file,
                           ": byte ",
                           kPrefixBytes + last,
                           ": the header must end with '}' and nothing but spaces after it"));
  return {header.substr(0, last + 1), kPrefixBytes + length};
}

/// Refuses holes and overlaps between entries in offset order, and data after the last.
void check_coverage(const std::vector<Entry>& entries,
                    uint64_t data_start,
                    uint64_t num_data_bytes,
                    const std::string& file) {
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    const uint64_t begin = entry.offsets[0];
    if (begin != covered)
      throw DataError(concat(
          file,
          ": byte ",
          data_start + begin,
          ": tensor ",
          quoted_name(entry.name),
          begin < covered ? " overlaps the tensor before it; it" : " leaves a hole before it; it",
          " must start at byte ",
          data_start + covered));
    covered = entry.offsets[1];
  }
  if (covered != num_data_bytes)
    throw DataError(concat(file,
                           ": byte ",
                           data_start + covered,
                           ": ",
                           num_data_bytes - covered,
                           " bytes follow the last tensor; none may"));
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].name;
}

int64_t bits_per_element(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].bits;
}

std::optional<uint64_t> tensor_bytes(DType dtype, const std::vector<int64_t>& shape) {
  int64_t num_bits = bits_per_element(dtype);
  bool empty = false;
  for (const int64_t size : shape) {
    empty = empty || size == 0;
    // A zero must not hide the overflow of the sizes beside it: strides are products of those.
    if (size < 0 || __builtin_mul_overflow(num_bits, std::max<int64_t>(size, 1), &num_bits))
      return std::nullopt;
  }
  if (empty) return 0;
  if (num_bits % 8 != 0) return std::nullopt;
  return static_cast<uint64_t>(num_bits / 8);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? "," : "") + std::to_string(size);
  return text + "]";
}

SafetensorsContent parse_safetensors(std::span<const std::byte> bytes, const std::string& file) {
  const auto [header, data_start] = find_header(bytes, file);
  const std::span<const std::byte> data = bytes.subspan(data_start);
  HeaderReader reader(file, data.size());
  reader.read(header);
  std::vector<Entry>& entries = reader.entries;
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.offsets < b.offsets;
  });
  check_coverage(entries, data_start, data.size(), file);

  SafetensorsContent content;
  content.metadata = std::move(reader.metadata);
  content.tensors.reserve(entries.size());
  for (Entry& entry : entries)
    content.tensors.push_back({.name = std::move(entry.name),
                               .dtype = *entry.dtype,
                               .shape = std::move(*entry.shape),
                               .data = data.data() + entry.offsets[0],
                               .num_bytes = entry.offsets[1] - entry.offsets[0]});
  return content;
}

/// A file's bytes in memory, read-only, for the life of the object.
struct SafetensorsFile::Mapping {
  explicit Mapping(const std::filesystem::path& path) {
    const int descriptor = open_regular_file(path, O_RDONLY);
    struct stat status = {};
    const int result = ::fstat(descriptor, &status);
    if (result == 0) map(descriptor, static_cast<size_t>(status.st_size));
    const int cause = errno;
    ::close(descriptor);
    if (result != 0) throw_read_error(path, "look at", cause);
    if (address == MAP_FAILED) throw_read_error(path, "map into memory", cause);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (address != nullptr && address != MAP_FAILED) ::munmap(address, num_bytes);
  }

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(address), num_bytes};
  }

  void map(int descriptor, size_t size) {
    // An empty file cannot be mapped; as zero bytes it is refused by the parser.
    if (size == 0) return;
    num_bytes = size;
    address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  }

  void* address = nullptr;
  size_t num_bytes = 0;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path), mapping_(std::make_unique<Mapping>(path)) {
  content_ = parse_safetensors(mapping_->bytes(), path.string());
  for (const TensorView& tensor : content_.tensors) by_name_.emplace(tensor.name, &tensor);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  const TensorView* tensor = find(name);
  if (tensor == nullptr)
    throw DataError(concat(path_.string(), ": tensor ", quoted_name(name), " is missing"));
  return *tensor;
}

}  // namespace t2r::model
