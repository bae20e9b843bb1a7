#!/usr/bin/env bash
# Runs all GPU tests and benchmarks of a build, also on a machine without a network or a compiler.
set -euo pipefail

usage() {
  cat <<EOF
Usage: launch/gpu_check.sh BUILD [--no-bench]
       launch/gpu_check.sh --pack BUILD DIR

The first runs, on a machine with a GPU, every GPU test of BUILD (a build folder, e.g. build/gpu, or a packed one), on all
kernels that the GPU can run, loads the operators into Python, and prints 't2r bench attention'. It ends with 0 if all tests
passed. The second copies what that needs, stripped, to DIR (about 20 MB): take DIR and this script to a machine that has only
python3 with the same version of torch.
EOF
}

fail() {
  echo "gpu_check.sh: ${*:2}" >&2
  exit "$1"
}

# find_file BUILD NAME: where a build folder or a packed one has it.
find_file() {
  local file
  for file in "$1/$2" "$1/tests/$2" "$1/launch/$2" "$1/model/$2"; do
    if [[ -e $file ]]; then
      echo "$file"
      return
    fi
  done
  fail 1 "$1 has no $2; build it with launch/build.sh gpu"
}

pack() {
  local build=$1 to=$2 name script
  script=$(dirname "${BASH_SOURCE[0]}")/../tests/load_from_python.py
  mkdir -p "$to"
  for name in t2r t2r_gpu t2r_gpu_tests t2r_gpu_bench libt2r_ops.so; do
    strip -o "$to/$name" "$(find_file "$build" "$name")"
  done
  cp "$script" "$(dirname "$script")"/cli/{support,gpu_training_test}.py "$to/"
  # What the programs need from the distribution goes along; LibTorch, CUDA and the compiler's runtime are on the other machine.
  ldd "$to"/t2r* |
    awk '$3 ~ "^/(usr/)?lib" && $3 !~ "/lib(c|m|dl|rt|pthread|stdc\\+\\+|gcc_s|gomp|cuda[a-z]*|nv[a-zA-Z-]*)[.]so" {print $3}' |
    sort -u | xargs -r cp -Lt "$to"
  du -sh "$to"
}

main() {
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --pack)
      [[ $# == 3 ]] || fail 64 "--pack needs BUILD and DIR"
      pack "$2" "$3"
      exit 0 ;;
    "" | -*) usage >&2; exit 64 ;;
  esac
  local build=$1 kernels torch tests bench library script packed=''
  tests=$(find_file "$build" t2r_gpu_tests)
  bench=$(find_file "$build" t2r_gpu_bench)
  library=$(find_file "$build" libt2r_ops.so)
  script=$build/load_from_python.py
  [[ -e $script ]] || script=$(dirname "${BASH_SOURCE[0]}")/../tests/load_from_python.py
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || fail 1 "no GPU here: nvidia-smi does not run"
  [[ ! -e $build/load_from_python.py ]] || packed=$build  # libraries that were packed
  torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') || fail 1 "python3 has no torch"
  LD_LIBRARY_PATH=${packed:+$packed:}$(dirname "$library"):$torch/lib:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
  # A symbolised trace for every refused input would take half a minute each.
  export LD_LIBRARY_PATH TORCH_SHOW_CPP_STACKTRACES=0 TORCH_DISABLE_ADDR2LINE=1
  local failed=0
  for kernels in default sm80; do
    echo "== GPU tests, T2R_CUDA_KERNELS=$kernels"
    T2R_CUDA_KERNELS=$kernels "$tests" --gtest_brief=1 || failed=1
  done
  echo "== the operators in Python"
  python3 "$script" "$library" || failed=1
  if [[ ${2:-} != --no-bench ]]; then
    echo "== t2r bench attention"
    "$bench" || failed=1
  fi
  exit "$failed"
}

main "$@"
