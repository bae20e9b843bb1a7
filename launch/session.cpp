#include "launch/session.h"

#include "base/log.h"
#include "launch/ranks.h"

namespace t2r::launch {

Session::Session(const Invocation& invocation,
                 const OptionSet& options,
                 const BackendOptions& backend)
    : world_(invocation.argc, invocation.argv),
      host_(world_),
      chooses_threads_(backend.threads == 0) {
  log::set_rank(world_.rank(), world_.size());
  check_same_options(host_, options);
  const int64_t usable = usable_processors(world_, host_);
  threads_ = set_threads(chooses_threads_ ? usable : backend.threads);
  backend_ = make_backend(backend, world_, host_);
}

void Session::fit_threads(const StepWork& work) {
  if (chooses_threads_) threads_ = set_threads(threads_for(work, threads_));
}

}  // namespace t2r::launch
