#include "base/folder_manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "base/durable_file.h"
#include "base/error.h"
#include "tests/support.h"

namespace t2r {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

template <class Action>
std::string data_error_of(const Action& action) {
  try {
    action();
  } catch (const DataError& error) {
    return error.what();
  }
  return "no DataError";
}

class FolderManifestTest : public ::testing::Test {
 protected:
  FolderManifestTest() {
    write_file_durably(path("weights"), std::string(5000, 'w'));
    write_file_durably(path("empty"), "");
  }

  fs::path path(const std::string& name) const { return folder_.path() / name; }

  std::string written() {
    write_folder_manifest(folder_.path(), {{"step", 7}, {"loss", 0.1}, {"none", nullptr}});
    return read_file(path(kManifestFile));
  }

  test::TemporaryFolder folder_;
};

TEST_F(FolderManifestTest, ComesBackAsItWasWritten) {
  const std::string text = written();
  const FolderManifest manifest = *find_folder_manifest(folder_.path());
  EXPECT_EQ(manifest.fields, (Json{{"step", 7}, {"loss", 0.1}, {"none", nullptr}}));
  ASSERT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.files.at("weights").num_bytes, 5000u);
  EXPECT_EQ(manifest.files.at("empty").hash, "99aa06d3014798d86001c324468d497f");  // of XXH3
  EXPECT_TRUE(manifest.has_own_hash);
  EXPECT_EQ(manifest.to_text(), text);
  for (const auto& [name, record] : manifest.files) check_file(path(name), record);
}

TEST_F(FolderManifestTest, AFolderThatIsGoneCannotBeWritten) {
  EXPECT_THROW(write_folder_manifest(folder_.path() / "gone", {{"step", 7}}), WriteError);
}

TEST_F(FolderManifestTest, EveryChangedByteIsSeen) {
  const std::string text = written();
  for (size_t i = 0; i < text.size(); ++i) {
    for (const int change : {1, 2, 4, 8, 16, 32, 64, 128, 0xff}) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ change);
      ASSERT_TRUE(is_folder_manifest(damaged)) << i;
      ASSERT_THROW(parse_folder_manifest(damaged, "m"), DataError)
          << "byte " << i << " ^ " << change;
    }
  }
}

TEST_F(FolderManifestTest, EveryCutAndEveryLongerTextIsSeen) {
  const std::string text = written();
  for (size_t size = 0; size < text.size(); ++size) {
    const std::string cut = text.substr(0, size);
    ASSERT_TRUE(is_folder_manifest(cut)) << size;
    ASSERT_THROW(parse_folder_manifest(cut, "m"), DataError) << size;
  }
  EXPECT_THROW(parse_folder_manifest(text + "\n", "m"), DataError);
  EXPECT_THROW(parse_folder_manifest(" " + text, "m"), DataError);
  EXPECT_THROW(parse_folder_manifest(std::string(text.size(), '\0'), "m"), DataError);
  EXPECT_TRUE(is_folder_manifest(std::string(text.size(), '\0')));
}

TEST_F(FolderManifestTest, AnotherProgramsManifestIsNone) {
  EXPECT_FALSE(find_folder_manifest(folder_.path()).has_value());
  for (const char* text : {R"({"name": "page", "icons": []})", "[]", "{}", "a list of files\n"}) {
    write_file_durably(path(kManifestFile), text);
    EXPECT_FALSE(find_folder_manifest(folder_.path()).has_value()) << text;
  }
}

TEST_F(FolderManifestTest, VersionOneHasNoHashOfItsOwn) {
  const Json old = {{"version", 1},
                    {"step", 3},
                    {"files", {{"empty", {{"bytes", 0}, {"xxh3_128", std::string(32, 'a')}}}}}};
  const FolderManifest manifest = parse_folder_manifest(old.dump(2) + "\n", "m");
  EXPECT_FALSE(manifest.has_own_hash);
  EXPECT_EQ(manifest.fields, (Json{{"step", 3}}));
  EXPECT_THAT(data_error_of([&] { check_file(path("empty"), manifest.files.at("empty")); }),
              HasSubstr("does not match the manifest's hash"));
}

TEST_F(FolderManifestTest, WhatBreaksTheFormatIsRefused) {
  const auto with = [](const std::string& key, const Json& value) {
    Json all = {{"version", 1}, {"files", Json::object()}};
    all[key] = value;
    return data_error_of([&] { parse_folder_manifest(all.dump(), "m.json"); });
  };
  const auto named = [&](const std::string& name) {
    return with("files", {{name, {{"bytes", 1}, {"xxh3_128", std::string(32, '0')}}}});
  };
  EXPECT_EQ(with("step", 1), "no DataError");
  EXPECT_EQ(named("a.txt"), "no DataError");
  for (const char* name : {"", ".", "..", "../a", "a/b", "/a", "manifest.json"})
    EXPECT_THAT(named(name), AllOf(HasSubstr("m.json"), HasSubstr("plain names"))) << name;
  const auto entry = [&](const Json& value) { return with("files", {{"a", value}}); };
  EXPECT_THAT(entry({{"bytes", -1}, {"xxh3_128", std::string(32, '0')}}), HasSubstr("damaged"));
  EXPECT_THAT(entry({{"bytes", 1.5}, {"xxh3_128", std::string(32, '0')}}), HasSubstr("damaged"));
  EXPECT_THAT(entry({{"bytes", 1}, {"xxh3_128", std::string(31, '0')}}), HasSubstr("damaged"));
  EXPECT_THAT(entry({{"bytes", 1}, {"xxh3_128", std::string(32, 'G')}}), HasSubstr("damaged"));
  EXPECT_THAT(entry({{"bytes", 1}}), HasSubstr("damaged"));
  EXPECT_THAT(entry(3), HasSubstr("damaged"));
  EXPECT_THAT(with("files", "a"), HasSubstr("damaged"));
  EXPECT_THAT(with("version", 2), HasSubstr("lost its own hash"));
  EXPECT_THAT(with("version", "1"), HasSubstr("damaged"));
  EXPECT_THAT(data_error_of([] {
                parse_folder_manifest(std::string(200000, '[') + std::string(200000, ']'), "m");
              }),
              HasSubstr("nested at most"));
}

TEST_F(FolderManifestTest, MissingAndChangedFilesAreNamed) {
  written();
  const FolderManifest manifest = *find_folder_manifest(folder_.path());
  const FileRecord record = manifest.files.at("weights");
  write_file_durably(path("weights"), std::string(4999, 'w'));
  EXPECT_THAT(data_error_of([&] { check_file(path("weights"), record); }),
              AllOf(HasSubstr("weights"), HasSubstr("4999 bytes, the manifest says 5000")));
  fs::remove(path("weights"));
  EXPECT_THAT(data_error_of([&] { check_file(path("weights"), record); }),
              AllOf(HasSubstr("weights"), HasSubstr("No such file")));
}

TEST_F(FolderManifestTest, WhatCannotBeReadIsNotCalledDamaged) {
  written();
  fs::remove(path(kManifestFile));
  fs::create_symlink("/proc/self/mem", path(kManifestFile));  // opens; reading gives EIO
  EXPECT_THROW(find_folder_manifest(folder_.path()), UnreadableError);
  fs::remove(path("weights"));
  fs::create_symlink("/proc/self/mem", path("weights"));
  EXPECT_THROW(read_file(path("weights")), UnreadableError);
  EXPECT_THROW(read_file(path("nothing")), DataError);
}

TEST_F(FolderManifestTest, KeysOfItsOwnAreNotTheWriters) {
  FolderManifest manifest;
  manifest.fields = {{"files", 1}};
  EXPECT_THROW(manifest.to_text(), ContractError);
}

}  // namespace
}  // namespace t2r
