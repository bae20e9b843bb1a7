"""Tokenizers in the places where a user gives them or has none."""

import shutil
import unittest

from support import SOURCE, Case, run

TINY = SOURCE / "tests/goldens/tokenizers"


class Tokenizers(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.must(
            "train",
            "--output",
            cls.folder / "run",
            "--train-data",
            cls.folder / "train",
            "--tokenizer",
            cls.tokenizer,
            "--model.family",
            "llama",
            "--model.layers",
            1,
            "--model.hidden-size",
            16,
            "--model.heads",
            2,
            "--sequence-length",
            16,
            "--batch-size",
            4,
            "--steps",
            1,
            "--learning-rate",
            1e-3,
        )
        cls.model = cls.folder / "run/checkpoints/latest"

    def copy_of_model(self, name):
        """The model's own files, without those of the run and without its tokenizer."""
        copy = self.folder / name
        copy.mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(self.model / file, copy)
        return copy

    def test_a_model_without_tokenizer_trains_whatever_lies_beside_it(self):
        model = self.copy_of_model("alone")
        (model / "generation_config.json").write_text("{}")
        (model / "tokenizer_config.json").write_text("{}")
        self.must(
            "train",
            "--output",
            self.folder / "again",
            "--train-data",
            self.folder / "train",
            "--model",
            model,
            "--sequence-length",
            16,
            "--batch-size",
            4,
            "--steps",
            1,
            "--learning-rate",
            1e-3,
        )

    def test_conversion_keeps_a_tokenizer_of_any_name(self):
        model = self.copy_of_model("named")
        shutil.copy(self.tokenizer, model / "source.vocabulary")
        output = self.folder / "converted"
        self.must("convert", "--model", model, "--output", output, "--feature-map", "elu")
        self.assertEqual((output / "source.vocabulary").read_bytes(), self.tokenizer.read_bytes())
        self.must("generate", "--model", output, "--prompt", "the cat", "--max-new-tokens", 2)

    def refused(self, name, content, *texts):
        tokenizer = self.folder / name
        tokenizer.write_bytes(content)
        output = self.folder / "refused"
        self.fails(
            run(
                "prepare",
                "lm",
                "--inputs",
                self.folder / "valid.txt",
                "--tokenizer",
                tokenizer,
                "--output",
                output,
            ),
            65,
            name,
            *texts,
        )
        self.assertFalse(output.exists() and any(output.iterdir()))
        tokenizer.unlink()

    def test_damaged_and_hostile_tokenizers_end_with_65(self):
        self.refused("tokenizer.json", b'{"model":' + b"[" * 200_000, "64 deep")
        self.refused(
            "tokenizer.json",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git LFS pointer",
        )
        self.refused("other.model", b"<!DOCTYPE html><html></html>", "(HTML)")
        self.refused("other.model", self.tokenizer.read_bytes()[:-5], "byte")
        whole = (TINY / "tiny_byte_level/tokenizer.json").read_bytes()
        self.refused(
            "tokenizer.json",
            whole.replace(b'"<|endoftext|>":0', b'"<|endoftext|>":16000000'),
            "16000000",
        )


if __name__ == "__main__":
    unittest.main()
