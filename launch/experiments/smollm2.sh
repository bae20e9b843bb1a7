#!/usr/bin/env bash
# Turns a real pretrained transformer, SmolLM2-135M, into an RNN, beside the baselines that this has
# to be measured against.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/../venv.sh"
# shellcheck source=launch/experiments/experiment.sh
source "$T2R_ROOT/launch/experiments/experiment.sh"

readonly VARIANTS="as-is softmax t2r t2r-transfer t2r-query-transfer t2r75 t2r75-transfer \
hedgehog-query-transfer hedgehog75-query-transfer elu scratch t2r-query-transfer-distill \
t2r75-transfer-distill hedgehog-query-transfer-distill hedgehog75-query-transfer-distill"

usage() {
  cat <<EOF
Usage: launch/experiments/smollm2.sh [--tokens N] [--distill-tokens N] [--output DIR]
                                     [--extra-text FILE]... [VARIANT...]

Finetunes SmolLM2-135M (data/get_model.sh) on WikiText-2 in each VARIANT with N tokens (default
9830400) and prints the perplexity on WikiText-2's validation and test text, of the step with the
best validation. Meant for a GPU; a minute a variant on an H200. Text is WikiText-2 as people write
it (data/detokenize_wikitext.py), three times an epoch beside --extra-text, once alone.

VARIANT (default: all)
  as-is               SmolLM2 as it came, nothing trained
  softmax             finetuned as it is: what T2R has to be compared with
  t2r                 the paper's recipe: k 32, a map per key/value head, all layers
  t2r-transfer        the first quarter of the steps, at most 400, is attention transfer
  t2r-query-transfer  the same with a map per query head
  t2r75, t2r75-transfer   every fourth layer from the top keeps softmax
  hedgehog-query-transfer Hedgehog's map, 128 features, per query head, with transfer
  hedgehog75-query-transfer   the same, every fourth layer from the top keeps softmax
  elu                 elu + 1 instead of a learned map
  scratch             the T2R model without pretraining
  t2r-query-transfer-distill, t2r75-transfer-distill, hedgehog-query-transfer-distill,
  hedgehog75-query-transfer-distill
                      the finetuned softmax model is converted, with as many tokens again (or
                      --distill-tokens; the rows are called VARIANT-NM then), and is the teacher:
                      its next-token distributions are learned instead of the text's tokens
T2R takes the place of the built binary. What DIR (default runs/smollm2) holds already is not made
again.
EOF
}

prepare() {
  local part text
  [[ -e $MODEL/model.safetensors ]] || data/get_model.sh smollm2-135m "$MODEL" >/dev/null
  for part in train valid test; do
    [[ ! -d $OUT/shards/$part ]] || continue
    [[ -e corpora/wikitext-2/lm/$part.txt ]] || data/get_corpus.sh wikitext-2
    mkdir -p "$OUT/text"
    text=$OUT/text/$part.txt
    python3 data/detokenize_wikitext.py "corpora/wikitext-2/lm/$part.txt" >"$text"
    "$T2R" prepare lm --inputs "$text" --tokenizer "$MODEL" --output "$OUT/shards/$part"
  done
  if ((${#EXTRA[@]})) && [[ ! -d $OUT/shards/extra ]]; then
    "$T2R" prepare lm --inputs "${EXTRA[@]}" --tokenizer "$MODEL" --output "$OUT/shards/extra"
  fi
}

# train NAME [OPTION...]: a run of the caller's $tokens in $OUT/NAME.
train() {
  local name=$1
  shift
  training_shards
  echo "== $name"
  "$T2R" train --config launch/experiments/smollm2/finetune.toml --output "$OUT/$name" \
    --train-data "${SHARDS[@]}" --valid-data "$OUT/shards/valid" --tokenizer "$MODEL" \
    --tokens "$tokens" --resume "$@"
}

run_variant() {
  local name=$1 base=${1%-distill} started=$SECONDS tokens=$TOKENS transfer origin='' options=()
  local t2r=(--feature-map t2r --feature-size 32) PRETRAINED=$MODEL
  local hedgehog=(--feature-map hedgehog --map-per-query-head)
  if [[ $name == *-distill ]]; then
    PRETRAINED=$OUT/softmax/checkpoints/best
    origin=-finetuned
    options=(--teacher "$PRETRAINED")
    if [[ -n $DISTILL_TOKENS ]]; then
      tokens=$DISTILL_TOKENS
      name+=-$((tokens / 1000000))M
    fi
  fi
  ! grep -qs "^{\"name\": \"$name\"" "$OUT/results.jsonl" || return 0
  transfer=$((tokens / 16384 / 4))
  ((transfer <= 400)) || transfer=400
  [[ -z $origin ]] || run_variant softmax  # to its end, if it is not there
  case $base in
    as-is) measure "$name" "$MODEL" 0 0; return ;;
    softmax) train "$name" --model "$MODEL" --learning-rate 1e-4 --map-learning-rate 0 ;;
    t2r | t2r-transfer) convert "t2r$origin" "${t2r[@]}" ;;
    t2r-query-transfer) convert "t2r-query$origin" "${t2r[@]}" --map-per-query-head ;;
    t2r75 | t2r75-transfer) convert "t2r75$origin" "${t2r[@]}" --keep-softmax-every 4 ;;
    hedgehog-query-transfer) convert "hedgehog-query$origin" "${hedgehog[@]}" ;;
    hedgehog75-query-transfer)
      convert "hedgehog75-query$origin" "${hedgehog[@]}" --keep-softmax-every 4 ;;
    elu) convert elu --feature-map elu ;;
    scratch)
      train scratch --learning-rate 1e-3 --map-learning-rate 0 --model.family llama \
        --model.layers 30 --model.hidden-size 576 --model.heads 9 --model.kv-heads 3 \
        --model.intermediate-size 1536 --model.attention t2r ;;
  esac
  [[ $base != *-transfer ]] || options+=(--transfer-steps "$transfer")
  case $base in
    t2r* | hedgehog* | elu)
      train "$name" --model "$OUT/swapped-${base%-transfer}$origin" "${options[@]}" ;;
  esac
  measure "$name" "$OUT/$name/checkpoints/best" "$tokens" $((SECONDS - started))
}

main() {
  local variants=() name
  OUT=runs/smollm2 TOKENS=9830400 DISTILL_TOKENS='' EXTRA=()
  while (($#)); do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --tokens) t2r_need number "$@"; TOKENS=$2; shift 2 ;;
      --distill-tokens) t2r_need number "$@"; DISTILL_TOKENS=$2; shift 2 ;;
      --output) t2r_need text "$@"; OUT=$2; shift 2 ;;
      --extra-text) t2r_need file "$@"; EXTRA+=("$(realpath "$2")"); shift 2 ;;
      -*) t2r_fail 64 "unknown option $1; see --help" ;;
      *)
        [[ " $VARIANTS " == *" $1 "* ]] || t2r_fail 64 "unknown variant $1; allowed: $VARIANTS"
        variants+=("$1"); shift ;;
    esac
  done
  # shellcheck disable=SC2206
  ((${#variants[@]})) || variants=($VARIANTS)
  cd "$T2R_ROOT"
  MODEL=${T2R_MODEL:-models/smollm2-135m}
  mkdir -p "$OUT"
  if [[ -z ${T2R:-} ]]; then
    launch/build.sh release t2r
    # shellcheck source=launch/env.sh
    source launch/env.sh
    T2R=$T2R_ROOT/build/release/launch/t2r
  fi
  prepare
  for name in "${variants[@]}"; do run_variant "$name"; done
  python3 launch/experiments/smollm2/table.py "$OUT/results.jsonl"
}

main "$@"
