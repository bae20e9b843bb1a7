#!/usr/bin/env bash
# Sets the machine up and builds t2r.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

usage() {
  cat <<EOF
Usage: launch/build.sh [PRESET [TARGET...]]

Runs launch/setup.sh, configures and builds build/PRESET (default release; CMakePresets.json has the
others), all targets or those named, e.g. t2r. A second run builds nothing. T2R_JOBS sets how many
compilers run at a time.
EOF
}

# Compilers at a time: one per core, and 1.5 GB of memory for each, which is what LibTorch's headers
# take.
num_jobs() {
  local by_memory limit cores
  cores=$(nproc)
  by_memory=$(awk '/^MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit =~ ^[0-9]+$ ]] && ((limit / 1500000000 < by_memory)); then
    by_memory=$((limit / 1500000000))
  fi
  if ((by_memory < cores)); then cores=$by_memory; fi
  echo $((cores > 0 ? cores : 1))
}

# Configures when nothing is configured yet, and from scratch when setup.sh has chosen other
# libraries since.
configure() {
  local preset=$1 build=$2
  if [[ ! -e $build/build.ninja ]]; then
    cmake --preset "$preset"
  elif [[ $T2R_ROOT/.cache/t2r_env.sh -nt $build/build.ninja ]]; then
    cmake --fresh --preset "$preset"
  fi
}

main() {
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
  esac
  local preset=${1:-release}
  shift || true
  "$T2R_ROOT/launch/setup.sh"
  # shellcheck source=launch/env.sh
  source "$T2R_ROOT/launch/env.sh"
  cd "$T2R_ROOT"
  grep -q "\"name\": \"$preset\"" CMakePresets.json ||
    t2r_fail 64 "$preset is not a preset of CMakePresets.json"
  configure "$preset" "build/$preset"
  cmake --build "build/$preset" --parallel "${T2R_JOBS:-$(num_jobs)}" ${1:+--target "$@"}
}

main "$@"
