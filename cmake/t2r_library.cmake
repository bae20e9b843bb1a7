# One static library per folder, with a layer: a library links only libraries of lower layers.

set_property(GLOBAL PROPERTY T2R_LIBRARIES "")

# t2r_library(<name> LAYER <n> [TORCH] SOURCES <file>... [DEPS <t2r library>...] [USES <outside
# target>...])
function(t2r_library name)
  cmake_parse_arguments(ARG "TORCH" "LAYER" "SOURCES;DEPS;USES" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_USES} t2r_warnings)
  set_target_properties(${name} PROPERTIES T2R_LAYER ${ARG_LAYER})
  if(ARG_TORCH)
    t2r_use_torch(${name})
  endif()
  set_property(GLOBAL APPEND PROPERTY T2R_LIBRARIES ${name})
endfunction()

# Links LibTorch and shares the one precompiled header of it.
function(t2r_use_torch target)
  target_link_libraries(${target} PUBLIC t2r_torch)
  if(T2R_PCH)
    if(NOT TARGET t2r_pch)
      file(WRITE ${CMAKE_BINARY_DIR}/t2r_pch.cpp "")
      add_library(t2r_pch STATIC ${CMAKE_BINARY_DIR}/t2r_pch.cpp)
      target_link_libraries(t2r_pch PUBLIC t2r_torch PRIVATE t2r_warnings)
      target_precompile_headers(t2r_pch PRIVATE
        <torch/types.h> <torch/csrc/autograd/custom_function.h>)
      if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
        target_compile_options(t2r_pch PUBLIC -fpch-instantiate-templates)
      endif()
    endif()
    target_link_libraries(${target} PRIVATE t2r_pch)
    target_precompile_headers(${target} REUSE_FROM t2r_pch)
  endif()
endfunction()

# Fails the configuration when a library links one of its own layer or above.
function(t2r_check_layers)
  get_property(libraries GLOBAL PROPERTY T2R_LIBRARIES)
  foreach(library IN LISTS libraries)
    get_target_property(layer ${library} T2R_LAYER)
    get_target_property(links ${library} LINK_LIBRARIES)
    foreach(link IN LISTS links)
      if(link IN_LIST libraries)
        get_target_property(link_layer ${link} T2R_LAYER)
        if(NOT link_layer LESS layer)
          message(FATAL_ERROR
            "layer check: ${library} (layer ${layer}) links ${link} (layer ${link_layer}); "
            "a library may only link lower layers (ARCHITECTURE.md)")
        endif()
      endif()
    endforeach()
  endforeach()
endfunction()
