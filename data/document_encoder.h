#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus_writer.h"
#include "data/prepare_inputs.h"
#include "data/prepare_lm.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::data {

/// The shards of one group of inputs, opened as tokens come.
class ShardSeries {
 public:
  /// @param tokens_per_shard  a shard ends with the first document that brings it to so many; 0:
  ///                          one shard
  ShardSeries(std::filesystem::path folder,
              std::string stem,
              ShardDescription description,
              int64_t tokens_per_shard);

  /// What follows comes from this input file.
  void begin_source(const std::string& name);

  void append(const std::vector<int32_t>& ids);
  void add_source_text(int64_t num_words, int64_t num_bytes);
  bool is_in_document() const { return is_in_document_; }
  void end_document();

  /// Completes the last shard and adds all of them to `summary`.
  void finish(PrepareSummary& summary);

 private:
  void open();
  void commit();
  void hand_over_counts();

  std::filesystem::path folder_;
  std::string stem_;
  ShardDescription description_;
  int64_t tokens_per_shard_;
  std::filesystem::path path_;
  std::unique_ptr<CorpusWriter> writer_;
  bool is_in_document_ = false;
  int64_t num_words_ = 0;  // of text not yet counted in a shard
  int64_t num_bytes_ = 0;
  PrepareSummary totals_;
};

/// Encodes one file, document by document, into `shards`; calls report(bytes done) now and then.
/// Returns whether it gave any tokens.
/// @throws DataError  if the file cannot be read or is not valid UTF-8 (names the byte)
bool encode_file(const Tokenizer& tokenizer,
                 const PrepareLmOptions& options,
                 const PrepareInput& input,
                 ShardSeries& shards,
                 const std::function<void(int64_t bytes_done)>& report);

}  // namespace t2r::data
