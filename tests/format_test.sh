#!/usr/bin/env bash
# The layout of the code: clang-format 14 leaves every C++ and CUDA file as it is, and no line of
# code, Python, shell, CMake or prose has more than 100 columns, but for Markdown's tables, code and
# links. Usage: format_test.sh [ROOT]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}"

WIDTH=100
failures=0

report() {
  echo "format: $1" >&2
  failures=$((failures + 1))
}

# The project's files of these kinds; without a repository, all that lie in its folders.
files() {
  if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -- "$@"
  else
    local names=(-false) pattern
    for pattern in "$@"; do names+=(-o -name "$pattern"); done
    find . -type f "(" "${names[@]}" ")"
  fi
}

mapfile -t sources < <(files '*.h' '*.cpp' '*.cu' '*.cuh' '*.inl' '*.c')
mapfile -t scripts < <(files '*.py' '*.sh' '*.cmake' 'CMakeLists.txt' '*/CMakeLists.txt' '.ci/*')
mapfile -t pages < <(files '*.md')

# Columns, not bytes: of a character in UTF-8 the first byte counts.
long_lines() {
  LC_ALL=C awk -v width=$WIDTH '
    { gsub(/[\200-\277]/, "") }
    length($0) > width {print FILENAME ":" FNR ": " length($0) " columns"}' "$@"
}

# Prose alone: no fenced code, table, or line that one word or link makes long.
long_prose() {
  LC_ALL=C awk -v width=$WIDTH '
    FNR == 1 { is_code = 0 }
    { gsub(/[\200-\277]/, "") }
    /^ *```/ { is_code = !is_code; next }
    is_code || /^\|/ || length($0) <= width { next }
    { words = $0; sub(/^ *([-*] )?/, "", words) }
    words ~ /^[^ ]+$/ || words ~ /\]\([^)]*$/ { next }
    { print FILENAME ":" FNR ": " length($0) " columns" }' "$@"
}

formatter=$(command -v clang-format-14 || true)
if [[ -z $formatter ]]; then
  report "no clang-format-14 (launch/setup.sh installs it)"
elif ! printf '%s\0' "${sources[@]}" | xargs -0 -n 40 "$formatter" --dry-run -Werror; then
  report "clang-format-14 -i FILE lays a file out as the project does"
fi
lines=$(long_lines "${sources[@]}")
[[ -z $lines ]] || report "code over $WIDTH columns:"$'\n'"$lines"
lines=$(long_lines /dev/null "${scripts[@]}")
[[ -z $lines ]] || report "scripts over $WIDTH columns:"$'\n'"$lines"
lines=$(long_prose "${pages[@]}")
[[ -z $lines ]] || report "prose over $WIDTH columns:"$'\n'"$lines"
exit $((failures > 0))
