#!/usr/bin/env bash
# Makes a machine ready to build t2r: distribution packages, LibTorch, a CUDA toolkit. Installs only
# what is missing.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

readonly REQUIREMENTS=$T2R_ROOT/launch/requirements.txt
readonly ENV_FILE=$T2R_ROOT/.cache/t2r_env.sh
readonly OLDEST_TORCH=2.4

# Package of Debian 12 and Ubuntu 24.04, and how to see that it is there from elsewhere (module
# load, conda, a prefix).
readonly PACKAGES=(
  "g++ cxx20" "pkg-config command:pkg-config"
  "libopenmpi-dev command:mpicc" "openmpi-bin command:mpirun"
  "libhdf5-dev module:hdf5,command:h5cc,command:h5pcc,header:hdf5.h"
  "nlohmann-json3-dev header:nlohmann/json.hpp" "libspdlog-dev header:spdlog/spdlog.h"
  "libsentencepiece-dev module:sentencepiece" "libpcre2-dev module:libpcre2-8"
  "libutf8proc-dev module:libutf8proc" "libxxhash-dev module:libxxhash"
  "libtomlplusplus-dev module:tomlplusplus" "libgtest-dev header:gtest/gtest.h"
  "libgmock-dev header:gmock/gmock.h" "libbenchmark-dev header:benchmark/benchmark.h"
  "ccache optional" "clang-format-14 optional" "git command:git" "xz-utils command:xz"
)
# Needed unless LibTorch is the project's own environment, which brings newer ones.
readonly BUILD_TOOLS=("cmake cmake325" "ninja-build command:ninja")
# Needed only to make that environment.
readonly PYTHON_TOOLS=("python3-venv ensurepip")

usage() {
  cat <<EOF
Usage: launch/setup.sh [--help]

Makes this machine ready to build t2r and writes .cache/t2r_env.sh, which launch/env.sh reads. What
is there is used; a second run changes nothing.
  packages   as root or with passwordless sudo on Debian and Ubuntu: apt-get install of what is
             missing. Elsewhere what is missing is named, and setup.sh ends with 1
  LibTorch   >= $OLDEST_TORCH from Torch_DIR, CMAKE_PREFIX_PATH or python3's torch, with a CUDA
             toolkit of its version where it was built with CUDA. Without one, the wheels of
             launch/requirements.txt (CUDA compiler, CMake and Ninja included) in
             \${XDG_CACHE_HOME:-~/.cache}/t2r/venv-*, once per machine: 2.6 GB to download, 5 GB on
             disk, a few minutes
EOF
}

# Leaves out of colon-separated lists what an earlier run of this script put there, so that it
# decides the same again.
forget_own_environment() {
  local name list=() entry kept
  for name in PATH CMAKE_PREFIX_PATH CUDA_HOME CUDACXX CUDAToolkit_ROOT; do
    [[ -n ${!name:-} ]] || continue
    kept=""
    IFS=: read -ra list <<<"${!name}"
    for entry in "${list[@]}"; do
      [[ $entry == "$T2R_CACHE"/venv-* ]] || kept+=${kept:+:}$entry
    done
    if [[ -n $kept ]]; then export "$name=$kept"; else unset "$name"; fi
  done
}

# header_is_there NAME: the compiler finds it, also below the prefixes of CMAKE_PREFIX_PATH.
header_is_there() {
  local prefixes=() includes=() prefix
  IFS=: read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}:${HDF5_ROOT:-}:${HDF5_DIR:-}:${CONDA_PREFIX:-}"
  for prefix in "${prefixes[@]}"; do [[ -z $prefix ]] || includes+=("-I$prefix/include"); done
  printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" |
    "${CXX:-c++}" "${includes[@]}" -x c++ -E - >/dev/null 2>&1
}

# Whether the compiler knows C++20.
has_cxx20() {
  echo '#include <concepts>' | "${CXX:-c++}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null
}

# Whether CMake is there, and new enough.
has_cmake325() {
  version_is_at_least "$(cmake --version 2>/dev/null | awk 'NR==1{print $3}')" 3.25
}

# probe RULE[,RULE...]: whether one of the rules holds.
probe() {
  local rule
  for rule in ${1//,/ }; do
    case $rule in
      command:*) command -v "${rule#*:}" >/dev/null && return ;;
      header:*) header_is_there "${rule#*:}" && return ;;
      module:*) pkg-config --exists "${rule#*:}" 2>/dev/null && return ;;
      cxx20) has_cxx20 && return ;;
      cmake325) has_cmake325 && return ;;
      ensurepip) python3 -c 'import ensurepip, venv' 2>/dev/null && return ;;
      optional) ((${#INSTALL[@]} == 0)) && return ;;
    esac
  done
  return 1
}

# version_is_at_least HAVE WANT
version_is_at_least() { [[ -n $1 && $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# The command that installs packages here, in INSTALL; empty if there is none.
find_installer() {
  INSTALL=()
  command -v apt-get >/dev/null || return 0
  if ((EUID == 0)); then
    INSTALL=(env DEBIAN_FRONTEND=noninteractive apt-get)
  elif sudo -n true 2>/dev/null; then
    INSTALL=(sudo -n env DEBIAN_FRONTEND=noninteractive apt-get)
  fi
}

# install_packages "PACKAGE PROBE"...: installs what neither dpkg nor the probe finds.
install_packages() {
  local installed="" line package missing=()
  if command -v dpkg-query >/dev/null; then
    installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null |
      sed -n 's/^ii *//p')
  fi
  for line in "$@"; do
    package=${line%% *}
    grep -qxF "$package" <<<"$installed" || probe "${line#* }" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((${#INSTALL[@]} == 0)); then
    t2r_fail 1 "missing, by their names in Debian and Ubuntu: ${missing[*]}. Without root" \
      "setup.sh installs none: ask for them, or make them visible (module load, PATH," \
      "PKG_CONFIG_PATH, CPATH, CMAKE_PREFIX_PATH)"
  fi
  t2r_say "installing ${#missing[@]} distribution packages (up to 150 MB, about a minute):" \
    "${missing[*]}"
  "${INSTALL[@]}" update -qq >&2 || t2r_fail 1 "apt-get update failed; see its message above"
  "${INSTALL[@]}" install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
    t2r_fail 1 "apt-get install failed; see its message above (Ubuntu: is 'universe' enabled?)"
}

# find_nvcc MAJOR: path of a CUDA compiler of that version, empty if there is none.
find_nvcc() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" \
    /usr/local/cuda/bin/nvcc; do
    if [[ -x $nvcc ]] && "$nvcc" --version 2>/dev/null | grep -q "release $1\\."; then
      echo "$nvcc"
      return
    fi
  done
}

# CUDA version that the LibTorch in folder $1 was built with; empty for a CPU build.
cuda_of_torch() {
  if [[ -e $1/version.py ]]; then
    sed -n "s/^cuda.*= *'\([0-9.]*\)'.*/\1/p" "$1/version.py"
  elif [[ -e $1/lib/libtorch_cuda.so ]]; then
    sed -n 's/.*+cu\([0-9]*\)\([0-9]\)$/\1.\2/p' "$1/build-version" 2>/dev/null || true
  fi
}

# why_not FOLDER: the reason why the LibTorch there does not serve; empty if it does.
why_not() {
  local config=$1/share/cmake/Torch/TorchConfig version cuda
  version=$(sed -n 's/^set(PACKAGE_VERSION "\([^"]*\)").*/\1/p' "${config}Version.cmake")
  cuda=$(cuda_of_torch "$1")
  if ! version_is_at_least "$version" $OLDEST_TORCH; then
    echo "it is $version, older than $OLDEST_TORCH"
  elif grep -q 'GLIBCXX_USE_CXX11_ABI=0' "$config.cmake"; then
    echo "it has the C++ ABI of before GCC 5, which no distribution's libraries have"
  elif [[ -n $cuda && -z $(find_nvcc "${cuda%%.*}") ]]; then
    echo "it needs a CUDA toolkit ${cuda%%.*}.x to be built against, and no nvcc of that version" \
      "is on PATH or in CUDA_HOME"
  fi
}

# Looks for a LibTorch that is there; sets TORCH (its folder, empty if none serves).
find_torch() {
  local prefixes=() prefix folder reason
  TORCH=""
  if [[ -n ${Torch_DIR:-} ]]; then
    folder=$(realpath -m "$Torch_DIR/../../..")
    [[ -e $folder/share/cmake/Torch/TorchConfigVersion.cmake ]] ||
      t2r_fail 1 "Torch_DIR=$Torch_DIR: share/cmake/Torch/TorchConfigVersion.cmake of a LibTorch" \
        "is expected there"
    reason=$(why_not "$folder")
    [[ -z $reason ]] ||
      t2r_fail 1 "Torch_DIR=$Torch_DIR: $reason. Unset Torch_DIR to let setup.sh install one"
    TORCH=$folder
    return
  fi
  IFS=: read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}"
  folder=$(t2r_torch_of python3)
  for prefix in "${prefixes[@]/%\/share\/cmake/}" "$folder"; do
    [[ -n $prefix && -e $prefix/share/cmake/Torch/TorchConfigVersion.cmake ]] || continue
    reason=$(why_not "$prefix")
    if [[ -z $reason ]]; then
      TORCH=$prefix
      return
    fi
    t2r_say "LibTorch in $prefix is not used: $reason"
  done
}

# CUDA's wheels as a toolkit: the folder and library names that FindCUDAToolkit looks for. Links to
# the environment's build tools alone, so that PATH gains no second python3 and pip.
finish_venv() {
  local site library tool
  site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  ln -sfn lib "$site/nvidia/cu13/lib64"
  for library in "$site"/nvidia/*/lib/lib*.so.*; do
    [[ -e ${library%%.so.*}.so ]] || ln -s "$(basename "$library")" "${library%%.so.*}.so"
  done
  mkdir -p "$1/t2r_bin"
  for tool in cmake ctest cpack ninja; do ln -sf "../bin/$tool" "$1/t2r_bin/$tool"; done
  ln -sfn "$site/torch" "$1/t2r_torch"
  ln -sfn "$site/nvidia/cu13" "$1/t2r_cuda"
}

# The project's own environment, in VENV.
make_torch_venv() {
  VENV=$T2R_CACHE/venv-$(sha256sum "$REQUIREMENTS" | cut -c1-12)
  t2r_venv_is_complete "$VENV" && return
  install_packages "${PYTHON_TOOLS[@]}"
  local free_gb
  mkdir -p "$T2R_CACHE"
  free_gb=$(df --output=avail -BG "$T2R_CACHE" | tail -n 1 | tr -dc 0-9)
  ((free_gb >= 8)) ||
    t2r_fail 1 "$T2R_CACHE has $free_gb GB free; LibTorch needs 8 while it is installed." \
      "Set XDG_CACHE_HOME to a folder with more"
  t2r_say "installing LibTorch 2.11 with its CUDA libraries, CMake and Ninja in $VENV:" \
    "2.6 GB to download, 5 GB on disk, 2 minutes on a quick network"
  t2r_make_venv "$VENV" finish_venv -r "$REQUIREMENTS"
}

# The Python that has the LibTorch in folder $1, empty if none has.
python_of_torch() {
  local python
  for python in python3 "$1/../../../../bin/python3" "${T2R_PYTHON:-}"; do
    python=$(command -v "$python" 2>/dev/null) || continue
    if [[ $(t2r_torch_of "$python") -ef $1 ]]; then
      realpath -s "$python"
      return
    fi
  done
}

# Lines of the environment file for what was chosen.
# shellcheck disable=SC2016  # what reads the file expands PATH and CMAKE_PREFIX_PATH
environment_lines() {
  local cuda_home=$1 nvcc=$2 python=$3
  echo "# Written by launch/setup.sh; read by launch/env.sh."
  if [[ -n $VENV ]]; then printf 'PATH=%q:$PATH\n' "$VENV/t2r_bin"; fi
  if [[ -n $nvcc ]]; then
    printf 'PATH=%q:$PATH\nexport CUDACXX=%q\n' "$(dirname "$nvcc")" "$nvcc"
  fi
  if [[ -n $cuda_home ]]; then
    printf 'export CUDA_HOME=%q CUDAToolkit_ROOT=%q\n' "$cuda_home" "$cuda_home"
  fi
  printf 'export PATH T2R_PYTHON=%q\n' "$python"
  printf 'export CMAKE_PREFIX_PATH=%q${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}\n' "$TORCH"
}

# Rewritten only when it changes: launch/test.sh configures anew when it is newer than the build.
write_environment() {
  local cuda nvcc="" cuda_home="" python lines
  cuda=$(cuda_of_torch "$TORCH")
  [[ -z $cuda ]] || nvcc=$(find_nvcc "${cuda%%.*}")
  if [[ -n $cuda && -z $nvcc && -n $VENV ]]; then
    cuda_home=$(realpath "$VENV/t2r_cuda")
    nvcc=$cuda_home/bin/nvcc
  elif [[ -n $nvcc && -e $(dirname "$nvcc")/../include/cuda_runtime.h ]]; then
    cuda_home=$(cd "$(dirname "$nvcc")/.." && pwd)
  fi
  if [[ -n $VENV ]]; then python=$VENV/bin/python; else python=$(python_of_torch "$TORCH"); fi
  lines=$(environment_lines "$cuda_home" "$nvcc" "$python")
  if [[ ! -e $ENV_FILE || $(<"$ENV_FILE") != "$lines" ]]; then
    mkdir -p "$(dirname "$ENV_FILE")"
    echo "$lines" >"$ENV_FILE.$$"
    mv "$ENV_FILE.$$" "$ENV_FILE"
  fi
  t2r_say "ready: LibTorch in $TORCH, ${nvcc:-no CUDA}; source launch/env.sh to use it"
}

main() {
  case ${1:-} in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) t2r_fail 64 "unknown argument $1; see --help" ;;
  esac
  forget_own_environment
  find_installer
  install_packages "${PACKAGES[@]}"
  VENV=""
  find_torch
  if [[ -n $TORCH ]]; then
    install_packages "${BUILD_TOOLS[@]}"
  else
    make_torch_venv
    TORCH=$(realpath "$VENV/t2r_torch")
  fi
  write_environment
}

main "$@"
