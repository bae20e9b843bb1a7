// Linked into every executable that is built with the address sanitizer: keeps what other libraries
// leak out of the reports, whoever starts the program (ctest, mpirun, a user). Ours is still found.

extern "C" {

// Open MPI unloads its components in MPI_Finalize: what their globals held then counts as lost, and
// the stacks end in an unknown module, which no suppression can name. So nothing is unloaded.
int dlclose(void*) noexcept {
  return 0;
}

const char* __lsan_default_suppressions() {
  return
      // Open MPI 4.1 and what it brings lose memory in MPI_Init, MPI_Finalize and their threads.
      "leak:libmpi.so\n"
      "leak:libopen-pal.so\n"
      "leak:libopen-rte.so\n"
      "leak:/openmpi3/mca_\n"
      "leak:libpmix.so\n"
      "leak:libhwloc.so\n"
      "leak:libevent_core\n"
      // asprintf, where the stack ends since libc keeps no frame pointers: they call it, we do not.
      "leak:__vasprintf_internal\n"
      // HDF5 1.10.8, when a damaged file is refused.
      "leak:libhdf5\n";
}

const char* __lsan_default_options() {
  return "print_suppressions=0";
}

}  // extern "C"
