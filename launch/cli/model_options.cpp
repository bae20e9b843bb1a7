#include "launch/cli/model_options.h"

#include "base/error.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/cli/tokenizer_check.h"

namespace t2r::launch {

void ModelOptions::bind(OptionSet& options) {
  options.add_required("model", folder, "Hugging Face folder");
  options.add("tokenizer", tokenizer, "folder or file [default: the model folder's]");
  options.add(
      "threads",
      threads,
      "per rank; 0: its share of the processors, or fewer where a step is too small for them");
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
