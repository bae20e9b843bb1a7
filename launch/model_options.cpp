#include "launch/model_options.h"

#include "launch/checkpoint_folder.h"

namespace t2r::launch {

void ModelOptions::bind(OptionSet& options) {
  options.add_required("model", folder, "Hugging Face folder");
  options.add("tokenizer", tokenizer, "folder or file [default: the model folder's]");
  options.add("threads", threads, "per rank; 0: its share of the processors, or fewer where a step is too small for them");
  backend.bind(options, /*trains=*/false);
}

std::filesystem::path ModelOptions::resolved_folder() const {
  return resolve_checkpoint(folder);
}

std::unique_ptr<data::Tokenizer> ModelOptions::open_tokenizer() const {
  return data::open_tokenizer(tokenizer.empty() ? resolved_folder()
                                                : resolve_checkpoint(tokenizer));
}

}  // namespace t2r::launch
