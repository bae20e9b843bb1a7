#include "launch/session.h"

#include "base/log.h"
#include "launch/ranks.h"

namespace t2r::launch {

Session::Session(const Invocation& invocation,
                 const OptionSet& options,
                 const BackendOptions& backend,
                 int64_t threads)
    : world_(invocation.argc, invocation.argv), host_(world_) {
  log::set_rank(world_.rank(), world_.size());
  check_same_options(host_, options);
  threads_ = set_threads(threads, world_);
  backend_ = make_backend(backend, world_, host_);
}

}  // namespace t2r::launch
