#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "data/corpus.h"
#include "data/corpus_writer.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::test {

/// One token per byte, its value; 256 ends a document.
class ByteTokenizer : public data::Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char byte : text) ids.push_back(static_cast<uint8_t>(byte));
    return ids;
  }
  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    for (const int32_t id : ids) text += static_cast<char>(id);
    return text;
  }
  int64_t vocab_size() const override { return 257; }
  std::optional<int32_t> end_of_document() const override { return 256; }
  std::string hash() const override { return "bytes"; }
  std::vector<std::filesystem::path> files() const override { return {}; }
};

/// Writes a shard whose documents have the given tokens.
inline void write_shard(const std::filesystem::path& path,
                        const std::vector<std::vector<int32_t>>& documents,
                        int64_t vocab_size = 50257,
                        const std::string& tokenizer_hash = "tokenizer-a") {
  data::CorpusWriter writer(path, {vocab_size, tokenizer_hash, "source.txt"});
  for (const std::vector<int32_t>& document : documents) {
    writer.append(document);
    writer.end_document();
  }
  writer.commit();
}

/// All tokens of a corpus.
inline std::vector<int64_t> read_all(const data::Corpus& corpus) {
  std::vector<int64_t> tokens(static_cast<size_t>(corpus.num_tokens()));
  corpus.read(0, corpus.num_tokens(), tokens.data());
  return tokens;
}

/// first, first + 1, ..., `count` of them.
inline std::vector<int32_t> count_up(int32_t first, size_t count) {
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

inline void sleep_us(int64_t duration_us) {
  std::this_thread::sleep_for(std::chrono::microseconds(duration_us));
}

/// Time that `action` takes, at least 1.
template <class Action>
int64_t duration_us(const Action& action) {
  const auto begin = std::chrono::steady_clock::now();
  action();
  const auto duration = std::chrono::steady_clock::now() - begin;
  return 1 + std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

/// Message of the Expected that `action` throws; anything else fails the test.
template <class Expected, class Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another exception: " << error.what();
    return "";
  }
  ADD_FAILURE() << "no exception";
  return "";
}

}  // namespace t2r::test
