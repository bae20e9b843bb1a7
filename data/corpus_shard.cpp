#include "data/corpus_shard.h"

#include <bit>

#include "base/error.h"
#include "base/hash.h"

namespace t2r::data {

static_assert(std::endian::native == std::endian::little, "shards are little-endian");

void check_rule(bool holds, const std::string& path, const std::string& message) {
  if (!holds) throw DataError(concat(path, ": ", message));
}

H5Integer token_type_of(int64_t vocab_size) {
  return vocab_size <= 65536 ? H5Integer::kUint16 : H5Integer::kUint32;
}

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

}  // namespace t2r::data
