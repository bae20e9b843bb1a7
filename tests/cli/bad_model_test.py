"""Every bad model folder: its message, its exit code, and nothing half-written."""

import json
import os
import shutil
import struct
import subprocess
import unittest

from support import BINARY, Case, run


class BadModel(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = cls.small_model()

    def copy_of_model(self, name):
        copy = self.folder / name
        shutil.copytree(self.model, copy)
        (copy / "manifest.json").unlink()  # it would name the file that a test changes
        return copy

    def convert(self, model):
        output = self.folder / "converted"
        result = run("convert", "--model", model, "--output", output)
        self.assertFalse(output.exists())
        self.assertEqual([p.name for p in self.folder.iterdir() if ".tmp." in p.name], [])
        return result

    def test_missing_weights(self):
        copy = self.copy_of_model("no-weights")
        (copy / "model.safetensors").unlink()
        self.fails(self.convert(copy), 65, "model.safetensors")

    def test_truncated_weights(self):
        copy = self.copy_of_model("truncated")
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[:-10])
        self.fails(self.convert(copy), 65, "model.safetensors")

    def test_wrong_shapes(self):
        copy = self.copy_of_model("shapes")
        config = json.loads((copy / "config.json").read_text())
        config["intermediate_size"] = 64
        (copy / "config.json").write_text(json.dumps(config))
        self.fails(
            self.convert(copy), 65, "gate_proj.weight", "has shape", "the config asks for [64,32]"
        )

    def test_missing_and_unknown_tensors(self):
        copy = self.copy_of_model("names")
        path = copy / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data.replace(b"model.norm.weight", b"model.nerm.weight"))
        self.fails(self.convert(copy), 65, '"model.norm.weight" is missing')

    def test_what_is_no_file_is_refused_and_not_waited_for(self):
        """Under every name that is t2r's or the format's own: a named pipe, a folder, a device.

        What a user names may be a pipe.
        """
        names = [
            "manifest.json",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ]
        for kind, make, names_of in (
            ("a named pipe", os.mkfifo, names),
            ("a folder", os.mkdir, ["manifest.json", "tokenizer.json"]),
            ("a device", lambda path: os.symlink("/dev/zero", path), ["config.json"]),
        ):
            for name in names_of:
                with self.subTest(kind=kind, name=name):
                    shutil.rmtree(self.folder / "no-file", ignore_errors=True)
                    copy = self.copy_of_model("no-file")
                    (copy / name).unlink(missing_ok=True)
                    if name.endswith("index.json"):
                        (copy / "model.safetensors").unlink()
                    make(copy / name)
                    result = run(
                        "generate",
                        "--model",
                        copy,
                        "--prompt",
                        "the",
                        "--max-new-tokens",
                        1,
                        timeout=20,
                    )
                    self.fails(
                        result,
                        65,
                        f"no-file/{name}: is {kind}, and must be a regular file; move it away",
                    )
        command = f"'{BINARY}' generate --model '{self.model}' --max-new-tokens 1"
        for shell in (
            f"{command} --prompt-file <(echo the)",
            f"echo the | {command} --prompt-file /dev/stdin",
            f"echo the | {command} --prompts -",
            f"{command} --prompt the --config <(echo 'seed = 3')",
        ):
            result = subprocess.run(
                ["bash", "-c", shell], capture_output=True, text=True, timeout=60
            )
            self.assertEqual((result.returncode, result.stdout[:3]), (0, "the"), result.stderr)

    def test_config_of_another_kind(self):
        copy = self.copy_of_model("kind")
        config = json.loads((copy / "config.json").read_text())
        config["model_type"] = "mamba"
        (copy / "config.json").write_text(json.dumps(config))
        self.fails(self.convert(copy), 78, 'model_type = "mamba"', "gpt2, llama")
        (copy / "config.json").write_text("{")
        self.fails(self.convert(copy), 65, "config.json", "not valid JSON")
        (copy / "config.json").write_text("[]")
        self.fails(self.convert(copy), 65, "not a JSON object")

    def test_token_ids_out_of_range(self):
        copy = self.copy_of_model("small-vocab")
        for name in copy.glob("tokenizer*"):
            name.unlink()
        big = self.folder / "big.model"
        self.must(
            "prepare",
            "vocab",
            "--inputs",
            self.folder / "train.txt",
            "--output",
            big,
            "--vocab-size",
            330,
        )
        self.must(
            "prepare",
            "lm",
            "--inputs",
            self.folder / "train.txt",
            "--tokenizer",
            big,
            "--output",
            self.folder / "big",
        )
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "range",
                "--train-data",
                self.folder / "big",
                "--model",
                copy,
                "--steps",
                2,
                "--sequence-length",
                32,
            ),
            78,
            "token ids up to 329",
            "vocabulary has 320 entries",
        )
        self.fails(
            run("evaluate", "--model", copy, "--data", self.folder / "big"),
            78,
            "token ids up to 329",
        )

    def test_expected_values_that_do_not_fit(self):
        expected = self.folder / "expected.safetensors"

        def write(entries):
            header, data = {}, b""
            for name, (dtype, shape, raw) in entries.items():
                header[name] = {
                    "dtype": dtype,
                    "shape": shape,
                    "data_offsets": [len(data), len(data) + len(raw)],
                }
                data += raw
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            expected.write_bytes(struct.pack("<Q", len(text)) + text + data)

        ids = ("I64", [1, 4], struct.pack("<4q", 5, 6, 7, 8))
        write({"input_ids": ids, "attentions": ("F32", [1], struct.pack("<f", 0.0))})
        self.fails(
            run("verify", "--model", self.model, "--expected", expected),
            65,
            '"attentions" is not known',
            "logits",
        )
        write(
            {
                "input_ids": ("I64", [1, 2], struct.pack("<2q", 5, 9999)),
                "loss": ("F32", [], struct.pack("<f", 0.0)),
            }
        )
        self.fails(
            run("verify", "--model", self.model, "--expected", expected),
            65,
            "token id 9999",
            "[0, 320)",
        )
        write({"input_ids": ids, "loss": ("F32", [], struct.pack("<f", 0.0))})
        self.fails(run("verify", "--model", self.model, "--expected", expected), 65, "loss", "FAIL")
        write({"input_ids": ids})
        self.fails(
            run("verify", "--model", self.model, "--expected", expected), 65, "nothing to compare"
        )


if __name__ == "__main__":
    unittest.main()
