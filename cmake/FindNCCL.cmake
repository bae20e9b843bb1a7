# Finds NCCL as NCCL::nccl: the one that LibTorch brings and is linked with, so that no process has
# two, else NCCL_ROOT's or the system's. Torch comes first, which sets TORCH_INSTALL_PREFIX.

set(places
  ${TORCH_INSTALL_PREFIX}/../nvidia/nccl   # PyTorch's wheel: torch and nvidia in one site-packages
  ${TORCH_INSTALL_PREFIX}                  # an unpacked LibTorch
  ${TORCH_INSTALL_PREFIX}/../../../..      # conda: the prefix has lib/python3.x/site-packages/torch
  ${NCCL_ROOT} $ENV{NCCL_ROOT})
foreach(place IN LISTS places)
  if(NOT NCCL_INCLUDE_DIR)
    find_path(NCCL_INCLUDE_DIR nccl.h PATHS ${place}/include NO_DEFAULT_PATH)
    find_library(NCCL_LIBRARY NAMES libnccl.so.2 nccl
      PATHS ${place}/lib ${place}/lib64 NO_DEFAULT_PATH)
    if(NOT NCCL_INCLUDE_DIR OR NOT NCCL_LIBRARY)  # never one's header with another's library
      unset(NCCL_INCLUDE_DIR CACHE)
      unset(NCCL_LIBRARY CACHE)
    endif()
  endif()
endforeach()
find_path(NCCL_INCLUDE_DIR nccl.h)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)

if(NCCL_INCLUDE_DIR)
  file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) +[0-9]+")
  list(TRANSFORM lines REPLACE "[^0-9]*([0-9]+).*" "\\1")
  list(JOIN lines "." NCCL_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL
  REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR
  VERSION_VAR NCCL_VERSION)

if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  add_library(NCCL::nccl SHARED IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES
    IMPORTED_LOCATION ${NCCL_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
endif()
