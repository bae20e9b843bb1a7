# shellcheck shell=bash disable=SC2034
# Sourced: messages, and Python environments that every clone on a machine shares.

T2R_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
T2R_CACHE=$(realpath -m "${XDG_CACHE_HOME:-$HOME/.cache}")/t2r

# t2r_say TEXT...: a line on stderr, so that stdout stays for results.
t2r_say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# t2r_fail CODE TEXT...: a line on stderr and the end of the script. 64 is wrong usage, 1 anything
# else.
t2r_fail() {
  local code=$1
  shift
  t2r_say "$@"
  exit "$code"
}

# t2r_need KIND OPTION [VALUE...]: ends with 64 unless the option has a value of its kind: number (1
# or more), file, text.
t2r_need() {
  local kind=$1 option=$2 value=${3:-}
  [[ -n $value && $value != --* ]] || t2r_fail 64 "$option needs a $kind; see --help"
  [[ $kind != number || $value =~ ^[1-9][0-9]{0,17}$ ]] ||
    t2r_fail 64 "$option $value; allowed: a whole number, 1 or more"
  [[ $kind != file || -f $value ]] || t2r_fail 64 "$option $value: there is no such file"
}

# t2r_torch_of PYTHON: the folder of that Python's torch, empty if it has none. Does not load it.
t2r_torch_of() {
  local find='import importlib.util as u, os; print(os.path.dirname(u.find_spec("torch").origin))'
  "$1" -c "$find" 2>/dev/null || true
}

# t2r_key TEXT...: 12 hexadecimal digits of the text's sha256, a name for what depends on nothing
# else.
t2r_key() { printf '%s\n' "$@" | sha256sum | cut -c1-12; }

# t2r_lock FILE: waits for other set-ups on this machine; the lock ends with the script or with
# `exec {T2R_LOCK}>&-`.
t2r_lock() {
  mkdir -p "$(dirname "$1")"
  exec {T2R_LOCK}>"$1"
  if ! flock -n "$T2R_LOCK"; then
    t2r_say "another process holds $1; waiting for it"
    flock "$T2R_LOCK"
  fi
}

# t2r_venv_is_complete FOLDER: a folder without the mark was interrupted.
t2r_venv_is_complete() { [[ -e $1/t2r_complete && -x $1/bin/python ]]; }

# t2r_make_venv FOLDER FINISH PIP_ARGUMENT...: makes the environment unless it is there; FINISH
# FOLDER is called before it counts as complete. Made in place and marked at the end: scripts in
# bin/ carry the folder's name, so that an environment cannot be renamed.
t2r_make_venv() {
  local folder=$1 finish=$2 log=$1.log
  shift 2
  t2r_venv_is_complete "$folder" && return
  t2r_lock "$folder.lock"
  if ! t2r_venv_is_complete "$folder"; then
    rm -rf "$folder"
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
      t2r_fail 1 "python3 ($(command -v python3 || echo none)) cannot make a virtual environment:" \
        "install python3-venv, or put another python3 >= 3.10 first on PATH"
    if ! { python3 -m venv "$folder" &&
      "$folder/bin/python" -m pip install --no-input --disable-pip-version-check \
        --progress-bar off "$@"; } \
      >"$log" 2>&1; then
      tail -n 5 "$log" >&2
      t2r_fail 1 "pip could not install $*; the whole log is $log"
    fi
    "$finish" "$folder"
    touch "$folder/t2r_complete"
  fi
  exec {T2R_LOCK}>&-
}
