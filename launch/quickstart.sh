#!/usr/bin/env bash
# The whole path on real text with one command: set-up, build, then a pretrained softmax transformer
# becomes an RNN.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

usage() {
  cat <<EOF
Usage: launch/quickstart.sh [--output DIR]

Sets the machine up, builds t2r, gets the English LibreOffice help (Debian packages), pretrains a
small softmax transformer, converts it to T2R, finetunes it on two MPI ranks with a fifth of the
teacher's tokens, and compares it with its teacher, with T2R from scratch and with ELU. About 10
minutes on two cores after the build. Runs go to DIR (default runs/quickstart); what is there
already is not made again, and an interrupted training is resumed. No GPU is used.

T2R_QUICKSTART_TEACHER_STEPS=N   the teacher's steps (default 480); finetuning has a fifth of its
                                 tokens. 20 are enough to see the path, not the numbers
EOF
}

TEACHER_STEPS=${T2R_QUICKSTART_TEACHER_STEPS:-480}
RANKS=2

# Seconds of the training steps in a run folder.
training_seconds() {
  "$T2R_PYTHON" - "$1" <<'EOF'
import json, sys
steps = [line for line in open(sys.argv[1] + "/metrics.jsonl") if '"event": "step"' in line]
print(round(sum(json.loads(line)["seconds"] for line in steps)))
EOF
}

train() {  # NAME ARGUMENTS...
  local name=$1
  shift
  echo "== training $name"
  mpirun -n "$RANKS" "$T2R" train --output "$OUT/$name" --train-data "$OUT/shards/train" \
    --valid-data "$OUT/shards/valid" --tokenizer "$OUT/tokenizer.model" --seed 1 --resume "$@"
}

measure() {  # NAME MODEL TOKENS SECONDS: one line of results
  local name=$1 model=$2 tokens=$3 seconds=$4
  local evaluation short long
  local text=(--prompt "To open a document" --ignore-end --json)
  evaluation=$("$T2R" evaluate --model "$model" --data "$OUT/shards/test" --context 256 --json)
  short=$("$T2R" generate --model "$model" "${text[@]}" --max-new-tokens 124)
  long=$("$T2R" generate --model "$model" "${text[@]}" --max-new-tokens 1020)
  printf '{"name": "%s", "tokens": %s, "seconds": %s, %s, %s, %s}\n' "$name" "$tokens" "$seconds" \
    "\"evaluation\": $evaluation" "\"short\": $short" "\"long\": $long" >>"$OUT/results.jsonl"
}

main() {
  local output=runs/quickstart
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
    --output) t2r_need text "$@"; output=$2; shift 2 ;;
    '') ;;
    *) t2r_fail 64 "unknown argument $1; see --help" ;;
  esac
  (($# == 0)) || [[ -z $1 ]] || t2r_fail 64 "unknown argument $1; see --help"
  t2r_need number T2R_QUICKSTART_TEACHER_STEPS "$TEACHER_STEPS"
  "$T2R_ROOT/launch/build.sh" release t2r
  # shellcheck source=launch/env.sh
  source "$T2R_ROOT/launch/env.sh"
  cd "$T2R_ROOT"
  T2R=$T2R_ROOT/build/release/launch/t2r
  export CUDA_VISIBLE_DEVICES=  # its times are a CPU's, with or without a GPU
  OUT=$output
  mkdir -p "$OUT"
  data/get_corpus.sh libreoffice-help
  local corpus=corpora/libreoffice-help/lm started=$SECONDS

  [[ -e $OUT/tokenizer.model ]] ||
    "$T2R" prepare vocab --inputs "$corpus/train.txt" --output "$OUT/tokenizer.model" \
      --vocab-size 4000
  local part
  for part in train valid test; do
    [[ -e $OUT/shards/$part/$part-00000.h5 ]] ||
      "$T2R" prepare lm --inputs "$corpus/$part.txt" --tokenizer "$OUT/tokenizer.model" \
        --output "$OUT/shards/$part" --documents blank-line
  done

  local teacher_tokens=$((TEACHER_STEPS * 16 * 256)) finetune_tokens
  finetune_tokens=$((teacher_tokens / 5))
  train teacher --config launch/experiments/quickstart/teacher.toml --steps "$TEACHER_STEPS"
  local teacher=$OUT/teacher/checkpoints/latest map
  local finetune=(--config launch/experiments/quickstart/finetune.toml --tokens "$finetune_tokens")
  for map in t2r elu; do
    [[ -e $OUT/swapped-$map ]] ||
      "$T2R" convert --model "$teacher" --output "$OUT/swapped-$map" --feature-map $map
    train "$map" "${finetune[@]}" --model "$OUT/swapped-$map"
  done
  train scratch "${finetune[@]}" --learning-rate 3e-3 --model.family gpt2 --model.layers 4 \
    --model.hidden-size 192 --model.heads 3 --model.max-positions 1088 --model.attention t2r

  echo "== evaluation on the test part, windows of 256 tokens; generation from a prompt of 4 tokens"
  rm -f "$OUT/results.jsonl"
  measure "softmax teacher" "$teacher" "$teacher_tokens" "$(training_seconds "$OUT/teacher")"
  measure "swapped, not finetuned" "$OUT/swapped-t2r" 0 0
  measure "T2R finetuned" "$OUT/t2r/checkpoints/latest" "$finetune_tokens" \
    "$(training_seconds "$OUT/t2r")"
  measure "T2R from scratch" "$OUT/scratch/checkpoints/latest" "$finetune_tokens" \
    "$(training_seconds "$OUT/scratch")"
  measure "ELU finetuned" "$OUT/elu/checkpoints/latest" "$finetune_tokens" \
    "$(training_seconds "$OUT/elu")"
  "$T2R_PYTHON" launch/experiments/quickstart/table.py "$OUT/results.jsonl"
  echo "== the RNN writes:"
  "$T2R" generate --model "$OUT/t2r/checkpoints/latest" --prompt "To insert a table" \
    --max-new-tokens 60 --temperature 0.7 --top-p 0.9
  echo "== done in $((SECONDS - started)) s after the build; everything is in $OUT"
}

main "$@"
