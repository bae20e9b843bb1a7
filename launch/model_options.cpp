#include "launch/model_options.h"

namespace t2r::launch {

void ModelOptions::bind(OptionSet& options) {
  options.add_required("model", folder, "Hugging Face folder");
  options.add("tokenizer", tokenizer, "folder or file [default: the model folder's]");
  options.add("threads", threads, "per rank; 0: this host's processors divided by its ranks");
  backend.bind(options, /*trains=*/false);
}

std::unique_ptr<data::Tokenizer> ModelOptions::open_tokenizer() const {
  return data::open_tokenizer(tokenizer.empty() ? folder : tokenizer);
}

}  // namespace t2r::launch
