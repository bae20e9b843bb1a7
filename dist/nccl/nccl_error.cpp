#include "dist/nccl/nccl_error.h"

namespace t2r::dist {
namespace {

constexpr const char* kWhatToCheck =
    "look at the other ranks' messages first, then at nvidia-smi and dmesg on the host, at the "
    "room "
    "in /dev/shm, and, between hosts, at the network that NCCL_SOCKET_IFNAME names; "
    "NCCL_DEBUG=INFO makes NCCL say more";

}  // namespace

std::string to_string(const RankPlace& place) {
  return concat("rank ",
                place.rank,
                " (host ",
                place.host,
                ", GPU ",
                place.device,
                " at ",
                place.bus_id,
                ")");
}

std::string describe_nccl_failure(const std::string& call,
                                  const RankPlace& place,
                                  int code,
                                  const std::string& text,
                                  const std::string& last_error) {
  return concat(call,
                " failed on ",
                to_string(place),
                ": code ",
                code,
                ", ",
                text,
                last_error.empty() ? "" : concat(" (", last_error, ")"),
                "; ",
                kWhatToCheck);
}

std::string describe_nccl_hang(const std::string& call, const RankPlace& place, double seconds) {
  return concat(call,
                " on ",
                to_string(place),
                " did not end within ",
                seconds,
                " s: a rank is gone, hangs, or never came to the same operation; ",
                kWhatToCheck);
}

}  // namespace t2r::dist
