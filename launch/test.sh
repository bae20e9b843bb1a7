#!/usr/bin/env bash
# Sets the machine up, builds t2r and runs its tests.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

usage() {
  cat <<EOF
Usage: launch/test.sh [--preset NAME] [CTEST_ARGUMENT...]

Runs launch/build.sh NAME (default release), then ctest there with the arguments that follow, e.g.
-R Bucket. Ends with ctest's code; no test at all counts as a failure. Tests that need a GPU (label
gpu) or two (multi_gpu) are named and left out where there are fewer.
EOF
}

main() {
  local preset=release
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --preset)
      [[ -n ${2:-} ]] || t2r_fail 64 "--preset needs a name; see CMakePresets.json"
      preset=$2
      shift 2 ;;
  esac
  "$T2R_ROOT/launch/build.sh" "$preset"
  # shellcheck source=launch/env.sh
  source "$T2R_ROOT/launch/env.sh"
  cd "$T2R_ROOT"
  local num_gpus missing=''
  num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ') || num_gpus=0
  case $num_gpus in
    0) missing=gpu ;;  # part of both labels
    1) missing=multi_gpu ;;
  esac
  if [[ -n $missing ]]; then
    ctest --test-dir "build/$preset" -N -L $missing |
      sed -n "s/^  Test *#[0-9]*: /test.sh: not run, $num_gpus GPUs here: /p"
    set -- -LE $missing "$@"
  fi
  exec ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
}

main "$@"
