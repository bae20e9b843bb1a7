#include "data/corpus.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "data/read_only_file.h"
#include "data/shard_seal.h"

namespace t2r::data {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

constexpr int64_t kBlockElements = 128 << 10;

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

void check_rule(bool holds, const std::string& path, const std::string& message) {
  if (!holds) throw DataError(concat(path, ": ", message));
}

std::string says_begin(const std::optional<int32_t>& begin_of_text) {
  return begin_of_text ? concat("documents begin with token ", *begin_of_text)
                       : "documents have no begin-of-text token";
}

/// Elements of one of a shard's datasets.
template <class Element>
struct Column {
  const ReadOnlyFile& file;
  int64_t file_offset;

  void read(int64_t first, int64_t count, Element* out) const {
    constexpr int64_t kBytes = sizeof(Element);
    file.read(file_offset + first * kBytes, count * kBytes, reinterpret_cast<char*>(out));
  }

  /// Calls take(first, elements) for blocks that cover [first, first + count) in order.
  template <class Take>
  void for_each_block(int64_t first, int64_t count, const Take& take) const {
    std::vector<Element> block(static_cast<size_t>(std::min(count, kBlockElements)));
    for (int64_t done = 0; done < count;) {
      block.resize(static_cast<size_t>(std::min(count - done, kBlockElements)));
      const int64_t size = static_cast<int64_t>(block.size());
      read(first + done, size, block.data());
      take(first + done, block);
      done += size;
    }
  }
};

}  // namespace

H5Integer token_type_of(int64_t vocab_size) {
  return vocab_size <= 65536 ? H5Integer::kUint16 : H5Integer::kUint32;
}

struct Corpus::Shard {
  /// Nothing of the file goes to HDF5 before its seal was looked at.
  Shard(const std::filesystem::path& path, const CorpusOptions& options);

  void read_description();
  void check_description() const;
  void verify_content() const;

  /// Calls visit(Column<uint16_t or uint32_t>) for /tokens.
  template <class Visit>
  void visit_tokens(const Visit& visit) const {
    if (tokens.type == H5Integer::kUint16) {
      visit(Column<uint16_t>{file, tokens.file_offset});
    } else {
      visit(Column<uint32_t>{file, tokens.file_offset});
    }
  }

  Column<uint64_t> offset_column() const { return {file, offsets.file_offset}; }

  template <class Element>
  void check_ids(int64_t first, const Element* ids, int64_t count) const;

  ReadOnlyFile file;
  ShardSeal seal;
  H5Extent tokens;
  H5Extent offsets;
  int64_t vocab_size = 0;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t num_words = 0;
  int64_t num_bytes = 0;
  int64_t first_token = 0;     // of this shard in the corpus
  int64_t first_document = 0;  // of this shard in the corpus
  std::string tokenizer_hash;
  std::string content_hash;
  std::optional<int32_t> begin_of_text;
};

Corpus::Shard::Shard(const std::filesystem::path& path, const CorpusOptions& options)
    : file(path), seal(read_seal(file)) {
  if (options.verify && seal.is_sealed) verify_seal(file, seal);
  read_description();
  if (options.verify && !seal.is_sealed) verify_content();
}

void Corpus::Shard::read_description() {
  const H5File shard = H5File::open(file.path());
  const std::string schema = shard.read_text("schema");
  check_rule(schema == kShardSchema,
             file.path(),
             concat("schema is \"", schema, "\", expected \"", kShardSchema, "\""));
  const int64_t version = shard.read_integer("schema_version");
  check_rule(version == kShardSchemaVersion,
             file.path(),
             concat("schema_version is ", version, ", this program reads ", kShardSchemaVersion));
  vocab_size = shard.read_integer("vocab_size");
  tokenizer_hash = shard.read_text("tokenizer_hash");
  num_tokens = shard.read_integer("num_tokens");
  num_documents = shard.read_integer("num_documents");
  num_words = shard.read_integer("num_words");
  num_bytes = shard.read_integer("num_bytes");
  content_hash = shard.read_text("content_hash");
  if (shard.has_attribute("begin_of_text")) {
    const int64_t id = shard.read_integer("begin_of_text");
    check_rule(id >= 0 && id < vocab_size,
               file.path(),
               concat("begin_of_text is ", id, ", outside [0, vocab_size = ", vocab_size, ")"));
    begin_of_text = static_cast<int32_t>(id);
  }
  tokens = shard.find_dataset("tokens");
  offsets = shard.find_dataset("document_offsets");
  check_description();
}

void Corpus::Shard::check_description() const {
  const std::string& path = file.path();
  check_rule(vocab_size >= 1, path, concat("vocab_size is ", vocab_size, ", must be positive"));
  check_rule(num_tokens >= 1 && tokens.num_elements == num_tokens,
             path,
             concat("num_tokens is ",
                    num_tokens,
                    " and /tokens has ",
                    tokens.num_elements,
                    " elements; they must be equal and positive"));
  check_rule(num_documents >= 1 && offsets.num_elements == num_documents + 1,
             path,
             concat("num_documents is ",
                    num_documents,
                    " and /document_offsets has ",
                    offsets.num_elements,
                    " elements; there must be one more"));
  check_rule(tokens.type == token_type_of(vocab_size),
             path,
             concat("/tokens has ",
                    num_bytes_of(tokens.type),
                    " bytes per id, vocab_size ",
                    vocab_size,
                    " needs ",
                    num_bytes_of(token_type_of(vocab_size))));
  check_rule(offsets.type == H5Integer::kUint64, path, "/document_offsets must be uint64");
  check_rule(num_words >= 0 && num_bytes >= 0,
             path,
             concat("num_words is ",
                    num_words,
                    " and num_bytes is ",
                    num_bytes,
                    "; they must not be negative"));
}

template <class Element>
void Corpus::Shard::check_ids(int64_t first, const Element* ids, int64_t count) const {
  Element largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, ids[i]);
  if (static_cast<int64_t>(largest) < vocab_size) return;
  const int64_t position = first + (std::find(ids, ids + count, largest) - ids);
  throw DataError(concat(file.path(),
                         ": token ",
                         position,
                         " has id ",
                         largest,
                         ", which is outside [0, vocab_size = ",
                         vocab_size,
                         ")"));
}

void Corpus::Shard::verify_content() const {
  Hasher hasher;
  int64_t largest_id = 0;
  visit_tokens([&](const auto& column) {
    column.for_each_block(0, num_tokens, [&](int64_t, const auto& ids) {
      hasher.update(ids.data(), ids.size() * sizeof(ids[0]));
      for (const auto id : ids) largest_id = std::max<int64_t>(largest_id, id);
    });
  });
  bool is_increasing = true;
  uint64_t previous = 0;
  offset_column().for_each_block(0, num_documents + 1, [&](int64_t first, const auto& block) {
    hasher.update(block.data(), block.size() * sizeof(block[0]));
    for (size_t i = 0; i < block.size(); ++i) {
      const bool is_first = first == 0 && i == 0;
      is_increasing = is_increasing && (is_first ? block[i] == 0 : block[i] > previous);
      previous = block[i];
    }
  });
  check_rule(
      hasher.hex() == content_hash,
      file.path(),
      concat(
          "damaged: the content's hash is ", hasher.hex(), ", content_hash says ", content_hash));
  check_rule(
      is_increasing && previous == static_cast<uint64_t>(num_tokens),
      file.path(),
      concat("/document_offsets must increase strictly from 0 to num_tokens = ", num_tokens));
  check_rule(largest_id < vocab_size,
             file.path(),
             concat("the largest token id is ",
                    largest_id,
                    ", which is outside [0, vocab_size = ",
                    vocab_size,
                    ")"));
}

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
