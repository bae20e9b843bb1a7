#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace t2r::launch {

struct OptionEntry;

/// Whether a run may go on from a checkpoint that was made with another value of an option.
enum class OnResume {
  kFree,   ///< it may, and its result does not depend on it
  kSaid,   ///< it may, and that is said
  kEqual,  ///< it may not: the option is part of the run's identity
};

/// What is said of an option where it is bound, beyond its name and its help.
class Option {
 public:
  explicit Option(OptionEntry& entry) : entry_(entry) {}

  /// The command cannot run without a value.
  Option& required();

  /// A resumed run must have the same value.
  Option& identity();

  /// A resumed run may have another value, and that is said.
  Option& said_on_resume();

  /// The same, where what counts is not the option's own value but what `fact` makes of it.
  Option& said_on_resume(std::function<std::string()> fact);

 protected:
  OptionEntry& entry_;
};

/// An option that is a number, or a list of them: then the limits are those of each.
template <class T>
class NumberOption : public Option {
 public:
  NumberOption(OptionEntry& entry, std::function<std::vector<T>()> values)
      : Option(entry), values_(std::move(values)) {}

  NumberOption& at_least(T low);
  NumberOption& range(T low, T high);

  /// Above `low`, which is not allowed itself, and up to `high`.
  NumberOption& above(T low);
  NumberOption& above(T low, T high);

 private:
  NumberOption& limit(std::function<bool(T)> holds, std::string allowed);

  std::function<std::vector<T>()> values_;
};

}  // namespace t2r::launch
