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

}  // namespace
}  // namespace t2r::model
