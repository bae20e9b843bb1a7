#include "data/corpus_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/corpus.h"
#include "data/h5_file.h"
#include "data/shard_seal.h"

namespace t2r::data {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian, see corpus.h");

constexpr size_t kBlockBytes = 256 << 10;
constexpr int64_t kMaxVocabSize = int64_t{1} << 32;

/// Bytes that are appended and then read back once. The file has no name from the start, so that
/// the system frees it however the process ends.
class NamelessFile {
 public:
  explicit NamelessFile(const std::filesystem::path& neighbour) : neighbour_(neighbour) {
    const std::string name = temporary_sibling(neighbour_).string() + ".spill";
    descriptor_ = ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("create a temporary file beside it");
    ::unlink(name.c_str());
    buffer_.reserve(kBlockBytes);
  }
  ~NamelessFile() { ::close(descriptor_); }
  NamelessFile(const NamelessFile&) = delete;
  NamelessFile& operator=(const NamelessFile&) = delete;

  template <class Element>
  void append(Element element) {
    if (buffer_.size() + sizeof(element) > kBlockBytes) flush();
    const char* bytes = reinterpret_cast<const char*>(&element);
    buffer_.insert(buffer_.end(), bytes, bytes + sizeof(element));
  }

  /// Hands over everything appended, in order, in blocks of whole elements.
  void for_each_block(const std::function<void(const char* bytes, size_t num_bytes)>& take) {
    flush();
    std::vector<char> block(kBlockBytes);
    for (off_t position = 0; position < num_written_;) {
      const size_t wanted =
          std::min<size_t>(block.size(), static_cast<size_t>(num_written_ - position));
      read_fully(block.data(), wanted, position);
      take(block.data(), wanted);
      position += static_cast<off_t>(wanted);
    }
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    throw WriteError(concat(neighbour_.string(), ": cannot ", action, ": ", std::strerror(errno)));
  }

  void flush() {
    for (size_t done = 0; done < buffer_.size();) {
      const ssize_t count = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("write its temporary file");
      done += static_cast<size_t>(count);
    }
    num_written_ += static_cast<off_t>(buffer_.size());
    buffer_.clear();
  }

  void read_fully(char* out, size_t num_bytes, off_t position) const {
    for (size_t done = 0; done < num_bytes;) {
      const ssize_t count =
          ::pread(descriptor_, out + done, num_bytes - done, position + static_cast<off_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count == 0) errno = EIO;
      if (count <= 0) fail("read back its temporary file");
      done += static_cast<size_t>(count);
    }
  }

  std::filesystem::path neighbour_;
  int descriptor_ = -1;
  std::vector<char> buffer_;
  off_t num_written_ = 0;
};

/// Removes a file when it dies, unless told that the file has moved.
class Removal {
 public:
  explicit Removal(std::filesystem::path path) : path_(std::move(path)) {}
  ~Removal() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;

  void cancel() { path_.clear(); }

 private:
  std::filesystem::path path_;
};

}  // namespace

struct CorpusWriter::State {
  State(std::filesystem::path shard, ShardDescription about)
      : path(std::move(shard)),
        description(std::move(about)),
        last_source(description.source),
        tokens(path),
        document_ends(path) {}

  H5Integer token_type() const { return token_type_of(description.vocab_size); }
  std::string content_hash();
  void write_file(const std::filesystem::path& temporary);
  void copy_dataset(H5File& file, const char* name, H5Integer type, NamelessFile& elements);

  std::filesystem::path path;
  ShardDescription description;
  std::string last_source;
  NamelessFile tokens;
  NamelessFile document_ends;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t document_begin = 0;
  int64_t num_words = 0;
  int64_t num_bytes = 0;
  bool is_committed = false;
};

CorpusWriter::CorpusWriter(std::filesystem::path path, ShardDescription description) {
  if (description.vocab_size < 1 || description.vocab_size > kMaxVocabSize) {
    throw ConfigError(concat(path.string(),
                             ": vocab_size is ",
                             description.vocab_size,
                             ", allowed is 1..",
                             kMaxVocabSize));
  }
  state_ = std::make_unique<State>(std::move(path), std::move(description));
  state_->document_ends.append<uint64_t>(0);
}

CorpusWriter::~CorpusWriter() = default;

void CorpusWriter::begin_source(const std::string& name) {
  state_->last_source = name;
}

void CorpusWriter::append(const std::vector<int32_t>& ids) {
  require(!state_->is_committed, "CorpusWriter::append after commit");
  const bool is_narrow = state_->token_type() == H5Integer::kUint16;
  for (const int32_t id : ids) {
    if (id < 0 || id >= state_->description.vocab_size) {
      throw DataError(concat(state_->path.string(),
                             ": token id ",
                             id,
                             " made from ",
                             state_->last_source,
                             " (document ",
                             state_->num_documents,
                             ", token ",
                             state_->num_tokens,
                             ") is outside [0, vocab_size = ",
                             state_->description.vocab_size,
                             ")"));
    }
    if (is_narrow) {
      state_->tokens.append(static_cast<uint16_t>(id));
    } else {
      state_->tokens.append(static_cast<uint32_t>(id));
    }
    ++state_->num_tokens;
  }
}

void CorpusWriter::end_document() {
  require(!state_->is_committed, "CorpusWriter::end_document after commit");
  require(state_->num_tokens > state_->document_begin,
          "CorpusWriter::end_document: the document has no tokens");
  state_->document_ends.append(static_cast<uint64_t>(state_->num_tokens));
  state_->document_begin = state_->num_tokens;
  ++state_->num_documents;
}

void CorpusWriter::add_source_text(int64_t num_words, int64_t num_bytes) {
  state_->num_words += num_words;
  state_->num_bytes += num_bytes;
}

int64_t CorpusWriter::num_tokens() const {
  return state_->num_tokens;
}
int64_t CorpusWriter::num_documents() const {
  return state_->num_documents;
}
int64_t CorpusWriter::num_words() const {
  return state_->num_words;
}
int64_t CorpusWriter::num_bytes() const {
  return state_->num_bytes;
}

std::string CorpusWriter::State::content_hash() {
  Hasher hasher;
  const auto update = [&](const char* bytes, size_t size) { hasher.update(bytes, size); };
  tokens.for_each_block(update);
  document_ends.for_each_block(update);
  return hasher.hex();
}

void CorpusWriter::State::copy_dataset(H5File& file,
                                       const char* name,
                                       H5Integer type,
                                       NamelessFile& elements) {
  int64_t first = 0;
  elements.for_each_block([&](const char* bytes, size_t size) {
    const int64_t count = static_cast<int64_t>(size) / num_bytes_of(type);
    file.write_elements(name, first, count, bytes);
    first += count;
  });
}

void CorpusWriter::State::write_file(const std::filesystem::path& temporary) {
  H5File file = H5File::create(temporary, kSealBytes);
  file.write_attribute("schema", std::string(kShardSchema));
  file.write_attribute("schema_version", kShardSchemaVersion);
  file.write_attribute("vocab_size", description.vocab_size);
  file.write_attribute("tokenizer_hash", description.tokenizer_hash);
  file.write_attribute("num_tokens", num_tokens);
  file.write_attribute("num_documents", num_documents);
  file.write_attribute("num_words", num_words);
  file.write_attribute("num_bytes", num_bytes);
  const std::string& first = description.source;
  file.write_attribute("source", first == last_source ? first : concat(first, " to ", last_source));
  if (description.begin_of_text) {
    file.write_attribute("begin_of_text", int64_t{*description.begin_of_text});
  }
  file.write_attribute("content_hash", content_hash());
  file.create_dataset("tokens", token_type(), num_tokens);
  file.create_dataset("document_offsets", H5Integer::kUint64, num_documents + 1);
  copy_dataset(file, "tokens", token_type(), tokens);
  copy_dataset(file, "document_offsets", H5Integer::kUint64, document_ends);
  file.close();
  seal_shard(temporary);
}

void CorpusWriter::commit() {
  require(!state_->is_committed, "CorpusWriter::commit called twice");
  require(state_->num_tokens > 0, "CorpusWriter::commit: no tokens");
  require(state_->document_begin == state_->num_tokens,
          "CorpusWriter::commit: a document is still open");
  const std::filesystem::path temporary = temporary_sibling(state_->path);
  Removal removal(temporary);
  state_->write_file(temporary);
  sync_path(temporary);
  rename_durably(temporary, state_->path);
  removal.cancel();
  state_->is_committed = true;
}

}  // namespace t2r::data
