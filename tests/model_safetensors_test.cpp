#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/durable_file.h"
#include "base/error.h"
#include "model/files/safetensors.h"
#include "model/files/safetensors_index.h"
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

/// Length prefix + header as given + data.
std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

std::string refusal_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const DataError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kBadData);
    return error.what();
  }
  return "accepted";
}

SafetensorsContent parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "x.safetensors");
}
/// The views point into the file's bytes, which must outlive them.
SafetensorsContent parse(std::string&&) = delete;

std::string refusal_of_file(const std::string& file) {
  return refusal_of([&] { parse(file); });
}

std::string refusal_of_header(const std::string& header, const std::string& data = "") {
  return refusal_of_file(file_of(header, data));
}

/// Header of one tensor "a" with the given fields.
std::string one_tensor(const std::string& dtype,
                       const std::string& shape,
                       const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TensorView view_of(const std::string& name,
                   DType dtype,
                   std::vector<int64_t> shape,
                   const std::string& bytes) {
  return {.name = name,
          .dtype = dtype,
          .shape = std::move(shape),
          .data = reinterpret_cast<const std::byte*>(bytes.data()),
          .num_bytes = bytes.size()};
}

std::string bytes_of(const TensorView& tensor) {
  return {reinterpret_cast<const char*>(tensor.data), tensor.num_bytes};
}

// --- reading what is right

TEST(Safetensors, ReadsTensorsInOffsetOrderWithMetadata) {
  const std::string file =
      file_of(R"({"__metadata__":{"z":"1","a":"2"},)"
              R"("late":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},)"
              R"("early":{"data_offsets":[0,4],"dtype":"F16","shape":[1,2]}}   )",
              "abcdef");
  const SafetensorsContent content = parse(file);
  ASSERT_EQ(content.tensors.size(), 2u);
  EXPECT_EQ(content.tensors[0].name, "early");
  EXPECT_EQ(content.tensors[0].dtype, DType::f16);
  EXPECT_THAT(content.tensors[0].shape, ElementsAre(1, 2));
  EXPECT_EQ(bytes_of(content.tensors[0]), "abcd");
  EXPECT_EQ(content.tensors[1].name, "late");
  EXPECT_EQ(bytes_of(content.tensors[1]), "ef");
  EXPECT_THAT(content.metadata, ElementsAre(Pair("z", "1"), Pair("a", "2")));
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  const std::string file = file_of("{}      ");
  EXPECT_THAT(parse(file).tensors, IsEmpty());
}

TEST(Safetensors, ReadsEmptyAndScalarTensors) {
  const std::string file = file_of(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                                   R"("e":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}})",
                                   "abcd");
  const SafetensorsContent content = parse(file);
  ASSERT_EQ(content.tensors.size(), 2u);
  EXPECT_EQ(content.tensors[0].num_bytes, 0u);
  EXPECT_THAT(content.tensors[1].shape, IsEmpty());
}

TEST(Safetensors, ReadsTypesOfLessThanAByte) {
  const std::string file = file_of(one_tensor("\"F6_E2M3\"", "[4]", "[0,3]"), "abc");
  const SafetensorsContent content = parse(file);
  EXPECT_EQ(content.tensors.at(0).num_bytes, 3u);
}

TEST(Safetensors, FindsTensorsByNameInAMovedFile) {
  const TemporaryFolder folder;
  write_text(folder / "x.safetensors", file_of(one_tensor("\"U8\"", "[2]", "[0,2]"), "hi"));
  SafetensorsFile first(folder / "x.safetensors");
  const SafetensorsFile file = std::move(first);
  EXPECT_EQ(bytes_of(file.at("a")), "hi");
  EXPECT_EQ(file.find("b"), nullptr);
  EXPECT_THAT(refusal_of([&] { file.at("b"); }),
              AllOf(HasSubstr("x.safetensors"), HasSubstr("tensor \"b\" is missing")));
}

TEST(Safetensors, NamesItsTypesAsTheFormatDoes) {
  EXPECT_EQ(dtype_name(DType::boolean), "BOOL");
  EXPECT_EQ(dtype_name(DType::bf16), "BF16");
  EXPECT_EQ(dtype_name(DType::f8_e8m0), "F8_E8M0");
  EXPECT_EQ(bits_per_element(DType::f4), 4);
  EXPECT_EQ(bits_per_element(DType::c64), 64);
}

// --- refusing what is wrong: the message names file, byte and rule

TEST(SafetensorsRefusal, NamesTheFile) {
  EXPECT_THAT(refusal_of_file(""), HasSubstr("x.safetensors: byte 0: "));
}

TEST(SafetensorsRefusal, WhenThePrefixIsCut) {
  for (size_t size = 0; size < 8; ++size)
    EXPECT_THAT(refusal_of_file(std::string(size, '\0')),
                HasSubstr("byte 0: a safetensors file starts with 8 bytes of header length, this "
                          "one has only " +
                          std::to_string(size)));
}

TEST(SafetensorsRefusal, WhenCutAnywhere) {
  const std::string file =
      file_of(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
              "12345678");
  EXPECT_EQ(refusal_of_file(file), "accepted");
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_THAT(refusal_of_file(file.substr(0, size)), HasSubstr("x.safetensors: byte ")) << size;
}

TEST(SafetensorsRefusal, WhenTheHeaderLengthPassesTheFile) {
  std::string file = file_of("{}");
  file[0] = 3;
  EXPECT_THAT(refusal_of_file(file), HasSubstr("header length 3 must be at most 2 (the rest of"));
}

TEST(SafetensorsRefusal, WhenTheHeaderLengthOverflows) {
  EXPECT_THAT(refusal_of_file(std::string(8, '\xff') + "{}"),
              HasSubstr("header length 18446744073709551615 must be at most 2 (100 MB)"));
  EXPECT_THAT(refusal_of_file("\xf8" + std::string(7, '\xff') + "{}"),
              HasSubstr("header length 18446744073709551608 must be at most"));
}

TEST(SafetensorsRefusal, WhenTheHeaderPasses100MB) {
  const TemporaryFolder folder;
  const fs::path path = folder / "big.safetensors";
  write_text(path, std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{");
  fs::resize_file(path, 100'000'100);  // sparse
  EXPECT_THAT(refusal_of([&] { SafetensorsFile file(path); }),
              HasSubstr("header length 100000001 must be at most 100000000 (100 MB)"));
}

TEST(SafetensorsRefusal, WhenTheHeaderIsNoObject) {
  EXPECT_THAT(refusal_of_header(""), HasSubstr("byte 8: the header must start with '{'"));
  EXPECT_THAT(refusal_of_header("[]"), HasSubstr("byte 8: the header must start with '{'"));
  EXPECT_THAT(refusal_of_header(" {}"), HasSubstr("byte 8: the header must start with '{'"));
  EXPECT_THAT(refusal_of_header("        "), HasSubstr("byte 8: the header must start with '{'"));
  EXPECT_THAT(refusal_of_header("\xef\xbb\xbf{}"), HasSubstr("must start with '{'"));
}

TEST(SafetensorsRefusal, WhenSomethingFollowsTheHeader) {
  EXPECT_THAT(refusal_of_header("{}x"), HasSubstr("byte 10: the header must end with '}'"));
  EXPECT_THAT(refusal_of_header("{}\n"), HasSubstr("byte 10: the header must end with '}'"));
  EXPECT_THAT(refusal_of_header("{}{}"), HasSubstr("not valid JSON: syntax error"));
  EXPECT_THAT(refusal_of_header(std::string("{}\0{}", 5)),
              HasSubstr("byte 10: JSON must not contain a NUL byte"));
}

TEST(SafetensorsRefusal, WhenTheHeaderIsNotJson) {
  EXPECT_THAT(refusal_of_header("{\"a\"}"), HasSubstr("byte 12: not valid JSON: syntax error"));
  EXPECT_THAT(refusal_of_header("{\"a\":1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal_of_header("{/*c*/}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal_of_header("{\"a\":{},}"), HasSubstr("dtype is missing"));
}

TEST(SafetensorsRefusal, WhenTheHeaderIsNotUtf8) {
  for (const char* bad : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\\ud800"})
    EXPECT_THAT(refusal_of_header("{\"" + std::string(bad) + "\":{}}"),
                HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal_of_header("{\"\xff\":{}}"), HasSubstr("ill-formed UTF-8 byte"));
}

TEST(SafetensorsRefusal, WhenTheParserWouldQuoteTheWholeFile) {
  const std::string message = refusal_of_header("{\"" + std::string(1'000'000, 'a') + "}");
  EXPECT_THAT(message, HasSubstr("not valid JSON"));
  EXPECT_THAT(message, Not(HasSubstr("last read")));
  EXPECT_LT(message.size(), 300u);
  const std::string cut = refusal_of_header("{\"" + std::string(1'000'000, 'a') + "\":1}");
  EXPECT_THAT(cut, HasSubstr("\"" + std::string(80, 'a') + "...\" must be an object"));
  EXPECT_LT(cut.size(), 300u);
}

TEST(SafetensorsRefusal, WhenAKeyIsThereTwice) {
  const std::string a = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(refusal_of_header("{" + a + "," + a + "}"), HasSubstr("key \"a\" is there twice"));
  EXPECT_THAT(refusal_of_header("{" + a + ",\"\\u0061\":{}}"),
              HasSubstr("key \"a\" is there twice"));
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":{},"__metadata__":{}})"),
              HasSubstr("key \"__metadata__\" is there twice"));
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":{"k":"1","k":"2"}})"),
              HasSubstr("key \"k\" is there twice"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","dtype":"I8"}})"),
              HasSubstr("key \"dtype\" is there twice"));
}

TEST(SafetensorsRefusal, WhenTensorsOverlap) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})";
  const size_t data_start = 8 + header.size();
  EXPECT_THAT(refusal_of_header(header, "123456"),
              HasSubstr("x.safetensors: byte " + std::to_string(data_start + 2) +
                        ": tensor \"b\" overlaps the tensor before it; it must start at byte " +
                        std::to_string(data_start + 4)));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                                "1234"),
              HasSubstr("tensor \"b\" overlaps the tensor before it"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                R"("b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
                                "1234"),
              HasSubstr("tensor \"b\" overlaps the tensor before it"));
}

TEST(SafetensorsRefusal, WhenThereIsAHole) {
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[2]", "[1,3]"), "123"),
              HasSubstr("tensor \"a\" leaves a hole before it"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                                "12345"),
              HasSubstr("tensor \"b\" leaves a hole before it"));
}

TEST(SafetensorsRefusal, WhenBytesFollowTheLastTensor) {
  const std::string header = one_tensor("\"U8\"", "[2]", "[0,2]");
  EXPECT_THAT(refusal_of_header(header, "123"),
              HasSubstr("byte " + std::to_string(8 + header.size() + 2) +
                        ": 1 bytes follow the last tensor; none may"));
  EXPECT_THAT(refusal_of_header("{}", "1"), HasSubstr("1 bytes follow the last tensor"));
}

TEST(SafetensorsRefusal, WhenTheDataIsCut) {
  EXPECT_THAT(refusal_of_header(one_tensor("\"F32\"", "[2]", "[0,8]"), "1234567"),
              HasSubstr("data_offsets [0,8] must end within the 7 bytes of data"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"",
                                           "[1]",
                                           "[18446744073709551614,"
                                           "18446744073709551615]")),
              HasSubstr("must end within the 0 bytes of data"));
}

TEST(SafetensorsRefusal, WhenOffsetsFall) {
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[2]", "[2,0]"), "12"),
              HasSubstr("data_offsets [2,0] must not fall"));
}

TEST(SafetensorsRefusal, WhenOffsetsAreNotTwoIntegers) {
  for (const char* offsets : {"[]", "[0]", "[0,0,0]"})
    EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[0]", offsets)),
                HasSubstr("tensor \"a\": data_offsets must be two integers"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[0]", "[-1,0]")),
              HasSubstr("data_offsets must be an array of integers >= 0, not -1"));
  EXPECT_THAT(
      refusal_of_header(one_tensor("\"U8\"", "[0]", "[0,18446744073709551616]")),
      HasSubstr("data_offsets must be an array of integers >= 0, not 18446744073709551616"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[0]", "\"0,0\"")),
              HasSubstr("data_offsets must be an array of integers >= 0, not a string"));
}

TEST(SafetensorsRefusal, WhenAShapeIsNoListOfSizes) {
  const std::string rule = "tensor \"a\": shape must be an array of integers >= 0, not ";
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[-2]", "[0,2]"), "12"),
              HasSubstr(rule + "-2"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[2.0]", "[0,2]"), "12"),
              HasSubstr(rule + "2.0"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[true]", "[0,1]")), HasSubstr(rule + "true"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "2", "[0,2]")), HasSubstr(rule + "a number"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "null", "[0,2]")), HasSubstr(rule + "null"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[[2]]", "[0,2]")),
              HasSubstr(rule + "an array"));
}

TEST(SafetensorsRefusal, WhenAShapeOverflows) {
  const std::string rule = "must fill whole bytes, fewer than 2^60";
  EXPECT_THAT(refusal_of_header(one_tensor("\"F32\"", "[4294967296,4294967296]", "[0,0]")),
              HasSubstr(rule));
  EXPECT_THAT(refusal_of_header(one_tensor("\"F64\"", "[2305843009213693952]", "[0,0]")),
              HasSubstr(rule));
  EXPECT_THAT(refusal_of_header(
                  one_tensor("\"U8\"", "[0,4611686018427387904,4611686018427387904]", "[0,0]")),
              HasSubstr(rule));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[9223372036854775808]", "[0,0]")),
              HasSubstr("size 9223372036854775808 in shape must be at most 2^63 - 1"));
}

TEST(SafetensorsRefusal, WhenAShapeHasTooManyDimensions) {
  const std::string ones16 = "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1";
  EXPECT_EQ(refusal_of_header(one_tensor("\"U8\"", "[" + ones16 + "]", "[0,1]"), "1"), "accepted");
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", "[" + ones16 + ",1]", "[0,1]"), "1"),
              HasSubstr("shape may have at most 16 dimensions"));
}

TEST(SafetensorsRefusal, WhenBytesDoNotFitTheShape) {
  EXPECT_THAT(refusal_of_header(one_tensor("\"F32\"", "[2]", "[0,7]"), "1234567"),
              HasSubstr("data_offsets [0,7] must span the 8 bytes of F32 [2]"));
  EXPECT_THAT(refusal_of_header(one_tensor("\"F4\"", "[3]", "[0,1]"), "1"),
              HasSubstr("F4 [3] must fill whole bytes"));
}

TEST(SafetensorsRefusal, WhenTheTypeIsUnknown) {
  EXPECT_THAT(
      refusal_of_header(one_tensor("\"F128\"", "[1]", "[0,16]")),
      AllOf(HasSubstr("tensor \"a\": unknown dtype \"F128\"; known: BOOL, F4"), HasSubstr("BF16")));
  EXPECT_THAT(refusal_of_header(one_tensor("\"f32\"", "[1]", "[0,4]")), HasSubstr("unknown dtype"));
  EXPECT_THAT(refusal_of_header(one_tensor("7", "[1]", "[0,4]")),
              HasSubstr("dtype must be a string, not a number"));
}

TEST(SafetensorsRefusal, WhenAFieldIsMissingOrUnknown) {
  EXPECT_THAT(refusal_of_header(R"({"a":{"shape":[],"data_offsets":[0,0]}})"),
              HasSubstr("tensor \"a\": dtype is missing"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","data_offsets":[0,0]}})"),
              HasSubstr("tensor \"a\": shape is missing"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","shape":[0]}})"),
              HasSubstr("data_offsets must be two integers"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"U8","strides":[1]}})"),
              HasSubstr("unknown field \"strides\"; allowed are dtype, shape, data_offsets"));
}

TEST(SafetensorsRefusal, WhenATensorIsNoObject) {
  EXPECT_THAT(refusal_of_header(R"({"a":1})"), HasSubstr("\"a\" must be an object, not a number"));
  EXPECT_THAT(refusal_of_header(R"({"a":[]})"), HasSubstr("\"a\" must be an object, not an array"));
  EXPECT_THAT(refusal_of_header(R"({"a":null})"), HasSubstr("\"a\" must be an object, not null"));
}

TEST(SafetensorsRefusal, WhenMetadataIsNotText) {
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":{"k":1}})"),
              HasSubstr("metadata \"k\" must be a string, not a number"));
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":{"k":{}}})"),
              HasSubstr("metadata \"k\" must be a string, not an object"));
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":"k"})"),
              HasSubstr("\"__metadata__\" must be an object, not a string"));
}

TEST(SafetensorsRefusal, WhenNestedDeeply) {
  const size_t depth = 1'000'000;
  EXPECT_THAT(refusal_of_header("{\"a\":" + std::string(depth, '[') + "}"),
              HasSubstr("\"a\" must be an object, not an array"));
  std::string objects;
  for (size_t i = 0; i < 1000; ++i) objects += "{\"a\":";
  EXPECT_THAT(refusal_of_header(objects + "}"), HasSubstr("tensor \"a\": unknown field \"a\""));
  EXPECT_THAT(refusal_of_header(one_tensor("\"U8\"", std::string(depth, '['), "[0,0]")),
              HasSubstr("shape must be an array of integers >= 0, not an array"));
}

TEST(SafetensorsRefusal, WhenThereAreTooManyTensors) {
  std::string header = "{";
  for (size_t i = 0; i <= kMaxSafetensorsTensors; ++i)
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(refusal_of_header(header + "}"), HasSubstr("may hold at most 262144 tensors"));
}

TEST(SafetensorsRefusal, WhenThereAreTooManyKeys) {
  std::string header = "{\"__metadata__\":{";
  for (size_t i = 0; i < 1'200'000; ++i)
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"\"";
  EXPECT_THAT(refusal_of_header(header + "}}"), HasSubstr("may hold at most 1114112 keys"));
}

TEST(SafetensorsRefusal, WhenANameWouldGarbleTheMessage) {
  EXPECT_THAT(refusal_of_header("{\"\\u001b[2J\\n\xc3\xa9\":1}"),
              HasSubstr("\"\\u001b[2J\\n\\u00e9\" must be an object"));
}

TEST(SafetensorsRefusal, WhenTheFileCannotBeRead) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal_of([&] { SafetensorsFile file(folder / "none"); }),
              HasSubstr("none: cannot open: No such file"));
  EXPECT_THAT(refusal_of([&] { SafetensorsFile file(folder.path()); }),
              HasSubstr("must be a regular file"));
  write_text(folder / "empty", "");
  EXPECT_THAT(refusal_of([&] { SafetensorsFile file(folder / "empty"); }),
              HasSubstr("this one has only 0"));
}

// --- writing

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

/// Every write() past `bytes` fails, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit = {bytes, previous_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }

 private:
  rlimit previous_ = {};
  void (*previous_handler_)(int) = nullptr;
};

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

// --- folders and indices

const std::string kA = file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "A");
const std::string kB = file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "B");

std::string index_of(const std::string& weight_map) {
  return R"({"metadata":{"total_size":2,"more":[1.5,{"x":null}]},"weight_map":)" + weight_map + "}";
}

/// What opening a folder with this index and shards 1.safetensors (a) and 2.safetensors (b) says.
std::string refusal_of_index(const std::string& index) {
  const TemporaryFolder folder;
  write_text(folder / "1.safetensors", kA);
  write_text(folder / "2.safetensors", kB);
  write_text(folder / kWeightsIndexFile, index);
  return refusal_of([&] { open_model_weights(folder.path()); });
}

TEST(ModelWeights, OpensASingleFile) {
  const TemporaryFolder folder;
  write_text(folder / kWeightsFile, kA);
  const ModelWeights weights = open_model_weights(folder.path());
  ASSERT_EQ(weights.tensors().size(), 1u);
  EXPECT_EQ(bytes_of(weights.at("a")), "A");
  EXPECT_EQ(weights.find("b"), nullptr);
  EXPECT_THAT(refusal_of([&] { weights.at("b"); }), HasSubstr("tensor \"b\" is missing"));
}

TEST(ModelWeights, OpensShards) {
  EXPECT_EQ(refusal_of_index(index_of(R"({"a":"1.safetensors","b":"2.safetensors"})")), "accepted");
  const TemporaryFolder folder;
  write_text(folder / "1.safetensors", kA);
  write_text(folder / "2.safetensors", kB);
  write_text(folder / kWeightsIndexFile, index_of(R"({"b":"2.safetensors","a":"1.safetensors"})"));
  const ModelWeights weights = open_model_weights(folder.path());
  ASSERT_EQ(weights.tensors().size(), 2u);
  EXPECT_EQ(weights.tensors()[0]->name, "a");
  EXPECT_EQ(bytes_of(weights.at("b")), "B");
}

TEST(ModelWeights, FollowsLinksAsTheHuggingFaceCacheNeeds) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "blobs");
  fs::create_directories(folder / "snapshot");
  write_text(folder / "blobs/hash", kA);
  fs::create_symlink("../blobs/hash", folder / "snapshot/model.safetensors");
  EXPECT_EQ(bytes_of(open_model_weights(folder / "snapshot").at("a")), "A");
}

TEST(ModelWeightsRefusal, NamesWhatAFolderLacks) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal_of([&] { open_model_weights(folder.path()); }),
              HasSubstr("neither model.safetensors nor model.safetensors.index.json is there"));
  EXPECT_THAT(refusal_of([&] { open_model_weights(folder / "none"); }),
              HasSubstr("none: a model must be a folder"));
}

TEST(ModelWeightsRefusal, SaysWhyPickleIsNotRead) {
  for (const char* name : {"pytorch_model.bin", "model.pt", "x.pth", "last.ckpt"}) {
    const TemporaryFolder folder;
    write_text(folder / name, "");
    EXPECT_THAT(refusal_of([&] { open_model_weights(folder.path()); }),
                AllOf(HasSubstr("neither model.safetensors nor"),
                      HasSubstr(std::string("\"") + name + "\" is, but only safetensors are read"),
                      HasSubstr("a pickle file can run any code")));
  }
}

TEST(ModelWeightsRefusal, WhenFileAndIndexAreBothThere) {
  const TemporaryFolder folder;
  write_text(folder / kWeightsFile, kA);
  write_text(folder / kWeightsIndexFile, "{}");
  EXPECT_THAT(refusal_of([&] { open_model_weights(folder.path()); }),
              HasSubstr("both model.safetensors and model.safetensors.index.json are there"));
}

TEST(ModelWeightsRefusal, WhenAShardNameLeavesTheFolder) {
  for (const char* name : {"../1.safetensors",
                           "/etc/x.safetensors",
                           "sub/1.safetensors",
                           "..\\\\1.safetensors",
                           "..safetensors"})
    EXPECT_THAT(refusal_of_index(index_of("{\"a\":\"" + std::string(name) + "\"}")),
                HasSubstr("a shard must lie in the index's own folder"))
        << name;
  for (const char* name : {"", ".", "1.bin", "index.json", ".safetensors"})
    EXPECT_THAT(refusal_of_index(index_of("{\"a\":\"" + std::string(name) + "\"}")),
                HasSubstr("a shard must be named *.safetensors"))
        << name;
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":"1.safetensors\u0000.safetensors"})")),
              HasSubstr("no control characters"));
}

TEST(ModelWeightsRefusal, WhenAShardIsMissing) {
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":"1.safetensors","b":"3.safetensors"})")),
              HasSubstr("weight_map names \"3.safetensors\", which is missing in the folder"));
}

TEST(ModelWeightsRefusal, WhenIndexAndShardsDiffer) {
  EXPECT_THAT(refusal_of_index(
                  index_of(R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})")),
              HasSubstr("weight_map places tensor \"c\" in \"2.safetensors\", where it is not"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"b":"1.safetensors"})")),
              HasSubstr("weight_map must place tensor \"a\" in \"1.safetensors\", where it is"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":"1.safetensors","x":"2.safetensors"})")),
              HasSubstr("weight_map must place tensor \"b\" in \"2.safetensors\", where it is"));
}

TEST(ModelWeightsRefusal, WhenAShardIsDamaged) {
  const TemporaryFolder folder;
  write_text(folder / "1.safetensors", kA.substr(0, kA.size() - 1));
  write_text(folder / kWeightsIndexFile, index_of(R"({"a":"1.safetensors"})"));
  EXPECT_THAT(refusal_of([&] { open_model_weights(folder.path()); }),
              AllOf(HasSubstr("1.safetensors: byte "), HasSubstr("is the file cut short?")));
}

TEST(ModelWeightsRefusal, WhenTheIndexIsMalformed) {
  EXPECT_THAT(refusal_of_index(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal_of_index("[]"), HasSubstr("an index must be a JSON object, not an array"));
  EXPECT_THAT(refusal_of_index("7"), HasSubstr("an index must be a JSON object, not 7"));
  EXPECT_THAT(refusal_of_index("\"\""), HasSubstr("an index must be a JSON object, not a string"));
  EXPECT_THAT(refusal_of_index("{}"), HasSubstr("an index must have a \"weight_map\""));
  EXPECT_THAT(refusal_of_index(R"({"metadata":{"weight_map":{"a":"1.safetensors"}}})"),
              HasSubstr("an index must have a \"weight_map\""));
  EXPECT_THAT(refusal_of_index(index_of("[]")),
              HasSubstr("weight_map must be an object, not an arr"));
  EXPECT_THAT(refusal_of_index(index_of("\"x\"")),
              HasSubstr("weight_map must be an object, not a s"));
  EXPECT_THAT(refusal_of_index(index_of("{}")), HasSubstr("weight_map must name 1 to 4096 files"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":3})")),
              HasSubstr("weight_map must name a file for \"a\", not 3"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":{}})")),
              HasSubstr("weight_map must name a file for \"a\", not an object"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":["1.safetensors"]})")),
              HasSubstr("weight_map must name a file for \"a\", not an array"));
  EXPECT_THAT(refusal_of_index(index_of(R"({"a":"1.safetensors","a":"2.safetensors"})")),
              HasSubstr("key \"a\" is there twice"));
  EXPECT_THAT(refusal_of_index("{\"metadata\":" + std::string(100'000, '[')),
              HasSubstr("JSON may be nested at most 8 deep"));
}

TEST(ModelWeightsWriter, WritesOneFileWhenItFits) {
  const TemporaryFolder folder;
  const std::string data = "12345678";
  write_model_weights(folder.path(), {view_of("a", DType::f64, {1}, data)}, {{"format", "pt"}}, 8);
  EXPECT_THAT(folder.names(), ElementsAre("model.safetensors"));
  EXPECT_EQ(bytes_of(open_model_weights(folder.path()).at("a")), data);
}

TEST(ModelWeightsWriter, SplitsIntoShardsAndAnIndex) {
  const TemporaryFolder folder;
  const std::string data = "0123456789";
  const auto tensor = [&](const char* name, int64_t size) {
    TensorView view = view_of(name, DType::u8, {size}, data);
    view.num_bytes = static_cast<size_t>(size);
    return view;
  };
  // 2+2 fill a shard exactly; 9 is wider than any; 1 begins a new one.
  write_model_weights(folder.path(),
                      {tensor("d", 2), tensor("c", 2), tensor("b", 9), tensor("a", 1)},
                      {{"format", "pt"}},
                      4);
  EXPECT_THAT(folder.names(),
              ElementsAre("model-00001-of-00003.safetensors",
                          "model-00002-of-00003.safetensors",
                          "model-00003-of-00003.safetensors",
                          "model.safetensors.index.json"));
  // As json.dumps(index, indent=2, sort_keys=True) + "\n" of transformers.
  EXPECT_EQ(read_file(folder / kWeightsIndexFile),
            "{\n  \"metadata\": {\n    \"total_size\": 14\n  },\n  \"weight_map\": {\n"
            "    \"a\": \"model-00003-of-00003.safetensors\",\n"
            "    \"b\": \"model-00002-of-00003.safetensors\",\n"
            "    \"c\": \"model-00001-of-00003.safetensors\",\n"
            "    \"d\": \"model-00001-of-00003.safetensors\"\n  }\n}\n");
  const ModelWeights weights = open_model_weights(folder.path());
  EXPECT_EQ(weights.tensors().size(), 4u);
  EXPECT_EQ(bytes_of(weights.at("b")), "012345678");
  EXPECT_THAT(weights.metadata(), ElementsAre(Pair("format", "pt")));
}

TEST(ModelWeightsWriter, GivesATensorWiderThanAShardOneFile) {
  const TemporaryFolder folder;
  const std::string data = "12345678";
  write_model_weights(folder.path(), {view_of("a", DType::f64, {1}, data)}, {}, 1);
  EXPECT_THAT(folder.names(), ElementsAre("model.safetensors"));
}

TEST(ModelWeightsWriter, RefusesAFolderThatHoldsWeights) {
  for (const char* name : {kWeightsFile, kWeightsIndexFile}) {
    const TemporaryFolder folder;
    write_text(folder / name, "");
    EXPECT_THROW(write_model_weights(folder.path(), {}, {}, 1), WriteError);
    EXPECT_THAT(folder.names(), ElementsAre(name));
  }
}

TEST(ModelWeightsWriter, RefusesATensorNameInTwoShards) {
  const TemporaryFolder folder;
  const std::string data = "x";
  const TensorView tensor = view_of("a", DType::u8, {1}, data);
  EXPECT_THROW(write_model_weights(folder.path(), {tensor, tensor}, {}, 1), ContractError);
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(ModelWeightsWriter, LeavesNothingWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const std::string data(100'000, 'x');
  const std::string small = "y";
  {
    const FileSizeLimit limit(50'000);
    EXPECT_THROW(write_model_weights(folder.path(),
                                     {view_of("a", DType::u8, {1}, small),
                                      view_of("b", DType::u8, {100'000}, data)},
                                     {},
                                     1),
                 WriteError);
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

}  // namespace
}  // namespace t2r::model
