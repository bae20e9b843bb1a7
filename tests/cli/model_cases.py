"""What tests of model folders share: a folder that is written, converted or refused."""

import json
import shutil

from model_files import (
    read_safetensors,
    write_model,
)
from support import Case, run


class ModelFilesCase(Case):
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
