#include <torch/version.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "data/corpus.h"
#include "data/tokenizers/tokenizer.h"
#include "dist/agreement.h"
#include "launch/cli/idle_options.h"
#include "launch/cli/tokenizer_check.h"
#include "launch/command.h"
#include "launch/model_files.h"
#include "launch/options/options.h"
#include "launch/ranks.h"
#include "launch/session.h"
#include "launch/stop_signal.h"
#include "launch/train/run_folder.h"
#include "launch/train/train_config.h"
#include "launch/train/trainer.h"
#include "model/files/generation_defaults.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

/// What the run's folders mean, the same on every rank.
struct SourceFolders {
  fs::path model, tokenizer, teacher;
};

SourceFolders find_sources(const TrainConfig& config, dist::Communicator& communicator) {
  return {.model = resolve_on_first_rank(communicator, config.model),
          .tokenizer = resolve_on_first_rank(communicator, config.tokenizer),
          .teacher = resolve_on_first_rank(communicator, config.teacher)};
}

// What goes along with the run's checkpoints: the tokenizer's files, after a check that it is the
// one the shards were made with, and how the model asks to be generated from. They are read here:
// the files may be gone, or others, when a checkpoint is written.
std::vector<CompanionFile> companions_of_run(const TrainConfig& config,
                                             const SourceFolders& sources,
                                             const data::Corpus& corpus) {
  const std::string path = (config.tokenizer.empty() ? sources.model : sources.tokenizer).string();
  const bool is_folder = fs::is_directory(path);
  std::vector<fs::path> files;
  if (config.tokenizer.empty() && is_folder) data::verify_tokenizer_files(path);
  if (!config.tokenizer.empty() || (is_folder && has_tokenizer(path))) {
    const auto tokenizer = data::open_tokenizer(path);
    check_tokenizer(*tokenizer, path, corpus);
    files = is_folder ? tokenizer_companions(path) : tokenizer->files();
  }
  if (!config.model.empty())
    for (fs::path& file : generation_companions(sources.model)) files.push_back(std::move(file));
  return read_companions(files);
}

model::LoadedModel make_model(const TrainConfig& config,
                              const SourceFolders& sources,
                              const data::Corpus& train) {
  if (!config.model.empty()) {
    model::LoadedModel loaded = model::load_model(sources.model);
    const int64_t vocab_size = loaded.model->config().vocab_size;
    if (train.vocab_size() > vocab_size) {
      throw ConfigError(concat("the shards have token ids up to ",
                               train.vocab_size() - 1,
                               ", the model's vocabulary has ",
                               vocab_size,
                               " entries: tokenizer and model do not belong together"));
    }
    return loaded;
  }
  model::LoadedModel fresh;
  fresh.model = std::make_unique<model::DecoderLM>(
      config.new_model.resolve(train.vocab_size(), config.sequence_length));
  fresh.model->initialize(static_cast<uint64_t>(config.seed));
  return fresh;
}

std::unique_ptr<model::Trainable> load_teacher(const TrainConfig& config,
                                               const SourceFolders& sources,
                                               const model::Trainable& student,
                                               const data::Corpus& train) {
  if (config.teacher.empty()) return nullptr;
  std::unique_ptr<model::Trainable> teacher = model::load_model(sources.teacher).model;
  const int64_t vocab_size = teacher->config().vocab_size;
  if (vocab_size != student.config().vocab_size) {
    throw ConfigError(concat("the teacher's vocabulary has ",
                             vocab_size,
                             " entries, the model's ",
                             student.config().vocab_size,
                             ": a teacher must have the model's tokenizer"));
  }
  check_length("sequence-length", config.sequence_length, *teacher, "teacher");
  if (has_tokenizer(sources.teacher))
    check_tokenizer(*data::open_tokenizer(sources.teacher), config.teacher, train);
  return teacher;
}

void say_missing_tokenizer(const TrainingInputs& inputs) {
  const auto is_of_tokenizer = [](const CompanionFile& file) {
    return file.name != model::kGenerationConfigFile;
  };
  if (std::ranges::none_of(inputs.companions, is_of_tokenizer)) {
    log::warning_of_first_rank(
        "no --tokenizer: the run's checkpoints will have none, and t2r generate needs one");
  }
}

void log_start(Session& session, const TrainConfig& config, const TrainingInputs& inputs) {
  const dist::World& world = session.world();
  log::info(concat("LibTorch ",
                   TORCH_VERSION,
                   "; ",
                   world.mpi_version(),
                   "; ",
                   world.size(),
                   " rank(s) on ",
                   world.hosts().front(),
                   world.size() > world.local_size() ? " and others" : "",
                   ", ",
                   session.threads(),
                   " thread(s) each; ",
                   session.backend().description()));
  const model::DecoderConfig& model = inputs.model->config();
  const int64_t num_linear =
      model.linear.has_value()
          ? model.num_layers - static_cast<int64_t>(model.linear->softmax_layers.size())
          : 0;
  log::info(concat(inputs.model->parameters().num_scalars(),
                   " parameters, ",
                   model.num_layers,
                   " layers (",
                   num_linear,
                   " linear); ",
                   inputs.train.num_tokens(),
                   " training tokens; ",
                   config.total_steps(),
                   " steps of ",
                   config.batch_size * config.sequence_length,
                   " tokens"));
  if (inputs.teacher != nullptr) {
    log::info(concat("a teacher of ",
                     inputs.teacher->parameters().num_scalars(),
                     " parameters has ",
                     config.distillation,
                     " of the loss"));
  }
  log::info(how_to_stop());
}

}  // namespace

int run_train(const Invocation& invocation) {
  TrainConfig config;
  OptionSet options(
      "train", "Pretrain ([model] table) or finetune (--model FOLDER), alone or under mpirun.");
  config.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  config.backend.resolve(invocation);
  config.validate();
  end_if_stop_requested();  // MPI may take long to start

  Session session(invocation, options, config.backend);
  dist::Communicator& communicator = session.communicator();
  if (config.backend.device == Device::kCpu) check_same_kernels(communicator);
  const auto end_if_any_stops = [&] { dist::on_all_ranks(communicator, end_if_stop_requested); };
  end_if_any_stops();
  RunFolder folder(config.output, communicator);

  const data::Corpus train = open_corpus(config.train_data, session.world(), communicator);
  std::optional<data::Corpus> valid;
  if (!config.valid_data.empty())
    valid.emplace(open_corpus(config.valid_data, session.world(), communicator));
  if (valid.has_value() && valid->tokenizer_hash() != train.tokenizer_hash()) {
    throw ConfigError("train-data and valid-data were made with different tokenizers");
  }
  end_if_any_stops();
  const SourceFolders sources = find_sources(config, communicator);
  model::LoadedModel loaded =
      dist::made_on_all_ranks(communicator, [&] { return make_model(config, sources, train); });
  TrainingInputs inputs{.model = std::move(loaded.model),
                        .format = std::move(loaded.format),
                        .train = train,
                        .valid = valid.has_value() ? &*valid : nullptr,
                        .output = folder.path(),
                        .config_text = options.dump(),
                        .companions = companions_of_run(config, sources, train)};
  if (!config.model.empty())
    check_same_model(communicator, session.world(), *inputs.model, config.model);
  inputs.teacher = dist::made_on_all_ranks(
      communicator, [&] { return load_teacher(config, sources, *inputs.model, train); });
  if (inputs.teacher != nullptr)
    check_same_model(communicator, session.world(), *inputs.teacher, config.teacher);
  say_idle_train_options(options, config, inputs.model->config(), session.world().size());
  check_length("sequence-length", config.sequence_length, *inputs.model);
  say_missing_tokenizer(inputs);
  const int64_t share = (config.batch_size + session.world().size() - 1) / session.world().size();
  const int64_t at_once =
      config.micro_batch_size > 0 ? std::min(config.micro_batch_size, share) : share;
  session.fit_threads(
      work_of_step(*inputs.model, config.sequence_length * at_once, /*trains=*/true));
  log_start(session, config, inputs);
  note_training_begins(/*says=*/communicator.rank() == 0);
  end_if_any_stops();
  Trainer::Outcome outcome;
  {
    Trainer trainer(config, std::move(inputs), session.backend());
    outcome = trainer.run();
  }
  return outcome == Trainer::Outcome::kStopped ? static_cast<int>(ExitCode::kSavedRequeue) : 0;
}

}  // namespace t2r::launch
