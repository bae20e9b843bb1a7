#include "data/tokenizers/llama_tokenizer.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/sentencepiece_model.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;

/// Pairs of pieces that make a piece: those of the first piece first, shorter left parts first.
/// Source: transformers 5.24 tokenization_utils_base.py (generate_merges)
std::vector<BpeMerge> generate_merges(const std::vector<std::string>& vocabulary,
                                      const TokenIds& ids) {
  // A look-up reads a whole part, and a file that somebody sent may have pieces of 64 KiB: only
  // where both parts are as long as some piece is there anything to look up.
  std::vector<bool> has_length;
  for (const std::string& piece : vocabulary) {
    if (piece.size() >= has_length.size()) has_length.resize(piece.size() + 1);
    has_length[piece.size()] = true;
  }
  std::vector<BpeMerge> merges;
  for (int32_t id = 0; id < std::ssize(vocabulary); ++id) {
    const std::string& piece = vocabulary[static_cast<size_t>(id)];
    if (piece.empty() || ids.at(piece) != id) continue;
    for (size_t cut = read_utf8(piece, 0).num_bytes; cut < piece.size();) {
      if (has_length[cut] && has_length[piece.size() - cut]) {
        const auto left = ids.find(piece.substr(0, cut));
        const auto right = left == ids.end() ? left : ids.find(piece.substr(cut));
        if (right != ids.end()) merges.push_back({left->second, right->second, id});
      }
      cut += read_utf8(piece, cut).num_bytes;
    }
  }
  return merges;
}

}  // namespace

BpeDefinition read_llama_model(const fs::path& path, const TokenizerConfig& config) {
  using Type = SentencePieceModel::Type;
  const SentencePieceModel model = read_sentencepiece_model(read_file(path), path.string());
  BpeDefinition definition;
  for (const auto& piece : model.pieces) definition.vocabulary.push_back(piece.text);
  const TokenIds ids = index_of(definition.vocabulary);
  if (ids.size() != definition.vocabulary.size()) {
    throw DataError(path.string() + ": a piece occurs twice; allowed: each once");
  }
  definition.merges = generate_merges(definition.vocabulary, ids);
  for (const auto& [piece, id] : ids) {
    const Type type = model.pieces[static_cast<size_t>(id)].type;
    const bool named = piece == config.unknown.value_or("<unk>") ||
                       piece == config.begin_of_text.value_or("<s>") ||
                       piece == config.end_of_text.value_or("</s>");
    if (type == Type::kControl || type == Type::kUserDefined || named) {
      definition.added_tokens.push_back(
          {.content = piece, .id = id, .special = type != Type::kUserDefined || named});
    }
  }
  definition.files = {path};
  apply_llama_rules(config, &definition);
  apply_config(config, &definition);
  const TokenIds all = index_of(definition.vocabulary);
  if (config.adds_begin_of_text.value_or(false)) {
    definition.begin_of_text = find_token(path, config.begin_of_text.value_or("<s>"), all);
  }
  if (!config.end_of_text && all.contains("</s>")) definition.end_of_document = all.at("</s>");
  return definition;
}

void apply_llama_rules(const TokenizerConfig& config, BpeDefinition* definition) {
  const bool prefix = config.adds_prefix_space.value_or(true);
  definition->normalizer.clear();
  definition->patterns.clear();
  definition->metaspace =
      Metaspace{.prefix = !prefix                         ? Metaspace::Prefix::kNever
                          : config.legacy.value_or(false) ? Metaspace::Prefix::kAlways
                                                          : Metaspace::Prefix::kFirst,
                .splits = false};
  definition->byte_level = false;
  definition->ignore_merges = false;
  definition->byte_fallback = true;
  definition->fuse_unknown = true;
  definition->unknown.reset();
  definition->decodes_bytes = true;
  definition->decodes_spaces = true;
  definition->text_rules = {.strips_first_space = prefix, .judges_byte_runs_whole = true};
}

}  // namespace t2r::data
