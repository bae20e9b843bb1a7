"""Model folders that are refused, and why."""

import math
import random
import shutil
import struct
import unittest

from model_cases import ModelFilesCase
from model_files import (
    CONFIGS,
    random_tensor,
    random_weights,
    safetensors_bytes,
)
from support import run


class RefusedModels(ModelFilesCase):
    def test_what_a_folder_is_that_is_no_model(self):
        runs = self.folder / "a-run"
        self.must(*self.train_arguments(runs, "--steps", 2, "--eval-every", 2))
        self.refused(runs, 78, "is a run's folder", f"{runs}/checkpoints/best")
        self.refused(
            runs / "checkpoints", 78, "holds a run's checkpoints", f"{runs}/checkpoints/best"
        )
        self.refused(self.folder / "train", 78, "holds shards of text")
        self.refused(self.folder / "train.txt", 78, "is a file", "is not a folder")
        self.refused(self.folder / "nothing", 78, "is not a folder")
        self.refused(
            runs / "checkpoints/latest/model.safetensors",
            78,
            "give the folder that this file lies in",
        )
        empty = self.folder / "empty"
        empty.mkdir()
        self.refused(empty, 65, "config.json is missing")
        adapter = self.folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        self.refused(adapter, 78, "LoRA adapter", "merge")
        beside = self.write("beside", CONFIGS["llama"], random_weights("llama", True))
        (beside / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        self.refused(beside, 78, "LoRA adapter", "merge")
        inside = random_weights("llama", True)
        inside["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = random_tensor(
            random.Random(1), [2, 16]
        )
        self.refused(
            self.write("inside", CONFIGS["llama"], inside), 78, "lora_A", "LoRA adapter", "merge"
        )
        pickled = self.write("pickled", CONFIGS["llama"], random_weights("llama", True))
        (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
        self.refused(
            pickled, 65, "pytorch_model.bin", "only safetensors are read", "save_pretrained"
        )

    def test_what_a_file_is_that_is_not_what_its_name_says(self):
        pointer = (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:"
            + b"0" * 64
            + b"\nsize 1100048384\n"
        )
        page = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
        texts = ((pointer, ("Git LFS pointer", "git lfs pull")), (page, ("web page",)))
        binaries = (
            (b"PK\x03\x04" + bytes(60), ("zip archive",)),
            (b"\x80\x02}q\x00(X\x05\x00" + bytes(60), ("pickle",)),
        )
        for name, shards, contents in (
            ("model.safetensors", 1, texts + binaries),
            ("config.json", 1, texts),
            ("model-00002-of-00002.safetensors", 2, texts[:1]),
            ("model.safetensors.index.json", 2, texts),
        ):
            for content, texts in contents:
                with self.subTest(name, is_a=texts[0]):
                    model = self.write(
                        "foreign", CONFIGS["llama"], random_weights("llama", True), shards
                    )
                    (model / name).write_bytes(content)
                    self.refused(model, 65, name, *texts)

    def test_what_a_tokenizer_is_that_is_none(self):
        pointer = (
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 17\n"
        )
        folder = self.folder / "no-tokenizer"
        for name, beside in (
            ("tokenizer.json", {}),
            ("merges.txt", {"vocab.json": '{"a": 0}'}),
            ("tokenizer.model", {}),
        ):
            for content, text in (
                (pointer, "git lfs pull"),
                ("<!DOCTYPE html>\n<html></html>", "HTML"),
            ):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                for file, inside in {**beside, name: content}.items():
                    (folder / file).write_text(inside)
                self.fails(
                    run(
                        "prepare",
                        "lm",
                        "--inputs",
                        self.folder / "valid.txt",
                        "--tokenizer",
                        folder,
                        "--output",
                        self.folder / "no-shards",
                    ),
                    65,
                    name,
                    text,
                )

    def test_quantized_weights_are_refused_by_name(self):
        tensors = random_weights("llama", True)
        for section in (
            {"quant_method": "gptq", "bits": 4},
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            {"quant_method": "fp8"},
        ):
            model = self.write(
                "quantized", {**CONFIGS["llama"], "quantization_config": section}, tensors
            )
            self.refused(model, 78, "quantization_config", section["quant_method"], "dequantize")
        name = "model.layers.0.mlp.up_proj.weight"
        for dtype, size in (("I8", 1), ("U8", 1), ("I32", 4), ("F8_E4M3", 1)):
            integers = {**tensors, name: (dtype, [24, 16], bytes(24 * 16 * size))}
            self.refused(
                self.write("integers", CONFIGS["llama"], integers),
                65,
                name,
                f"has type {dtype}",
                "F32, F16, BF16, F64",
            )
        packed = {**tensors, "model.layers.0.mlp.up_proj.qweight": ("I32", [2, 24], bytes(192))}
        self.refused(
            self.write("packed", CONFIGS["llama"], packed), 78, "up_proj.qweight", "quantized"
        )

    def test_a_config_that_asks_for_more_than_there_is(self):
        """Compared with the file's headers before memory is taken: 2^40 parameters and more."""
        tensors = random_weights("llama", True)
        for change, texts in (
            (
                {
                    "hidden_size": 1 << 20,
                    "intermediate_size": 1 << 24,
                    "num_attention_heads": 1 << 10,
                },
                ("has shape",),
            ),
            ({"num_hidden_layers": 4000}, ("is missing",)),
            (
                {"vocab_size": 2147483647},
                ("has shape [320,16], the config asks for [2147483647,16]",),
            ),
        ):
            with self.subTest(str(change)):
                self.refused(
                    self.write("large", {**CONFIGS["llama"], **change}, tensors), 65, *texts
                )

    def test_weights_that_are_not_finite(self):
        for value in (math.nan, math.inf):
            tensors = random_weights("llama", True)
            dtype, shape, raw = tensors["model.norm.weight"]
            tensors["model.norm.weight"] = (dtype, shape, raw[:-4] + struct.pack("<f", value))
            model = self.write("not-finite", CONFIGS["llama"], tensors)
            self.refused(model, 74, '"model.norm.weight"', "not finite")
            self.fails(
                run("evaluate", "--model", model, "--data", self.folder / "valid"), 74, "not finite"
            )
            self.fails(
                run("generate", "--model", model, "--tokenizer", self.tokenizer, "--prompt", "a"),
                74,
                "not finite",
            )

    def test_hostile_configs_and_names(self):
        model = self.write("hostile", CONFIGS["llama"], random_weights("llama", True))
        for text, texts in (
            ('{"a":' * 200000 + "1" + "}" * 200000, ("nested at most",)),
            ("[" * 200000, ("nested at most",)),
            ('{"model_type": "llama", "model_type": "gpt2"}', ('key "model_type" is there twice',)),
            ('{"model_type": "\\u001b[2Jevil\\n"}', ("\\u001b[2Jevil\\n",)),
        ):
            (model / "config.json").write_text(text)
            _, result = self.convert(model)
            self.fails(result, 78 if "evil" in text else 65, *texts)
            self.assertNotIn("\x1b[2J", result.stderr)
        tensors = {
            **random_weights("llama", True),
            "evil\x1b[2J\nname": random_tensor(random.Random(1), [2]),
        }
        _, result = self.convert(self.write("hostile", CONFIGS["llama"], tensors))
        self.fails(result, 65, "evil\\u001b[2J\\nname", "is not part of the model")
        self.assertNotIn("\x1b[2J", result.stderr)

    def test_expected_values_of_a_shape_that_nothing_has(self):
        model = self.write("verified", CONFIGS["llama"], random_weights("llama", True))
        expected = self.folder / "expected.safetensors"
        ids = ("I64", [1, 4], struct.pack("<4q", 5, 6, 7, 8))
        for entries, text in (
            ({"input_ids": ("I64", [1, 0], b"")}, "input_ids has shape [1, 0]"),
            ({"input_ids": ("F32", [1, 1], bytes(4))}, "wanted integers [B, T]"),
            ({"input_ids": ids, "greedy": ("I64", [4], ids[2])}, '"greedy" has shape [4]'),
            ({"input_ids": ids, "greedy": ("I64", [2, 2], ids[2])}, "wanted integers [1, T]"),
            ({"input_ids": ids, "grad.\x1b[2J": ("F32", [1], bytes(4))}, '"grad.\\u001b[2J"'),
        ):
            expected.write_bytes(safetensors_bytes(entries))
            self.fails(run("verify", "--model", model, "--expected", expected), 65, text)


if __name__ == "__main__":
    unittest.main()
