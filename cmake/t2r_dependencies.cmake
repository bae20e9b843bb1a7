# Everything that t2r uses from outside; launch/setup.sh installs it. Imported targets only.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

# LibTorch's wheel asks for a CUDA toolkit whenever it was built with CUDA, GPU or not; the list
# keeps nvcc 13 from being asked for architectures that it has dropped.
set(TORCH_CUDA_ARCH_LIST "8.0+PTX;9.0a" CACHE STRING "CUDA architectures, in Torch's notation")
find_package(Torch 2.4 REQUIRED)

# CUDA code is built where LibTorch has CUDA, whose package has then found a toolkit and its
# compiler.
if(TARGET torch_cuda AND CMAKE_CUDA_COMPILER)
  set(cuda_found ON)
else()
  set(cuda_found OFF)
endif()
option(T2R_CUDA "Build the CUDA kernels and what needs a GPU" ${cuda_found})
if(T2R_CUDA AND NOT cuda_found)
  message(FATAL_ERROR
    "T2R_CUDA is on, but there is no LibTorch with CUDA and nvcc of its CUDA version; "
    "launch/setup.sh installs both")
endif()

# Torch's own include folder carries fmt and protobuf headers: only targets that use tensors may see
# it. The CPU libraries alone are linked; torch_cuda would add a second to the start of every
# process.
add_library(t2r_torch INTERFACE)
target_link_libraries(t2r_torch INTERFACE torch_cpu c10)
target_include_directories(t2r_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_compile_options(t2r_torch INTERFACE ${TORCH_CXX_FLAGS})

# at::parallel_for is inline OpenMP. GNU's runtime is the one that LibTorch brings; clang would add
# a second one, so with clang our own loops run on one thread.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(t2r_torch INTERFACE -fopenmp)
  target_link_options(t2r_torch INTERFACE -fopenmp)
endif()

if(T2R_CUDA)
  find_package(NCCL 2.18)
  if(NOT NCCL_FOUND)
    message(FATAL_ERROR
      "T2R_CUDA is on, but there is no NCCL >= 2.18: PyTorch's wheel brings one (nvidia/nccl "
      "beside torch); else install libnccl-dev, set NCCL_ROOT, or configure with -DT2R_CUDA=OFF")
  endif()
endif()

find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(tomlplusplus REQUIRED IMPORTED_TARGET tomlplusplus)

add_library(t2r_hdf5 INTERFACE)
target_link_libraries(t2r_hdf5 INTERFACE ${HDF5_C_LIBRARIES})
target_include_directories(t2r_hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_compile_definitions(t2r_hdf5 INTERFACE ${HDF5_C_DEFINITIONS})

if(T2R_TESTS)
  find_package(GTest REQUIRED)
endif()
if(T2R_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
