#include "dist/rank_groups.h"

namespace t2r::dist {

std::map<std::string, std::vector<int>> group_ranks(const std::vector<std::string>& texts) {
  std::map<std::string, std::vector<int>> groups;
  for (size_t r = 0; r < texts.size(); ++r) groups[texts[r]].push_back(static_cast<int>(r));
  return groups;
}

std::string list_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  }
  return text;
}

std::string list_problems(const std::vector<std::string>& problems) {
  constexpr int kNumListed = 8;
  std::string text;
  int num_seen = 0;
  for (const auto& [words, ranks] : group_ranks(problems)) {
    if (words.empty() || ++num_seen > kNumListed) continue;
    text += (text.empty() ? "" : "; ") + list_ranks(ranks) + ": " + words;
  }
  if (num_seen > kNumListed) {
    text += "; and " + std::to_string(num_seen - kNumListed) + " other problems";
  }
  return text;
}

}  // namespace t2r::dist
