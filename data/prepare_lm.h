#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/prepare_inputs.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::data {

/// More inputs than this share shards unless told otherwise.
inline constexpr size_t kMaxSeparateInputs = 1024;

/// Where a document begins; blank lines before the first belong to it, other text there is a
/// document of its own.
enum class DocumentMode {
  kFile,       ///< with the file
  kLine,       ///< with every line that is not blank
  kBlankLine,  ///< with every line after a blank one
  kWikitext,   ///< with every line " = Title = " after a blank one (or at the start of the file);
               ///< " = = Section = = " does not count
};

struct PrepareLmOptions {
  std::vector<std::filesystem::path> inputs = {};  // text files
  std::filesystem::path output = {};               // folder of the shards; made if missing

  DocumentMode document_mode = DocumentMode::kFile;

  /// A shard ends with the first document that brings it to this many tokens; 0: never.
  int64_t tokens_per_shard = 0;

  /// Whether a shard may hold several inputs: some hundreds of shards `filled-GGGGG-NNNNN.h5` at
  /// most, instead of one `<input's name without ending>-00000.h5` (-00001, ...) per input. The
  /// corpus is the same sequence of tokens and documents. Empty: with more than kMaxSeparateInputs.
  std::optional<bool> fill_shards = {};

  bool add_begin_of_text = true;       // to each document, if the tokenizer's configuration does
  bool append_end_of_document = true;  // if the tokenizer has such a token
  bool overwrite = false;              // replace shards of these inputs that are there already
  bool allow_invalid_utf8 = false;     // hand bytes that are no UTF-8 to the tokenizer as they are

  /// Longest text that is encoded at once, in bytes: a longer document is cut at its last line end
  /// (a longer line at its last space) within that many.
  int64_t max_piece_bytes = 1 << 20;
};

/// What one rank has written.
struct PrepareSummary {
  int64_t num_inputs = 0;  // that gave tokens
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t num_words = 0;  // whitespace-separated (ASCII) words of the text
  int64_t num_bytes = 0;  // of text read
  std::vector<std::filesystem::path> shards;
  std::vector<std::filesystem::path> empty_inputs;  // that gave no tokens and were left out
};

/// Told after every piece: bytes of this rank's inputs that are done, and of all of them.
using PrepareProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

/// A checked set of options; the same on every rank.
struct LmPlan {
  PrepareLmOptions options;
  std::vector<InputGroup> groups;
};

/// @throws ConfigError  if an option is not allowed, and as group_inputs() does
/// @throws DataError    as group_inputs() does
LmPlan plan_lm(PrepareLmOptions options);

/// Makes the output folder if it is missing, and room in it: with options.overwrite, removes what
/// killed runs have left. To be called by one rank, before any rank stages.
/// @throws ConfigError  if shards of these inputs or an unfinished run are there and not
///                      `overwrite`, or if shards there that hold several inputs would not be
///                      replaced
/// @throws WriteError   if the folder cannot be made
void clear_lm_output(const LmPlan& plan);

/// One rank's shards on their way: written to `<output>/prepare-rank-<r>.unfinished`, which Corpus
/// refuses, moved to their places by publish(), and only then without that folder. Until complete()
/// the destructor takes everything back, the shards that publish() has replaced included.
class StagedLm {
 public:
  StagedLm(StagedLm&& other) noexcept;
  StagedLm& operator=(StagedLm&&) = delete;
  ~StagedLm();

  const PrepareSummary& summary() const { return summary_; }

  /// To be called when every rank has staged. @throws WriteError
  void publish();

  /// To be called when every rank has published. @throws WriteError
  void complete();

 private:
  friend StagedLm stage_lm(const Tokenizer& tokenizer,
                           const LmPlan& plan,
                           int rank,
                           int world,
                           const PrepareProgress& progress);
  struct Move {
    std::filesystem::path from, to;
  };
  StagedLm() = default;
  void move(const std::filesystem::path& from, const std::filesystem::path& to);

  std::filesystem::path output_;
  std::filesystem::path staging_;                // empty: nothing to take back
  std::vector<std::filesystem::path> replaced_;  // shards that go when these come
  std::vector<Move> moves_;                      // done by publish()
  PrepareSummary summary_;
};

/// Turns this rank's share of the inputs into shards.
///
/// Documents cut a file into contiguous pieces: no byte is dropped, line ends included. A document
/// that gives no tokens is left out, and so is an input that gives none. Groups of inputs are
/// ordered by size, then name, and group i is rank i % world's: the shards are the same, byte for
/// byte, for every world size, and no two ranks write one file. Memory is bounded by
/// max_piece_bytes. Local.
///
/// @throws ConfigError  if another run writes to the folder
/// @throws DataError    if an input is not valid UTF-8 (names the byte) or the tokenizer gives an
///                      id outside its vocabulary; nothing is left behind
/// @throws WriteError   if the output cannot be written; nothing is left behind
StagedLm stage_lm(const Tokenizer& tokenizer,
                  const LmPlan& plan,
                  int rank,
                  int world,
                  const PrepareProgress& progress = {});

/// @throws DataError  if no input gave tokens. @param totals  of all ranks
void check_any_tokens(const LmPlan& plan, const PrepareSummary& totals);

/// All of the above in one process: afterwards the shards are there, or nothing is.
PrepareSummary prepare_lm(const Tokenizer& tokenizer,
                          const PrepareLmOptions& options,
                          const PrepareProgress& progress = {});

}  // namespace t2r::data
