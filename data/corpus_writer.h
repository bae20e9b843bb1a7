#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace t2r::data {

/// What a shard says about itself besides its tokens.
struct ShardDescription {
  int64_t vocab_size = 0;      // ids are in [0, vocab_size)
  std::string tokenizer_hash;  // Tokenizer::hash() of the tokenizer that made the ids
  std::string source;          // name of the (first) input file, without its folder
  std::optional<int32_t> begin_of_text = {};  // that the documents begin with
};

/// Writes one shard of a corpus; the schema is in corpus.h.
///
/// Tokens and document ends go to two nameless files beside the shard first: a contiguous dataset
/// must know its size when it is created, and memory stays bounded this way (about 1 MiB), at the
/// price of twice the shard's size on disk while commit() runs. The shard appears under its name
/// only when it is complete, synced and closed. Destroyed without commit(), or killed before, it
/// leaves no file under that name.
class CorpusWriter {
 public:
  /// @throws ConfigError  if vocab_size is not in [1, 2^32]
  /// @throws WriteError   if files cannot be created beside `path`
  CorpusWriter(std::filesystem::path path, ShardDescription description);
  ~CorpusWriter();
  CorpusWriter(const CorpusWriter&) = delete;
  CorpusWriter& operator=(const CorpusWriter&) = delete;

  /// What follows comes from this input file; the shard names the first and the last.
  void begin_source(const std::string& name);

  /// Appends ids to the open document.
  /// @throws DataError   if an id is outside [0, vocab_size)
  /// @throws WriteError  on a full disk or an I/O error
  void append(const std::vector<int32_t>& ids);

  /// Ends the open document. @throws ContractError  if it has no tokens
  void end_document();

  /// Adds to the counts of the text that the tokens were made of.
  void add_source_text(int64_t num_words, int64_t num_bytes);

  int64_t num_tokens() const;
  int64_t num_documents() const;
  int64_t num_words() const;
  int64_t num_bytes() const;

  /// Publishes the shard; no other call is allowed afterwards.
  /// @throws ContractError  if there are no tokens or a document is still open
  /// @throws WriteError     if anything cannot be written; nothing appears under the name then
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace t2r::data
