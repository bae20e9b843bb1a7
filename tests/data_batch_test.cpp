#include "data/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "tests/data_shards.h"

namespace t2r::data {
namespace {

using test::message_of;
using ::testing::HasSubstr;

/// The batch of an encoder-decoder, whose fields differ in size: 2 x 3, 2 x 4, 2 x 4.
Batch pair_batch() {
  Batch batch = Batch::make(
      {.fields = {{"source", {2, 3}}, {kInputs, {2, 4}}, {kTargets, {2, 4}}}, .is_padded = true},
      &allocate_pageable);
  std::fill_n(batch.memory.data, memory_numel(batch.layout), 7);
  return batch;
}

TEST(Batch, LaysItsFieldsBehindOneAnother) {
  const Batch batch = pair_batch();
  EXPECT_EQ(memory_numel(batch.layout), 23);
  EXPECT_EQ(batch.rows("source"), batch.memory.data);
  EXPECT_EQ(batch.rows(kInputs), batch.memory.data + 6);
  EXPECT_EQ(batch.rows(kTargets), batch.memory.data + 14);
  EXPECT_EQ(size_text(batch.layout), "2 x 3");
}

TEST(Batch, CountsTargetsThatAreNotBelowZero) {
  Batch batch = pair_batch();
  batch.count_targets();
  EXPECT_EQ(batch.num_targets(), 8);
  EXPECT_EQ(batch.memory.data[22], 8) << "it travels with the fields";
  batch.rows(kTargets)[0] = 0;
  batch.rows(kTargets)[3] = -1;
  batch.rows(kTargets)[7] = -100;
  batch.rows("source")[2] = -1;  // no target
  batch.count_targets();
  EXPECT_EQ(batch.num_targets(), 6);
}

TEST(Batch, RefusesPaddingThatItsLayoutDoesNotHave) {
  Batch batch = Batch::make(language_model_layout(1, 2), &allocate_pageable);
  std::fill_n(batch.rows(kTargets), 2, -1);
  EXPECT_THAT(message_of<ContractError>([&] { batch.count_targets(); }), HasSubstr("below 0"));
}

TEST(Batch, NamesTheFieldThatItLacks) {
  const Batch batch = pair_batch();
  EXPECT_THAT(message_of<ContractError>([&] { batch.rows("mask"); }),
              HasSubstr("no field \"mask\""));
}

TEST(Batch, KindsDifferByNamesAndSizes) {
  EXPECT_EQ(language_model_layout(2, 8), language_model_layout(2, 8));
  EXPECT_NE(language_model_layout(2, 8), language_model_layout(4, 4));
  BatchLayout renamed = language_model_layout(2, 8);
  renamed.fields.front().name = "source";
  EXPECT_NE(renamed, language_model_layout(2, 8));
  BatchLayout padded = language_model_layout(2, 8);
  padded.is_padded = true;
  EXPECT_NE(padded, language_model_layout(2, 8));
}

}  // namespace
}  // namespace t2r::data
