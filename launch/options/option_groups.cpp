#include "launch/options/option_groups.h"

#include "base/error.h"

namespace t2r::launch {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;  // sums and products with sizes fit

}  // namespace

void BatchOptions::bind(OptionSet& options) {
  bind_sequence_length(options);
  options.add("batch-size", batch_size, "sequences per step, over all ranks")
      .at_least(1)
      .identity();
  bind_micro_batch_size(options);
}

void BatchOptions::bind_per_rank(OptionSet& options) {
  bind_sequence_length(options);
  options.add("batch-size-per-rank", batch_size, "sequences per step and rank").at_least(1);
  options.renamed("batch-size",
                  "batch-size-per-rank",
                  "--batch-size of t2r train counts the sequences of all ranks");
  bind_micro_batch_size(options);
}

void BatchOptions::bind_sequence_length(OptionSet& options) {
  options.add("sequence-length", sequence_length, "tokens per sequence").at_least(1).identity();
}

void BatchOptions::bind_micro_batch_size(OptionSet& options) {
  options
      .add("micro-batch-size", micro_batch_size, "sequences at once on a rank; 0: its whole share")
      .at_least(0);
}

void TextOptions::bind(OptionSet& options, const std::string& unit, const std::string& when) {
  options.add("begin-of-text",
              begin_of_text,
              concat(when,
                     "begin each ",
                     unit,
                     " with the token that the tokenizer puts in front of a text; auto: if its "
                     "configuration does"));
  options.add("end-of-document",
              end_of_document,
              concat(when, "end each ", unit, " with the tokenizer's end token"));
  options.add("allow-invalid-utf8",
              allow_invalid_utf8,
              concat(when, "take bytes that are not UTF-8 as they are"));
}

void TextOptions::say_idle(const OptionSet& options, bool is_idle, const std::string& why) {
  for (const char* key : {"end-of-document", "begin-of-text", "allow-invalid-utf8"})
    options.say_if_idle(key, is_idle, why);
}

void TimedSteps::bind(OptionSet& options) {
  options.add("timed-steps", timed, "steps that are timed").range(1, kMost);
  options.add("untimed-steps", untimed, "steps before them, which warm up").range(0, kMost);
  options.renamed("steps", "timed-steps", "--steps of t2r train are all of a run");
  options.renamed("warmup-steps",
                  "untimed-steps",
                  "--warmup-steps of t2r train are those in which the learning rate rises");
}

void bind_sequences_at_once(OptionSet& options, int64_t& count, const std::string& what) {
  options.add("sequences-at-once", count, what).range(1, kMost);
  options.renamed("batch-size",
                  "sequences-at-once",
                  "--batch-size of t2r train counts the sequences of a step over all ranks");
}

void bind_sampling(OptionSet& options, model::SamplingOptions& sampling) {
  options.add("temperature", sampling.temperature, "0: greedy").at_least(0.0);
  options.add("top-k", sampling.top_k, "sample among the k most probable; 0: all").at_least(0);
  options.add("top-p", sampling.top_p, "sample among the fewest that reach this probability")
      .above(0.0, 1.0);
}

void say_idle_sampling(const OptionSet& options, const model::SamplingOptions& sampling) {
  for (const char* key : {"top-k", "top-p"})
    options.say_if_idle(key, sampling.temperature == 0.0, "temperature = 0 is greedy");
}

}  // namespace t2r::launch
