#pragma once

#include "data/corpus.h"
#include "data/prepare_lm.h"
#include "data/tokenizers/tokenizer.h"
#include "dist/communicator.h"
#include "dist/world.h"

namespace t2r::launch {

/// Text files as a corpus, without shards of the user's: one rank of each host tokenises them into
/// a temporary folder (TMPDIR), which is gone as soon as all ranks of the host have opened what is
/// in it, and after an error, SIGINT, SIGTERM or SIGHUP. Collective: every rank, same order.
///
/// @param options  inputs and how they are cut; output, overwrite and fill_shards are set here
/// @throws ConfigError, DataError, WriteError  on every rank
data::Corpus corpus_of_text(const data::Tokenizer& tokenizer,
                            data::PrepareLmOptions options,
                            const dist::World& world,
                            dist::Communicator& communicator);

}  // namespace t2r::launch
