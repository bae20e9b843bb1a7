// libFuzzer target of sentencepiece models: what read_sentencepiece_model() lets pass must not hurt
// libsentencepiece, which is not instrumented itself and trusts a model more than it should.
//
//   cmake --preset dev -DT2R_FUZZ=ON && cmake --build build/dev --target t2r_sentencepiece_fuzz
//   build/dev/tests/fuzz/t2r_sentencepiece_fuzz -max_total_time=180 <folder for findings>
//       tests/fuzz/corpus_sentencepiece

#include <sentencepiece_processor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/sentencepiece_model.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

using t2r::fuzz::demand;
using t2r::fuzz::read_or_refuse;

void use(const std::string& content, const t2r::data::SentencePieceModel& model) {
  sentencepiece::SentencePieceProcessor processor;
  if (!processor.LoadFromSerializedProto(content).ok()) return;
  demand(processor.GetPieceSize() == static_cast<int>(model.pieces.size()));
  for (const std::string_view text :
       {std::string_view(
            "The <s> caf\xC3\xA9  12 don't\n \xE6\xBC\xA2\xEF\xBD\x81\xEF\xAC\x81 \xFF "),
        std::string_view(content).substr(0, 200)}) {
    std::vector<int> ids;
    if (!processor.Encode({text.data(), text.size()}, &ids).ok()) continue;
    for (const int id : ids) demand(id >= 0 && id < processor.GetPieceSize());
    std::string decoded;
    demand(processor.Decode(ids, &decoded).ok());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  read_or_refuse<t2r::DataError>(
      [&] { use(content, t2r::data::read_sentencepiece_model(content, "fuzz")); });
  return 0;
}
