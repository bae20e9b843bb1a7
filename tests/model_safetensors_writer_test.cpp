#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "model/files/safetensors.h"
#include "tests/model_safetensors.h"
#include "tests/support.h"

namespace t2r::model {
namespace {

namespace fs = std::filesystem;
using test::shared_folder;
using test::TemporaryFolder;
using test::write_text;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

struct GoldenTensor {
  const char* name;
  DType dtype;
  std::vector<int64_t> shape;
  size_t num_bytes;
};

/// Header that safetensors 0.8.0 (Python) wrote for these tensors and this metadata.
const std::string kGoldenHeader =
    "{\"__metadata__\":{\"k\\t\xc3\xa9\x7f\":\"v\\\"\"},"
    R"("u64":{"dtype":"U64","shape":[1],"data_offsets":[0,8]},)"
    R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},)"
    R"("d":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},)"
    R"("c":{"dtype":"C64","shape":[1],"data_offsets":[24,32]},)"
    R"("a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[32,40]},)"
    R"("b.weight":{"dtype":"F32","shape":[2],"data_offsets":[40,48]},)"
    R"("empty":{"dtype":"F32","shape":[0,4],"data_offsets":[48,48]},)"
    R"("scalar":{"dtype":"F32","shape":[],"data_offsets":[48,52]},)"
    R"("u32":{"dtype":"U32","shape":[1],"data_offsets":[52,56]},)"
    R"("i32":{"dtype":"I32","shape":[1],"data_offsets":[56,60]},)"
    R"("bf":{"dtype":"BF16","shape":[2],"data_offsets":[60,64]},)"
    R"("h":{"dtype":"F16","shape":[3],"data_offsets":[64,70]},)"
    R"("i16":{"dtype":"I16","shape":[1],"data_offsets":[70,72]},)"
    R"("e5":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[72,73]},)"
    R"("i8":{"dtype":"I8","shape":[1],"data_offsets":[73,74]},)"
    "\"q\\\"\\n\\u0001/\xc3\xa9\\\\\":"
    R"({"dtype":"U8","shape":[1],"data_offsets":[74,75]},)"
    R"("u":{"dtype":"U8","shape":[2],"data_offsets":[75,77]},)"
    R"("mask":{"dtype":"BOOL","shape":[3],"data_offsets":[77,80]}})";

const std::vector<GoldenTensor> kGoldenTensors = {
    {"b.weight", DType::f32, {2}, 8},
    {"a.weight", DType::f32, {1, 2}, 8},
    {"h", DType::f16, {3}, 6},
    {"bf", DType::bf16, {2}, 4},
    {"ids", DType::i64, {1}, 8},
    {"d", DType::f64, {1}, 8},
    {"mask", DType::boolean, {3}, 3},
    {"u", DType::u8, {2}, 2},
    {"i8", DType::i8, {1}, 1},
    {"e5", DType::f8_e5m2, {1}, 1},
    {"i32", DType::i32, {1}, 4},
    {"u32", DType::u32, {1}, 4},
    {"u64", DType::u64, {1}, 8},
    {"i16", DType::i16, {1}, 2},
    {"c", DType::c64, {1}, 8},
    {"empty", DType::f32, {0, 4}, 0},
    {"scalar", DType::f32, {}, 4},
    {"q\"\n\x01/\xc3\xa9\\", DType::u8, {1}, 1},
};

/// Bytes 0, 1, 2, ... dealt out to the tensors in the order of kGoldenTensors.
std::vector<TensorView> golden_views(const std::string& counting) {
  std::vector<TensorView> views;
  size_t offset = 0;
  for (const GoldenTensor& golden : kGoldenTensors) {
    views.push_back({golden.name,
                     golden.dtype,
                     golden.shape,
                     reinterpret_cast<const std::byte*>(counting.data()) + offset,
                     golden.num_bytes});
    offset += golden.num_bytes;
  }
  return views;
}

std::string counting_bytes() {
  std::string bytes;
  for (int i = 0; i < 80; ++i) bytes += static_cast<char>(i);
  return bytes;
}

TEST(SafetensorsWriter, WritesTheBytesOfThePythonLibrary) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  const std::string counting = counting_bytes();
  write_safetensors(path, golden_views(counting), {{"k\t\xc3\xa9\x7f", "v\""}});
  std::string padded = kGoldenHeader;
  padded.append(1080 - padded.size(), ' ');
  const std::string written = read_file(path);
  ASSERT_EQ(written.size(), 1168u);
  EXPECT_EQ(written.substr(0, 8 + 1080), file_of(padded));
  // First and last of the data: u64 was dealt bytes 57.., mask 42..44.
  EXPECT_EQ(written.substr(1088, 3), "\x39\x3a\x3b");
  EXPECT_EQ(written.substr(1165), "\x2a\x2b\x2c");
}

TEST(SafetensorsWriter, ReadsBackWhatItWrote) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  const std::string counting = counting_bytes();
  const Metadata metadata = {{"k\t\xc3\xa9\x7f", "v\""}, {"a", ""}};
  write_safetensors(path, golden_views(counting), metadata);
  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), kGoldenTensors.size());
  EXPECT_EQ(file.metadata(), metadata);
  for (const TensorView& expected : golden_views(counting)) {
    const TensorView& found = file.at(expected.name);
    EXPECT_EQ(found.dtype, expected.dtype) << expected.name;
    EXPECT_EQ(found.shape, expected.shape) << expected.name;
    EXPECT_EQ(bytes_of(found), bytes_of(expected)) << expected.name;
  }
  write_safetensors(folder / "again.safetensors", file.tensors(), file.metadata());
  EXPECT_EQ(read_file(folder / "again.safetensors"), read_file(path));
}

TEST(SafetensorsWriter, CanReplaceTheFileItReadsFrom) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  write_text(path,
             file_of("{\"a\":{\"shape\":[2], \"dtype\":\"U8\",\"data_offsets\":[0,2]}}", "hi"));
  const SafetensorsFile file(path);
  write_safetensors(path, file.tensors(), file.metadata());
  EXPECT_EQ(bytes_of(SafetensorsFile(path).at("a")), "hi");
  EXPECT_EQ(bytes_of(file.at("a")), "hi");
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x", {});
  EXPECT_EQ(read_file(folder / "x"), file_of("{}      "));
}

TEST(SafetensorsWriter, RefusesWhatCouldNotBeReadBack) {
  const TemporaryFolder folder;
  const std::string data = "12345678";
  const TensorView good = view_of("a", DType::f32, {2}, data);
  const auto refused = [&](std::vector<TensorView> tensors, const Metadata& metadata = {}) {
    EXPECT_THROW(write_safetensors(folder / "x", std::move(tensors), metadata), ContractError);
  };
  refused({good, good});
  refused({view_of("__metadata__", DType::f32, {2}, data)});
  refused({view_of("a", DType::f32, {3}, data)});
  refused({view_of("a", DType::f32, {-2}, data)});
  refused({view_of("a", DType::f32, std::vector<int64_t>(17, 1), "1234")});
  refused({view_of("\xff", DType::f32, {2}, data)});
  refused({good}, {{"k", "\xff"}});
  refused({good}, {{"k", "1"}, {"k", "2"}});
  refused({{.name = "a", .dtype = DType::u8, .shape = {1}, .data = nullptr, .num_bytes = 1}});
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(SafetensorsWriter, LeavesNothingWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const std::string data(100'000, 'x');
  const std::vector<TensorView> tensors = {view_of("a", DType::u8, {100'000}, data)};
  {
    const FileSizeLimit limit(50'000);
    try {
      write_safetensors(folder / "x.safetensors", tensors);
      ADD_FAILURE() << "accepted";
    } catch (const WriteError& error) {
      EXPECT_THAT(error.what(), HasSubstr("x.safetensors: cannot write: File too large"));
    }
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(SafetensorsWriter, KeepsTheOldFileWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const std::string small = "old";
  write_safetensors(folder / "x", {view_of("a", DType::u8, {3}, small)});
  const std::string data(100'000, 'x');
  {
    const FileSizeLimit limit(50'000);
    EXPECT_THROW(write_safetensors(folder / "x", {view_of("a", DType::u8, {100'000}, data)}),
                 WriteError);
  }
  EXPECT_THAT(folder.names(), ElementsAre("x"));
  EXPECT_EQ(bytes_of(SafetensorsFile(folder / "x").at("a")), "old");
}

TEST(SafetensorsWriter, RewritesHuggingFaceFilesByteForByte) {
  const fs::path fixtures = shared_folder() / "fixtures";
  if (!fs::exists(fixtures)) return;
  size_t num_files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(fixtures)) {
    if (entry.path().extension() != ".safetensors") continue;
    const TemporaryFolder folder;
    const SafetensorsFile file(entry.path());
    EXPECT_GT(file.tensors().size(), 0u);
    write_safetensors(folder / "again", file.tensors(), file.metadata());
    EXPECT_EQ(read_file(folder / "again"), read_file(entry.path())) << entry.path();
    ++num_files;
  }
  EXPECT_GE(num_files, 2u);
}

}  // namespace
}  // namespace t2r::model
