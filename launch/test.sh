#!/usr/bin/env bash
# Sets the machine up, builds t2r and runs its tests.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

usage() {
  cat <<EOF
Usage: launch/test.sh [--preset NAME] [CTEST_ARGUMENT...]

Runs launch/setup.sh, configures and builds build/NAME (default release; CMakePresets.json has the others) and runs
ctest there with the arguments that follow, e.g. -R Bucket. A second run builds nothing. Ends with ctest's code; no
test at all counts as a failure. T2R_JOBS sets how many compilers run at a time.
EOF
}

# Compilers at a time: one per core, and 1.5 GB of memory for each, which is what LibTorch's headers take.
num_jobs() {
  local by_memory limit cores
  cores=$(nproc)
  by_memory=$(awk '/^MemAvailable/ {print int($2 / 1.5e6)}' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [[ $limit =~ ^[0-9]+$ ]] && ((limit / 1500000000 < by_memory)); then by_memory=$((limit / 1500000000)); fi
  if ((by_memory < cores)); then cores=$by_memory; fi
  echo $((cores > 0 ? cores : 1))
}

# Configures when nothing is configured yet, and from scratch when setup.sh has chosen other libraries since.
configure() {
  local preset=$1 build=$2
  if [[ ! -e $build/build.ninja ]]; then
    cmake --preset "$preset"
  elif [[ $T2R_ROOT/.cache/t2r_env.sh -nt $build/build.ninja ]]; then
    cmake --fresh --preset "$preset"
  fi
}

main() {
  local preset=release build
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --preset)
      [[ -n ${2:-} ]] || t2r_fail 64 "--preset needs a name; see CMakePresets.json"
      preset=$2
      shift 2 ;;
  esac
  "$T2R_ROOT/launch/setup.sh"
  # shellcheck source=launch/env.sh
  source "$T2R_ROOT/launch/env.sh"
  cd "$T2R_ROOT"
  grep -q "\"name\": \"$preset\"" CMakePresets.json || t2r_fail 64 "$preset is not a preset of CMakePresets.json"
  build=build/$preset
  configure "$preset" "$build"
  cmake --build "$build" --parallel "${T2R_JOBS:-$(num_jobs)}"
  exec ctest --test-dir "$build" --output-on-failure --no-tests=error "$@"
}

main "$@"
