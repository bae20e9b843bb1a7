#include "data/corpus.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "data/corpus_shard.h"

namespace t2r::data {
namespace {

/// Shards of a folder, sorted by name.
std::vector<std::filesystem::path> list_folder(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> shards;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().string().ends_with(kUnfinishedSuffix)) {
      throw DataError(
          concat(entry.path().string(),
                 ": the folder is still being written, or its writer was killed; prepare "
                 "it again with --overwrite"));
    }
    if (entry.path().extension() == ".h5") shards.push_back(entry.path());
  }
  std::sort(shards.begin(), shards.end());
  if (shards.empty()) {
    throw ConfigError(concat(
        folder.string(), ": the folder has no *.h5 shard; `t2r prepare lm` makes them of text"));
  }
  return shards;
}

std::vector<std::filesystem::path> list_shards(const std::vector<std::filesystem::path>& paths) {
  std::vector<std::filesystem::path> shards;
  try {
    for (const std::filesystem::path& path : paths) {
      if (!std::filesystem::exists(path)) {
        throw ConfigError(concat(
            path.string(), ": does not exist; expected a shard (*.h5) or a folder of shards"));
      }
      const bool is_folder = std::filesystem::is_directory(path);
      const auto found = is_folder ? list_folder(path) : std::vector{path};
      shards.insert(shards.end(), found.begin(), found.end());
    }
  } catch (const std::filesystem::filesystem_error& error) {
    throw DataError(error.what());
  }
  if (shards.empty()) throw ConfigError("a corpus needs at least one shard, none was given");
  return shards;
}

std::string says_begin(const std::optional<int32_t>& begin_of_text) {
  return begin_of_text ? concat("documents begin with token ", *begin_of_text)
                       : "documents have no begin-of-text token";
}

}  // namespace

Corpus::Corpus(const std::vector<std::filesystem::path>& paths, CorpusOptions options) {
  const std::vector<std::filesystem::path> files = list_shards(paths);
  const size_t num_allowed = num_descriptors_to_keep(files.size());
  const size_t num_kept_open = options.keep_open ? files.size() : num_allowed;
  for (const std::filesystem::path& path : files) {
    Shard shard(path, options);
    if (shards_.size() >= num_kept_open) shard.file.close_between_reads();
    if (shards_.empty()) {
      begin_of_text_ = shard.begin_of_text;
      vocab_size_ = shard.vocab_size;
      tokenizer_hash_ = shard.tokenizer_hash;
    }
    check_rule(shard.vocab_size == vocab_size_ && shard.tokenizer_hash == tokenizer_hash_,
               path.string(),
               concat("made by tokenizer ",
                      shard.tokenizer_hash,
                      " (vocab_size ",
                      shard.vocab_size,
                      "), but ",
                      shards_.empty() ? "" : shards_[0].file.path(),
                      " by ",
                      tokenizer_hash_,
                      " (vocab_size ",
                      vocab_size_,
                      "); all shards must share one"));
    check_rule(shard.begin_of_text == begin_of_text_,
               path.string(),
               concat("its ",
                      says_begin(shard.begin_of_text),
                      ", but in ",
                      shards_.empty() ? "" : shards_[0].file.path(),
                      " ",
                      says_begin(begin_of_text_),
                      "; prepare all with the same --begin-of-text"));
    if (!shard.seal.is_sealed) ++num_unsealed_;
    shard.first_token = num_tokens_;
    shard.first_document = num_documents_;
    num_tokens_ += shard.num_tokens;
    num_documents_ += shard.num_documents;
    num_words_ += shard.num_words;
    num_bytes_ += shard.num_bytes;
    shards_.push_back(std::move(shard));
  }
}

Corpus::~Corpus() = default;
Corpus::Corpus(Corpus&&) noexcept = default;
Corpus& Corpus::operator=(Corpus&&) noexcept = default;

std::string Corpus::content_hash() const {
  Hasher hasher;
  for (const Shard& shard : shards_) hasher.update(shard.content_hash);
  return hasher.hex();
}

void Corpus::read(int64_t begin, int64_t count, int64_t* out) const {
  require(begin >= 0 && count >= 0 && begin <= num_tokens_ - count,
          concat("Corpus::read: [",
                 begin,
                 ", ",
                 begin,
                 " + ",
                 count,
                 ") is not inside [0, ",
                 num_tokens_,
                 ")"));
  auto shard = std::upper_bound(
      shards_.begin(), shards_.end(), begin, [](int64_t token, const Shard& candidate) {
        return token < candidate.first_token;
      });
  for (--shard; count > 0; ++shard) {
    const int64_t first = begin - shard->first_token;
    const int64_t part = std::min(count, shard->num_tokens - first);
    shard->visit_tokens([&](const auto& column) {
      column.for_each_block(first, part, [&](int64_t block_first, const auto& ids) {
        shard->check_ids(block_first, ids.data(), static_cast<int64_t>(ids.size()));
        out = std::copy(ids.begin(), ids.end(), out);
      });
    });
    begin += part;
    count -= part;
  }
}

void Corpus::read_document_offsets(int64_t first, int64_t count, int64_t* out) const {
  require(first >= 0 && count >= 0 && first <= num_documents_ + 1 - count,
          concat("Corpus::read_document_offsets: [",
                 first,
                 ", ",
                 first,
                 " + ",
                 count,
                 ") is not inside [0, ",
                 num_documents_ + 1,
                 ")"));
  const int64_t end = first + count;
  for (const Shard& shard : shards_) {
    const int64_t begin_here = std::max<int64_t>(first - shard.first_document, 0);
    const int64_t end_here = std::min(end - shard.first_document, shard.num_documents);
    if (begin_here >= end_here) continue;
    shard.offset_column().for_each_block(
        begin_here, end_here - begin_here, [&](int64_t, const auto& block) {
          for (const uint64_t offset : block) {
            *out++ = shard.first_token + static_cast<int64_t>(offset);
          }
        });
  }
  if (end == num_documents_ + 1 && count > 0) *out = num_tokens_;
}

}  // namespace t2r::data
