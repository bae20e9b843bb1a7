#include "data/document_encoder.h"

#include <array>
#include <cstdio>
#include <utility>

#include "base/error.h"
#include "data/line_reader.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

/// Whether `line` is " = Title = " and not " = = Section = = ".
bool is_wikitext_title(std::string_view line) {
  const std::string_view text = strip_ascii_space(line);
  return text.size() >= 5 && text.starts_with("= ") && !text.starts_with("= =") &&
         text.ends_with(" =");
}

/// Finds the lines that begin documents.
class DocumentRule {
 public:
  explicit DocumentRule(DocumentMode mode) : mode_(mode) {}

  /// To be asked for every line of a file once, in order.
  bool begins_document(std::string_view line) {
    const bool follows_blank = std::exchange(follows_blank_, strip_ascii_space(line).empty());
    if (follows_blank_) return false;
    if (mode_ == DocumentMode::kLine) return true;
    if (mode_ == DocumentMode::kBlankLine) return follows_blank;
    return mode_ == DocumentMode::kWikitext && follows_blank && is_wikitext_title(line);
  }

 private:
  DocumentMode mode_;
  bool follows_blank_ = true;
};

/// Collects lines into pieces, encodes them and ends documents.
class DocumentEncoder {
 public:
  DocumentEncoder(const Tokenizer& tokenizer, const PrepareLmOptions& options, ShardSeries& shards)
      : tokenizer_(tokenizer), max_piece_bytes_(options.max_piece_bytes), shards_(shards) {
    if (options.append_end_of_document) end_token_ = tokenizer.end_of_document();
    if (options.add_begin_of_text) begin_token_ = tokenizer.begin_of_text();
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
      ++num_documents_;
    }
    has_text_ = false;
    is_in_word_ = false;
  }

  int64_t num_documents() const { return num_documents_; }

 private:
  void encode_piece() {
    if (piece_.empty()) return;
    const std::vector<int32_t> ids = tokenizer_.encode(piece_);
    if (begin_token_ && !ids.empty() && !shards_.is_in_document()) shards_.append({*begin_token_});
    shards_.append(ids);
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
  std::optional<int32_t> begin_token_;
  std::optional<int32_t> end_token_;
  std::string piece_;
  int64_t num_documents_ = 0;
  bool has_text_ = false;    // the open document has more than blank lines
  bool is_in_word_ = false;  // the open document's last byte so far was no space
};

}  // namespace

ShardSeries::ShardSeries(std::filesystem::path folder,
                         std::string stem,
                         ShardDescription description,
                         int64_t tokens_per_shard)
    : folder_(std::move(folder)),
      stem_(std::move(stem)),
      description_(std::move(description)),
      tokens_per_shard_(tokens_per_shard) {}

void ShardSeries::begin_source(const std::string& name) {
  description_.source = name;
}

void ShardSeries::append(const std::vector<int32_t>& ids) {
  if (ids.empty()) return;
  const bool is_full = writer_ != nullptr && tokens_per_shard_ > 0 && !is_in_document_ &&
                       writer_->num_tokens() >= tokens_per_shard_;
  if (is_full) commit();
  if (writer_ == nullptr) open();
  writer_->begin_source(description_.source);
  writer_->append(ids);
  is_in_document_ = true;
}

void ShardSeries::add_source_text(int64_t num_words, int64_t num_bytes) {
  num_words_ += num_words;
  num_bytes_ += num_bytes;
}

void ShardSeries::end_document() {
  writer_->end_document();
  is_in_document_ = false;
  hand_over_counts();
}

void ShardSeries::finish(PrepareSummary& summary) {
  if (writer_ == nullptr) return;
  hand_over_counts();
  commit();
  summary.num_tokens += totals_.num_tokens;
  summary.num_documents += totals_.num_documents;
  summary.num_words += totals_.num_words;
  summary.num_bytes += totals_.num_bytes;
  summary.shards.insert(summary.shards.end(), totals_.shards.begin(), totals_.shards.end());
}

void ShardSeries::open() {
  std::array<char, 32> ending{};
  std::snprintf(ending.data(), ending.size(), "-%05zu.h5", totals_.shards.size());
  path_ = folder_ / (stem_ + ending.data());
  writer_ = std::make_unique<CorpusWriter>(path_, description_);
}

void ShardSeries::commit() {
  writer_->commit();
  totals_.num_tokens += writer_->num_tokens();
  totals_.num_documents += writer_->num_documents();
  totals_.num_words += writer_->num_words();
  totals_.num_bytes += writer_->num_bytes();
  totals_.shards.push_back(path_);
  writer_.reset();
}

void ShardSeries::hand_over_counts() {
  writer_->add_source_text(std::exchange(num_words_, 0), std::exchange(num_bytes_, 0));
}

bool encode_file(const Tokenizer& tokenizer,
                 const PrepareLmOptions& options,
                 const PrepareInput& input,
                 ShardSeries& shards,
                 const std::function<void(int64_t bytes_done)>& report) {
  constexpr int64_t kReportBytes = 1 << 20;
  LineReader lines(input.path, options.max_piece_bytes);
  DocumentRule rule(options.document_mode);
  DocumentEncoder encoder(tokenizer, options, shards);
  shards.begin_source(input.name());
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
  return encoder.num_documents() > 0;
}

}  // namespace t2r::data
