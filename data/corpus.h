#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/h5_file.h"

namespace t2r::data {

/// A shard is one HDF5 file:
///   /tokens            uint16 if vocab_size <= 65536, else uint32; contiguous, [num_tokens]
///   /document_offsets  uint64, contiguous, [num_documents + 1]: document d is tokens
///                      [offsets[d], offsets[d+1]); strictly increasing from 0 to num_tokens
/// and attributes of the root group: schema, schema_version, vocab_size, tokenizer_hash,
/// num_tokens, num_documents, num_words (whitespace-separated words of the source text), num_bytes
/// (of the source text), source (file name), content_hash (XXH3-128 over the bytes of tokens, then
/// of offsets), and begin_of_text (the id that every document begins with) if there is one.
/// A user block in front of it all seals the file (shard_seal.h).
inline constexpr std::string_view kShardSchema = "t2r-lm";
inline constexpr int64_t kShardSchemaVersion = 1;

/// A folder that contains something with this ending is being written to, or its writer was killed.
inline constexpr std::string_view kUnfinishedSuffix = ".unfinished";

/// Type of /tokens for a vocabulary.
H5Integer token_type_of(int64_t vocab_size);

struct CorpusOptions {
  /// Read every shard whole before HDF5 parses it, and compare with its seal; of a shard without
  /// one (an earlier version's): read its content, compare its hash, check ids and offsets.
  bool verify = true;

  /// All files stay open, whatever the limit: the caller removes them.
  bool keep_open = false;
};

/// Shards read as one sequence of tokens, in the order in which they are given.
///
/// Tokens stay on disk, two or four bytes each; read() fetches them with pread() at the place that
/// HDF5 names when the shard is opened. So memory does not grow with the corpus, all ranks of a
/// host share the system's page cache, and a failing disk is an exception (with mmap it would be
/// SIGBUS). The shards' files stay open as far as the limit of open files allows
/// (num_descriptors_to_keep); more than that are opened for each read.
///
/// read() and read_document_offsets() may be called from several threads.
class Corpus {
 public:
  /// @param paths  shard files, or folders of which all *.h5 are taken, sorted by name
  /// @throws ConfigError  if there is no shard at a path
  /// @throws DataError    if a shard breaks its schema, is damaged or truncated, has an id outside
  /// its
  ///                      vocabulary, or has another tokenizer, vocabulary or begin-of-text token
  ///                      than the first; if a folder is unfinished
  explicit Corpus(const std::vector<std::filesystem::path>& paths, CorpusOptions options = {});
  ~Corpus();
  Corpus(Corpus&&) noexcept;
  Corpus& operator=(Corpus&&) noexcept;

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return num_documents_; }
  int64_t num_words() const { return num_words_; }
  int64_t num_bytes() const { return num_bytes_; }
  int64_t vocab_size() const { return vocab_size_; }
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }

  /// The id that every document begins with; empty if there is none.
  std::optional<int32_t> begin_of_text() const { return begin_of_text_; }

  /// Shards of an earlier version, which cannot be checked before HDF5 parses them.
  int64_t num_unsealed() const { return num_unsealed_; }

  /// Content hashes of the shards, hashed in order: equal for equal tokens and document boundaries.
  std::string content_hash() const;

  /// Copies tokens [begin, begin + count) to `out`.
  /// @throws ContractError  if the range is not inside [0, num_tokens()]
  /// @throws DataError      if a shard cannot be read any more or holds an id outside the
  /// vocabulary
  void read(int64_t begin, int64_t count, int64_t* out) const;

  /// Copies the first tokens of documents [first, first + count) to `out`; the entry of document
  /// num_documents() is num_tokens().
  /// @throws ContractError  if the range is not inside [0, num_documents() + 1]
  void read_document_offsets(int64_t first, int64_t count, int64_t* out) const;

 private:
  struct Shard;

  std::vector<Shard> shards_;
  int64_t num_tokens_ = 0;
  int64_t num_documents_ = 0;
  int64_t num_words_ = 0;
  int64_t num_bytes_ = 0;
  int64_t vocab_size_ = 0;
  std::string tokenizer_hash_;
  std::optional<int32_t> begin_of_text_;
  int64_t num_unsealed_ = 0;
};

}  // namespace t2r::data
