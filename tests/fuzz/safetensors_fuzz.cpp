// libFuzzer target of the two parsers that read downloaded weights: a safetensors file from memory
// and, for inputs that start with '{', the index of a sharded model.
//
// Beyond memory errors it checks that an accepted file keeps the reader's promises and can be
// written and read again without a change.
//
//   cmake --preset dev -DT2R_FUZZ=ON && cmake --build build/dev --target t2r_safetensors_fuzz
//   build/dev/tests/fuzz/t2r_safetensors_fuzz -max_total_time=180 <folder for findings>
//       tests/fuzz/corpus_safetensors
//
// Without clang, the test fuzz_corpus_safetensors runs it over the stored corpus alone; a finding
// that is added there stays found.

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>

#include "base/durable_file.h"
#include "model/files/safetensors.h"
#include "model/files/safetensors_index.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using t2r::fuzz::demand;
using t2r::fuzz::read_or_refuse;
using t2r::model::SafetensorsContent;
using t2r::model::TensorView;

constexpr size_t kPrefixBytes = 8;

std::span<const std::byte> span_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

bool same(const TensorView& a, const TensorView& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape &&
         a.num_bytes == b.num_bytes &&
         (a.num_bytes == 0 || std::memcmp(a.data, b.data, a.num_bytes) == 0);
}

void check_views(std::span<const std::byte> bytes, const SafetensorsContent& content) {
  const std::byte* position = nullptr;
  for (const TensorView& tensor : content.tensors) {
    demand(tensor.data >= bytes.data() + kPrefixBytes);
    demand(tensor.data + tensor.num_bytes <= bytes.data() + bytes.size());
    demand(position == nullptr || tensor.data == position);
    demand(tensor_bytes(tensor.dtype, tensor.shape) == tensor.num_bytes);
    position = tensor.data + tensor.num_bytes;
  }
  demand(position == nullptr || position == bytes.data() + bytes.size());
}

void check_round_trip(SafetensorsContent& content) {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("t2r_fuzz." + std::to_string(::getpid()));
  t2r::model::write_safetensors(path, content.tensors, content.metadata);
  const std::string written = t2r::read_file(path);
  std::filesystem::remove(path);
  SafetensorsContent again = t2r::model::parse_safetensors(span_of(written), "written");
  const auto by_name = [](const TensorView& a, const TensorView& b) { return a.name < b.name; };
  std::sort(content.tensors.begin(), content.tensors.end(), by_name);
  std::sort(again.tensors.begin(), again.tensors.end(), by_name);
  demand(std::equal(content.tensors.begin(),
                    content.tensors.end(),
                    again.tensors.begin(),
                    again.tensors.end(),
                    same));
  demand(content.metadata == again.metadata);
}

void read_index(const std::string& text) {
  for (const auto& [tensor, file] : t2r::model::parse_weight_map(text, "fuzz")) {
    demand(std::filesystem::path(file).filename() == file);
    demand(file != "." && file.find("..") == std::string::npos);
  }
}

void read_safetensors(std::span<const std::byte> bytes) {
  SafetensorsContent content = t2r::model::parse_safetensors(bytes, "fuzz");
  check_views(bytes, content);
  // A file costs a thousand times what parsing does: take those worth it.
  if (!content.tensors.empty() || !content.metadata.empty()) check_round_trip(content);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  read_or_refuse<t2r::DataError>([&] {
    if (size > 0 && data[0] == '{')
      read_index(std::string(reinterpret_cast<const char*>(data), size));
    else
      read_safetensors({reinterpret_cast<const std::byte*>(data), size});
  });
  return 0;
}

/// Half of the time, mends the length prefix so that the mutated header is read at all.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data,
                                          size_t size,
                                          size_t max_size,
                                          unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 2 == 0 || size <= kPrefixBytes || data[0] == '{') return size;
  size_t end = size;
  while (end > kPrefixBytes && data[end - 1] != '}') --end;
  const uint64_t length = end - kPrefixBytes;
  std::memcpy(data, &length, sizeof(length));
  return size;
}
