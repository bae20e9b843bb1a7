#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace t2r::log {
namespace {

bool is_quiet_rank = false;

std::shared_ptr<spdlog::logger> make_logger() {
  auto logger = spdlog::stderr_color_mt("t2r");
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
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
    logger().set_pattern("%H:%M:%S [" + std::to_string(rank) + "/" + std::to_string(world) +
                         "] %^%l%$ %v");
  }
}

void set_level(Level level) {
  constexpr spdlog::level::level_enum kLevels[] = {
      spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};
  logger().set_level(kLevels[static_cast<int>(level)]);
}

void debug(const std::string& message) {
  if (!is_quiet_rank) logger().debug("{}", message);
}

void info(const std::string& message) {
  if (!is_quiet_rank) logger().info("{}", message);
}

void warning(const std::string& message) {
  logger().warn("{}", message);
}

void warning_of_first_rank(const std::string& message) {
  if (!is_quiet_rank) warning(message);
}

void error(const std::string& message) {
  logger().error("{}", message);
}

}  // namespace t2r::log
