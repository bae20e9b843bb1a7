#include "data/prepare_lm.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "data/line_reader.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 4> kDocumentModes = {
    "file", "line", "blank-line", "wikitext"};

/// Whether `line` is " = Title = " and not " = = Section = = ".
bool is_wikitext_title(std::string_view line) {
  const std::string_view text = strip_ascii_space(line);
  return text.size() >= 5 && text.starts_with("= ") && !text.starts_with("= =") &&
         text.ends_with(" =");
}

/// Finds the lines that begin documents.
class DocumentRule {
 public:
  explicit DocumentRule(std::string_view mode) : mode_(mode) {}

  /// To be asked for every line of a file once, in order.
  bool begins_document(std::string_view line) {
    const bool follows_blank = std::exchange(follows_blank_, strip_ascii_space(line).empty());
    if (follows_blank_) return false;
    if (mode_ == "line") return true;
    if (mode_ == "blank-line") return follows_blank;
    return mode_ == "wikitext" && follows_blank && is_wikitext_title(line);
  }

 private:
  std::string_view mode_;
  bool follows_blank_ = true;
};

/// The shards of one input, opened as tokens come.
class ShardSeries {
 public:
  ShardSeries(fs::path folder, std::string stem, ShardDescription description, int64_t limit)
      : folder_(std::move(folder)),
        stem_(std::move(stem)),
        description_(std::move(description)),
        tokens_per_shard_(limit) {}

  void append(const std::vector<int32_t>& ids) {
    if (ids.empty()) return;
    const bool is_full = writer_ != nullptr && tokens_per_shard_ > 0 && !is_in_document_ &&
                         writer_->num_tokens() >= tokens_per_shard_;
    if (is_full) commit();
    if (writer_ == nullptr) open();
    writer_->append(ids);
    is_in_document_ = true;
  }

  void add_source_text(int64_t num_words, int64_t num_bytes) {
    num_words_ += num_words;
    num_bytes_ += num_bytes;
  }

  bool is_in_document() const { return is_in_document_; }

  void end_document() {
    writer_->end_document();
    is_in_document_ = false;
    hand_over_counts();
  }

  /// Completes the last shard and adds all of them to `summary`; false if there were no tokens.
  bool finish(PrepareSummary& summary) {
    if (writer_ == nullptr) return false;
    hand_over_counts();
    commit();
    summary.num_tokens += totals_.num_tokens;
    summary.num_documents += totals_.num_documents;
    summary.num_words += totals_.num_words;
    summary.num_bytes += totals_.num_bytes;
    summary.shards.insert(summary.shards.end(), totals_.shards.begin(), totals_.shards.end());
    return true;
  }

 private:
  void open() {
    std::array<char, 32> ending{};
    std::snprintf(ending.data(), ending.size(), "-%05zu.h5", totals_.shards.size());
    path_ = folder_ / (stem_ + ending.data());
    writer_ = std::make_unique<CorpusWriter>(path_, description_);
  }

  void commit() {
    writer_->commit();
    totals_.num_tokens += writer_->num_tokens();
    totals_.num_documents += writer_->num_documents();
    totals_.num_words += writer_->num_words();
    totals_.num_bytes += writer_->num_bytes();
    totals_.shards.push_back(path_);
    writer_.reset();
  }

  void hand_over_counts() {
    writer_->add_source_text(std::exchange(num_words_, 0), std::exchange(num_bytes_, 0));
  }

  fs::path folder_;
  std::string stem_;
  ShardDescription description_;
  int64_t tokens_per_shard_;
  fs::path path_;
  std::unique_ptr<CorpusWriter> writer_;
  bool is_in_document_ = false;
  int64_t num_words_ = 0;  // of text not yet counted in a shard
  int64_t num_bytes_ = 0;
  PrepareSummary totals_;
};

/// Collects lines into pieces, encodes them and ends documents.
class DocumentEncoder {
 public:
  DocumentEncoder(const Tokenizer& tokenizer, const PrepareLmOptions& options, ShardSeries& shards)
      : tokenizer_(tokenizer), max_piece_bytes_(options.max_piece_bytes), shards_(shards) {
    if (options.append_end_of_document) end_token_ = tokenizer.end_of_document();
  }

  void add_line(std::string_view line, bool begins_document) {
    if (begins_document && has_text_) end_document();
    if (static_cast<int64_t>(piece_.size() + line.size()) > max_piece_bytes_) encode_piece();
    piece_ += line;
    has_text_ = has_text_ || !strip_ascii_space(line).empty();
  }

  void end_document() {
    encode_piece();
    if (shards_.is_in_document()) {
      if (end_token_) shards_.append({*end_token_});
      shards_.end_document();
    }
    has_text_ = false;
    is_in_word_ = false;
  }

 private:
  void encode_piece() {
    if (piece_.empty()) return;
    shards_.append(tokenizer_.encode(piece_));
    int64_t num_words = 0;
    for (const char byte : piece_) {
      const bool was_in_word = std::exchange(is_in_word_, !is_ascii_space(byte));
      if (is_in_word_ && !was_in_word) ++num_words;
    }
    shards_.add_source_text(num_words, static_cast<int64_t>(piece_.size()));
    piece_.clear();
  }

  const Tokenizer& tokenizer_;
  int64_t max_piece_bytes_;
  ShardSeries& shards_;
  std::optional<int32_t> end_token_;
  std::string piece_;
  bool has_text_ = false;    // the open document has more than blank lines
  bool is_in_word_ = false;  // the open document's last byte so far was no space
};

struct Input {
  fs::path path;
  int64_t num_bytes = 0;

  std::string stem() const { return path.stem().string(); }
};

void check_options(const PrepareLmOptions& options) {
  if (std::find(kDocumentModes.begin(), kDocumentModes.end(), options.document_mode) ==
      kDocumentModes.end()) {
    throw ConfigError(concat("document_mode is \"",
                             options.document_mode,
                             "\", allowed are file, line, blank-line, wikitext"));
  }
  if (options.tokens_per_shard < 0) {
    throw ConfigError(concat("tokens_per_shard is ",
                             options.tokens_per_shard,
                             ", must be positive, or 0 for one shard per input"));
  }
  if (options.max_piece_bytes < 4) {
    throw ConfigError(
        concat("max_piece_bytes is ", options.max_piece_bytes, ", must be at least 4"));
  }
  if (options.inputs.empty()) throw ConfigError("no input file was given");
}

/// This rank's inputs, largest first; also checks all inputs.
std::vector<Input> choose_inputs(const PrepareLmOptions& options, int rank, int world) {
  std::vector<Input> all;
  std::map<std::string, fs::path> path_of_stem;
  for (const fs::path& path : options.inputs) {
    std::error_code error;
    const bool is_file = fs::is_regular_file(path, error);
    const int64_t num_bytes = is_file ? static_cast<int64_t>(fs::file_size(path, error)) : 0;
    if (!is_file || error) {
      throw ConfigError(concat(path.string(), ": is not a file; inputs are text files"));
    }
    all.push_back({path, num_bytes});
    const auto [other, is_first] = path_of_stem.emplace(all.back().stem(), path);
    if (!is_first) {
      throw ConfigError(concat(path.string(),
                               " and ",
                               other->second.string(),
                               " would both write ",
                               all.back().stem(),
                               "-00000.h5; file names must differ without their endings"));
    }
  }
  std::sort(all.begin(), all.end(), [](const Input& a, const Input& b) {
    return a.num_bytes != b.num_bytes ? a.num_bytes > b.num_bytes : a.stem() < b.stem();
  });
  std::vector<Input> mine;
  for (size_t i = static_cast<size_t>(rank); i < all.size(); i += static_cast<size_t>(world)) {
    mine.push_back(all[i]);
  }
  return mine;
}

/// Everything in the output folder, sorted by name.
std::vector<fs::path> list_output(const fs::path& output) {
  try {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::directory_iterator(output)) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    return paths;
  } catch (const fs::filesystem_error& error) {
    throw WriteError(error.what());
  }
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

/// Shards that an earlier run made of inputs with the same names.
std::vector<fs::path> find_old_shards(const fs::path& output, const std::vector<Input>& inputs) {
  std::set<std::string> stems;
  for (const Input& input : inputs) stems.insert(input.stem());
  std::vector<fs::path> found;
  for (const fs::path& path : list_output(output)) {
    const std::string name = path.stem().string();
    const size_t dash = name.rfind('-');
    if (path.extension() != ".h5" || dash == std::string::npos) continue;
    if (is_number(name.substr(dash + 1)) && stems.contains(name.substr(0, dash))) {
      found.push_back(path);
    }
  }
  return found;
}

void remove_or_throw(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) throw WriteError(concat(path.string(), ": cannot remove: ", error.message()));
}

/// Where a rank's shards stay until all of them are complete; disappears with everything in it.
class StagingFolder {
 public:
  explicit StagingFolder(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    const bool is_made = fs::create_directory(path_, error);
    if (error) throw WriteError(concat(path_.string(), ": cannot create: ", error.message()));
    if (!is_made) {
      throw ConfigError(
          concat(path_.string(),
                 ": is there already: another t2r prepare is writing to this folder, or "
                 "one was killed; if none is running, use --overwrite"));
    }
  }
  ~StagingFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

constexpr std::string_view kStagingPrefix = "prepare-rank-";

fs::path staging_path(const fs::path& output, int rank) {
  return output / concat(kStagingPrefix, rank, kUnfinishedSuffix);
}

/// Rank whose staging folder `path` is; -1 if it is none.
int staging_rank(const fs::path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with(kStagingPrefix) || !name.ends_with(kUnfinishedSuffix)) return -1;
  const std::string rank = name.substr(
      kStagingPrefix.size(), name.size() - kStagingPrefix.size() - kUnfinishedSuffix.size());
  return is_number(rank) && rank.size() < 9 ? std::stoi(rank) : -1;
}

/// Makes room for this rank: refuses what is there, or removes what a killed run has left.
void clear_output(const PrepareLmOptions& options,
                  const std::vector<Input>& mine,
                  int rank,
                  int world) {
  const fs::path& output = options.output;
  std::error_code error;
  fs::create_directories(output, error);
  if (error) throw WriteError(concat(output.string(), ": cannot create: ", error.message()));
  if (options.overwrite) {
    for (const fs::path& path : list_output(output)) {
      // A rank of this run may own the folder by now; those of a larger run have no owner.
      const int owner = staging_rank(path);
      if (owner == rank || (rank == 0 && owner >= world)) remove_or_throw(path);
    }
    return;
  }
  const std::vector<fs::path> old = find_old_shards(output, mine);
  if (!old.empty()) {
    throw ConfigError(concat(old.front().string(),
                             ": is there already (one of ",
                             old.size(),
                             "); use --overwrite, or another output folder"));
  }
}

/// Moves the shards out of the staging folder; takes back those moved if one cannot be.
void publish(const PrepareLmOptions& options,
             const std::vector<Input>& inputs,
             std::vector<fs::path>& shards) {
  for (const fs::path& old : find_old_shards(options.output, inputs)) remove_or_throw(old);
  size_t num_moved = 0;
  try {
    for (; num_moved < shards.size(); ++num_moved) {
      fs::path& shard = shards[num_moved];
      const fs::path target = options.output / shard.filename();
      rename_durably(shard, target);
      shard = target;
    }
  } catch (const WriteError&) {
    std::error_code ignored;
    for (size_t i = 0; i < num_moved; ++i) fs::remove(shards[i], ignored);
    throw;
  }
}

void prepare_input(const Tokenizer& tokenizer,
                   const PrepareLmOptions& options,
                   const Input& input,
                   ShardSeries& shards,
                   const std::function<void(int64_t bytes_done)>& report) {
  constexpr int64_t kReportBytes = 1 << 20;
  LineReader lines(input.path, options.max_piece_bytes);
  DocumentRule rule(options.document_mode);
  DocumentEncoder encoder(tokenizer, options, shards);
  int64_t last_report = 0;
  for (std::string_view line = lines.next(); !line.empty(); line = lines.next()) {
    const size_t invalid = options.allow_invalid_utf8 ? line.size() : find_invalid_utf8(line);
    if (invalid < line.size()) {
      throw DataError(concat(input.path.string(),
                             ": byte ",
                             lines.offset() + static_cast<int64_t>(invalid),
                             " is not valid UTF-8 (counted from 0); convert the file, or pass its "
                             "bytes on with --allow-invalid-utf8"));
    }
    encoder.add_line(line, !lines.continues_line() && rule.begins_document(line));
    if (lines.offset() - last_report < kReportBytes) continue;
    last_report = lines.offset();
    report(last_report);
  }
  encoder.end_document();
  report(input.num_bytes);
}

}  // namespace

PrepareSummary prepare_lm(const Tokenizer& tokenizer,
                          const PrepareLmOptions& options,
                          int rank,
                          int world,
                          const PrepareProgress& progress) {
  require(world >= 1 && rank >= 0 && rank < world,
          concat("prepare_lm: rank ", rank, " is outside [0, ", world, ")"));
  check_options(options);
  const std::vector<Input> inputs = choose_inputs(options, rank, world);
  clear_output(options, inputs, rank, world);
  PrepareSummary summary;
  if (inputs.empty()) return summary;

  int64_t bytes_total = 0;
  for (const Input& input : inputs) bytes_total += input.num_bytes;
  const StagingFolder staging(staging_path(options.output, rank));
  int64_t bytes_before = 0;
  for (const Input& input : inputs) {
    const ShardDescription description{
        tokenizer.vocab_size(), tokenizer.hash(), input.path.filename().string()};
    ShardSeries shards(staging.path(), input.stem(), description, options.tokens_per_shard);
    prepare_input(tokenizer, options, input, shards, [&](int64_t bytes_done) {
      if (progress) progress(bytes_before + bytes_done, bytes_total);
    });
    if (!shards.finish(summary)) {
      throw DataError(concat(input.path.string(),
                             ": gives no tokens (",
                             input.num_bytes,
                             " bytes of text); leave it out"));
    }
    ++summary.num_inputs;
    bytes_before += input.num_bytes;
  }
  publish(options, inputs, summary.shards);
  return summary;
}

}  // namespace t2r::data
