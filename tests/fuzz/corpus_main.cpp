// main for a fuzz target without libFuzzer: runs its entry point once over every file of the given
// folders, so that the stored corpus is a test with any compiler. Not one file is a failure.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "base/durable_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

/// libFuzzer's own, which a custom mutator calls; nothing mutates here.
extern "C" size_t LLVMFuzzerMutate(uint8_t*, size_t size, size_t) {
  return size;
}

int main(int argc, char** argv) try {
  int num_files = 0;
  for (int i = 1; i < argc; ++i) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(argv[i]))
      files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const std::filesystem::path& file : files) {
      std::printf("%s\n", file.c_str());  // the last line names the file that ended the process
      std::fflush(stdout);
      const std::string text = t2r::read_file(file);
      // A buffer of the exact size, so that address sanitizer sees a read past the end.
      const std::vector<uint8_t> bytes(text.begin(), text.end());
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
      ++num_files;
    }
  }
  std::printf("%d files\n", num_files);
  return num_files > 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
