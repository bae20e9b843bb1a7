#include "base/log.h"

#include <fcntl.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <mutex>
#include <string_view>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/quoted_name.h"

namespace t2r::log {
namespace {

bool is_quiet_rank = false;

// Keeps the first lines until there is a file. The file stays open until the process ends.
class FileSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void open(const std::filesystem::path& file) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
    descriptor_ = open_regular_file(file, O_WRONLY | O_CREAT | O_APPEND);
    write(held_);
    held_.clear();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const std::string_view text(line.data(), line.size());
    if (descriptor_ >= 0) {
      write(text);
    } else if (held_.size() + text.size() <= kMaxHeldBytes) {
      held_ += text;
    }
  }
  void flush_() override {}

 private:
  static constexpr size_t kMaxHeldBytes = 1 << 16;

  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(descriptor_, text.data(), text.size());
      if (written < 0 && errno != EINTR) return;
      if (written > 0) text.remove_prefix(static_cast<size_t>(written));
    }
  }

  int descriptor_ = -1;
  std::string held_;
};

const std::shared_ptr<FileSink>& file_sink() {
  static const auto sink = std::make_shared<FileSink>();
  return sink;
}

void set_pattern(spdlog::logger& logger, const std::string& rank) {
  logger.set_pattern("%H:%M:%S " + rank + "%^%l%$ %v");
  file_sink()->set_pattern("%Y-%m-%d %H:%M:%S " + rank + "%l %v");
}

std::shared_ptr<spdlog::logger> make_logger() {
  auto logger = spdlog::stderr_color_mt("t2r");
  logger->sinks().push_back(file_sink());
  set_pattern(*logger, "");
  logger->flush_on(spdlog::level::debug);
  return logger;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = make_logger();
  return *instance;
}

}  // namespace

void set_rank(int rank, int world) {
  is_quiet_rank = rank != 0;
  if (world > 1) {
    set_pattern(logger(), "[" + std::to_string(rank) + "/" + std::to_string(world) + "] ");
  }
}

void set_level(Level level) {
  constexpr spdlog::level::level_enum kLevels[] = {
      spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};
  logger().set_level(kLevels[static_cast<int>(level)]);
}

void debug(const std::string& message) {
  if (!is_quiet_rank) logger().debug("{}", one_line(message));
}

void info(const std::string& message) {
  if (!is_quiet_rank) logger().info("{}", one_line(message));
}

void warning(const std::string& message) {
  logger().warn("{}", one_line(message));
}

void warning_of_first_rank(const std::string& message) {
  if (!is_quiet_rank) warning(message);
}

void error(const std::string& message) {
  logger().error("{}", one_line(message));
}

void also_to_file(const std::filesystem::path& file) {
  file_sink()->open(file);
}

void to_file_only(const std::string& message) {
  file_sink()->log(spdlog::details::log_msg("t2r", spdlog::level::info, one_line(message)));
}

}  // namespace t2r::log
