#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace t2r {

/// Exit codes of the t2r binary; 64..78 follow BSD sysexits where one fits.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 64,
  kBadData = 65,
  kInternal = 70,
  kHang = 71,
  kCannotWrite = 73,
  kNumericFailure = 74,
  kSavedRequeue = 75,
  kConfig = 78,
};

/// Base of every exception that t2r throws: a message for people and the exit code it ends with.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode exit_code() const { return code_; }

 private:
  ExitCode code_;
};

/// The command line is wrong: unknown sub-command, missing argument.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(ExitCode::kUsage, message) {}
};

/// Something the user can mend in the configuration. Says field, value, what is allowed.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message) : Error(ExitCode::kConfig, message) {}
};

/// Input that breaks a rule of its format. Says file, offset (when there is one) and rule.
class DataError : public Error {
 public:
  explicit DataError(const std::string& message) : Error(ExitCode::kBadData, message) {}
};

/// Input that is there and cannot be read now: an I/O error, no permission, a stale handle. It may
/// be whole, so nothing may be concluded from its content. Says file and cause.
class UnreadableError : public DataError {
 public:
  explicit UnreadableError(const std::string& message) : DataError(message) {}
};

/// Output that could not be written (disk full, no permission, folder in use). Says path and cause.
class WriteError : public Error {
 public:
  explicit WriteError(const std::string& message) : Error(ExitCode::kCannotWrite, message) {}
};

/// Losses or gradients that are not finite, more often than the run allows.
class NumericError : public Error {
 public:
  explicit NumericError(const std::string& message) : Error(ExitCode::kNumericFailure, message) {}
};

/// A GPU has no memory left. Says what it was for, if that is known, and what to try.
class GpuMemoryError : public Error {
 public:
  explicit GpuMemoryError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// A broken promise between two parts of t2r: always our bug.
class ContractError : public Error {
 public:
  explicit ContractError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// All arguments written one after another, as operator<< writes them.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

/// Throws ContractError(message) unless `condition` holds. Never compiled out.
inline void require(bool condition, const char* message) {
  if (!condition) throw ContractError(message);
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw ContractError(message);
}

}  // namespace t2r
