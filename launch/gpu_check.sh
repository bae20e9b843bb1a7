#!/usr/bin/env bash
# Runs all GPU tests and benchmarks of a build, also on a machine without a network or a compiler.
set -euo pipefail
readonly PYTHON=${T2R_PYTHON:-python3}  # launch/env.sh says which has torch

usage() {
  cat <<EOF
Usage: launch/gpu_check.sh BUILD [--no-bench]
       launch/gpu_check.sh --pack BUILD DIR

The first runs, on a machine with a GPU, every GPU test of BUILD (a build folder, e.g. build/gpu, or
a packed one), on all kernels that the GPU can run, loads the operators into Python, tests NCCL on
one rank and, where mpirun is, on two that share a GPU (which must be refused) and on as many as
there are GPUs (at most 4), and prints 't2r bench attention'. It ends with 0 if all tests passed.
The second copies what that needs, stripped, to DIR (about 90 MB): take DIR and this script to a
machine that has only python3 with the same version of torch.
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

# pack_mpi DIR: mpirun, and the components that Open MPI loads by name, as far as the ranks of one
# machine without MPI need them.
pack_mpi() {
  local to=$1 folder name
  folder=$(ompi_info --parsable --path pkglibdir | cut -d: -f3-) ||
    fail 1 "ompi_info, which openmpi-bin brings, is missing"
  mkdir -p "$to/openmpi/components" "$to/openmpi/bin" "$to/openmpi/share"
  cp -L "$(command -v orterun)" "$to/openmpi/bin/mpirun"
  cp -r "$(ompi_info --parsable --path pkgdatadir | cut -d: -f3-)" "$to/openmpi/share/openmpi"
  # Open MPI 5 has most of them built in.
  for name in allocator_ bml_ btl_{self,sm,tcp,vader} coll_{basic,libnbc,self,sm,tuned} dfs_ \
    errmgr_ ess_{env,hnp,pmi,singleton} filem_ grpcomm_ iof_ mpool_ odls_ oob_ op_ osc_{rdma,sm} \
    plm_{isolated,rsh} pmix_ pml_ob1 ras_simulator rcache_ reachable_ regx_ rmaps_ rml_ routed_ \
    rtc_ schizo_{ompi,orte} shmem_ state_; do
    find "$folder" -name "mca_$name*.so" -exec cp -t "$to/openmpi/components" {} +
  done
}

# libraries_of DIR FIND_RULE...: what these files need from the distribution; not LibTorch's, CUDA's
# and the compiler's runtime.
libraries_of() {
  local runtime='/lib(c|m|dl|rt|pthread|stdc[+][+]|gcc_s|gomp|cuda[a-z]*|nv[a-zA-Z-]*)[.]so'
  find "$1" '(' "${@:2}" ')' -exec ldd {} + |
    awk -v runtime="$runtime" '$3 ~ "^/(usr/)?lib" && $3 !~ runtime {print $3}' | sort -u
}

pack() {
  local build=$1 to=$2 name script
  script=$(dirname "${BASH_SOURCE[0]}")/../tests/load_from_python.py
  mkdir -p "$to"
  for name in t2r t2r_gpu t2r_gpu_tests t2r_gpu_bench t2r_dist_nccl_tests libt2r_ops.so; do
    strip -o "$to/$name" "$(find_file "$build" "$name")"
  done
  cp "$script" "$(dirname "$script")"/cli/{support,gpu_support}.py "$to/"
  cp "$(dirname "$script")"/cli/gpu_{training,generation,ranks}_test.py "$to/"
  # What the programs need from the distribution goes along.
  pack_mpi "$to"
  libraries_of "$to" -name 't2r*' | xargs -r cp -Lt "$to"
  # Those of MPI lie apart: a machine that has MPI must not see two.
  mkdir -p "$to/openmpi/lib"
  libraries_of "$to" -name 'mca_*.so' -o -name mpirun -o -name t2r |
    grep -E '/lib(mpi|open-|pmix|event|hwloc|mca|munge|nl-)' | xargs cp -Lt "$to/openmpi/lib"
  rm -f "$to"/lib{mpi,open-,pmix,event,hwloc,mca,munge,nl-}*
  du -sh "$to"
}

# check_nccl TESTS: on one rank, on two with one GPU, on one rank per GPU. Ends with 0 if all
# passed.
check_nccl() {
  local tests=$1 failed=0 num_gpus num_ranks
  num_gpus=$(nvidia-smi --list-gpus | grep -c '^GPU ')
  num_ranks=$((num_gpus < 4 ? num_gpus : 4))
  echo "== NCCL, 1 rank"
  "$tests" --gtest_brief=1 || failed=1
  if ! command -v mpirun >/dev/null; then
    echo "== NCCL, more ranks: not run, no mpirun here"
    return "$failed"
  fi
  local start=(mpirun --oversubscribe --bind-to none -x LD_LIBRARY_PATH)
  echo "== NCCL, 2 ranks that share a GPU"
  "${start[@]}" -n 2 "$tests" --gtest_brief=1 --gtest_filter='NcclRefusal.*' || failed=1
  if ((num_ranks > 1)); then
    echo "== NCCL, $num_ranks ranks"
    "${start[@]}" -n "$num_ranks" "$tests" --gtest_brief=1 || failed=1
  else
    echo "== NCCL, more ranks: not run, 1 GPU here"
  fi
  return "$failed"
}

# check_commands BUILD: the tests of `t2r train` and `t2r generate` on GPUs. Ends with 0 if all
# passed.
check_commands() {
  local folder=$1 subject failed=0
  [[ -e $folder/gpu_training_test.py ]] ||
    folder=$(dirname "${BASH_SOURCE[0]}")/../tests/cli
  export T2R_SOURCE_DIR=$PWD PYTHONDONTWRITEBYTECODE=1
  T2R_BINARY=$(realpath "$(find_file "$1" t2r)")
  export T2R_BINARY
  for subject in training generation ranks; do
    "$PYTHON" "$folder/gpu_${subject}_test.py" || failed=1
  done
  return "$failed"
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
  [[ $# == 1 || "$#,${2:-}" == 2,--no-bench ]] || fail 64 "unknown arguments ${*:2}; see --help"
  local build=$1 kernels torch tests nccl_tests bench library script packed=''
  tests=$(find_file "$build" t2r_gpu_tests)
  nccl_tests=$(find_file "$build" t2r_dist_nccl_tests)
  bench=$(find_file "$build" t2r_gpu_bench)
  library=$(find_file "$build" libt2r_ops.so)
  script=$build/load_from_python.py
  [[ -e $script ]] || script=$(dirname "${BASH_SOURCE[0]}")/../tests/load_from_python.py
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader ||
    fail 1 "no GPU here: nvidia-smi does not run"
  [[ ! -e $build/load_from_python.py ]] || packed=$build  # libraries that were packed
  torch=$("$PYTHON" -c 'import os, torch; print(os.path.dirname(torch.__file__))') ||
    fail 1 "$PYTHON has no torch"
  LD_LIBRARY_PATH=$torch/lib:$torch/../nvidia/nccl/lib:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
  LD_LIBRARY_PATH=${packed:+$packed:}$(dirname "$library"):$LD_LIBRARY_PATH
  # A symbolised trace for every refused input would take half a minute each.
  export LD_LIBRARY_PATH TORCH_SHOW_CPP_STACKTRACES=0 TORCH_DISABLE_ADDR2LINE=1 OMP_NUM_THREADS=1
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  if [[ -n $packed ]] && ! command -v mpirun >/dev/null; then
    local mpi
    mpi=$(realpath "$packed")/openmpi
    export PATH=$mpi/bin:$PATH LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$mpi/lib OPAL_PREFIX=$mpi
    export OMPI_MCA_mca_base_component_path=$mpi/components OMPI_MCA_plm=isolated \
      OMPI_MCA_ess_singleton_isolated=1
  fi
  local failed=0
  for kernels in default sm80 sm86; do
    echo "== GPU tests, T2R_CUDA_KERNELS=$kernels"
    T2R_CUDA_KERNELS=$kernels "$tests" --gtest_brief=1 || failed=1
  done
  echo "== the operators in Python"
  "$PYTHON" "$script" "$library" || failed=1
  check_nccl "$nccl_tests" || failed=1
  echo "== training and generation, as a user runs them"
  check_commands "$build" || failed=1
  if [[ ${2:-} != --no-bench ]]; then
    for kind in causal decode cross; do
      echo "== t2r bench attention --kind $kind"
      "$bench" --kind "$kind" || failed=1
    done
  fi
  exit "$failed"
}

main "$@"
