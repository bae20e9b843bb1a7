#!/usr/bin/env bash
# format_test.sh bites: each kind of violation, put into a copy of an almost empty tree, must be
# reported.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cp "$here/../.clang-format" "$root/"
long=$(printf 'word %.0s' {1..21})

check() {  # FILE LINE REASON
  printf '%s\n' "$2" >"$root/$1"
  if output=$("$here/format_test.sh" "$root" 2>&1) || ! grep -q "$3" <<<"$output"; then
    echo "not reported: $2 in $1" >&2
    exit 1
  fi
  rm "$root/$1"
}

printf 'int x = 0;\n' >"$root/good.cu"
printf '# %s\n' "$(printf 'é%.0s' {1..98})" >"$root/good.py"  # columns are characters
printf '%s\n' 'Prose.' "| a table | $long |" '```' "$long" '```' >"$root/good.md"
"$here/format_test.sh" "$root"
check violation.cpp 'int  x=0;' 'lays a file out'
check violation.cuh '__device__ int x=0;' 'lays a file out'
check violation.h "/* $long */" 'code over'
for name in violation.py violation.sh violation.cmake CMakeLists.txt; do
  check $name "# $long" 'scripts over'
done
check violation.md "$long" 'prose over'
