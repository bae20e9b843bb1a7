# shellcheck shell=bash disable=SC2153
# Sourced by the scripts that run experiments; after venv.sh.

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  echo "launch/experiments/experiment.sh is sourced by the experiments beside it, smollm2.sh and" \
    "paper_small.sh: run one of those, --help says how" >&2
  [[ ${1:-} == -h || ${1:-} == --help ]] || exit 64
  exit 0
fi

# measure NAME MODEL TOKENS SECONDS: perplexity of a model on the shards of $OUT as a line of
# $OUT/results.jsonl, which is printed.
measure() {
  local valid test
  local scoring=(--context 512 --sequences-at-once 32 --precision float32 --json)
  valid=$("$T2R" evaluate --model "$2" --data "$OUT/shards/valid" "${scoring[@]}")
  test=$("$T2R" evaluate --model "$2" --data "$OUT/shards/test" "${scoring[@]}")
  printf '{"name": "%s", "tokens": %s, "seconds": %s, "valid": %s, "test": %s}\n' \
    "$1" "$3" "$4" "$valid" "$test" >>"$OUT/results.jsonl"
  tail -n 1 "$OUT/results.jsonl"
}

# training_shards: those of the corpus in SHARDS, three times beside other text.
training_shards() {
  local own=$OUT/shards/train
  SHARDS=("$own")
  [[ ! -d $OUT/shards/extra ]] || SHARDS=("$own" "$own" "$own" "$OUT/shards/extra")
}

# convert NAME [OPTION...]: the model folder PRETRAINED as $OUT/swapped-NAME, once.
convert() {
  local name=$1
  shift
  [[ -e $OUT/swapped-$name ]] ||
    "$T2R" convert --model "$PRETRAINED" --output "$OUT/swapped-$name" "$@"
}
