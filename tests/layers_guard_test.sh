#!/usr/bin/env bash
# The guards of layers_test.sh bite: each kind of violation, put into a copy of an empty tree, must
# be reported.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{base,data/unicode,dist,model/{kernels/cuda,layers,ops},launch/train,tests}

check() {  # FOLDER LINE REASON [NAME]
  local file=$root/$1/${4:-violation.cpp}
  printf '%s\n' "$2" >"$file"
  if output=$("$here/layers_test.sh" "$root" 2>&1) || ! grep -q "$3" <<<"$output"; then
    echo "not reported: $2 in $1" >&2
    exit 1
  fi
  rm "$file"
}

"$here/layers_test.sh" "$root"
check launch '#include <mpi.h>' 'only dist includes'
check model '  MPI_Barrier(MPI_COMM_WORLD);' 'only dist calls'
check model '  ncclGroupStart();' 'only dist calls'
check dist '#include <hdf5.h>' 'only data includes HDF5'
check launch '#include <sentencepiece_processor.h>' 'tokenizer libraries'
check data '#include <torch/types.h>' 'see no LibTorch'
check model/kernels '#include <ATen/ATen.h>' 'see no LibTorch'
check model '#include "data/corpus.h"' 'model knows'
check data '#include "dist/world.h"' 'data knows'
check dist '#include "model/config.h"' 'dist knows'
check base '#include "data/corpus.h"' 'base knows'
check tests '#include <torch/torch.h>' 'half a minute'
check launch '  assert(x > 0);' 'compiled out'
check model/kernels/cuda '#include <torch/types.h>' 'see no LibTorch' violation.cuh
check model/kernels/cuda '#include "model/config.h"' 'kernels include kernels' violation.cu
check model/ops '#include "model/attention/attention.h"' 'operators include'
check model/layers '#include "model/nets/decoder_lm.h"' 'model/layers comes before'
check model/layers 'if (config.family == "llama") {' 'stands in its BlockSpec'
check data/unicode '#include "data/tokenizers/bpe.h"' 'data/unicode comes before'
check launch/train '#include "launch/cli/prompts.h"' 'launch/train comes before'
