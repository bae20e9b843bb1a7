// libFuzzer target of BPE tokenizers: a tokenizer.json and, for inputs that start with "pair\n", a
// vocab.json and, behind an empty line, merges.txt.
//
// Beyond memory errors it checks that an accepted tokenizer gives ids of its vocabulary, that its
// stream of text is its text, and that both take any bytes.
//
//   cmake --preset dev -DT2R_FUZZ=ON && cmake --build build/dev --target t2r_tokenizer_fuzz
//   build/dev/tests/fuzz/t2r_tokenizer_fuzz -max_total_time=180 <folder for findings>
//       tests/fuzz/corpus_tokenizer

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "data/tokenizers/bpe.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer_json.h"
#include "data/unicode/utf8.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

using t2r::fuzz::demand;
using t2r::fuzz::read_or_refuse;
using namespace t2r::data;

BpeDefinition parse(std::string_view text) {
  constexpr std::string_view kPair = "pair\n";
  if (!text.starts_with(kPair)) return parse_tokenizer_json(text, "fuzz.json");
  text.remove_prefix(kPair.size());
  const size_t end = text.find("\n\n");
  const std::string_view merges = end == std::string_view::npos ? "" : text.substr(end + 2);
  return parse_vocabulary_and_merges(text.substr(0, end), merges, "vocab.json", "merges.txt");
}

void check(const Bpe& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) {
    demand(id >= 0 && id < tokenizer.vocab_size());
    streamed += decoder.add(id);
  }
  streamed += decoder.finish();
  demand(find_invalid_utf8(streamed) == streamed.size());
  demand(streamed == replace_invalid_utf8(tokenizer.decode(ids)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  t2r::log::set_level(t2r::log::Level::kError);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  read_or_refuse<t2r::DataError>([&] {
    const Bpe tokenizer(parse(text));
    check(tokenizer, "The <s> caf\xC3\xA9  12345 don't\n\n \xE6\xBC\xA2\xF0\x9F\x98\x80 \xFF</s>");
    check(tokenizer, text.substr(0, 200));
    if (const auto id = tokenizer.end_of_document()) demand(*id < tokenizer.vocab_size());
    if (const auto id = tokenizer.begin_of_text()) demand(*id < tokenizer.vocab_size());
  });
  return 0;
}
