# Warnings, sanitizers, ccache: how our own code is compiled.

find_program(T2R_CCACHE ccache)
if(T2R_CCACHE)
  # Precompiled headers carry time stamps and defines of their own; without this ccache never hits.
  set(sloppiness pch_defines,time_macros,include_file_mtime,include_file_ctime)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=${sloppiness} ${T2R_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${T2R_CCACHE})
endif()

add_library(t2r_warnings INTERFACE)
target_compile_options(t2r_warnings INTERFACE -Wall -Wextra -Wpedantic -Wno-unknown-pragmas)

# -O2: LibTorch does the heavy work; the kernels ask for -O3 themselves (model/CMakeLists.txt).
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_CXX_VISIBILITY_PRESET default)

if(T2R_SANITIZE)
  add_compile_options(-fsanitize=${T2R_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=${T2R_SANITIZE})
  if(T2R_SANITIZE MATCHES "address")
    add_library(t2r_sanitizer_defaults OBJECT ${CMAKE_SOURCE_DIR}/cmake/sanitizer_defaults.cpp)
    link_libraries($<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:t2r_sanitizer_defaults>)
  endif()
endif()
