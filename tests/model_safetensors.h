#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/files/safetensors.h"
#include "tests/support.h"

namespace t2r::model {

/// Length prefix + header as given + data.
inline std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

inline std::string refusal_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kBadData);
    return error.what();
  }
  return "accepted";
}

inline SafetensorsContent parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "x.safetensors");
}
/// The views point into the file's bytes, which must outlive them.
SafetensorsContent parse(std::string&&) = delete;

inline std::string refusal_of_file(const std::string& file) {
  return refusal_of([&] { parse(file); });
}

inline std::string refusal_of_header(const std::string& header, const std::string& data = "") {
  return refusal_of_file(file_of(header, data));
}

/// Header of one tensor "a" with the given fields.
inline std::string one_tensor(const std::string& dtype,
                              const std::string& shape,
                              const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

inline TensorView view_of(const std::string& name,
                          DType dtype,
                          std::vector<int64_t> shape,
                          const std::string& bytes) {
  return {.name = name,
          .dtype = dtype,
          .shape = std::move(shape),
          .data = reinterpret_cast<const std::byte*>(bytes.data()),
          .num_bytes = bytes.size()};
}

inline std::string bytes_of(const TensorView& tensor) {
  return {reinterpret_cast<const char*>(tensor.data), tensor.num_bytes};
}

/// Every write() past `bytes` fails, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit = {bytes, previous_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }

 private:
  rlimit previous_ = {};
  void (*previous_handler_)(int) = nullptr;
};

}  // namespace t2r::model
