"""Every family against transformers (goldens/families), and on its way through all commands."""

import json
import math
import struct
import unittest

from model_files import formula_tensor, read_safetensors, safetensors_bytes, write_model
from support import SOURCE, Case, run, step_losses

GOLDENS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((SOURCE / "tests/goldens/families").glob("*.json"))
}
# float32 sums in another order: about 1e-6 of logits around 1.
TOLERANCE = 2e-5


def flat(values):
    return [x for part in values for x in flat(part)] if isinstance(values, list) else [values]


def packed(values, dtype):
    shape, inner = [], values
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0]
    numbers = flat(values)
    return (
        {"q": "I64", "f": "F32"}[dtype],
        shape,
        struct.pack(f"<{math.prod(shape)}{dtype}", *numbers),
    )


class Families(Case):
    def write(self, name, vocab_size=61, **changes):
        """A folder of the family with formula-made weights, for another vocabulary if asked to."""
        golden = GOLDENS[name]
        folder = self.folder / f"{name}-{vocab_size}-{len(list(self.folder.iterdir()))}"
        tensors = {
            tensor: formula_tensor(tensor, [vocab_size if n == 61 else n for n in shape])
            for tensor, shape in golden["shapes"].items()
        }
        return write_model(
            folder, {**golden["config"], "vocab_size": vocab_size, **changes}, tensors
        )

    def train(self, output, *more):
        sizes = ["--sequence-length", 32, "--batch-size", 8, "--learning-rate", 3e-3]
        data = ["--train-data", self.folder / "train", "--tokenizer", self.tokenizer]
        self.must("train", "--output", output, *data, *sizes, "--log-every", 1, *more)
        return output / "checkpoints/latest"

    def generate(self, model):
        prompt = ["--prompt", "The cat", "--max-new-tokens", 50, "--ignore-end", "--json"]
        return json.loads(self.must("generate", "--model", model, *prompt).stdout)

    def test_there_is_a_golden_for_every_family(self):
        result = run("train", "--output", self.folder / "none", "--model.family", "none")
        self.fails(result, 78, ", ".join(sorted(GOLDENS)))

    def test_logits_and_greedy_tokens_are_those_of_transformers(self):
        for name, golden in GOLDENS.items():
            with self.subTest(name):
                model = self.write(name)
                expected = model / "expected.safetensors"
                expected.write_bytes(
                    safetensors_bytes(
                        {
                            "input_ids": packed(golden["input_ids"], "q"),
                            "logits": packed(golden["logits"], "f"),
                            "greedy": packed(golden["greedy"], "q"),
                        }
                    )
                )
                compared = ["--expected", expected, "--tolerance", TOLERANCE]
                result = run("verify", "--model", model, *compared)
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_a_converted_model_learns_and_generates_with_a_constant_state(self):
        for name in GOLDENS:
            with self.subTest(name):
                linear, trained = self.folder / f"{name}-t2r", self.folder / f"{name}-trained"
                options = ["--feature-map", "t2r", "--feature-size", 8]
                model = self.write(name, vocab_size=320)
                self.must("convert", "--model", model, "--output", linear, *options)
                latest = self.train(trained, "--model", linear, "--steps", 20)
                losses = [float(loss) for _, loss in sorted(step_losses(trained).items())]
                self.assertLess(losses[-1], losses[0] - 0.5)
                config = json.loads((latest / "config.json").read_text())
                self.assertEqual(config["model_type"], "t2r")
                self.assertEqual(config["t2r"]["base_model_type"], name)
                self.generate(latest)

    def test_finetuned_models_are_written_as_the_family_has_them(self):
        for name, golden in GOLDENS.items():
            with self.subTest(name):
                model = self.write(name, vocab_size=320)
                latest = self.train(self.folder / f"{name}-soft", "--model", model, "--steps", 2)
                source = json.loads((model / "config.json").read_text())
                written = json.loads((latest / "config.json").read_text())
                self.assertEqual(written, {**source, "dtype": "float32"})
                shapes = {
                    tensor: [61 if n == 320 else n for n in shape]
                    for tensor, (_, shape, _) in read_safetensors(
                        latest / "model.safetensors"
                    ).items()
                }
                self.assertEqual(shapes, golden["shapes"])

    def test_new_models_are_read_again(self):
        for name, golden in GOLDENS.items():
            with self.subTest(name):
                sizes = ["--model.layers", 4, "--model.hidden-size", 32, "--model.heads", 4]
                shared = [] if name == "gpt2" else ["--model.kv-heads", 2]
                latest = self.train(
                    self.folder / f"{name}-new",
                    *["--model.family", name, *sizes, *shared, "--steps", 2],
                )
                config = json.loads((latest / "config.json").read_text())
                self.assertEqual(config["architectures"], golden["config"]["architectures"])
                if name == "smollm3":
                    self.assertEqual(config["no_rope_layers"], [1, 1, 1, 0])
                self.generate(latest)

    def test_windows_that_would_bite_are_refused_by_name(self):
        sliding = ["full_attention", "full_attention", "sliding_attention"]
        for name, changes in (
            ("mistral", {"sliding_window": 63}),
            ("starcoder2", {"sliding_window": 63}),
            ("qwen2", {"sliding_window": 8, "layer_types": sliding}),
            ("qwen3", {"sliding_window": 8, "layer_types": sliding}),
            (
                "qwen2",
                {
                    "sliding_window": 8,
                    "use_sliding_window": True,
                    "max_window_layers": 2,
                    "layer_types": None,
                },
            ),
            (
                "smollm3",
                {"sliding_window": 8, "use_sliding_window": True, "layer_types": None},
            ),
        ):
            with self.subTest(name=name, **changes):
                model = self.write(name, **changes)
                result = run("convert", "--model", model, "--output", self.folder / "none")
                self.fails(result, 78, "sliding_window", str(changes["sliding_window"]))
        for name, changes in (
            ("mistral", {"sliding_window": 64}),
            ("qwen2", {"sliding_window": 8, "use_sliding_window": False, "layer_types": None}),
            ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": None}),
        ):
            with self.subTest(name=name, **changes):
                model = self.write(name, **changes)
                self.must("convert", "--model", model, "--output", self.folder / f"{model.name}-t")


if __name__ == "__main__":
    unittest.main()
