#!/usr/bin/env bash
# The paper's own experiment in small: a softmax teacher from scratch, and T2R finetuned from it
# beside its baselines.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/../venv.sh"
# shellcheck source=launch/experiments/experiment.sh
source "$T2R_ROOT/launch/experiments/experiment.sh"

readonly VARIANTS="teacher softmax t2r t2r75 elu scratch swapped t2r-transfer t2r-k64 \
t2r-k64-transfer t2r-k128 hedgehog hedgehog-transfer hedgehog75 hedgehog75-transfer t2r-distill \
t2r75-distill t2r-k128-distill hedgehog-distill hedgehog75-distill"

usage() {
  cat <<EOF
Usage: launch/experiments/paper_small.sh [OPTION...] [VARIANT...]

Trains a GPT-2-style softmax language model from scratch (the teacher), finetunes it as each VARIANT
with a fifth of its tokens, and prints the perplexity on the corpus's validation and test text, each
of the step with the best validation. Meant for a GPU: about 10 minutes on an H200. WikiText is
taken as people write it (data/detokenize_wikitext.py).

  --corpus NAME       of data/get_corpus.sh, default wikitext-2; the paper's is wikitext-103
  --extra-text FILE   more training text, beside which the corpus is read three times an epoch; can
                      be given again
  --tokens N          the teacher's (default 131072000); wikitext-2 alone is read by heart long
                      before
  --finetune-tokens N instead of a fifth of that; the rows are called VARIANT-NM then (52M)
  --layers N, --hidden-size N   default 12 and 512, heads of 64
  --vocab-size N      of the sentencepiece vocabulary that is trained on the text, default 16000
  --batch-size N      sequences of 512 tokens a step, default 64; the learning rates are for that
  --output DIR        default runs/paper_small; what it holds already is not made again, and
                      training is resumed

VARIANT (default: all; the teacher is always made)
  teacher       the softmax model
  softmax       finetuned as it is: what T2R has to be compared with
  t2r, t2r75    k 32 in all layers; every fourth layer from the top keeps softmax
  elu           elu + 1 instead of a learned map
  scratch       the T2R model without pretraining, on the same tokens as t2r
  swapped       t2r before finetuning
  t2r-k64, t2r-k128         more features
  hedgehog, hedgehog75      Hedgehog's map, 128 features, instead of T2R's
  t2r-transfer, t2r-k64-transfer, hedgehog-transfer, hedgehog75-transfer
                a quarter of the steps, at most 400, is attention transfer (not in the paper)
  t2r-distill, t2r75-distill, t2r-k128-distill, hedgehog-distill, hedgehog75-distill
                the teacher's next-token distributions are learned instead of the text's tokens (not
                in the paper)
T2R takes the place of the built binary.
EOF
}

# part PART: the text of a part of the corpus, written as people write it.
part() {
  local text=$OUT/text/$1.txt source=corpora/$CORPUS/lm/$1.txt
  if [[ ! -e $text ]]; then
    mkdir -p "$OUT/text"
    case $CORPUS in
      wikitext-2 | wikitext-103) python3 data/detokenize_wikitext.py "$source" >"$text.partial" ;;
      *) cp "$source" "$text.partial" ;;
    esac
    mv "$text.partial" "$text"
  fi
  echo "$text"
}

prepare() {
  local name
  [[ -e corpora/$CORPUS/lm/train.txt ]] || data/get_corpus.sh "$CORPUS"
  [[ -e $OUT/tokenizer.model ]] ||
    "$T2R" prepare vocab --inputs "$(part train)" "${EXTRA[@]}" --output "$OUT/tokenizer.model" \
      --vocab-size "$VOCAB_SIZE"
  for name in train valid test; do
    [[ -d $OUT/shards/$name ]] ||
      "$T2R" prepare lm --inputs "$(part $name)" --tokenizer "$OUT/tokenizer.model" \
        --output "$OUT/shards/$name"
  done
  if ((${#EXTRA[@]})) && [[ ! -d $OUT/shards/extra ]]; then
    "$T2R" prepare lm --inputs "${EXTRA[@]}" --tokenizer "$OUT/tokenizer.model" \
      --output "$OUT/shards/extra"
  fi
}

# train NAME CONFIG [OPTION...]: a run in $OUT/NAME.
train() {
  local name=$1 config=$2
  shift 2
  training_shards
  echo "== $name"
  "$T2R" train --config "launch/experiments/paper_small/$config.toml" --output "$OUT/$name" \
    --train-data "${SHARDS[@]}" --valid-data "$OUT/shards/valid" \
    --tokenizer "$OUT/tokenizer.model" --batch-size "$BATCH" --resume "$@"
}

run_variant() {
  local variant=$1 name=$1 started=$SECONDS budget=${FINETUNE:-$((TOKENS / 5))} tokens steps
  local size=(--model.family gpt2 --model.layers "$LAYERS" --model.hidden-size "$HIDDEN")
  size+=(--model.heads $((HIDDEN / 64)))
  local swapped=${variant%-transfer} transfer=() map=() distillation=()
  swapped=${swapped%-distill}
  [[ $variant != swapped ]] || swapped=t2r
  tokens=$budget
  [[ -z $FINETUNE || $variant == teacher ]] || name+=-$((budget / 1000000))M
  ! grep -qs "^{\"name\": \"$name\"" "$OUT/results.jsonl" || return 0
  case $swapped in
    t2r) map=(t2r --feature-size 32) ;;
    t2r75) map=(t2r --feature-size 32 --keep-softmax-every 4) ;;
    t2r-k*) map=(t2r --feature-size "${swapped#t2r-k}") ;;
    hedgehog75) map=(hedgehog --keep-softmax-every 4) ;;
    elu | hedgehog) map=("$swapped") ;;
  esac
  ((${#map[@]} == 0)) || convert "$swapped" --feature-map "${map[@]}"
  if [[ $variant == *-transfer ]]; then
    steps=$((budget / BATCH / 512 / 4))
    transfer=(--transfer-steps $((steps <= 400 ? steps : 400)))
  fi
  [[ $variant != *-distill ]] || distillation=(--teacher "$PRETRAINED")
  case $variant in
    teacher) train teacher teacher --tokens "$TOKENS" "${size[@]}"; tokens=$TOKENS ;;
    softmax)
      train "$name" finetune --model "$PRETRAINED" --tokens "$budget" --map-learning-rate 0 ;;
    scratch)
      train "$name" finetune --tokens "$budget" --learning-rate 1e-3 --map-learning-rate 0 \
        "${size[@]}" --model.max-positions 512 --model.attention t2r --model.feature-size 32 ;;
    swapped) ;;
    *)
      train "$name" finetune --model "$OUT/swapped-$swapped" --tokens "$budget" "${transfer[@]}" \
        "${distillation[@]}" ;;
  esac
  if [[ $variant == swapped ]]; then
    measure "$name" "$OUT/swapped-t2r" 0 0
  else
    measure "$name" "$OUT/$name/checkpoints/best" "$tokens" $((SECONDS - started))
  fi
}

main() {
  local variants=() name
  OUT=runs/paper_small CORPUS=wikitext-2 EXTRA=() TOKENS=131072000 FINETUNE=
  LAYERS=12 HIDDEN=512 VOCAB_SIZE=16000 BATCH=64
  while (($#)); do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --corpus) t2r_need text "$@"; CORPUS=$2; shift 2 ;;
      --extra-text) t2r_need file "$@"; EXTRA+=("$(realpath "$2")"); shift 2 ;;
      --tokens) t2r_need number "$@"; TOKENS=$2; shift 2 ;;
      --finetune-tokens) t2r_need number "$@"; FINETUNE=$2; shift 2 ;;
      --layers) t2r_need number "$@"; LAYERS=$2; shift 2 ;;
      --hidden-size) t2r_need number "$@"; HIDDEN=$2; shift 2 ;;
      --vocab-size) t2r_need number "$@"; VOCAB_SIZE=$2; shift 2 ;;
      --batch-size) t2r_need number "$@"; BATCH=$2; shift 2 ;;
      --output) t2r_need text "$@"; OUT=$2; shift 2 ;;
      -*) t2r_fail 64 "unknown option $1; see --help" ;;
      *)
        [[ " $VARIANTS " == *" $1 "* ]] || t2r_fail 64 "unknown variant $1; allowed: $VARIANTS"
        variants+=("$1"); shift ;;
    esac
  done
  ((HIDDEN % 64 == 0)) || t2r_fail 64 "--hidden-size $HIDDEN; allowed: a multiple of 64"
  # shellcheck disable=SC2206
  ((${#variants[@]})) || variants=($VARIANTS)
  cd "$T2R_ROOT"
  mkdir -p "$OUT"
  if [[ -z ${T2R:-} ]]; then
    launch/build.sh release t2r
    # shellcheck source=launch/env.sh
    source launch/env.sh
    T2R=$T2R_ROOT/build/release/launch/t2r
  fi
  PRETRAINED=$OUT/teacher/checkpoints/best
  prepare
  run_variant teacher
  for name in "${variants[@]}"; do run_variant "$name"; done
  python3 launch/experiments/paper_small/table.py "$OUT/results.jsonl"
}

main "$@"
