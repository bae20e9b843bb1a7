#include "base/hash.h"

#include <xxhash.h>

#include <array>
#include <cstdio>

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r {

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  require(state_->xxh != nullptr, "XXH3_createState returned null");
  XXH3_128bits_reset(state_->xxh);
}

Hasher::~Hasher() = default;

void Hasher::update(const void* bytes, size_t num_bytes) {
  XXH3_128bits_update(state_->xxh, bytes, num_bytes);
}

std::string Hasher::hex() const {
  const XXH128_hash_t value = XXH3_128bits_digest(state_->xxh);
  std::array<char, 33> text{};
  std::snprintf(text.data(),
                text.size(),
                "%016llx%016llx",
                static_cast<unsigned long long>(value.high64),
                static_cast<unsigned long long>(value.low64));
  return text.data();
}

std::string hash_bytes(const void* bytes, size_t num_bytes) {
  Hasher hasher;
  hasher.update(bytes, num_bytes);
  return hasher.hex();
}

std::string hash_file(const std::filesystem::path& path) {
  Hasher hasher;
  read_blocks(path, [&](std::string_view block) { hasher.update(block); });
  return hasher.hex();
}

}  // namespace t2r
