#pragma once

#include "dist/world.h"

namespace t2r::dist {

/// The process's World, which mpi_main.cpp owns.
World& test_world();

}  // namespace t2r::dist
