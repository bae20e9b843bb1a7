#include "launch/cli/model_options.h"

#include "base/error.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/cli/tokenizer_check.h"

namespace t2r::launch {

void ModelOptions::bind(OptionSet& options) {
  options.add("model", folder, "Hugging Face folder").required();
  options.add("tokenizer", tokenizer, "folder or file [default: the model folder's]");
  backend.bind(options, /*trains=*/false);
}

std::filesystem::path ModelOptions::resolved_folder() const {
  return resolve_checkpoint(folder);
}

std::unique_ptr<data::Tokenizer> ModelOptions::open_tokenizer() const {
  const std::filesystem::path model_folder = resolved_folder();
  if (tokenizer.empty()) return data::open_tokenizer(model_folder);
  std::unique_ptr<data::Tokenizer> opened = data::open_tokenizer(resolve_checkpoint(tokenizer));
  check_model_tokenizer(model_folder, opened->hash(), concat("--tokenizer ", tokenizer, " is"));
  return opened;
}

}  // namespace t2r::launch
