"""Model folders as users have them: what goes in and what comes out."""

import copy
import json
import random
import shutil
import struct
import unittest

from model_cases import ModelFilesCase
from model_files import (
    CONFIGS,
    EMBEDDINGS,
    encode,
    random_tensor,
    random_weights,
    read_safetensors,
)
from support import SHARED, run

HEAD = "lm_head.weight"


class ModelFiles(ModelFilesCase):

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
