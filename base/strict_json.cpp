#include "base/strict_json.h"

#include <iterator>

#include "base/error.h"
#include "base/quoted_name.h"

namespace t2r {
namespace {

constexpr size_t kMaxDigits = 80;
constexpr size_t kMaxCauseBytes = 160;

/// Walks the text and tells how far the parser has come, which its events do not say.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  reference operator*() const { return *position; }
  CountingIterator& operator++() {
    ++position;
    ++*num_read;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return position == other.position; }
  bool operator!=(const CountingIterator& other) const { return position != other.position; }

  const char* position;
  uint64_t* num_read;
};

/// The parser's own words without its prefix and without the text read, which may be any length.
std::string cause_of(const nlohmann::json::exception& error) {
  std::string cause = error.what();
  const size_t end = cause.find("; last read");
  if (end != std::string::npos) cause.resize(end);
  const size_t start = cause.find("syntax error");
  if (start != std::string::npos) cause.erase(0, start);
  if (cause.size() > kMaxCauseBytes) cause.resize(kMaxCauseBytes);
  return cause;
}

}  // namespace

void StrictJsonReader::read(std::string_view text) {
  require(num_read_ == 0, "StrictJsonReader::read called twice");
  // The parser takes a NUL for the end of the text and would ignore whatever follows it.
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    num_read_ = nul + 1;
    refuse("JSON must not contain a NUL byte");
  }
  nlohmann::json_sax<nlohmann::json>* events = this;
  nlohmann::json::sax_parse(CountingIterator{text.data(), &num_read_},
                            CountingIterator{text.data() + text.size(), &num_read_},
                            events);
}

void StrictJsonReader::refuse(const std::string& rule) const {
  const uint64_t last_byte = first_byte_ + (num_read_ == 0 ? 0 : num_read_ - 1);
  throw DataError(concat(file_, ": byte ", last_byte, ": ", rule));
}

void StrictJsonReader::open() {
  if (depth() == limits_.max_depth)
    refuse(concat("JSON may be nested at most ", limits_.max_depth, " deep"));
  keys_of_open_.emplace_back();
}

bool StrictJsonReader::start_object(size_t) {
  open();
  enter_object();
  return true;
}

bool StrictJsonReader::end_object() {
  keys_of_open_.pop_back();
  leave_object();
  return true;
}

bool StrictJsonReader::start_array(size_t) {
  open();
  enter_array();
  return true;
}

bool StrictJsonReader::end_array() {
  keys_of_open_.pop_back();
  leave_array();
  return true;
}

bool StrictJsonReader::key(std::string& name) {
  if (++num_keys_ > limits_.max_keys)
    refuse(concat("JSON may hold at most ", limits_.max_keys, " keys"));
  if (!keys_of_open_.back().insert(name).second)
    refuse(concat("key ", quoted_name(name), " is there twice; keys of an object must differ"));
  last_key_ = name;
  on_key();
  return true;
}

bool StrictJsonReader::string(std::string& value) {
  on_string(value);
  return true;
}

bool StrictJsonReader::number_unsigned(uint64_t value) {
  on_unsigned(value);
  return true;
}

bool StrictJsonReader::number_integer(int64_t value) {
  on_integer(value);
  return true;
}

bool StrictJsonReader::number_float(double value, const std::string& digits) {
  on_float(value, digits);
  return true;
}

bool StrictJsonReader::boolean(bool value) {
  on_boolean(value);
  return true;
}

bool StrictJsonReader::null() {
  on_null();
  return true;
}

void StrictJsonReader::on_integer(int64_t value) {
  on_other(std::to_string(value));
}

void StrictJsonReader::on_float(double, const std::string& digits) {
  on_other(digits.substr(0, kMaxDigits));
}

void StrictJsonReader::on_boolean(bool value) {
  on_other(value ? "true" : "false");
}

void StrictJsonReader::on_null() {
  on_other("null");
}

void StrictJsonReader::on_other(const std::string&) {
  throw ContractError("a StrictJsonReader takes every kind of value or overrides on_other()");
}

bool StrictJsonReader::binary(nlohmann::json::binary_t&) {
  throw ContractError("JSON text cannot hold binary values");
}

bool StrictJsonReader::parse_error(size_t, const std::string&, const nlohmann::json::exception& e) {
  refuse("not valid JSON: " + cause_of(e));
}

}  // namespace t2r
