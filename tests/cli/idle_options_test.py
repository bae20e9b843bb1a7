"""Options that do nothing are said in one line, unless a file of defaults has them."""

import json
import pathlib
import struct
import tempfile
import unittest

from support import Case, run


class IdleOptions(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.must(*cls.train_arguments(cls, cls.folder / "t2r", "--steps", 1))
        cls.must(
            "train",
            "--output",
            cls.folder / "softmax",
            "--train-data",
            cls.folder / "train",
            "--model.layers",
            2,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--sequence-length",
            32,
            "--batch-size",
            8,
            "--steps",
            1,
            "--tokenizer",
            cls.tokenizer,
        )
        cls.linear = cls.folder / "t2r/checkpoints/latest"
        cls.softmax = cls.folder / "softmax/checkpoints/latest"

    def run_training(self, *arguments, ranks=1):
        output = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        return run(
            "train",
            "--output",
            output,
            "--train-data",
            self.folder / "train",
            "--sequence-length",
            32,
            "--batch-size",
            8,
            *arguments,
            ranks=ranks,
        )

    def says_idle(self, result, **why):
        self.assertEqual(result.returncode, 0, result.stderr)
        for key, text in why.items():
            key = key.replace("_", "-")
            lines = [
                line for line in result.stderr.splitlines() if f"--{key} has no effect: " in line
            ]
            self.assertEqual(len(lines), 1, f"{key}: {result.stderr}")
            self.assertIn(text, lines[0])

    def test_training_of_a_softmax_model(self):
        result = self.run_training(
            "--model",
            self.softmax,
            "--steps",
            3,
            "--deterministic",
            "--cuda-graph=false",
            "--bucket-mib",
            5,
            "--eval-every",
            1,
            "--eval-tokens",
            100,
            "--final-lr-ratio",
            0.2,
            "--schedule",
            "constant",
            "--map-learning-rate",
            0.1,
            "--transfer-learning-rate",
            0.1,
            "--micro-batch-size",
            100,
            "--distillation",
            1,
            "--resume",
            "--checkpoint-every",
            50,
        )
        self.says_idle(
            result,
            deterministic="CPU",
            cuda_graph="on a GPU",
            bucket_mib="one rank",
            eval_every="no --valid-data",
            eval_tokens="no --valid-data",
            final_lr_ratio="schedule = constant",
            map_learning_rate="no feature maps",
            transfer_learning_rate="no --transfer-steps",
            micro_batch_size="a rank's share of the batch is 8",
            distillation="no --teacher",
            resume="the run begins at step 1",
            checkpoint_every="the run has 3 steps",
        )
        self.fails(
            self.run_training("--model", self.softmax, "--steps", 3, "--transfer-steps", 1),
            78,
            "transfer-steps = 1, allowed with this model: 0",
        )

    def test_what_is_in_use_is_not_said(self):
        result = self.run_training(
            "--model",
            self.linear,
            "--valid-data",
            self.folder / "valid",
            "--steps",
            4,
            "--transfer-steps",
            1,
            "--transfer-learning-rate",
            0.1,
            "--map-learning-rate",
            0.1,
            "--eval-every",
            2,
            "--eval-tokens",
            100,
            "--final-lr-ratio",
            0.2,
            "--warmup-steps",
            1,
            "--micro-batch-size",
            4,
            "--bucket-mib",
            5,
            ranks=2,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("no effect", result.stderr)
        self.assertNotIn("warning", result.stderr)

    def test_a_file_of_defaults_says_nothing(self):
        dump = self.folder / "all.toml"
        dump.write_text(
            self.must("train", "--model", self.linear, "--steps", 1, "--dump-config").stdout
        )
        result = self.run_training("--config", dump)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("no effect", result.stderr)
        result = self.run_training("--config", self.folder / "t2r/config.toml", "--seed", 2)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("no effect", result.stderr)
        dump.write_text(dump.read_text().replace("deterministic = false", "deterministic = true"))
        self.says_idle(self.run_training("--config", dump), deterministic="CPU")

    def test_lengths_and_budgets(self):
        result = self.run_training(
            "--model",
            self.softmax,
            "--tokens",
            700,
            "--warmup-steps",
            10,
            "--sequence-length",
            64,
            "--batch-size",
            4,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("--tokens = 700 is rounded down to 512: 2 whole steps", result.stderr)
        self.assertIn("--warmup-steps = 10 is longer than the run's 2 steps", result.stderr)
        self.assertIn(
            "--sequence-length = 64 is beyond the 32 positions that the model's config.json",
            result.stderr,
        )
        result = self.run_training(
            "--model.layers",
            1,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--sequence-length",
            64,
            "--steps",
            1,
            "--teacher",
            self.softmax,
        )
        self.assertIn(
            "--sequence-length = 64 is beyond the 32 positions that the teacher's config.json",
            result.stderr,
        )
        gpt2 = [
            "--model.family",
            "gpt2",
            "--model.layers",
            1,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
            "--model.max-positions",
            16,
        ]
        self.fails(
            self.run_training(*gpt2, "--steps", 1),
            78,
            "sequence-length = 32, allowed with this model: 1 to 16, its learned positions",
        )

    def test_table_teacher_and_tokenizer(self):
        table = ["--model.layers", 2, "--model.hidden-size", 32, "--model.heads", 2]
        result = self.run_training(
            *table,
            "--model.feature-size",
            8,
            "--model.softmax-layers",
            1,
            "--steps",
            1,
            "--teacher",
            self.softmax,
            "--distillation",
            0,
        )
        self.says_idle(
            result,
            teacher="distillation = 0",
            **{"model.feature_size": "no feature map", "model.softmax_layers": "no feature map"},
        )
        self.assertIn("no --tokenizer: the run's checkpoints will have none", result.stderr)
        self.fails(
            self.run_training(
                *table, "--model.attention", "elu", "--model.feature-size", 8, "--steps", 1
            ),
            78,
            "model.feature-size = 8, allowed: 0 or the head dimension, 16, for elu",
        )
        self.fails(
            self.run_training(*table, "--model", self.softmax, "--steps", 1),
            78,
            "--model and [model] exclude each other",
        )
        self.fails(
            self.run_training(
                *table, "--model.attention", "t2r", "--model.softmax-layers", "1,0,1", "--steps", 1
            ),
            78,
            'all 2 layers keep softmax attention: none is left for model.attention = "t2r"',
        )
        self.fails(
            self.run_training(
                *table, "--model.attention", "t2r", "--model.softmax-layers", "0,2", "--steps", 1
            ),
            78,
            "softmax_layers = 2",
        )
        self.assertIn(
            "--clip-norm = 1e-20 is below --eps = 1e-08",
            self.run_training(*table, "--clip-norm", "1e-20", "--steps", 1).stderr,
        )

    def convert(self, *arguments):
        output = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "converted"
        return run("convert", "--model", self.softmax, "--output", output, *arguments), output

    def test_convert(self):
        self.says_idle(
            self.convert("--map-per-query-head")[0],
            map_per_query_head="a key head for each query head",
        )
        self.says_idle(
            self.convert("--feature-map", "elu", "--seed", 3, "--denominator-floor", 0.1)[0],
            seed="no parameters",
            denominator_floor="no floor",
        )
        for arguments, text in (
            (["--keep-softmax-every", 1], "there is nothing to convert"),
            (["--keep-softmax", "0,1"], "there is nothing to convert"),
            (["--keep-softmax", 0, "--keep-softmax-every", 2], "exclude each other"),
            (["--feature-map", "elu", "--feature-size", 8], "feature_size = 8, allowed: 16"),
            (["--seed", -1], "seed = -1"),
            (["--feature-size", -1], "feature-size = -1, allowed: 0 or more"),
        ):
            result, output = self.convert(*arguments)
            self.fails(result, 78, text)
            self.assertFalse(output.exists())
        result, output = self.convert("--keep-softmax", 1, 1)
        self.assertIn("1 of 2 layers are linear", result.stdout)

    def test_verify(self):
        tensors = {
            "input_ids": ("I64", [1, 4], struct.pack("<4q", 1, 2, 3, 4)),
            "loss": ("F32", [], struct.pack("<f", 5.0)),
        }
        header, data = {}, b""
        for name, (dtype, shape, content) in tensors.items():
            header[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(content)],
            }
            data += content
        text = json.dumps(header).encode()
        (self.folder / "expected.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + data
        )
        result = run(
            "verify",
            "--model",
            self.linear,
            "--expected",
            self.folder / "expected.safetensors",
            "--tolerance",
            100,
            "--gradient-tolerance",
            0.1,
        )
        self.says_idle(result, gradient_tolerance="no grad.NAME")
        self.assertNotIn("--tolerance has no effect", result.stderr)

    def test_benchmarks(self):
        bench = [
            "bench",
            "generate",
            "--device",
            "cpu",
            "--model",
            self.softmax,
            "--lengths",
            4,
            "--timed-steps",
            2,
            "--untimed-steps",
            0,
        ]
        result = run(
            *bench, "--vocab-size", 9, "--top-k", 5, "--top-p", 0.5, "--cuda-graph", "--json"
        )
        self.says_idle(
            result, vocab_size="--model", top_k="greedy", top_p="greedy", cuda_graph="on a GPU"
        )
        self.assertEqual(json.loads(result.stdout)["length"], 4)
        result = run(
            "bench",
            "train",
            "--device",
            "cpu",
            "--model",
            self.softmax,
            "--timed-steps",
            2,
            "--untimed-steps",
            0,
            "--batch-size-per-rank",
            1,
            "--sequence-length",
            8,
            "--deterministic",
            "--bucket-mib",
            2,
            "--json",
        )
        self.says_idle(result, deterministic="CPU", bucket_mib="one rank")
        self.assertEqual(json.loads(result.stdout)["batch_size"], 1)
        result = run("bench", "train", "--json", "--batch-size-per-rank", 0)
        self.assertEqual((result.returncode, result.stdout), (78, ""))


if __name__ == "__main__":
    unittest.main()
