#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace t2r::launch {

/// Values of options as text, on the command line and in a TOML file. Each `read_value` replaces
/// `value` and returns "", or leaves it and returns what would be allowed.

std::string read_value(const std::string& text, std::string& value);

/// Decimal ("010" is 10, "0x10" nothing), with an optional exponent and an optional K, M, G, B or T
/// for thousands and their powers, as long as a whole number results: 500, 1e8, 1.5M, 100_000.
std::string read_value(const std::string& text, int64_t& value);

/// Decimal, finite.
std::string read_value(const std::string& text, double& value);

/// true or false, also yes, no, on, off, 1, 0.
std::string read_value(const std::string& text, bool& value);

/// A time: minutes, or with units (90s, 30m, 2h, 1h30m, 1d). `value` is in minutes.
std::string read_minutes(const std::string& text, double& value);

/// A list's elements; integers may stand in one text, with commas between them.
std::string read_value(const std::vector<std::string>& texts, std::vector<std::string>& value);
std::string read_value(const std::vector<std::string>& texts, std::vector<int64_t>& value);

/// As TOML, the shortest text that reads back as the same value.
std::string to_toml(const std::string& value);
std::string to_toml(int64_t value);
std::string to_toml(double value);
std::string to_toml(bool value);
std::string to_toml(const std::vector<std::string>& values);
std::string to_toml(const std::vector<int64_t>& values);

/// The shortest text that gives the same float64, as checkpoints' facts have it.
std::string fact_text(double value);

/// a * b * ... of sizes >= 0 that a user gave.
/// @throws ConfigError  "WHAT is more than ...", if it does not fit 63 bits
int64_t checked_product(const std::string& what, const std::vector<int64_t>& factors);

}  // namespace t2r::launch
