#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace t2r {

/// How much JSON is believed.
struct JsonLimits {
  size_t max_depth;  ///< open objects and arrays at once
  size_t max_keys;   ///< keys of all objects together
};

/// Reads untrusted JSON event by event and refuses what a parser usually lets pass.
///
/// Refused: duplicate keys in any object, NUL bytes, ill-formed UTF-8, text after the value,
/// nesting or numbers of keys over the limits. A subclass says in its hooks what may stand where;
/// nothing is kept but what the hooks keep. Include from .cpp files only.
class StrictJsonReader : private nlohmann::json_sax<nlohmann::json> {
 public:
  using Limits = JsonLimits;

  /// @param file        name for messages
  /// @param first_byte  offset in the file of the text's first byte, for messages
  StrictJsonReader(std::string file, uint64_t first_byte, Limits limits)
      : file_(std::move(file)), first_byte_(first_byte), limits_(limits) {}
  ~StrictJsonReader() override = default;

  /// Reads one value that fills `text`; for use once.
  /// @throws DataError  names file, byte and rule
  void read(std::string_view text);

 protected:
  /// @throws DataError  always; the byte is the last that was read
  [[noreturn]] void refuse(const std::string& rule) const;

  /// The key last read in the innermost object.
  const std::string& last_key() const { return last_key_; }
  size_t depth() const { return keys_of_open_.size(); }

  // Hooks: depth() counts the object or array itself on entry and no longer on leaving.
  virtual void enter_object() = 0;
  virtual void leave_object() = 0;
  virtual void enter_array() = 0;
  virtual void leave_array() = 0;
  virtual void on_key() = 0;
  virtual void on_string(std::string& value) = 0;
  virtual void on_unsigned(uint64_t value) = 0;
  // The rest: a reader that wants none of these says so in on_other(), with the value's text.
  virtual void on_integer(int64_t value);  ///< below zero
  virtual void on_float(double value, const std::string& digits);
  virtual void on_boolean(bool value);
  virtual void on_null();
  virtual void on_other(const std::string& value);

 private:
  bool start_object(size_t) final;
  bool end_object() final;
  bool start_array(size_t) final;
  bool end_array() final;
  bool key(std::string& name) final;
  bool string(std::string& value) final;
  bool number_unsigned(uint64_t value) final;
  bool number_integer(int64_t value) final;
  bool number_float(double value, const std::string& digits) final;
  bool boolean(bool value) final;
  bool null() final;
  bool binary(nlohmann::json::binary_t&) final;
  bool parse_error(size_t position,
                   const std::string& token,
                   const nlohmann::json::exception& error) final;
  void open();

  std::string file_;
  uint64_t first_byte_;
  Limits limits_;
  uint64_t num_read_ = 0;
  size_t num_keys_ = 0;
  std::vector<std::set<std::string>> keys_of_open_;
  std::string last_key_;
};

}  // namespace t2r
