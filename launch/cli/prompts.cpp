#include "launch/cli/prompts.h"

#include <algorithm>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "data/unicode/utf8.h"
#include "launch/cli/tokenizer_check.h"

namespace t2r::launch {
namespace {

std::string read_input(const std::string& file) {
  if (file != "-") return read_named_input(file);
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

std::string name_of(const std::string& file) {
  return file == "-" ? "standard input" : file;
}

void check_utf8(const std::string& text, const std::string& name) {
  const size_t offset = data::find_invalid_utf8(text);
  if (offset < text.size()) {
    throw DataError(concat(name, ": offset ", offset, " is not valid UTF-8; convert it (iconv)"));
  }
}

// Empty lines are left out: nothing could be read off their place, and editors end files with them.
std::vector<std::string> lines_of(const std::string& text, const std::string& name) {
  std::vector<std::string> lines;
  int64_t num_empty = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) {
      ++num_empty;
    } else {
      lines.push_back(std::move(line));
    }
    begin = end + 1;
  }
  if (lines.empty()) throw DataError(concat(name, ": no prompt in it, one a line"));
  if (num_empty > 0) log::warning(concat(name, ": ", num_empty, " empty line(s) left out"));
  return lines;
}

}  // namespace

void PromptOptions::bind(OptionSet& options) {
  options.add_repeated("prompt", prompts, "text to continue; several: each is continued");
  options.add("prompt-file", prompt_file, "file that is one text to continue; -: standard input");
  options.add("prompts", prompts_file, "file of texts to continue, one a line; -: standard input");
  options.add("begin-of-text",
              begin_of_text,
              "put the token that begins a text in front; auto: if the tokenizer does");
}

void PromptOptions::validate() const {
  const int sources = !prompts.empty() + !prompt_file.empty() + !prompts_file.empty();
  if (sources != 1)
    throw UsageError("give exactly one of --prompt (once or more), --prompt-file and --prompts");
}

std::vector<std::string> PromptOptions::read() const {
  if (!prompts_file.empty()) {
    const std::string text = read_input(prompts_file), name = name_of(prompts_file);
    check_utf8(text, name);
    return lines_of(text, name);
  }
  if (!prompt_file.empty()) {
    std::string text = read_input(prompt_file);
    check_utf8(text, name_of(prompt_file));
    return {std::move(text)};
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    check_utf8(prompts[i], prompts.size() == 1 ? "--prompt" : concat("--prompt number ", i + 1));
  }
  return prompts;
}

std::vector<Prompt> PromptOptions::encode(const std::vector<std::string>& texts,
                                          const data::Tokenizer& tokenizer,
                                          int64_t vocab_size,
                                          std::optional<int64_t> models_begin) const {
  const BeginOfText begin = launch::begin_of_text(begin_of_text, tokenizer, models_begin);
  std::vector<Prompt> prompts;
  for (const std::string& text : texts) {
    Prompt& prompt = prompts.emplace_back(Prompt{text, {}, false});
    const std::vector<int32_t> ids = tokenizer.encode(text);
    const std::optional<int64_t> first = ids.empty() ? begin.of_empty_text : begin.of_text;
    if (first.has_value()) prompt.ids.push_back(*first);
    prompt.has_begin_of_text = first.has_value();
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    if (prompt.ids.empty()) {
      throw DataError(
          concat("prompt ", prompts.size(), " has no tokens, and nothing says how a text begins"));
    }
    const int64_t largest = *std::max_element(prompt.ids.begin(), prompt.ids.end());
    if (largest >= vocab_size) {
      throw DataError(concat("prompt ",
                             prompts.size(),
                             ": token id ",
                             largest,
                             " is outside the model's vocabulary [0, ",
                             vocab_size,
                             "): is the tokenizer the model's?"));
    }
  }
  return prompts;
}

std::vector<int64_t> tokens_to_add(const std::vector<Prompt>& prompts,
                                   const model::DecoderLM& model,
                                   int64_t max_new_tokens) {
  const int64_t positions = model.num_positions(), trained = model.config().max_positions;
  std::vector<int64_t> counts;
  int64_t fewest = max_new_tokens, longest = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto length = static_cast<int64_t>(prompts[i].ids.size());
    if (length > positions) {
      throw ConfigError(concat("prompt ",
                               i + 1,
                               " has ",
                               length,
                               " tokens, the model's learned position table ",
                               positions,
                               " rows; allowed: prompts of at most as many"));
    }
    // The last token is chosen and never read: it needs no position.
    counts.push_back(std::min(max_new_tokens, positions - length + 1));
    fewest = std::min(fewest, counts.back());
    longest = std::max(longest, length);
  }
  if (fewest < max_new_tokens) {
    log::warning(concat("the model has ",
                        positions,
                        " positions: behind a prompt of ",
                        longest,
                        " tokens it stops after ",
                        fewest,
                        ", not --max-new-tokens ",
                        max_new_tokens));
  } else if (trained > 0 && positions > trained && longest + max_new_tokens > trained) {
    log::warning(concat(longest,
                        " tokens of a prompt and --max-new-tokens ",
                        max_new_tokens,
                        " pass the ",
                        trained,
                        " positions that the model was trained with (max_position_embeddings): "
                        "behind them it may write worse"));
  }
  return counts;
}

std::vector<std::vector<size_t>> batches_of(const std::vector<Prompt>& prompts,
                                            int64_t batch_size) {
  std::vector<std::vector<size_t>> batches;
  std::map<size_t, size_t> last_of_length;  // batch by tokens of its prompts
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto [last, is_first] = last_of_length.try_emplace(prompts[i].ids.size(), batches.size());
    if (!is_first && std::ssize(batches[last->second]) < batch_size) {
      batches[last->second].push_back(i);
    } else {
      last->second = batches.size();
      batches.push_back({i});
    }
  }
  return batches;
}

}  // namespace t2r::launch
