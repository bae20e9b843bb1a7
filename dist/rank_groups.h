#pragma once

#include <map>
#include <string>
#include <vector>

namespace t2r::dist {

/// The ranks that gave each text, ascending; `texts` as all_gather returns them. Local.
std::map<std::string, std::vector<int>> group_ranks(const std::vector<std::string>& texts);

/// "rank 2" or "ranks 0, 3". Local.
std::string list_ranks(const std::vector<int>& ranks);

/// The problems of all ranks in one line, "ranks 0, 2: WORDS; rank 1: WORDS", by the words; empty
/// if every text is empty. Beyond a few different ones the rest is counted. Local.
std::string list_problems(const std::vector<std::string>& problems);

}  // namespace t2r::dist
