#!/usr/bin/env bash
# launch/experiments: which commands they run, with a program in t2r's place.
# shellcheck disable=SC2016,SC2031,SC2317,SC2329
# Other programs expand what they are given; the tests are called by name.
set -uo pipefail
# shellcheck source=tests/scripts/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"

# make_fake_t2r CALLS: a program in t2r's place, $TMP/fake_t2r, that writes down how it is called
# and makes what the command would leave; and text for it to read.
make_fake_t2r() {
  mkdir -p "$root/corpora/wikitext-2/lm"
  for part in train valid test; do
    echo " A sentence of $part . " >"$root/corpora/wikitext-2/lm/$part.txt"
  done
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

# was_called PATTERN...: the program was, with arguments that match the patterns (extended regular
# expressions) in this order, anything between them.
was_called() {
  local pattern=$1
  shift
  (($# == 0)) || pattern+=$(printf '.*%s' "$@")
  expect 0 "" grep -E -- "$pattern" "$calls"
}

SmolLM2IsDistilledFromItsFinetunedSelf() {
  local root=$TMP/smol_root calls=$TMP/smol_calls run
  make_root "$root"
  make_fake_t2r "$calls"
  mkdir -p "$TMP/smol_model"
  touch "$TMP/smol_model/model.safetensors"
  run=(env T2R="$TMP/fake_t2r" T2R_MODEL="$TMP/smol_model" "$root/launch/experiments/smollm2.sh")
  expect 0 "^\\| t2r75-transfer-distill \\| 9.8M " \
    "${run[@]}" t2r75-transfer t2r75-transfer-distill softmax || return 1
  local best=runs/smollm2/softmax/checkpoints/best
  was_called "^convert --model $TMP/smol_model --output .*/swapped-t2r75 " &&
    was_called "^convert --model $best --output .*/swapped-t2r75-finetuned " \
      "--keep-softmax-every 4$" &&
    was_called "^train .*/t2r75-transfer .*--model .*/swapped-t2r75 --transfer-steps 150$" &&
    was_called "^train .*/t2r75-transfer-distill " \
      "/swapped-t2r75-finetuned --teacher $best --transfer-steps 150$" &&
    expect 0 "^3$" grep -c "^train" "$calls" || return 1
  expect 0 "^\\| t2r75-transfer-distill-39M \\| 39.3M " \
    "${run[@]}" --distill-tokens 39321600 t2r75-transfer-distill &&
    was_called "^train .*/t2r75-transfer-distill-39M " "--tokens 39321600 " \
      "/swapped-t2r75-finetuned --teacher $best --transfer-steps 400$" || return 1
  expect 0 "^\\| hedgehog75-query-transfer-distill \\| 9.8M " \
    "${run[@]}" hedgehog75-query-transfer-distill &&
    was_called "^convert --model $best .*/swapped-hedgehog75-query-finetuned " \
      "hedgehog --map-per-query-head --keep-softmax-every 4$" &&
    was_called "^train .*/swapped-hedgehog75-query-finetuned --teacher $best --transfer-steps 150$"
}

PaperSmallMakesEverythingOnce() {
  local root=$TMP/paper_root calls=$TMP/paper_calls run
  make_root "$root"
  make_fake_t2r "$calls"
  run=(env T2R="$TMP/fake_t2r" "$root/launch/experiments/paper_small.sh")
  run+=(--extra-text "$TMP/more.txt" --tokens 3276800 --batch-size 8)
  expect 0 "^\\| t2r75 \\| 0.7M .* \\+0.0 % \\| \\+0.0 % \\|" "${run[@]}" || return 1
  was_called "^train .*/paper_small/teacher " "--tokens 3276800 " "--model.layers 12 " \
    "--model.heads 8" &&
    was_called "^train .*/t2r-transfer .*/swapped-t2r --tokens 655360 --transfer-steps 40$" &&
    was_called "^convert .*/swapped-hedgehog75 --feature-map hedgehog --keep-softmax-every 4$" &&
    was_called "^convert .*/swapped-t2r-k64 --feature-map t2r --feature-size 64$" &&
    was_called "^train .*/t2r75 --train-data( [^ ]*/train){3} [^ ]*/extra " \
      "/swapped-t2r75 --tokens 655360$" &&
    was_called "^train .*/hedgehog-distill .*/swapped-hedgehog --tokens 655360 --teacher " \
      "/teacher/checkpoints/best$" &&
    expect 0 "^19 7 5 40$" sh -c \
      "for c in train convert prepare evaluate; do grep -c \"^\$c\" $calls; done | xargs" ||
    return 1
  mv "$calls" "$calls.first"
  expect 0 "^\\| t2r75 " "${run[@]}" || return 1
  [[ ! -e $calls ]] || fail "a second run does again: $(<"$calls")" || return 1
  expect 0 "^\\| hedgehog-1M \\| 1.3M " "${run[@]}" --finetune-tokens 1310720 hedgehog &&
    was_called "^train .*/hedgehog-1M .*/swapped-hedgehog --tokens 1310720$"
}

run_tests "$@"
