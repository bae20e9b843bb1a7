# shellcheck shell=bash disable=SC2153
# Sourced by the scripts that run experiments; after venv.sh.

# measure NAME MODEL TOKENS SECONDS: perplexity of a model on the shards of $OUT as a line of $OUT/results.jsonl, which is printed.
measure() {
  local valid test
  valid=$("$T2R" evaluate --model "$2" --data "$OUT/shards/valid" --context 512 --batch-size 32 --precision float32 --json)
  test=$("$T2R" evaluate --model "$2" --data "$OUT/shards/test" --context 512 --batch-size 32 --precision float32 --json)
  printf '{"name": "%s", "tokens": %s, "seconds": %s, "valid": %s, "test": %s}\n' "$1" "$3" "$4" "$valid" "$test" >>"$OUT/results.jsonl"
  tail -n 1 "$OUT/results.jsonl"
}
