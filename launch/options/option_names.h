#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace t2r::launch {

/// The names under which an option takes the values of a type, which is specialised where the type
/// is bound: `static constexpr std::pair<const char*, T> kNames[]`, in the order of --help.
template <class T>
struct OptionNames;

template <class T>
concept NamedValue = requires {
  std::begin(OptionNames<T>::kNames);
};

/// Yes, no, or what the files say.
template <>
struct OptionNames<std::optional<bool>> {
  static constexpr std::pair<const char*, std::optional<bool>> kNames[] = {
      {"auto", std::nullopt}, {"true", true}, {"false", false}};
};

/// What an option calls the value.
template <NamedValue T>
std::string name_of(const T& value) {
  const auto& names = OptionNames<T>::kNames;
  return std::find_if(std::begin(names),
                      std::end(names),
                      [&](const auto& entry) { return entry.second == value; })
      ->first;
}

template <NamedValue T>
std::vector<std::string> names_of_values() {
  std::vector<std::string> names;
  for (const auto& entry : OptionNames<T>::kNames) names.emplace_back(entry.first);
  return names;
}

/// The value that `name`, one of the names, stands for.
template <NamedValue T>
T value_of_name(const std::string& name) {
  const auto& names = OptionNames<T>::kNames;
  return std::find_if(std::begin(names),
                      std::end(names),
                      [&](const auto& entry) { return entry.first == name; })
      ->second;
}

}  // namespace t2r::launch
