# shellcheck shell=bash
# Tests of the scripts in launch/, data/ and .ci/: what they say, what they end with, what they
# leave behind. They need no network and write only below a temporary folder. T2R_PYTHON is a Python
# with numpy (launch/env.sh sets it). Sourced by the *_test.sh beside it.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${T2R_PYTHON:-$(source "$ROOT/launch/env.sh" && echo "${T2R_PYTHON:-python3}")}
TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
export XDG_CACHE_HOME=$TMP/cache HOME=$TMP/home
mkdir -p "$TMP/cache" "$TMP/home"
unset Torch_DIR CMAKE_PREFIX_PATH CUDA_HOME CUDACXX CUDAToolkit_ROOT
unset T2R_JOBS T2R_WIKITEXT_URL T2R_ROOT

# fail TEXT...: says so with the test's name.
fail() {
  local name
  for name in "${FUNCNAME[@]}"; do
    if [[ $name == [A-Z]* ]]; then break; fi
  done
  echo "  $name: $*"
  return 1
}

# expect CODE TEXT COMMAND...: the command ends with CODE and says TEXT (an extended regular
# expression).
expect() {
  local want=$1 text=$2 code=0
  shift 2
  OUTPUT=$("$@" 2>&1) || code=$?
  [[ $code == "$want" ]] || fail "ended with $code instead of $want: $* -> $OUTPUT" || return 1
  grep -qE -- "$text" <<<"$OUTPUT" || fail "did not say '$text': $* -> $OUTPUT"
}

# A root of its own with the scripts, so that no test writes to the project's .cache, build, corpora
# or models.
make_root() {
  mkdir -p "$1"
  cp -r "$ROOT/launch" "$ROOT/data" "$ROOT/.ci" "$1/"
}

# make_torch FOLDER VERSION [CUDA]: what setup.sh looks at in a LibTorch.
make_torch() {
  mkdir -p "$1/share/cmake/Torch" "$1/lib"
  echo "set(PACKAGE_VERSION \"$2\")" >"$1/share/cmake/Torch/TorchConfigVersion.cmake"
  echo "set(TORCH_CXX_FLAGS \"\")" >"$1/share/cmake/Torch/TorchConfig.cmake"
  local cuda=None
  [[ -z ${3:-} ]] || cuda="'$3'"
  echo "cuda: Optional[str] = $cuda" >"$1/version.py"
}

# A PATH on which every package seems installed, apt-get would be seen if it ran, and nvcc is what
# $1 says it is.
fake_machine() {
  local bin=$TMP/$1-bin
  mkdir -p "$bin"
  cat >"$bin/dpkg-query" <<'FAKE'
#!/bin/sh
for package in g++ pkg-config libopenmpi-dev openmpi-bin libhdf5-dev nlohmann-json3-dev \
  libspdlog-dev libsentencepiece-dev libpcre2-dev libutf8proc-dev libxxhash-dev \
  libtomlplusplus-dev libgtest-dev libgmock-dev libbenchmark-dev ccache clang-format-14 git \
  xz-utils cmake ninja-build python3-venv; do echo "ii  $package"; done
FAKE
  printf '#!/bin/sh\necho "apt-get $*" >>%s/apt.log\n' "$TMP" >"$bin/apt-get"
  printf '#!/bin/sh\necho "Cuda compilation tools, release %s, V%s.1"\n' "$1" "$1" >"$bin/nvcc"
  chmod +x "$bin"/*
  echo "$bin:$PATH"
}

# run_tests [NAME...]: the tests of the file that sources this one (its functions in CamelCase), or
# those named. Ends with 0 if there was one and all passed.
run_tests() {
  local tests=("$@") name num_failed=0
  ((${#tests[@]})) ||
    mapfile -t tests < <(sed -n 's/^\([A-Z][A-Za-z0-9]*\)() {$/\1/p' "${BASH_SOURCE[1]}")
  for name in "${tests[@]}"; do
    if ("$name"); then
      echo "PASS $name"
    else
      echo "FAIL $name"
      num_failed=$((num_failed + 1))
    fi
  done
  echo "${#tests[@]} tests of the scripts, $num_failed failed"
  ((${#tests[@]} > 0 && num_failed == 0))
}
