#!/usr/bin/env bash
# launch/setup.sh, env.sh and venv.sh: what is taken, what is installed.
# shellcheck disable=SC2016,SC2031,SC2317,SC2329
# Other programs expand what they are given; the tests are called by name.
set -uo pipefail
# shellcheck source=tests/scripts/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"

SetupNamesPackagesWhenNoneCanBeInstalled() {
  local bin=$TMP/bare command
  make_root "$TMP/bare_root"
  mkdir -p "$bin"
  for command in bash env sed awk grep cut tail head sort sha256sum realpath dirname basename cat \
    mktemp nproc; do
    ln -s "$(command -v $command)" "$bin/$command"
  done
  expect 1 "missing.*g\+\+ .*libopenmpi-dev.*libhdf5-dev.*nlohmann-json3-dev.*libtomlplusplus-dev" \
    env PATH="$bin" "$TMP/bare_root/launch/setup.sh" &&
    expect 1 "module load" env PATH="$bin" "$TMP/bare_root/launch/setup.sh" &&
    { ! grep -q ccache <<<"$OUTPUT" || fail "asks for ccache, which is not needed: $OUTPUT"; }
}

SetupInstallsWhatIsMissingAndNothingElse() {
  local root=$TMP/apt_root bin=$TMP/apt_bin command
  make_root "$root"
  make_torch "$TMP/libtorch" 2.9.1
  PATH=$(fake_machine 13.0)
  mkdir -p "$bin"
  for command in bash sh env sed awk grep cut tail head sort sha256sum realpath dirname basename \
    cat mkdir mv apt-get; do
    ln -s "$(command -v $command)" "$bin/$command"
  done
  sed 's/libhdf5-dev//; s/libtomlplusplus-dev//' "${PATH%%:*}/dpkg-query" >"$bin/dpkg-query"
  printf '#!/bin/sh\nshift\nexec "$@"\n' >"$bin/sudo"
  chmod +x "$bin/dpkg-query" "$bin/sudo"
  ln -s "$(command -v true)" "$bin/true"
  expect 0 "installing 2 distribution packages.*: libhdf5-dev libtomlplusplus-dev" \
    env PATH="$bin" Torch_DIR="$TMP/libtorch/share/cmake/Torch" "$root/launch/setup.sh" || return 1
  [[ $(<"$TMP/apt.log") == "apt-get update -qq
apt-get install -y -qq --no-install-recommends libhdf5-dev libtomlplusplus-dev" ]] ||
    fail "apt-get ran as: $(<"$TMP/apt.log")" || return 1
  rm "$TMP/apt.log"
}

EnvironmentLeavesTheUsersMpiSettings() {
  expect 0 "^core$" env OMPI_MCA_hwloc_base_binding_policy=core \
    bash -euc "source $ROOT/launch/env.sh; echo \$OMPI_MCA_hwloc_base_binding_policy"
}

SetupUsesTheLibTorchThatIsThere() {
  local root=$TMP/torch_root torch=$TMP/libtorch lines
  make_root "$root"
  make_torch "$torch" 2.9.1
  expect 0 "ready: LibTorch in $torch, no CUDA" \
    env PATH="$(fake_machine 13.0)" Torch_DIR="$torch/share/cmake/Torch" "$root/launch/setup.sh" &&
    expect 0 "ready: LibTorch in $torch" env PATH="$(fake_machine 13.0)" \
      CMAKE_PREFIX_PATH="/nowhere:$torch" "$root/launch/setup.sh" || return 1
  lines=$(wc -l <<<"$OUTPUT")
  ((lines == 1)) || fail "a second run says $lines lines: $OUTPUT" || return 1
  [[ ! -e $TMP/apt.log ]] || fail "ran apt-get with nothing missing" || return 1
  expect 0 "^$torch:/mine$" \
    env CMAKE_PREFIX_PATH=/mine bash -c "source $root/launch/env.sh; echo \$CMAKE_PREFIX_PATH"
}

SetupTakesACudaToolkitOfTorchsVersionOnly() {
  local root=$TMP/cuda_root torch=$TMP/libtorch_cuda
  make_root "$root"
  make_torch "$torch" 2.11.0 77.0
  export Torch_DIR=$torch/share/cmake/Torch
  expect 1 "needs a CUDA toolkit 77.x.*Unset Torch_DIR" \
    env PATH="$(fake_machine 13.0)" "$root/launch/setup.sh" &&
    expect 0 "ready: LibTorch in $torch, $TMP/77.3-bin/nvcc" \
      env PATH="$(fake_machine 77.3)" "$root/launch/setup.sh" &&
    expect 0 "^$TMP/77.3-bin/nvcc$" bash -c "source $root/launch/env.sh; echo \$CUDACXX"
}

SetupRefusesALibTorchThatCannotBeLinked() {
  local root=$TMP/old_root torch=$TMP/libtorch_old
  make_root "$root"
  make_torch "$torch" 2.3.1
  export Torch_DIR=$torch/share/cmake/Torch
  expect 1 "it is 2.3.1, older than 2.4" \
    env PATH="$(fake_machine 13.0)" "$root/launch/setup.sh" || return 1
  make_torch "$torch" 2.5.0
  echo 'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")' \
    >"$torch/share/cmake/Torch/TorchConfig.cmake"
  expect 1 "C\+\+ ABI" env PATH="$(fake_machine 13.0)" "$root/launch/setup.sh" &&
    expect 1 "TorchConfigVersion.cmake.*expected there" \
      env PATH="$(fake_machine 13.0)" Torch_DIR=/nowhere "$root/launch/setup.sh"
}

# The environment is complete here, so that nothing is downloaded; python3 on PATH has no torch.
SetupDecidesTheSameInItsOwnEnvironment() {
  local root=$TMP/own_root venv bin before
  make_root "$root"
  venv=$XDG_CACHE_HOME/t2r/venv-$(sha256sum "$root/launch/requirements.txt" | cut -c1-12)
  make_torch "$venv/site/torch" 2.11.0 77.0
  mkdir -p "$venv/bin" "$venv/t2r_bin" "$venv/site/nvidia/cu13/bin"
  ln -s "$venv/site/torch" "$venv/t2r_torch"
  ln -s "$venv/site/nvidia/cu13" "$venv/t2r_cuda"
  printf '#!/bin/sh\necho "Cuda compilation tools, release 77.0, V77.0.1"\n' \
    >"$venv/site/nvidia/cu13/bin/nvcc"
  printf '#!/bin/sh\nexit 1\n' | tee "$venv/bin/python" >"$TMP/no_torch_python3"
  PATH=$(fake_machine 13.0)
  bin=${PATH%%:*}
  cp "$TMP/no_torch_python3" "$bin/python3"
  chmod +x "$venv/bin/python" "$bin/python3" "$venv/site/nvidia/cu13/bin/nvcc"
  touch "$venv/t2r_complete"
  expect 0 "ready: LibTorch in $venv/site/torch, $venv/site/nvidia/cu13/bin/nvcc" \
    "$root/launch/setup.sh" || return 1
  before=$(<"$root/.cache/t2r_env.sh")
  expect 0 "ready: LibTorch in $venv/site/torch" \
    bash -c "source $root/launch/env.sh; $root/launch/setup.sh" || return 1
  rm "$bin/python3"
  [[ $(<"$root/.cache/t2r_env.sh") == "$before" ]] ||
    fail "the environment file changed: $(<"$root/.cache/t2r_env.sh")" || return 1
  expect 0 "^$venv/t2r_bin$" bash -c "source $root/launch/env.sh; tr : '\n' <<<\$PATH"
}

VenvIsMadeAgainWhenTheFirstTimeWasInterrupted() {
  local folder=$TMP/venv_a
  expect 1 "pip could not install" bash -c "source $ROOT/launch/venv.sh
    t2r_make_venv $folder true --no-index t2r-no-such-package" || return 1
  bash -c "source $ROOT/launch/venv.sh; t2r_venv_is_complete $folder" &&
    { fail "counts as complete" || return 1; }
  expect 0 "" bash -c "source $ROOT/launch/venv.sh
    t2r_make_venv $folder true --no-index pip && t2r_venv_is_complete $folder"
}

VenvIsMadeOnceWhenTwoAskAtATime() {
  local folder=$TMP/venv_b script
  script="source $ROOT/launch/venv.sh; finish() { echo made >>$TMP/made.log; }
    t2r_make_venv $folder finish --no-index pip && t2r_venv_is_complete $folder"
  bash -c "$script" 2>"$TMP/first.log" &
  expect 0 "" bash -c "$script" || return 1
  wait $! || fail "the other one failed" || return 1
  [[ $(wc -l <"$TMP/made.log") == 1 ]] || fail "made $(wc -l <"$TMP/made.log") times"
}

run_tests "$@"
