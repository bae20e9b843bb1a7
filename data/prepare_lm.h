#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace t2r::data {

struct PrepareLmOptions {
  std::vector<std::filesystem::path> inputs = {};  // text files, one name (without ending) each
  std::filesystem::path output = {};               // folder of the shards; made if missing

  /// Where a document begins; blank lines before the first belong to it, other text there is a
  /// document of its own:
  ///   file        with the file
  ///   line        with every line that is not blank
  ///   blank-line  with every line after a blank one
  ///   wikitext    with every line " = Title = " after a blank one (or at the start of the file);
  ///               " = = Section = = " does not count
  std::string document_mode = "file";

  /// A shard ends with the first document that brings it to this many tokens; 0: one per input.
  int64_t tokens_per_shard = 0;

  bool append_end_of_document = true;  // if the tokenizer has such a token
  bool overwrite = false;              // replace shards of these inputs that are there already
  bool allow_invalid_utf8 = false;     // hand bytes that are no UTF-8 to the tokenizer as they are

  /// Longest text that is encoded at once, in bytes: a longer document is cut at its last line end
  /// (a longer line at its last space) within that many.
  int64_t max_piece_bytes = 1 << 20;
};

/// What one rank has written.
struct PrepareSummary {
  int64_t num_inputs = 0;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t num_words = 0;  // whitespace-separated (ASCII) words of the text
  int64_t num_bytes = 0;  // of text read
  std::vector<std::filesystem::path> shards;
};

/// Told after every piece: bytes of this rank's inputs that are done, and of all of them.
using PrepareProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

/// Turns text files into shards `<output>/<input's name without ending>-00000.h5`, -00001, ...
///
/// Documents cut a file into contiguous pieces: no byte is dropped, line ends included. A document
/// that gives no tokens is left out. Inputs are ordered by size, then path, and input i is rank i %
/// world's: the shards are the same, byte for byte, for every world size, and no two ranks write
/// one file.
///
/// All shards of a rank are written in `<output>/prepare-rank-<r>.unfinished` and move to their
/// places when the last one is complete. An exception leaves nothing of this rank behind; a killed
/// process leaves that folder, which Corpus refuses. Memory is bounded by max_piece_bytes. Local.
///
/// @throws ConfigError  if an option is not allowed, an input is no file, two inputs share a name,
/// or
///                      shards of these inputs (or an unfinished folder) are there and not
///                      `overwrite`
/// @throws DataError    if an input is not valid UTF-8 (names the byte), gives no tokens at all, or
/// the
///                      tokenizer gives an id outside its vocabulary
/// @throws WriteError   if the output cannot be written
PrepareSummary prepare_lm(const Tokenizer& tokenizer,
                          const PrepareLmOptions& options,
                          int rank,
                          int world,
                          const PrepareProgress& progress = {});

}  // namespace t2r::data
