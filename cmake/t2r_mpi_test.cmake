# Tests that run as several MPI processes, with one verdict for all of them (tests/mpi_main.cpp).

set(T2R_MPIEXEC_FLAGS --oversubscribe --bind-to none CACHE STRING
    "Flags that let the launcher start more processes than there are cores (Open MPI's by default)")

# t2r_mpi_test(<name> [RANKS <n>...] SOURCES <file>... DEPS <target>...): one executable, one ctest entry per rank count,
# <name>.<n>_ranks. Without RANKS it is only built. Call it from tests/CMakeLists.txt, where mpi_main.cpp lies.
function(t2r_mpi_test name)
  cmake_parse_arguments(ARG "" "" "RANKS;SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} mpi_main.cpp)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} t2r_dist GTest::gtest GTest::gmock t2r_warnings)
  t2r_use_torch(${name})
  foreach(ranks IN LISTS ARG_RANKS)
    add_test(NAME ${name}.${ranks}_ranks
             COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${T2R_MPIEXEC_FLAGS} $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.${ranks}_ranks PROPERTIES
      ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1"
      PROCESSORS ${ranks}
      TIMEOUT 300)
  endforeach()
endfunction()
