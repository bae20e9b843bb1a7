#!/usr/bin/env bash
# What the scripts say to --help and to wrong arguments; launch/test.sh and .ci/run.
# shellcheck disable=SC2016,SC2031,SC2317,SC2329
# Other programs expand what they are given; the tests are called by name.
set -uo pipefail
# shellcheck source=tests/scripts/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"

AnswersHelpWithZeroWhenAsked() {
  local script
  for script in launch/{setup,build,test,quickstart,gpu_check}.sh \
    launch/experiments/{smollm2,paper_small}.sh data/get_{corpus,model}.sh; do
    expect 0 "^Usage: $script" "$ROOT/$script" --help || return 1
  done
  expect 0 "T2R_QUICKSTART_TEACHER_STEPS" "$ROOT/launch/quickstart.sh" --help || return 1
  local shared=$ROOT/launch/experiments/experiment.sh
  expect 0 "is sourced by the experiments beside it, smollm2.sh" bash "$shared" --help &&
    expect 64 "is sourced by the experiments" bash "$shared"
}

EndsWith64WhenTheUsageIsWrong() {
  local smollm2=$ROOT/launch/experiments/smollm2.sh paper=$ROOT/launch/experiments/paper_small.sh
  expect 64 "unknown argument --frob" "$ROOT/launch/setup.sh" --frob &&
    expect 64 "unknown variant t2r50; allowed: as-is softmax t2r" "$smollm2" t2r50 &&
    expect 64 "unknown option --frob" "$smollm2" --frob &&
    expect 64 "unknown variant t2r50; allowed: teacher softmax t2r t2r75" "$paper" t2r50 &&
    expect 64 "--tokens needs a number" "$smollm2" --tokens &&
    expect 64 "--output needs a text" "$paper" --output --tokens &&
    expect 64 "--batch-size many; allowed: a whole number" "$paper" --batch-size many &&
    expect 64 "--extra-text $TMP/none: there is no such file" "$smollm2" --extra-text "$TMP/none" &&
    expect 64 "--output needs a text" "$ROOT/launch/quickstart.sh" --output &&
    expect 64 "unknown argument --more" "$ROOT/launch/quickstart.sh" --output "$TMP/none" --more &&
    expect 64 "T2R_QUICKSTART_TEACHER_STEPS few; allowed: a whole number" \
      env T2R_QUICKSTART_TEACHER_STEPS=few "$ROOT/launch/quickstart.sh" &&
    expect 64 "--hidden-size 100; allowed: a multiple of 64" "$paper" --hidden-size 100 &&
    expect 64 "NAME and perhaps DIR" "$ROOT/data/get_corpus.sh" &&
    expect 64 "gutenberg is not a corpus.*libreoffice-help wikitext-2" \
      "$ROOT/data/get_corpus.sh" gutenberg &&
    expect 64 "gpt5 is not a model that get_model.sh knows; any Hugging Face folder of the \
GPT-2 or Llama family works: pass it to --model" "$ROOT/data/get_model.sh" gpt5 &&
    expect 64 "NAME is missing" "$ROOT/data/get_model.sh" &&
    expect 64 "unknown option --frob" "$ROOT/data/get_model.sh" smollm2-135m --frob &&
    expect 64 "--preset needs a name" "$ROOT/launch/test.sh" --preset
}

PeersRefuseAMachineWithoutAGpuInOneLine() {
  local peer
  for peer in peer_train peer_attention; do
    expect 1 "^$peer.py: needs (a GPU|Python with torch)" \
      env CUDA_VISIBLE_DEVICES= "$PYTHON" "$ROOT/tests/bench/$peer.py" || return 1
    (($(wc -l <<<"$OUTPUT") == 1)) || fail "more than a line: $OUTPUT" || return 1
  done
}

GpuCheckNamesWhatIsMissing() {
  local build=$TMP/gpu_build bin=$TMP/no_gpu
  mkdir -p "$build" "$bin"
  printf '#!/bin/sh\nexit 9\n' >"$bin/nvidia-smi"
  chmod +x "$bin/nvidia-smi"
  expect 64 "Usage" "$ROOT/launch/gpu_check.sh" &&
    expect 64 "needs BUILD and DIR" "$ROOT/launch/gpu_check.sh" --pack "$build" &&
    expect 1 "gpu_build has no t2r_gpu_tests; build it with launch/build.sh gpu" \
      "$ROOT/launch/gpu_check.sh" "$build" || return 1
  touch "$build/t2r_gpu_tests" "$build/t2r_dist_nccl_tests" "$build/t2r_gpu_bench" \
    "$build/libt2r_ops.so"
  expect 1 "no GPU here: nvidia-smi does not run" \
    env PATH="$bin:$PATH" "$ROOT/launch/gpu_check.sh" "$build"
}

# A project that configures in a second: one file that a build writes, and a test that reads it.
make_project() {
  make_root "$1"
  make_torch "$TMP/libtorch" 2.9.1
  sed -n '1,99p' "$ROOT/CMakePresets.json" >"$1/CMakePresets.json"
  cat >"$1/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(probe LANGUAGES NONE)
enable_testing()
add_custom_command(OUTPUT built COMMAND ${CMAKE_COMMAND} -E touch built COMMENT "building")
add_custom_target(all_files ALL DEPENDS built)
include(${CMAKE_SOURCE_DIR}/tests.cmake)
CMAKE
}

TestShEndsWithCtestsCode() {
  local root=$TMP/project
  make_project "$root"
  export Torch_DIR=$TMP/libtorch/share/cmake/Torch
  PATH=$(fake_machine 13.0)
  echo 'add_test(NAME Reads COMMAND ${CMAKE_COMMAND} -E cat built)' >"$root/tests.cmake"
  expect 0 "building" "$root/launch/test.sh" &&
    expect 0 "100% tests passed" "$root/launch/test.sh" || return 1
  ! grep -qE "building|Configuring" <<<"$OUTPUT" ||
    fail "a second run configured or built: $OUTPUT" || return 1
  expect 8 "No tests were found" "$root/launch/test.sh" -R NoSuchTest || return 1
  expect 0 "tests passed.*|ended with 0" "$root/.ci/run" || return 1
  echo 'add_test(NAME Fails COMMAND ${CMAKE_COMMAND} -E cat absent)' >>"$root/tests.cmake"
  expect 8 "Fails" "$root/launch/test.sh" && expect 8 "ended with 8" "$root/.ci/run" &&
    expect 64 "speedy is not a preset" "$root/launch/test.sh" --preset speedy || return 1
  touch -d "+1 minute" "$root/.cache/t2r_env.sh"
  expect 8 "Configuring done" "$root/launch/test.sh"
}

run_tests "$@"
