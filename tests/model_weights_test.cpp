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
#include "model/files/safetensors_index.h"
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
