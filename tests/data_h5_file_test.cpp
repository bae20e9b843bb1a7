#include "data/h5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "tests/data_shards.h"
#include "tests/support.h"

namespace t2r::data {
namespace {

using test::message_of;
using test::TemporaryFolder;
using test::write_text;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(H5File, NamesFileAndCallAndCauseWhenItIsNoHdf5) {
  const TemporaryFolder folder;
  write_text(folder / "text.h5", "this is no HDF5 file");
  testing::internal::CaptureStderr();
  EXPECT_THAT(message_of<DataError>([&] { H5File::open(folder / "text.h5"); }),
              AllOf(HasSubstr((folder / "text.h5").string()),
                    HasSubstr("HDF5 H5Fopen failed: "),
                    HasSubstr("file signature not found")));
  EXPECT_THAT(
      message_of<WriteError>([&] { H5File::create(folder / "none" / "a.h5"); }),
      AllOf(
          HasSubstr("none/a.h5"), HasSubstr("H5Fcreate"), HasSubstr("No such file or directory")));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "HDF5 printed its errors itself";
}

TEST(H5File, NamesMissingAttributesAndDatasets) {
  const TemporaryFolder folder;
  H5File::create(folder / "empty.h5").close();
  const H5File file = H5File::open(folder / "empty.h5");
  EXPECT_THAT(message_of<DataError>([&] { file.read_integer("schema_version"); }),
              AllOf(HasSubstr("empty.h5"), HasSubstr("H5Aopen(schema_version)")));
  EXPECT_THAT(message_of<DataError>([&] { file.find_dataset("tokens"); }),
              HasSubstr("H5Dopen(tokens)"));
}

TEST(H5File, RefusesAttributesOfAnotherType) {
  const TemporaryFolder folder;
  {
    H5File file = H5File::create(folder / "a.h5");
    file.write_attribute("number", int64_t{7});
    file.write_attribute("text", std::string("seven"));
    file.write_attribute("nothing", std::string());
    file.close();
  }
  const H5File file = H5File::open(folder / "a.h5");
  EXPECT_EQ(file.read_integer("number"), 7);
  EXPECT_EQ(file.read_text("text"), "seven");
  EXPECT_EQ(file.read_text("nothing"), "");
  EXPECT_THAT(message_of<DataError>([&] { file.read_integer("text"); }),
              HasSubstr("attribute text must be one integer"));
  EXPECT_THAT(message_of<DataError>([&] { file.read_text("number"); }),
              HasSubstr("attribute number must be one fixed-length text"));
}

}  // namespace
}  // namespace t2r::data
