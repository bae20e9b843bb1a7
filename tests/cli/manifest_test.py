"""Model folders with a manifest beside the weights: every command that reads them compares."""

import json
import os
import random
import shutil
import sys
import types
import unittest

from support import SOURCE, Case, run
import xxh3


class Manifest(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.output = cls.folder / "run"
        cls.must(
            *cls.train_arguments(
                cls,
                cls.output,
                "--steps",
                4,
                "--checkpoint-every",
                2,
                "--model.attention",
                "softmax",
            )
        )
        cls.model = cls.folder / "model"
        shutil.copytree(cls.output / "checkpoints/latest", cls.model)
        cls.converted = cls.folder / "converted"
        cls.must("convert", "--model", cls.model, "--output", cls.converted, "--feature-size", 8)

    def copy(self, name, source=None):
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source or self.model, folder)
        return folder

    def evaluate(self, model):
        return run(
            "evaluate",
            "--model",
            model,
            "--data",
            self.folder / "valid",
            "--context",
            32,
            "--max-tokens",
            64,
            "--json",
        )

    def commands(self, model):
        """Every command that reads a model, by name."""
        train = [
            "train",
            "--output",
            self.folder / "never",
            "--train-data",
            self.folder / "train",
            "--sequence-length",
            32,
            "--batch-size",
            2,
            "--steps",
            1,
        ]
        return {
            "evaluate": [
                "evaluate",
                "--model",
                model,
                "--data",
                self.folder / "valid",
                "--context",
                32,
            ],
            "generate": ["generate", "--model", model, "--prompt", "the", "--max-new-tokens", 2],
            "convert": ["convert", "--model", model, "--output", self.folder / "never"],
            "train": [*train, "--model", model],
            "teacher": [*train, "--model", self.model, "--teacher", model],
            "verify": ["verify", "--model", model, "--expected", self.expected()],
            "prepare": [
                "prepare",
                "lm",
                "--inputs",
                self.folder / "valid.txt",
                "--tokenizer",
                model,
                "--output",
                self.folder / "never",
            ],
        }

    def list_files(self, folder):
        """Writes the manifest as data/get_model.sh does."""
        sys.modules["xxhash"] = xxh3
        sys.modules["gguf"] = types.ModuleType("gguf")
        sys.modules.setdefault("numpy", types.ModuleType("numpy"))
        if str(SOURCE / "data") not in sys.path:
            sys.path.insert(0, str(SOURCE / "data"))
        import gguf_to_hugging_face

        gguf_to_hugging_face.write_manifest(folder)

    def expected(self):
        file = self.folder / "expected.safetensors"
        if not file.exists():
            header = json.dumps(
                {"input_ids": {"dtype": "I64", "shape": [1, 2], "data_offsets": [0, 16]}}
            ).encode()
            file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        return file

    def test_every_command_names_the_file_that_is_damaged(self):
        for damaged in ("model.safetensors", "config.json", "tokenizer.model"):
            folder = self.copy("damaged")
            data = bytearray((folder / damaged).read_bytes())
            data[len(data) // 2] ^= 4
            (folder / damaged).write_bytes(data)
            for name, command in self.commands(folder).items():
                if name == "prepare" and damaged == "tokenizer.model" or name != "prepare":
                    result = run(*command)
                    self.fails(
                        result,
                        65,
                        f"damaged/{damaged}: content does not match the manifest's hash",
                        "damaged/manifest.json",
                    )
                    self.assertEqual(result.stdout, "", name)
        self.assertFalse(
            (self.folder / "never").exists() and (self.folder / "never/checkpoints").exists()
        )

    def test_flips_in_any_file_are_seen(self):
        rng = random.Random(3)
        for source in (self.model, self.converted):
            for file in sorted(source.iterdir()):
                folder = self.copy("flipped", source)
                data = bytearray(file.read_bytes())
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                (folder / file.name).write_bytes(data)
                result = self.evaluate(folder)
                if file.name.startswith("optimizer-"):
                    self.assertEqual(result.returncode, 0, "nobody but training reads it")
                else:
                    self.fails(result, 65, f"flipped/{file.name}: ")

    def test_what_is_not_read_may_be_gone(self):
        folder = self.copy("thin")
        for name in ("optimizer-00000-of-00001.safetensors", "tokenizer.model"):
            (folder / name).unlink()
        self.assertEqual(self.evaluate(folder).returncode, 0)
        (folder / "model.safetensors").unlink()
        self.fails(self.evaluate(folder), 65, "model.safetensors")

    def test_what_changes_results_may_not_be_gone(self):
        whole = self.copy("whole")
        (whole / "manifest.json").unlink()
        beside = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        for name in ("generation_config.json", *beside):
            (whole / name).write_text("{}")
        self.list_files(whole)
        for missing in ("generation_config.json", "tokenizer.model", *beside):
            folder = self.copy("gone", whole)
            (folder / missing).unlink()
            said = f"gone/{missing}: missing, and the manifest lists it"
            result = run(*self.commands(folder)["generate"])
            self.fails(result, 65, said, "gone/manifest.json")
            self.assertEqual(result.stdout, "")
            if missing == "generation_config.json":
                self.fails(self.evaluate(folder), 65, said)
                continue
            self.assertEqual(
                self.evaluate(folder).returncode, 0, "a corpus of tokens needs the weights alone"
            )
        folder = self.copy("gone", whole)
        (folder / "tokenizer_config.json").unlink()
        self.fails(
            run(*self.commands(folder)["prepare"]), 65, "gone/tokenizer_config.json: missing"
        )

    def test_a_conversion_does_not_lose_what_is_gone(self):
        folder = self.copy("lost")
        (folder / "manifest.json").unlink()
        (folder / "tokenizer_config.json").write_text("{}")
        self.list_files(folder)
        self.must("convert", "--model", folder, "--output", self.folder / "listed")
        (folder / "tokenizer_config.json").unlink()
        output = self.folder / "never-converted"
        self.fails(
            run("convert", "--model", folder, "--output", output),
            65,
            "lost/tokenizer_config.json: missing",
        )
        self.assertFalse(output.exists())

    def test_what_is_to_be_made_with_a_tokenizer_is_not_made_without_it(self):
        folder = self.copy("without")
        (folder / "tokenizer.model").unlink()
        for name in ("convert", "train"):
            self.fails(
                run(*self.commands(folder)[name]),
                65,
                "without/tokenizer.model: missing, and the manifest lists it",
            )
        self.assertFalse((self.folder / "never/checkpoints").exists())
        (folder / "manifest.json").unlink()
        self.must("convert", "--model", folder, "--output", self.folder / "allowed")

    def test_another_programs_manifest_and_none_at_all_are_no_obstacle(self):
        folder = self.copy("foreign")
        for text in ('{"name": "a page", "icons": []}', "[1, 2]", "not JSON at all"):
            (folder / "manifest.json").write_text(text)
            self.assertEqual(self.evaluate(folder).returncode, 0, text)
        (folder / "manifest.json").unlink()
        self.assertEqual(self.evaluate(folder).returncode, 0)

    def test_what_the_user_changed_is_named_with_the_way_out(self):
        folder = self.copy("edited")
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("{", "{ ", 1))
        self.fails(
            self.evaluate(folder),
            65,
            "edited/config.json",
            "if you changed the file yourself, remove",
            "edited/manifest.json",
        )
        (folder / "manifest.json").unlink()
        self.assertEqual(self.evaluate(folder).returncode, 0)

    def test_the_manifest_of_get_model_is_read(self):
        folder = self.copy("fetched")
        (folder / "manifest.json").unlink()
        self.list_files(folder)
        self.assertEqual(self.evaluate(folder).returncode, 0)
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace("get_model.sh", "get_model.sH"))
        self.fails(self.evaluate(folder), 65, "does not match its own hash")
        manifest.write_text(xxh3.sealed(manifest.read_text()))
        self.assertEqual(self.evaluate(folder).returncode, 0)
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
        self.fails(self.evaluate(folder), 65, "config.json")

    def test_readers_go_by_the_manifests_not_by_links_that_a_kill_left(self):
        output = self.folder / "killed"
        shutil.copytree(self.output, output, symlinks=True)
        checkpoints = output / "checkpoints"
        self.assertEqual(os.readlink(checkpoints / "best"), "step-00000004")
        right = self.evaluate(checkpoints / "best").stdout
        loss = json.loads(right)["loss_nats_per_token"]
        older = json.loads(self.evaluate(checkpoints / "step-00000002").stdout)[
            "loss_nats_per_token"
        ]
        self.assertNotEqual(loss, older)
        for name in ("best", "latest"):
            (checkpoints / name).unlink()
            os.symlink("step-00000002", checkpoints / name)
            self.assertEqual(
                json.loads(self.evaluate(checkpoints / name).stdout)["loss_nats_per_token"], loss
            )
            (checkpoints / name).unlink()  # a file system without links
            self.assertEqual(
                json.loads(self.evaluate(checkpoints / name).stdout)["loss_nats_per_token"], loss
            )


if __name__ == "__main__":
    unittest.main()
