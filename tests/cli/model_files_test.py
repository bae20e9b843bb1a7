"""Model folders as users have them: what goes in, what comes out, what is refused and why."""

import copy
import json
import math
import random
import shutil
import struct
import unittest

from model_files import (
    CONFIGS,
    EMBEDDINGS,
    encode,
    random_tensor,
    random_weights,
    read_safetensors,
    safetensors_bytes,
    write_model,
)
from support import SHARED, Case, run

HEAD = "lm_head.weight"


class ModelFiles(Case):
    def write(self, name, config, tensors, shards=1):
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return write_model(self.folder / name, config, tensors, shards)

    def perplexity(self, model):
        result = self.must(
            "evaluate",
            "--model",
            model,
            "--data",
            self.folder / "valid",
            "--context",
            32,
            "--max-tokens",
            256,
            "--json",
        )
        return json.loads(result.stdout)["perplexity_per_token"]

    def convert(self, model, *more):
        output = self.folder / "converted"
        shutil.rmtree(output, ignore_errors=True)
        return output, run("convert", "--model", model, "--output", output, *more)

    def refused(self, model, code, *texts):
        output, result = self.convert(model)
        self.fails(result, code, *texts)
        self.assertFalse(output.exists())
        self.assertEqual([p.name for p in self.folder.iterdir() if ".tmp." in p.name], [])

    def converted(self, model, *more):
        output, result = self.convert(model, *more)
        self.assertEqual(result.returncode, 0, result.stderr)
        return output, json.loads((output / "config.json").read_text())

    def converted_perplexity(self, model):
        """Of the model with one linear layer, whose map depends on the seed alone."""
        return self.perplexity(self.converted(model, "--keep-softmax", 0)[0])

    def assert_kept(self, tensors, output):
        """Every tensor that went in is in the output, byte for byte."""
        files = {}
        for path in output.glob("*.safetensors"):
            files.update(read_safetensors(path))
        for name, tensor in tensors.items():
            self.assertEqual(files[name], tensor, name)
        self.assertTrue(
            all(".feature_map." in name for name in set(files) - set(tensors)),
            set(files) - set(tensors),
        )

    # --- tied and untied

    def test_a_head_that_differs_is_not_tied(self):
        for family, shards in (("llama", 1), ("gpt2", 1), ("gpt2", 3)):
            with self.subTest(family, shards=shards):
                tensors = random_weights(family, head=True)
                untied = self.write(
                    "untied", {**CONFIGS[family], "tie_word_embeddings": False}, tensors
                )
                tied = self.write(
                    "tied", {**CONFIGS[family], "tie_word_embeddings": True}, tensors, shards
                )
                expected, expected_converted = self.perplexity(untied), self.converted_perplexity(
                    untied
                )
                self.assertEqual(self.perplexity(tied), expected)
                without = self.write(
                    "without",
                    {**CONFIGS[family], "tie_word_embeddings": True},
                    random_weights(family, head=False),
                )
                self.assertNotEqual(self.perplexity(without), expected)
                output, config = self.converted(tied, "--keep-softmax", 0)
                self.assertIs(config["tie_word_embeddings"], False)
                self.assertEqual(self.perplexity(output), expected_converted)
                self.assert_kept(tensors, output)
        # GPT-2 ties by default: nothing in the config says so.
        tensors = random_weights("gpt2", head=True)
        self.assertEqual(
            self.perplexity(self.write("default", CONFIGS["gpt2"], tensors)), self.perplexity(tied)
        )
        # A checkpoint of it is untied, and so can be loaded again.
        self.must(
            "train",
            "--model",
            tied,
            "--train-data",
            self.folder / "train",
            "--output",
            self.folder / "untied-run",
            "--steps",
            1,
            "--sequence-length",
            32,
            "--batch-size",
            2,
            "--tokenizer",
            self.tokenizer,
        )
        latest = self.folder / "untied-run/checkpoints/latest"
        self.assertIs(
            json.loads((latest / "config.json").read_text())["tie_word_embeddings"], False
        )
        self.assertIn(HEAD, read_safetensors(latest / "model.safetensors"))

    def test_a_head_that_is_equal_or_stands_alone_is_the_embedding(self):
        for family in CONFIGS:
            config = {**CONFIGS[family], "tie_word_embeddings": True}
            tensors = random_weights(family, head=False, dtype="BF16")
            embedding = EMBEDDINGS[family]
            plain = self.write("plain", config, tensors)
            expected, expected_converted = self.perplexity(plain), self.converted_perplexity(plain)
            equal = {**tensors, HEAD: tensors[embedding]}
            values = [
                struct.unpack("<f", b"\0\0" + tensors[embedding][2][i : i + 2])[0]
                for i in range(0, 320 * 16 * 2, 2)
            ]
            other_type = {**tensors, HEAD: ("F32", [320, 16], encode(values, "F32"))}
            alone = {
                **{name: tensor for name, tensor in tensors.items() if name != embedding},
                HEAD: tensors[embedding],
            }
            for name, variant in (("equal", equal), ("other-type", other_type), ("alone", alone)):
                with self.subTest(name, family=family):
                    model = self.write(name, config, variant, shards=2)
                    self.assertEqual(self.perplexity(model), expected)
                    output, written = self.converted(model, "--keep-softmax", 0)
                    self.assertIs(written["tie_word_embeddings"], True)
                    self.assertEqual(self.perplexity(output), expected_converted)
                    self.assert_kept(variant, output)

    def test_an_untied_model_without_its_head_is_refused(self):
        model = self.write(
            "headless",
            {**CONFIGS["gpt2"], "tie_word_embeddings": False},
            random_weights("gpt2", head=False),
        )
        self.refused(
            model,
            65,
            '"lm_head.weight" is missing',
            "a model without its head",
            "transformer.wte.weight",
        )

    # --- what conversion keeps

    def test_conversion_keeps_every_byte_of_every_type(self):
        rng = random.Random(5)
        for dtype, torch_name in (
            ("F32", "float32"),
            ("F16", "float16"),
            ("BF16", "bfloat16"),
            ("F64", "float64"),
        ):
            with self.subTest(dtype):
                tensors = random_weights("gpt2", head=False, dtype=dtype)
                tensors["transformer.ln_f.weight"] = random_tensor(rng, [16])
                # What old files carry beside the parameters.
                for layer in range(2):
                    tensors[f"transformer.h.{layer}.attn.bias"] = (
                        "U8",
                        [1, 1, 8, 8],
                        bytes(rng.randrange(2) for _ in range(64)),
                    )
                    tensors[f"transformer.h.{layer}.attn.masked_bias"] = (
                        "F32",
                        [],
                        struct.pack("<f", -1e4),
                    )
                model = self.write("bytes", {**CONFIGS["gpt2"], "torch_dtype": "int8"}, tensors)
                output, config = self.converted(model)
                self.assert_kept(tensors, output)
                self.assertEqual(config["torch_dtype"], torch_name)
                self.assertNotIn("dtype", config)

    def test_a_checkpoint_says_what_type_it_is(self):
        for key in ("torch_dtype", "dtype"):
            model = self.write(
                "half", {**CONFIGS["llama"], key: "bfloat16"}, random_weights("llama", True, "BF16")
            )
            shutil.rmtree(self.folder / "half-run", ignore_errors=True)
            self.must(
                "train",
                "--model",
                model,
                "--train-data",
                self.folder / "train",
                "--output",
                self.folder / "half-run",
                "--steps",
                1,
                "--sequence-length",
                32,
                "--batch-size",
                2,
                "--tokenizer",
                self.tokenizer,
            )
            config = json.loads(
                (self.folder / "half-run/checkpoints/latest/config.json").read_text()
            )
            self.assertEqual(
                {name: config.get(name) for name in ("torch_dtype", "dtype")},
                {**dict.fromkeys(("torch_dtype", "dtype")), key: "float32"},
            )

    def test_a_converted_model_does_not_call_itself_a_softmax_one(self):
        for family in CONFIGS:
            with self.subTest(family):
                source = {**CONFIGS[family], "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
                output, config = self.converted(
                    self.write("plain", source, random_weights(family, head=family == "llama"))
                )
                self.assertEqual(config["model_type"], "t2r")
                self.assertEqual(config["architectures"], ["T2RForCausalLM"])
                self.assertEqual(config["t2r"]["base_model_type"], family)
                self.assertNotIn("auto_map", config)
                expected = self.perplexity(output)
                # Folders of before say the family in model_type.
                old = {
                    **config,
                    "model_type": family,
                    "t2r": {k: v for k, v in config["t2r"].items() if k != "base_model_type"},
                }
                (output / "manifest.json").unlink()
                (output / "config.json").write_text(json.dumps(old))
                self.assertEqual(self.perplexity(output), expected)
                runs = self.folder / f"t2r-run-{family}"
                for more in ([], ["--resume"]):
                    self.must(
                        "train",
                        "--model",
                        output,
                        "--train-data",
                        self.folder / "train",
                        "--output",
                        runs,
                        "--steps",
                        2 + 2 * len(more),
                        "--sequence-length",
                        32,
                        "--batch-size",
                        2,
                        "--tokenizer",
                        self.tokenizer,
                        *more,
                    )
                    written = json.loads((runs / "checkpoints/latest/config.json").read_text())
                    self.assertEqual(
                        (written["model_type"], written["t2r"]["base_model_type"]), ("t2r", family)
                    )
                (output / "config.json").write_text(
                    json.dumps({**config, "t2r": {**config["t2r"], "base_model_type": "mamba"}})
                )
                self.fails(
                    run("evaluate", "--model", output, "--data", self.folder / "valid"),
                    78,
                    'base_model_type = "mamba"',
                    "gpt2, llama",
                )

    # --- names

    def test_names_without_the_prefix_and_with_wrappers(self):
        for family, prefix in (("llama", "model."), ("gpt2", "transformer.")):
            config = {**CONFIGS[family], "tie_word_embeddings": True}
            tensors = random_weights(family, head=False)
            plain = self.write("plain", config, tensors)
            expected, expected_converted = self.perplexity(plain), self.converted_perplexity(plain)
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            model = self.write("bare", config, bare)
            self.assertEqual(self.perplexity(model), expected)
            output, _ = self.converted(model, "--keep-softmax", 0)
            self.assert_kept(bare, output)
            self.assertEqual(self.perplexity(output), expected_converted)
            renames = (
                ("bare-compiled", lambda name: "_orig_mod." + name.removeprefix(prefix)),
                ("both", lambda name: "module._orig_mod." + name),
                ("ddp", lambda name: "module." + name),
                ("inner", lambda name: name.replace(prefix, prefix + "_orig_mod.", 1)),
            )
            for name, rename in renames if family == "llama" else renames[:2]:
                with self.subTest(name, family=family):
                    model = self.write(
                        name, config, {rename(name): tensor for name, tensor in tensors.items()}
                    )
                    output, result = self.convert(model, "--keep-softmax", 0)
                    self.fails(result, 0, "they are read without it")
                    self.assertEqual(self.perplexity(output), expected_converted)
        untied = self.write(
            "bare-untied",
            CONFIGS["llama"],
            {
                name.removeprefix("model."): tensor
                for name, tensor in random_weights("llama", head=False).items()
            },
        )
        self.refused(untied, 65, '"lm_head.weight" is missing', "model without its head")
        twice = {**tensors, **bare}
        self.refused(
            self.write("twice", config, twice),
            65,
            "is there twice, once with and once without a prefix",
        )

    # --- what is refused

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

    # --- beside the weights

    def test_generation_config_makes_no_difference_to_training(self):
        model = self.write("bare-folder", CONFIGS["llama"], random_weights("llama", True))
        generation = '{"eos_token_id": [0, 84]}'
        for name, more in (
            ("without", []),
            ("with", []),
            ("given", ["--tokenizer", self.tokenizer]),
        ):
            if name == "with":
                (model / "generation_config.json").write_text(generation)
            output = self.folder / f"bare-run-{name}"
            self.must(
                "train",
                "--model",
                model,
                "--train-data",
                self.folder / "train",
                "--output",
                output,
                "--steps",
                1,
                "--sequence-length",
                32,
                "--batch-size",
                2,
                *more,
            )
            saved = output / "checkpoints/latest"
            self.assertEqual((saved / "generation_config.json").exists(), name != "without")
            self.assertEqual((saved / "tokenizer.model").exists(), name == "given")
        self.assertEqual((saved / "generation_config.json").read_text(), generation)
        self.must(
            "train",
            "--model",
            model,
            "--teacher",
            model,
            "--train-data",
            self.folder / "train",
            "--output",
            self.folder / "bare-run-teacher",
            "--steps",
            1,
            "--sequence-length",
            32,
            "--batch-size",
            2,
        )

    def test_rope_scaling_stands_above_rope_parameters(self):
        tensors = random_weights("llama", True)
        base = CONFIGS["llama"]
        linear = {"rope_type": "linear", "factor": 4.0}
        alone = self.perplexity(self.write("alone", {**base, "rope_scaling": linear}, tensors))
        both = {
            **base,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rope_scaling": linear,
        }
        self.assertEqual(self.perplexity(self.write("both", both, tensors)), alone)
        self.assertNotEqual(self.perplexity(self.write("none", base, tensors)), alone)
        for empty in (None, {}):
            swapped = {**base, "rope_parameters": linear, "rope_scaling": empty}
            self.assertEqual(self.perplexity(self.write("swapped", swapped, tensors)), alone)
        other_base = copy.deepcopy(both)
        other_base["rope_parameters"]["rope_theta"] = 5e5
        self.refused(
            self.write("other-base", other_base, tensors),
            78,
            "rope_scaling",
            "rope_parameters",
            "500000",
        )

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


class Cases(unittest.TestCase):
    """Logits of transformers 5 for folders from the field; they lie outside the project."""

    def test_logits_are_those_of_transformers(self):
        for name in (
            "07-tied-config-two-heads/gpt2",
            "10-llama-head-dim",
            "14-rope-llama3",
            "16-rope-both-sections",
        ):
            case = SHARED / "cases" / name
            if not case.exists():
                print(f"{case} is not there: nothing compared")
                continue
            result = run(
                "verify",
                "--model",
                case / "model",
                "--expected",
                case / "expected.safetensors",
                "--tolerance",
                "2e-4",
            )
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
