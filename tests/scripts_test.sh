#!/usr/bin/env bash
# Tests of the scripts in launch/, data/ and .ci/: what they say, what they end with, what they
# leave behind. They need no network and write only below a temporary folder. T2R_PYTHON is a Python
# with numpy (launch/env.sh sets it).
# shellcheck disable=SC2016,SC2031,SC2317,SC2329  # other programs expand what they are given; the tests are called by name
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${T2R_PYTHON:-$(source "$ROOT/launch/env.sh" && echo "${T2R_PYTHON:-python3}")}
TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
export XDG_CACHE_HOME=$TMP/cache HOME=$TMP/home
mkdir -p "$TMP/cache" "$TMP/home"
unset Torch_DIR CMAKE_PREFIX_PATH CUDA_HOME CUDACXX CUDAToolkit_ROOT T2R_JOBS T2R_WIKITEXT_URL T2R_ROOT

fail() {
  echo "  ${FUNCNAME[2]}: $*"
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
for package in g++ pkg-config libopenmpi-dev openmpi-bin libhdf5-dev nlohmann-json3-dev libspdlog-dev \
  libsentencepiece-dev libpcre2-dev libutf8proc-dev libxxhash-dev libtomlplusplus-dev libgtest-dev libgmock-dev libbenchmark-dev \
  ccache clang-format-14 git xz-utils cmake ninja-build python3-venv; do echo "ii  $package"; done
FAKE
  printf '#!/bin/sh\necho "apt-get $*" >>%s/apt.log\n' "$TMP" >"$bin/apt-get"
  printf '#!/bin/sh\necho "Cuda compilation tools, release %s, V%s.1"\n' "$1" "$1" >"$bin/nvcc"
  chmod +x "$bin"/*
  echo "$bin:$PATH"
}

AnswersHelpWithZeroWhenAsked() {
  local script
  for script in launch/setup.sh launch/build.sh launch/test.sh launch/quickstart.sh launch/experiments/smollm2.sh launch/experiments/paper_small.sh \
    launch/gpu_check.sh data/get_corpus.sh data/get_model.sh; do
    expect 0 "^Usage: $script" "$ROOT/$script" --help || return 1
  done
}

EndsWith64WhenTheUsageIsWrong() {
  expect 64 "unknown argument --frob" "$ROOT/launch/setup.sh" --frob &&
    expect 64 "unknown variant t2r50; allowed: as-is softmax t2r" "$ROOT/launch/experiments/smollm2.sh" t2r50 &&
    expect 64 "unknown option --frob" "$ROOT/launch/experiments/smollm2.sh" --frob &&
    expect 64 "unknown variant t2r50; allowed: teacher softmax t2r t2r75" "$ROOT/launch/experiments/paper_small.sh" t2r50 &&
    expect 64 "--tokens needs a number" "$ROOT/launch/experiments/smollm2.sh" --tokens &&
    expect 64 "--output needs a text" "$ROOT/launch/experiments/paper_small.sh" --output --tokens &&
    expect 64 "--batch-size many; allowed: a whole number" "$ROOT/launch/experiments/paper_small.sh" --batch-size many &&
    expect 64 "--extra-text $TMP/none: there is no such file" "$ROOT/launch/experiments/smollm2.sh" --extra-text "$TMP/none" &&
    expect 64 "--output needs a text" "$ROOT/launch/quickstart.sh" --output &&
    expect 64 "unknown argument --more" "$ROOT/launch/quickstart.sh" --output "$TMP/none" --more &&
    expect 64 "--hidden-size 100; allowed: a multiple of 64" "$ROOT/launch/experiments/paper_small.sh" --hidden-size 100 &&
    expect 64 "NAME and perhaps DIR" "$ROOT/data/get_corpus.sh" &&
    expect 64 "gutenberg is not a corpus.*libreoffice-help wikitext-2" "$ROOT/data/get_corpus.sh" gutenberg &&
    expect 64 "gpt5 is not a model that get_model.sh knows; any Hugging Face folder of the GPT-2 or Llama family works: pass it to --model" \
      "$ROOT/data/get_model.sh" gpt5 &&
    expect 64 "NAME is missing" "$ROOT/data/get_model.sh" &&
    expect 64 "unknown option --frob" "$ROOT/data/get_model.sh" smollm2-135m --frob &&
    expect 64 "--preset needs a name" "$ROOT/launch/test.sh" --preset
}

GpuCheckNamesWhatIsMissing() {
  local build=$TMP/gpu_build bin=$TMP/no_gpu
  mkdir -p "$build" "$bin"
  printf '#!/bin/sh\nexit 9\n' >"$bin/nvidia-smi"
  chmod +x "$bin/nvidia-smi"
  expect 64 "Usage" "$ROOT/launch/gpu_check.sh" &&
    expect 64 "needs BUILD and DIR" "$ROOT/launch/gpu_check.sh" --pack "$build" &&
    expect 1 "gpu_build has no t2r_gpu_tests; build it with launch/build.sh gpu" "$ROOT/launch/gpu_check.sh" "$build" || return 1
  touch "$build/t2r_gpu_tests" "$build/t2r_dist_nccl_tests" "$build/t2r_gpu_bench" "$build/libt2r_ops.so"
  expect 1 "no GPU here: nvidia-smi does not run" env PATH="$bin:$PATH" "$ROOT/launch/gpu_check.sh" "$build"
}

SetupNamesPackagesWhenNoneCanBeInstalled() {
  local bin=$TMP/bare command
  make_root "$TMP/bare_root"
  mkdir -p "$bin"
  for command in bash env sed awk grep cut tail head sort sha256sum realpath dirname basename cat mktemp nproc; do
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
  for command in bash sh env sed awk grep cut tail head sort sha256sum realpath dirname basename cat mkdir mv apt-get; do
    ln -s "$(command -v $command)" "$bin/$command"
  done
  sed 's/libhdf5-dev//; s/libtomlplusplus-dev//' "${PATH%%:*}/dpkg-query" >"$bin/dpkg-query"
  printf '#!/bin/sh\nshift\nexec "$@"\n' >"$bin/sudo"
  chmod +x "$bin/dpkg-query" "$bin/sudo"
  ln -s "$(command -v true)" "$bin/true"
  expect 0 "installing 2 distribution packages.*: libhdf5-dev libtomlplusplus-dev" \
    env PATH="$bin" Torch_DIR="$TMP/libtorch/share/cmake/Torch" "$root/launch/setup.sh" || return 1
  [[ $(<"$TMP/apt.log") == "apt-get update -qq
apt-get install -y -qq --no-install-recommends libhdf5-dev libtomlplusplus-dev" ]] || fail "apt-get ran as: $(<"$TMP/apt.log")" || return 1
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
    expect 0 "ready: LibTorch in $torch" env PATH="$(fake_machine 13.0)" CMAKE_PREFIX_PATH="/nowhere:$torch" \
      "$root/launch/setup.sh" || return 1
  lines=$(wc -l <<<"$OUTPUT")
  ((lines == 1)) || fail "a second run says $lines lines: $OUTPUT" || return 1
  [[ ! -e $TMP/apt.log ]] || fail "ran apt-get with nothing missing" || return 1
  expect 0 "^$torch:/mine$" env CMAKE_PREFIX_PATH=/mine bash -c "source $root/launch/env.sh; echo \$CMAKE_PREFIX_PATH"
}

SetupTakesACudaToolkitOfTorchsVersionOnly() {
  local root=$TMP/cuda_root torch=$TMP/libtorch_cuda
  make_root "$root"
  make_torch "$torch" 2.11.0 77.0
  expect 1 "needs a CUDA toolkit 77.x.*Unset Torch_DIR" \
    env PATH="$(fake_machine 13.0)" Torch_DIR="$torch/share/cmake/Torch" "$root/launch/setup.sh" &&
    expect 0 "ready: LibTorch in $torch, $TMP/77.3-bin/nvcc" \
      env PATH="$(fake_machine 77.3)" Torch_DIR="$torch/share/cmake/Torch" "$root/launch/setup.sh" &&
    expect 0 "^$TMP/77.3-bin/nvcc$" bash -c "source $root/launch/env.sh; echo \$CUDACXX"
}

SetupRefusesALibTorchThatCannotBeLinked() {
  local root=$TMP/old_root torch=$TMP/libtorch_old
  make_root "$root"
  make_torch "$torch" 2.3.1
  expect 1 "it is 2.3.1, older than 2.4" \
    env PATH="$(fake_machine 13.0)" Torch_DIR="$torch/share/cmake/Torch" "$root/launch/setup.sh" || return 1
  make_torch "$torch" 2.5.0
  echo 'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")' >"$torch/share/cmake/Torch/TorchConfig.cmake"
  expect 1 "C\+\+ ABI" env PATH="$(fake_machine 13.0)" Torch_DIR="$torch/share/cmake/Torch" "$root/launch/setup.sh" &&
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
  printf '#!/bin/sh\necho "Cuda compilation tools, release 77.0, V77.0.1"\n' >"$venv/site/nvidia/cu13/bin/nvcc"
  printf '#!/bin/sh\nexit 1\n' | tee "$venv/bin/python" >"$TMP/no_torch_python3"
  PATH=$(fake_machine 13.0)
  bin=${PATH%%:*}
  cp "$TMP/no_torch_python3" "$bin/python3"
  chmod +x "$venv/bin/python" "$bin/python3" "$venv/site/nvidia/cu13/bin/nvcc"
  touch "$venv/t2r_complete"
  expect 0 "ready: LibTorch in $venv/site/torch, $venv/site/nvidia/cu13/bin/nvcc" "$root/launch/setup.sh" || return 1
  before=$(<"$root/.cache/t2r_env.sh")
  expect 0 "ready: LibTorch in $venv/site/torch" bash -c "source $root/launch/env.sh; $root/launch/setup.sh" || return 1
  rm "$bin/python3"
  [[ $(<"$root/.cache/t2r_env.sh") == "$before" ]] || fail "the environment file changed: $(<"$root/.cache/t2r_env.sh")" || return 1
  expect 0 "^$venv/t2r_bin$" bash -c "source $root/launch/env.sh; tr : '\n' <<<\$PATH"
}

VenvIsMadeAgainWhenTheFirstTimeWasInterrupted() {
  local folder=$TMP/venv_a
  expect 1 "pip could not install" bash -c "source $ROOT/launch/venv.sh
    t2r_make_venv $folder true --no-index t2r-no-such-package" || return 1
  bash -c "source $ROOT/launch/venv.sh; t2r_venv_is_complete $folder" && { fail "counts as complete" || return 1; }
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
  expect 0 "building" "$root/launch/test.sh" && expect 0 "100% tests passed" "$root/launch/test.sh" || return 1
  ! grep -qE "building|Configuring" <<<"$OUTPUT" || fail "a second run configured or built: $OUTPUT" || return 1
  expect 8 "No tests were found" "$root/launch/test.sh" -R NoSuchTest || return 1
  expect 0 "tests passed.*|ended with 0" "$root/.ci/run" || return 1
  echo 'add_test(NAME Fails COMMAND ${CMAKE_COMMAND} -E cat absent)' >>"$root/tests.cmake"
  expect 8 "Fails" "$root/launch/test.sh" && expect 8 "ended with 8" "$root/.ci/run" &&
    expect 64 "speedy is not a preset" "$root/launch/test.sh" --preset speedy || return 1
  touch -d "+1 minute" "$root/.cache/t2r_env.sh"
  expect 8 "Configuring done" "$root/launch/test.sh"
}

# make_wikitext FOLDER ENDING: an archive as the official one is laid out, with other text.
make_wikitext() {
  mkdir -p "$TMP/zip/$1"
  local part
  for part in train valid test; do printf ' = Title = \n\n %s text \n' $part >"$TMP/zip/$1/wiki.$part.$2"; done
  (cd "$TMP/zip" && python3 -m zipfile -c "$TMP/$1.zip" "$1")
}

CorpusIsWrittenWholeOrNotAtAll() {
  local dir=$TMP/corpora/raw
  make_wikitext wikitext-2-raw raw
  make_wikitext wikitext-2 tokens
  export T2R_WIKITEXT_URL=file://$TMP/wikitext-2-raw.zip
  expect 0 "lm/train.txt: 5 words, 3 lines" "$ROOT/data/get_corpus.sh" wikitext-2-raw "$dir" &&
    expect 0 "is there" "$ROOT/data/get_corpus.sh" wikitext-2-raw "$dir" || return 1
  cmp "$TMP/zip/wikitext-2-raw/wiki.valid.raw" "$dir/lm/valid.txt" || fail "valid.txt differs" || return 1
  T2R_WIKITEXT_URL=file://$TMP/wikitext-2.zip
  expect 1 "wikitext-2/wiki.train.tokens.*sha256.*9e9fa1ad55b1" "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" || return 1
  T2R_WIKITEXT_URL=file://$TMP/absent.zip
  expect 1 "could not download.*T2R_WIKITEXT_URL=file" "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" || return 1
  T2R_WIKITEXT_URL=file://$ROOT/data/get_corpus.sh
  expect 1 "is not a zip archive" "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" || return 1
  [[ $(ls "$TMP/corpora") == raw ]] || fail "left behind: $(ls "$TMP/corpora")" || return 1
  mkdir "$TMP/corpora/mine"
  expect 1 "mine exists and is not a complete corpus" "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/mine"
}

# Pages a0 to a59: a text that all share in English and none in translation, one of their own, one
# left untranslated.
LibreOfficeHelpKeepsPartsApart() {
  local help=$TMP/help/usr/share/libreoffice/help language page out=$TMP/help_out shared
  for language in en-US de fr zh-CN; do
    mkdir -p "$help/$language/text"
    for page in {0..59}; do
      shared="en-US"
      [[ $language == en-US ]] || shared="$language $page"
      printf '<h1 id="hd_id1">Same &amp; <b>%s</b></h1><p id="par_id2">Text\n  %s %s</p><p id="par_id3">OK %s</p><p>no</p>' \
        "$shared" "$page" "$language" "$page" >"$help/$language/text/a$page.html"
    done
  done
  expect 0 "parallel/train.en-de: [0-9]+ pairs" python3 "$ROOT/data/libreoffice_help.py" "$TMP/help" "$out" || return 1
  [[ $(cat "$out"/lm/*.txt | grep -c .) == 121 ]] || fail "not 121 different paragraphs" || return 1
  [[ -z $(for part in train valid test; do sort -u "$out/parallel/$part.en-de.en"; done | sort | uniq -d) ]] || fail "a text in two parts" || return 1
  grep -qx 'Same & en-US' "$out/lm/train.txt" "$out/lm/valid.txt" "$out/lm/test.txt" || fail "tags or entities left" || return 1
  paste "$out"/parallel/train.en-zh.{en,zh} | grep -v Same | awk '$2 != $5 {exit 1}' || fail "lines not aligned" || return 1
  ! grep -q OK "$out"/parallel/train.en-de.en || fail "an untranslated pair was kept" || return 1
  rm -r "$help/fr"
  expect 1 "fr is missing; unpack its package" python3 "$ROOT/data/libreoffice_help.py" "$TMP/help" "$TMP/help_out2"
}

ConverterGivesHuggingFacesOrderAndRounding() {
  expect 0 "^converted$" "$PYTHON" - "$ROOT/data" "$TMP/converted" "$ROOT/tests/cli" <<'PYTHON'
import json, pathlib, struct, sys, types
import numpy as np
gguf = types.ModuleType("gguf")
gguf.quants = types.SimpleNamespace(dequantize=lambda data, kind: data)
sys.modules["gguf"] = gguf
sys.path[:0] = [sys.argv[1], sys.argv[3]]
sys.dont_write_bytecode = True
import xxh3
sys.modules["xxhash"] = xxh3
import gguf_to_hugging_face as converter

HEADS, KV_HEADS, DIM, HEAD_DIM = 4, 2, 24, 6
random = np.random.default_rng(1)
def permuted(weight, heads):  # row 2i of a head is its row i, row 2i+1 its row i + half: what llama.cpp stores
    out = np.empty_like(weight)
    for head in range(heads):
        for i in range(HEAD_DIM // 2):
            out[head * HEAD_DIM + 2 * i] = weight[head * HEAD_DIM + i]
            out[head * HEAD_DIM + 2 * i + 1] = weight[head * HEAD_DIM + HEAD_DIM // 2 + i]
    return out
def whole(*shape):  # integers that bfloat16 holds exactly
    return random.integers(-128, 128, shape).astype(np.float32)
query, key, embedding = whole(DIM, DIM), whole(KV_HEADS * HEAD_DIM, DIM), whole(3, DIM)
norm = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8)] * 6, dtype=np.float32)
rounded = np.array([1, 1 + 2**-6, 1 + 2**-7, -1] * 6, dtype=np.float32)  # ties to even, above a tie, negative
tensors = {"token_embd.weight": embedding, "blk.0.attn_q.weight": permuted(query, HEADS),
           "blk.0.attn_k.weight": permuted(key, KV_HEADS), "output_norm.weight": norm}
metadata = {
    "general.architecture": "llama", "llama.embedding_length": DIM, "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS, "llama.feed_forward_length": 8, "llama.context_length": 16,
    "llama.block_count": 1, "llama.rope.freq_base": 1e5, "llama.rope.dimension_count": HEAD_DIM,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["<end>", "a", "aa"], "tokenizer.ggml.token_type": [3, 1, 1],
    "tokenizer.ggml.merges": ["a a"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
}
def reader(path):
    fields = {name: types.SimpleNamespace(contents=lambda value=value: value) for name, value in metadata.items()}
    return types.SimpleNamespace(fields=fields, tensors=[
        types.SimpleNamespace(name=name, data=value, tensor_type=0, shape=value.shape[::-1]) for name, value in tensors.items()])
gguf.GGUFReader = reader

folder = pathlib.Path(sys.argv[2])
assert converter.convert("x.gguf", str(folder)) == (4, DIM * DIM + key.size + embedding.size + DIM)
raw = (folder / "model.safetensors").read_bytes()
size = struct.unpack("<Q", raw[:8])[0]
header, values = json.loads(raw[8:8 + size]), raw[8 + size:]
assert size % 8 == 0
def stored(name):
    entry = header[name]
    bits = np.frombuffer(values[slice(*entry["data_offsets"])], "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])
np.testing.assert_array_equal(stored("model.layers.0.self_attn.q_proj.weight"), query)
np.testing.assert_array_equal(stored("model.layers.0.self_attn.k_proj.weight"), key)
np.testing.assert_array_equal(stored("model.embed_tokens.weight"), embedding)
np.testing.assert_array_equal(stored("model.norm.weight"), rounded)
manifest = (folder / "manifest.json").read_text()
assert xxh3.sealed(manifest) == manifest and manifest.endswith('"\n}\n')
assert {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in json.loads(manifest)["files"].items()} == {
    path.name: (path.stat().st_size, xxh3.xxh3_128(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    if path.name != "manifest.json"}
config = json.loads((folder / "config.json").read_text())
assert (config["rms_norm_eps"], config["rope_theta"], config["tie_word_embeddings"], config["head_dim"]) == (1e-5, 1e5, True, 6)
tokenizer = json.loads((folder / "tokenizer.json").read_text())
assert [step["type"] for step in tokenizer["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
assert [(token["id"], token["content"]) for token in tokenizer["added_tokens"]] == [(0, "<end>")]
for field, value, text in (("general.architecture", "qwen2", "qwen2"), ("tokenizer.ggml.pre", "llama3", "llama3"),
                           ("llama.rope.dimension_count", 4, "dimension_count"), ("llama.rope.scaling.type", "yarn", "yarn")):
    kept = metadata.get(field)
    metadata[field] = value
    try:
        converter.convert("x.gguf", str(folder))
        sys.exit(f"{field} = {value} was accepted")
    except converter.ConversionError as error:
        assert text in str(error), error
    if kept is None: del metadata[field]
    else: metadata[field] = kept
tensors["blk.0.attn_q.bias"] = norm
try:
    converter.convert("x.gguf", str(folder))
    sys.exit("a bias was accepted")
except converter.ConversionError as error:
    assert "attn_q.bias" in str(error), error
print("converted")
PYTHON
}

DetokenizedTextReadsAsPeopleWriteIt() {
  cat >"$TMP/tokens" <<'TEXT'
 = Robert <unk> ( actor ) = 
 
 He won 1 @,@ 500 m in 3 @.@ 5 min – a co @-@ star , " the best " , said the game 's maker ; players ' turns : don 't ask ! 
TEXT
  cat >"$TMP/wanted" <<'TEXT'
= Robert <unk> (actor) =

He won 1,500 m in 3.5 min – a co-star, "the best", said the game's maker; players' turns: don't ask!
TEXT
  "$ROOT/data/detokenize_wikitext.py" "$TMP/tokens" | diff "$TMP/wanted" -
}

ModelFolderThatIsIncompleteIsRefused() {
  mkdir -p "$TMP/model"
  touch "$TMP/model/config.json"
  expect 1 "is not a complete model; remove it" "$ROOT/data/get_model.sh" smollm2-135m "$TMP/model" || return 1
  touch "$TMP/model/model.safetensors" "$TMP/model/tokenizer.json"
  expect 0 "is there" "$ROOT/data/get_model.sh" smollm2-135m "$TMP/model"
}

# make_fake_t2r CALLS: a program in t2r's place, $TMP/fake_t2r, that writes down how it is called
# and makes what the command would leave; and text for it to read.
make_fake_t2r() {
  mkdir -p "$root/corpora/wikitext-2/lm"
  for part in train valid test; do echo " A sentence of $part . " >"$root/corpora/wikitext-2/lm/$part.txt"; done
  echo "More text." >"$TMP/more.txt"
  cat >"$TMP/fake_t2r" <<FAKE
#!/usr/bin/env bash
echo "\$*" >>$1
output=\$(sed -n 's/.*--output \([^ ]*\).*/\1/p' <<<"\$*")
case \$1 in
  train) mkdir -p "\$output/checkpoints/best" ;;
  evaluate) echo '{"perplexity_per_token": 20.0, "perplexity_per_word": 30.0}' ;;
  *) mkdir -p "\$output" ;;
esac
FAKE
  chmod +x "$TMP/fake_t2r"
}

SmolLM2IsDistilledFromItsFinetunedSelf() {
  local root=$TMP/smol_root calls=$TMP/smol_calls
  make_root "$root"
  make_fake_t2r "$calls"
  mkdir -p "$TMP/smol_model"
  touch "$TMP/smol_model/model.safetensors"
  expect 0 "^\\| t2r75-transfer-distill \\| 9.8M " env T2R="$TMP/fake_t2r" T2R_MODEL="$TMP/smol_model" "$root/launch/experiments/smollm2.sh" \
    t2r75-transfer t2r75-transfer-distill softmax || return 1
  local best=runs/smollm2/softmax/checkpoints/best
  expect 0 "" grep -E "^convert --model $TMP/smol_model --output .*/swapped-t2r75 " "$calls" &&
    expect 0 "" grep -E "^convert --model $best --output .*/swapped-t2r75-finetuned .*--keep-softmax-every 4$" "$calls" &&
    expect 0 "" grep -E "^train .*/t2r75-transfer .*--model .*/swapped-t2r75 --transfer-steps 150$" "$calls" &&
    expect 0 "" grep -E "^train .*/t2r75-transfer-distill .*/swapped-t2r75-finetuned --teacher $best --transfer-steps 150$" "$calls" &&
    expect 0 "^3$" grep -c "^train" "$calls" || return 1
  expect 0 "^\\| t2r75-transfer-distill-39M \\| 39.3M " env T2R="$TMP/fake_t2r" T2R_MODEL="$TMP/smol_model" "$root/launch/experiments/smollm2.sh" \
    --distill-tokens 39321600 t2r75-transfer-distill &&
    expect 0 "" grep -E "^train .*/t2r75-transfer-distill-39M .*--tokens 39321600 .*/swapped-t2r75-finetuned --teacher $best --transfer-steps 400$" "$calls" ||
    return 1
  expect 0 "^\\| hedgehog75-query-transfer-distill \\| 9.8M " env T2R="$TMP/fake_t2r" T2R_MODEL="$TMP/smol_model" "$root/launch/experiments/smollm2.sh" \
    hedgehog75-query-transfer-distill &&
    expect 0 "" grep -E "^convert --model $best .*/swapped-hedgehog75-query-finetuned .*hedgehog --map-per-query-head --keep-softmax-every 4$" "$calls" &&
    expect 0 "" grep -E "^train .*/swapped-hedgehog75-query-finetuned --teacher $best --transfer-steps 150$" "$calls"
}

PaperSmallMakesEverythingOnce() {
  local root=$TMP/paper_root calls=$TMP/paper_calls run
  make_root "$root"
  make_fake_t2r "$calls"
  run=(env T2R="$TMP/fake_t2r" "$root/launch/experiments/paper_small.sh" --extra-text "$TMP/more.txt" --tokens 3276800 --batch-size 8)
  expect 0 "^\\| t2r75 \\| 0.7M .* \\+0.0 % \\| \\+0.0 % \\|" "${run[@]}" || return 1
  expect 0 "" grep -E "^train .*/paper_small/teacher .*--tokens 3276800 .*--model.layers 12 .*--model.heads 8" "$calls" &&
    expect 0 "" grep -E "^train .*/t2r-transfer .*/swapped-t2r --tokens 655360 --transfer-steps 40$" "$calls" &&
    expect 0 "" grep -E "^convert .*/swapped-hedgehog75 --feature-map hedgehog --keep-softmax-every 4$" "$calls" &&
    expect 0 "" grep -E "^convert .*/swapped-t2r-k64 --feature-map t2r --feature-size 64$" "$calls" &&
    expect 0 "" grep -E "^train .*/t2r75 --train-data( [^ ]*/train){3} [^ ]*/extra .*/swapped-t2r75 --tokens 655360$" "$calls" &&
    expect 0 "" grep -E "^train .*/hedgehog-distill .*/swapped-hedgehog --tokens 655360 --teacher .*/teacher/checkpoints/best$" "$calls" &&
    expect 0 "^19 7 5 40$" sh -c "for c in train convert prepare evaluate; do grep -c \"^\$c\" $calls; done | xargs" || return 1
  mv "$calls" "$calls.first"
  expect 0 "^\\| t2r75 " "${run[@]}" && { [[ ! -e $calls ]] || fail "a second run does again: $(<"$calls")"; } || return 1
  expect 0 "^\\| hedgehog-1M \\| 1.3M " "${run[@]}" --finetune-tokens 1310720 hedgehog &&
    expect 0 "" grep -E "^train .*/hedgehog-1M .*/swapped-hedgehog --tokens 1310720$" "$calls"
}

main() {
  local tests=("$@") name num_failed=0
  ((${#tests[@]})) || mapfile -t tests < <(sed -n 's/^\([A-Z][A-Za-z0-9]*\)() {$/\1/p' "${BASH_SOURCE[0]}")
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

main "$@"
