#!/usr/bin/env bash
# data/'s scripts: corpora, the converter of GGUF files, models.
# shellcheck disable=SC2016,SC2031,SC2317,SC2329
# Other programs expand what they are given; the tests are called by name.
set -uo pipefail
# shellcheck source=tests/scripts/support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"

# make_wikitext FOLDER ENDING: an archive as the official one is laid out, with other text.
make_wikitext() {
  mkdir -p "$TMP/zip/$1"
  local part
  for part in train valid test; do
    printf ' = Title = \n\n %s text \n' $part >"$TMP/zip/$1/wiki.$part.$2"
  done
  (cd "$TMP/zip" && python3 -m zipfile -c "$TMP/$1.zip" "$1")
}

CorpusIsWrittenWholeOrNotAtAll() {
  local dir=$TMP/corpora/raw
  make_wikitext wikitext-2-raw raw
  make_wikitext wikitext-2 tokens
  export T2R_WIKITEXT_URL=file://$TMP/wikitext-2-raw.zip
  expect 0 "lm/train.txt: 5 words, 3 lines" "$ROOT/data/get_corpus.sh" wikitext-2-raw "$dir" &&
    expect 0 "is there" "$ROOT/data/get_corpus.sh" wikitext-2-raw "$dir" || return 1
  cmp "$TMP/zip/wikitext-2-raw/wiki.valid.raw" "$dir/lm/valid.txt" || fail "valid.txt differs" ||
    return 1
  T2R_WIKITEXT_URL=file://$TMP/wikitext-2.zip
  expect 1 "wikitext-2/wiki.train.tokens.*sha256.*9e9fa1ad55b1" \
    "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" || return 1
  T2R_WIKITEXT_URL=file://$TMP/absent.zip
  expect 1 "could not download.*T2R_WIKITEXT_URL=file.*get_corpus.sh libreoffice-help works" \
    "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" || return 1
  T2R_WIKITEXT_URL=file://$ROOT/data/get_corpus.sh
  expect 1 "is not a zip archive" "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/w2" ||
    return 1
  [[ $(ls "$TMP/corpora") == raw ]] || fail "left behind: $(ls "$TMP/corpora")" || return 1
  mkdir "$TMP/corpora/mine"
  expect 1 "mine exists and is not a complete corpus" \
    "$ROOT/data/get_corpus.sh" wikitext-2 "$TMP/corpora/mine"
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
      {
        printf '<h1 id="hd_id1">Same &amp; <b>%s</b></h1>' "$shared"
        printf '<p id="par_id2">Text\n  %s %s</p>' "$page" "$language"
        printf '<p id="par_id3">OK %s</p><p>no</p>' "$page"
      } >"$help/$language/text/a$page.html"
    done
  done
  expect 0 "parallel/train.en-de: [0-9]+ pairs" \
    python3 "$ROOT/data/libreoffice_help.py" "$TMP/help" "$out" || return 1
  [[ $(cat "$out"/lm/*.txt | grep -c .) == 121 ]] || fail "not 121 different paragraphs" || return 1
  [[ -z $(for part in train valid test; do sort -u "$out/parallel/$part.en-de.en"; done |
    sort | uniq -d) ]] || fail "a text in two parts" || return 1
  grep -qx 'Same & en-US' "$out/lm/train.txt" "$out/lm/valid.txt" "$out/lm/test.txt" ||
    fail "tags or entities left" || return 1
  paste "$out"/parallel/train.en-zh.{en,zh} | grep -v Same | awk '$2 != $5 {exit 1}' ||
    fail "lines not aligned" || return 1
  ! grep -q OK "$out"/parallel/train.en-de.en || fail "an untranslated pair was kept" || return 1
  rm -r "$help/fr"
  expect 1 "fr is missing; unpack its package" \
    python3 "$ROOT/data/libreoffice_help.py" "$TMP/help" "$TMP/help_out2"
}

ConverterGivesHuggingFacesOrderAndRounding() {
  expect 0 "^converted$" "$PYTHON" "$ROOT/tests/scripts/converter_test.py" "$ROOT/data" \
    "$TMP/converted" "$ROOT/tests/cli"
}

DetokenizedTextReadsAsPeopleWriteIt() {
  cat >"$TMP/tokens" <<'TEXT'
 = Robert <unk> ( actor ) = 
 
 He won 1 @,@ 500 m in 3 @.@ 5 min – a co @-@ star , " the best " , said the game 's maker ; 
 players ' turns : don 't ask ! 
TEXT
  cat >"$TMP/wanted" <<'TEXT'
= Robert <unk> (actor) =

He won 1,500 m in 3.5 min – a co-star, "the best", said the game's maker;
players' turns: don't ask!
TEXT
  "$ROOT/data/detokenize_wikitext.py" "$TMP/tokens" | diff "$TMP/wanted" -
}

ModelFolderThatIsIncompleteIsRefused() {
  mkdir -p "$TMP/model"
  touch "$TMP/model/config.json"
  expect 1 "is not a complete model; remove it" \
    "$ROOT/data/get_model.sh" smollm2-135m "$TMP/model" || return 1
  touch "$TMP/model/model.safetensors" "$TMP/model/tokenizer.json"
  expect 0 "is there" "$ROOT/data/get_model.sh" smollm2-135m "$TMP/model"
}

run_tests "$@"
