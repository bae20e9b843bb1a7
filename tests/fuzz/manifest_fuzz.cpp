// libFuzzer target of manifest.json: the folder's manifest, and the fields of a checkpoint's.
//
// Beyond memory errors it checks that an accepted manifest is one of t2r's, and that one with a
// hash of its own is written again byte for byte.
//
//   cmake --preset dev -DT2R_FUZZ=ON && cmake --build build/dev --target t2r_manifest_fuzz
//   build/dev/tests/fuzz/t2r_manifest_fuzz -max_total_time=180 <folder for findings>
//       tests/fuzz/corpus_manifest

#include <cstring>
#include <string>
#include <string_view>

#include "base/folder_manifest.h"
#include "base/hash.h"
#include "launch/checkpoints/checkpoint_manifest.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using t2r::fuzz::demand;
using t2r::fuzz::read_or_refuse;

constexpr std::string_view kHashKey = "\"manifest_xxh3_128\": \"";
constexpr size_t kHashDigits = 32;

void read_checkpoint(const t2r::FolderManifest& manifest) {
  const auto step = manifest.fields.find("step");
  if (step == manifest.fields.end() || !step->is_number_integer()) return;
  const t2r::launch::CheckpointManifest checkpoint =
      t2r::launch::parse_checkpoint_manifest(manifest, step->get<int64_t>(), "fuzz");
  const t2r::launch::TrainingPosition& position = checkpoint.position;
  demand(position.step >= 0 && position.num_updates >= 0 && position.num_updates <= position.step);
  demand(position.sample_cursor >= 0 && position.num_tokens >= 0 && checkpoint.world >= 1);
  demand(!position.best.has_value() || position.best->is_finite());
  for (int rank = 0; rank < checkpoint.world; ++rank)
    demand(manifest.files.contains(t2r::launch::optimizer_part(rank, checkpoint.world)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const bool is_ours = t2r::is_folder_manifest(text);
  read_or_refuse<t2r::DataError>([&] {
    const t2r::FolderManifest manifest = t2r::parse_folder_manifest(text, "fuzz");
    demand(!manifest.has_own_hash || is_ours);
    for (const auto& [name, record] : manifest.files)
      demand(name.find('/') == std::string::npos && name != ".." && record.hash.size() == 32);
    if (manifest.has_own_hash) {
      const std::string again = manifest.to_text();
      demand(t2r::parse_folder_manifest(again, "again").files == manifest.files);
    }
    read_checkpoint(manifest);
  });
  return 0;
}

/// Half of the time, puts the hash right so that the mutated fields are read at all.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data,
                                          size_t size,
                                          size_t max_size,
                                          unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t key = text.rfind(kHashKey);
  if (seed % 2 == 0 || key == std::string_view::npos) return size;
  const size_t begin = key + kHashKey.size();
  if (size < begin + kHashDigits) return size;
  std::memset(data + begin, '0', kHashDigits);
  const std::string hash = t2r::hash_bytes(data, size);
  std::memcpy(data + begin, hash.data(), kHashDigits);
  return size;
}
