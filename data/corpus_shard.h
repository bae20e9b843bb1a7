#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/corpus.h"
#include "data/h5_file.h"
#include "data/read_only_file.h"
#include "data/shard_seal.h"

namespace t2r::data {

/// Elements of one of a shard's datasets.
template <class Element>
struct ShardColumn {
  static constexpr int64_t kBlockElements = 128 << 10;

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

/// One file of a corpus: what it says of itself, checked, and where its elements are.
struct Corpus::Shard {
  /// Nothing of the file goes to HDF5 before its seal was looked at.
  Shard(const std::filesystem::path& path, const CorpusOptions& options);

  void read_description();
  void check_description() const;
  void verify_content() const;

  /// Calls visit(ShardColumn<uint16_t or uint32_t>) for /tokens.
  template <class Visit>
  void visit_tokens(const Visit& visit) const {
    if (tokens.type == H5Integer::kUint16) {
      visit(ShardColumn<uint16_t>{file, tokens.file_offset});
    } else {
      visit(ShardColumn<uint32_t>{file, tokens.file_offset});
    }
  }

  ShardColumn<uint64_t> offset_column() const { return {file, offsets.file_offset}; }

  /// @throws DataError  naming the first of the largest ids, if the vocabulary does not have it
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

/// @throws DataError  "PATH: MESSAGE", unless `holds`
void check_rule(bool holds, const std::string& path, const std::string& message);

}  // namespace t2r::data
