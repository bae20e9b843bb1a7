#!/usr/bin/env bash
# Guards of the layers that the linker cannot see: which folder, and which room of a folder, may
# include what. Usage: layers_test.sh [ROOT]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}"
failures=0

# forbid PATTERN REASON FOLDER...: no file in the folders may have a line that matches.
forbid() {
  local pattern=$1 reason=$2
  shift 2
  if grep -rnE --include='*.h' --include='*.cpp' --include='*.inl' --include='*.cu' \
    --include='*.cuh' "$pattern" "$@"; then
    echo "layers: $reason" >&2
    failures=$((failures + 1))
  fi
}

# rooms FOLDER ROOM...: a room includes those in front of it, not those behind.
rooms() {
  local folder=$1 room
  shift
  while (($# > 1)); do
    room=$1
    shift
    [[ -d $folder/$room ]] || continue
    forbid "#include \"$folder/($(IFS='|' && echo "$*"))/" \
      "$folder/$room comes before $* and does not include them" "$folder/$room"
  done
}

mapfile -t outside_dist < <(printf '%s\n' base data model launch)
forbid '#include <(mpi|nccl)\.h>' 'only dist includes MPI and NCCL' "${outside_dist[@]}"
forbid '\b(MPI_[A-Z][a-z_]+|nccl[A-Z][A-Za-z]+) *\(' 'only dist calls MPI and NCCL' \
  "${outside_dist[@]}"
forbid '#include <(hdf5|H5[A-Za-z]*)\.h>' 'only data includes HDF5' base dist model launch
forbid '#include <(pcre2|sentencepiece[a-z_]*)\.h>' 'only data includes tokenizer libraries' \
  base dist model launch
forbid '#include [<"](torch|ATen|c10)/' 'base, data and the kernels see no LibTorch' \
  base data model/kernels
forbid '#include "(data|dist|launch)/' 'model knows base only' model
forbid '#include "(model|dist|launch)/' 'data knows base only' data
forbid '#include "(model|data|launch)/' 'dist knows base only' dist
forbid '#include "(model|data|dist|launch)/' 'base knows nothing' base
forbid '#include "model/[^k]' 'kernels include kernels only' model/kernels
forbid '#include "model/(families|layers|attention|nets|files|search|optim)/' \
  'operators include kernels only' model/ops
forbid '\bfamily *[!=]= *"' 'what a family computes stands in its BlockSpec' \
  --exclude-dir={families,kernels,ops} launch model
rooms model families layers attention objectives nets files search
rooms launch options checkpoints train gpu cli bench
rooms data unicode tokenizers
forbid '#include <torch/torch\.h>' 'torch/torch.h costs half a minute a file' \
  base data dist model launch tests
forbid '\bassert *\(' 'assert is compiled out; use require' base data dist model launch
exit $((failures > 0))
