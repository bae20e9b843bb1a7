#!/usr/bin/env bash
# Fetches a text corpus and writes it in the layout that t2r's data commands read.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch/venv.sh"

readonly NAMES="libreoffice-help wikitext-2 wikitext-103 wikitext-2-raw wikitext-103-raw"
readonly HELP_PACKAGES=(libreoffice-help-{en-us,de,fr,zh-cn})
readonly WIKITEXT_SITE=https://wikitext.smerity.com
# "corpus/file sha256". The archives' raw variants and WikiText-103's training text have no sum that
# we could verify.
readonly KNOWN_SUMS="\
wikitext-2/wiki.train.tokens 9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f
wikitext-2/wiki.valid.tokens f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8
wikitext-2/wiki.test.tokens d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0
wikitext-103/wiki.valid.tokens 9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b
wikitext-103/wiki.test.tokens 56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9"

usage() {
  cat <<EOF
Usage: data/get_corpus.sh NAME [DIR]

NAME: libreoffice-help   LibreOffice's help (MPL-2.0) from the distribution's packages, 12 MB:
                         480,000 words of English by page, and 25,000 to 35,000 pairs each of
                         en-de, en-fr, en-zh. No root needed
      wikitext-2, wikitext-103
                         Wikipedia, tokenised, rare words as <unk> (CC BY-SA 3.0; 4 MB, 181 MB)
      wikitext-2-raw, wikitext-103-raw
                         the same text before tokenisation (5 MB, 183 MB)
DIR   default corpora/NAME in the project's root, which git ignores

Writes DIR/lm/{train,valid,test}.txt and, for libreoffice-help,
DIR/parallel/{train,valid,test}.en-XX.{en,XX}. T2R_WIKITEXT_URL takes the place of the archive's
address: a mirror, or file:///... of an archive that is here.
EOF
}

# Unpacks the four packages in folder $1 and writes the corpus to folder $2.
make_libreoffice_help() {
  local tmp=$1 out=$2 package archive
  { command -v apt-get && command -v dpkg-deb; } >/dev/null ||
    t2r_fail 1 "libreoffice-help comes from Debian's or Ubuntu's packages, and apt-get or" \
      "dpkg-deb is not here"
  for package in "${HELP_PACKAGES[@]}"; do
    apt-cache show --no-all-versions "$package" >/dev/null 2>&1 ||
      t2r_fail 1 "apt knows no package $package: its lists are empty or old; run 'apt-get update'" \
        "as root first (on Ubuntu with 'universe' enabled)"
  done
  t2r_say "downloading ${HELP_PACKAGES[*]} (12 MB)"
  # apt's own user may not write here and says so each time; that is no failure.
  (cd "$tmp" && apt-get download -qq "${HELP_PACKAGES[@]}" 2> >(grep -v unsandboxed >&2)) ||
    t2r_fail 1 "apt-get download failed; see its message above ('apt-get update' as root brings" \
      "new lists)"
  for archive in "$tmp"/*.deb; do dpkg-deb -x "$archive" "$tmp/root"; done
  python3 "$T2R_ROOT/data/libreoffice_help.py" "$tmp/root" "$out"
}

# download URL FILE
download() {
  if command -v curl >/dev/null; then
    curl --fail --location --silent --show-error --retry 3 --connect-timeout 20 --output "$2" "$1"
  else  # python3 unpacks the archive anyway
    python3 -c 'import shutil, sys, urllib.request as request
try:
  with request.urlopen(sys.argv[1], timeout=60) as page, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(page, file)
except OSError as error: sys.exit(str(error))' "$1" "$2"
  fi
}

# check_sum CORPUS FILE: compares a file of the archive with the known sum, if there is one.
check_sum() {
  local name have want
  name=$1/$(basename "$2")
  want=$(awk -v name="$name" '$1 == name {print $2}' <<<"$KNOWN_SUMS")
  [[ -n $want ]] || return 0
  have=$(sha256sum <"$2" | cut -d' ' -f1)
  [[ $have == "$want" ]] ||
    t2r_fail 1 "$name of the archive: its sha256 is $have, $want is expected"
}

# archive_size CORPUS
archive_size() {
  case $1 in
    wikitext-2) echo "4 MB" ;;
    wikitext-2-raw) echo "5 MB" ;;
    wikitext-103) echo "181 MB" ;;
    wikitext-103-raw) echo "183 MB" ;;
  esac
}

# Fetches archive $1 into folder $2 and writes the corpus to folder $3.
make_wikitext() {
  local name=$1 tmp=$2 out=$3 url part file
  url=${T2R_WIKITEXT_URL:-$WIKITEXT_SITE/$name-v1.zip}
  t2r_say "downloading $url ($(archive_size "$name"))"
  download "$url" "$tmp/archive.zip" ||
    t2r_fail 1 "could not download $url; get the archive elsewhere and name it:" \
      "T2R_WIKITEXT_URL=file:///path/to/$name-v1.zip data/get_corpus.sh $name. Where Debian's or" \
      "Ubuntu's packages are all that can be reached, data/get_corpus.sh libreoffice-help works"
  python3 -m zipfile -e "$tmp/archive.zip" "$tmp/unpacked" 2>/dev/null ||
    t2r_fail 1 "$url is not a zip archive"
  mkdir -p "$out/lm"
  for part in train valid test; do
    file=$(find "$tmp/unpacked" -name "wiki.$part.tokens" -o -name "wiki.$part.raw")
    [[ -n $file ]] || t2r_fail 1 "$url holds neither wiki.$part.tokens nor wiki.$part.raw"
    check_sum "$name" "$file"
    mv "$file" "$out/lm/$part.txt"
    echo "lm/$part.txt: $(wc -w <"$out/lm/$part.txt") words, $(wc -l <"$out/lm/$part.txt") lines"
  done
}

# Everything happens in a folder beside DIR, and a rename ends it: an interrupted run leaves nothing
# under DIR.
main() {
  local argument names=() name dir
  for argument in "$@"; do
    case $argument in
      -h | --help) usage; exit 0 ;;
      -*) t2r_fail 64 "unknown option $argument; see --help" ;;
      *) names+=("$argument") ;;
    esac
  done
  ((${#names[@]} >= 1 && ${#names[@]} <= 2)) ||
    t2r_fail 64 "NAME and perhaps DIR are needed; NAME is one of $NAMES"
  name=${names[0]}
  [[ " $NAMES " == *" $name "* ]] ||
    t2r_fail 64 "$name is not a corpus that get_corpus.sh knows: $NAMES"
  dir=${names[1]:-$T2R_ROOT/corpora/$name}
  if [[ -e $dir/lm/test.txt ]]; then
    t2r_say "$dir is there"
    exit 0
  fi
  [[ ! -e $dir ]] ||
    t2r_fail 1 "$dir exists and is not a complete corpus; remove it or name another DIR"
  mkdir -p "$(dirname "$dir")"
  PARTIAL=$(mktemp -d "$dir.partial.XXXXXX")
  trap 'rm -rf "$PARTIAL"' EXIT
  mkdir "$PARTIAL/corpus"
  case $name in
    libreoffice-help) make_libreoffice_help "$PARTIAL" "$PARTIAL/corpus" ;;
    wikitext-*) make_wikitext "$name" "$PARTIAL" "$PARTIAL/corpus" ;;
  esac
  mv -T "$PARTIAL/corpus" "$dir"
  t2r_say "$dir is written"
}

main "$@"
