#include "launch/cli/model_options.h"

#include "base/error.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/cli/tokenizer_check.h"
#include "launch/ranks.h"

namespace t2r::launch {

void ModelOptions::bind(OptionSet& options) {
  options.add("model", folder, "Hugging Face folder").required();
  options.add("tokenizer", tokenizer, "folder or file [default: the model folder's]");
  backend.bind(options, /*trains=*/false);
}

void ModelOptions::resolve() {
  model_path = resolve_checkpoint(folder);
  tokenizer_path = resolve_checkpoint(tokenizer);
}

void ModelOptions::resolve(dist::Communicator& communicator) {
  model_path = resolve_on_first_rank(communicator, folder);
  tokenizer_path = resolve_on_first_rank(communicator, tokenizer);
}

std::unique_ptr<data::Tokenizer> ModelOptions::open_tokenizer() const {
  require(!model_path.empty(), "ModelOptions::resolve() comes first");
  if (tokenizer.empty()) return data::open_tokenizer(model_path);
  std::unique_ptr<data::Tokenizer> opened = data::open_tokenizer(tokenizer_path);
  check_model_tokenizer(model_path, opened->hash(), concat("--tokenizer ", tokenizer, " is"));
  return opened;
}

}  // namespace t2r::launch
