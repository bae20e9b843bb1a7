#!/usr/bin/env bash
# Guards of the layers that the linker cannot see: which folder may include what. Usage:
# layers_test.sh [ROOT]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}"
failures=0

# forbid PATTERN REASON FOLDER...: no file in the folders may have a line that matches.
forbid() {
  local pattern=$1 reason=$2
  shift 2
  if grep -rnE --include='*.h' --include='*.cpp' --include='*.inl' "$pattern" "$@"; then
    echo "layers: $reason" >&2
    failures=$((failures + 1))
  fi
}

mapfile -t outside_dist < <(printf '%s\n' base data model launch)
forbid '#include <(mpi|nccl)\.h>' 'only dist includes MPI and NCCL' "${outside_dist[@]}"
forbid '\b(MPI_[A-Z][a-z_]+|nccl[A-Z][A-Za-z]+) *\(' 'only dist calls MPI and NCCL' "${outside_dist[@]}"
forbid '#include <(hdf5|H5[A-Za-z]*)\.h>' 'only data includes HDF5' base dist model launch
forbid '#include <(pcre2|sentencepiece[a-z_]*)\.h>' 'only data includes tokenizer libraries' base dist model launch
forbid '#include [<"](torch|ATen|c10)/' 'base, data and the kernels see no LibTorch' base data model/kernels
forbid '#include "(data|dist|launch)/' 'model knows base only' model
forbid '#include "(model|dist|launch)/' 'data knows base only' data
forbid '#include "(model|data|launch)/' 'dist knows base only' dist
forbid '#include "(model|data|dist|launch)/' 'base knows nothing' base
forbid '#include <torch/torch\.h>' 'torch/torch.h costs half a minute a file' base data dist model launch tests
forbid '\bassert *\(' 'assert is compiled out; use require' base data dist model launch
exit $((failures > 0))
