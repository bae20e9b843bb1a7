#include "launch/options/option.h"

#include "base/text.h"
#include "launch/options/option_entry.h"

namespace t2r::launch {
namespace {

std::string text_of(int64_t value) {
  return std::to_string(value);
}

std::string text_of(double value) {
  return number_text(value);
}

}  // namespace

Option& Option::required() {
  entry_.is_required = true;
  return *this;
}

Option& Option::identity() {
  entry_.on_resume = OnResume::kEqual;
  return *this;
}

Option& Option::said_on_resume() {
  entry_.on_resume = OnResume::kSaid;
  return *this;
}

Option& Option::said_on_resume(std::function<std::string()> fact) {
  entry_.fact = std::move(fact);
  return said_on_resume();
}

template <class T>
NumberOption<T>& NumberOption<T>::at_least(T low) {
  return limit([low](T value) { return value >= low; }, text_of(low) + " or more");
}

template <class T>
NumberOption<T>& NumberOption<T>::range(T low, T high) {
  return limit([low, high](T value) { return value >= low && value <= high; },
               text_of(low) + " to " + text_of(high));
}

template <class T>
NumberOption<T>& NumberOption<T>::above(T low) {
  return limit([low](T value) { return value > low; }, "above " + text_of(low));
}

template <class T>
NumberOption<T>& NumberOption<T>::above(T low, T high) {
  return limit([low, high](T value) { return value > low && value <= high; },
               "above " + text_of(low) + ", up to " + text_of(high));
}

template <class T>
NumberOption<T>& NumberOption<T>::limit(std::function<bool(T)> holds, std::string allowed) {
  entry_.limits = std::move(allowed);
  entry_.first_beyond = [values = values_, holds = std::move(holds)]() -> std::string {
    for (const T value : values()) {
      if (!holds(value)) return text_of(value);
    }
    return "";
  };
  return *this;
}

template class NumberOption<int64_t>;
template class NumberOption<double>;

}  // namespace t2r::launch
