# Tests that run as several MPI processes, with one verdict for all of them (tests/mpi_main.cpp).

set(T2R_MPIEXEC_FLAGS --oversubscribe --bind-to none CACHE STRING
    "Flags that let the launcher start more processes than there are cores (Open MPI's by default)")

# t2r_mpi_test(<name> [RANKS <n>...] SOURCES <file>... DEPS <target>...): one executable, one ctest
# entry per rank count, <name>.<n>_ranks. Without RANKS it is only built. Call it from
# tests/CMakeLists.txt, where mpi_main.cpp lies.
function(t2r_mpi_test name)
  cmake_parse_arguments(ARG "" "" "RANKS;SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} mpi_main.cpp)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} t2r_dist GTest::gtest GTest::gmock t2r_warnings)
  t2r_use_torch(${name})
  foreach(ranks IN LISTS ARG_RANKS)
    t2r_mpi_run(${name}.${ranks}_ranks ${ranks} ${name})
  endforeach()
endfunction()

# t2r_mpi_run(<entry> <ranks> <target> [ARGS <argument>...] [LABELS <label>...]): a ctest entry that
# starts the executable.
function(t2r_mpi_run entry ranks target)
  cmake_parse_arguments(ARG "" "" "ARGS;LABELS" ${ARGN})
  add_test(NAME ${entry} COMMAND
    ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${T2R_MPIEXEC_FLAGS}
    $<TARGET_FILE:${target}> ${ARG_ARGS})
  set_tests_properties(${entry} PROPERTIES
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1"
    LABELS "${ARG_LABELS}"
    PROCESSORS ${ranks}
    TIMEOUT 300)
endfunction()
