"""Every bad input: its message, its exit code, and nothing half-written."""

import os
import pathlib
import shutil
import unittest

from support import Case, run


class BadInput(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = cls.small_model()

    # --- models

    def test_what_is_no_file_in_a_run_folder(self):
        source = self.folder / "run-of-files"
        arguments = self.train_arguments(source, "--steps", 4, "--checkpoint-every", 2)
        self.must(*arguments)
        parts = ["manifest.json", "optimizer-00000-of-00001.safetensors"]
        for kind, make, names, damaged in (
            (
                "a named pipe",
                os.mkfifo,
                ["metrics.jsonl", "train.log", "config.toml", "lock"],
                parts,
            ),
            ("a folder", os.mkdir, ["metrics.jsonl", "lock"], []),
        ):
            for name in names:
                with self.subTest(kind=kind, name=name):
                    output = self.folder / "run-no-file"
                    shutil.rmtree(output, ignore_errors=True)
                    shutil.copytree(source, output, symlinks=True)
                    (output / name).unlink()
                    make(output / name)
                    again = [output if argument is source else argument for argument in arguments]
                    result = run(*again, "--resume", "--threads", 1, timeout=60)
                    self.fails(
                        result,
                        65,
                        f"run-no-file/{name}: is {kind}, and must be a regular file; move it away",
                    )
            for name in damaged:
                with self.subTest(kind=kind, name=name):  # damage: the older one is taken
                    output = self.folder / "run-no-file"
                    shutil.rmtree(output, ignore_errors=True)
                    shutil.copytree(source, output, symlinks=True)
                    newest = output / "checkpoints/step-00000004"
                    (newest / name).unlink()
                    make(newest / name)
                    again = [output if argument is source else argument for argument in arguments]
                    result = run(*again, "--resume", "--threads", 1, timeout=60)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assertIn(f"{name}: is {kind}", result.stderr)
                    self.assertEqual((output / "checkpoints/damaged-step-00000004").is_dir(), True)

    def test_model_folder_that_is_not_there(self):
        self.fails(
            run("evaluate", "--model", self.folder / "none", "--data", self.folder / "valid"),
            78,
            "is not a folder",
        )

    # --- options

    def test_unknown_config_key(self):
        path = self.folder / "bad.toml"
        path.write_text('output = "x"\nlerning-rate = 0.1\n')
        self.fails(
            run("train", "--config", path),
            78,
            'unknown key "lerning-rate"',
            "did you mean learning-rate?",
        )
        path.write_text('output = "x"\n[model]\nlayer = 2\n')
        self.fails(run("train", "--config", path), 78, 'unknown key "model.layer"', "model.layers")
        path.write_text("output = \n")
        self.fails(run("train", "--config", path), 78, "bad.toml:1")
        path.write_text('steps = "many"\n')
        self.fails(run("train", "--config", path), 78, "steps")

    def test_unknown_flag_and_command(self):
        self.fails(run("train", "--outptu", "x"), 64, "--outptu", "did you mean --output?")
        self.fails(run("trian"), 64, 'unknown command "trian"', "did you mean train?")
        self.fails(run("train"), 64, "--output is required")
        self.fails(run(), 64, "t2r --help")

    def test_benchmark_of_what_is_not_there(self):
        # Without CUDA the build says so; with it, the program that loads CUDA does.
        program = pathlib.Path(os.environ["T2R_BINARY"]).parent / "t2r_gpu_bench"
        self.fails(
            run("bench", "atention"),
            64,
            'unknown command "bench atention"; did you mean bench attention',
        )
        if program.exists():
            self.fails(
                run("bench", "attention", "--shapes", "8x2048"),
                64,
                'shape is "8x2048", allowed: BATCHxLENGTHxHEADSxHEADSIZE',
            )
            self.fails(
                run("bench", "attention", "--kind", "decode", "--shapes", "8x2048"),
                64,
                'shape is "8x2048", allowed: BATCHxHEADSxHEADSIZE',
            )
            self.fails(
                run("bench", "attention", "--kind", "cross", "--shapes", "8x2048"),
                64,
                'shape is "8x2048", allowed: BATCHxLENGTHxSOURCE',
            )
            self.fails(
                run("bench", "attention", "--kind", "decod"),
                78,
                'kind = "decod", allowed: causal, decode, cross',
            )
            if shutil.which("nvidia-smi") is None:
                self.fails(
                    run("bench", "attention"),
                    78,
                    "needs a GPU; this machine has none that CUDA can use",
                )
        else:
            self.fails(
                run("bench", "attention"), 78, "needs a build with CUDA (launch/build.sh gpu)"
            )

    def test_a_gpu_that_is_not_there(self):
        train = self.train_arguments(self.folder / "no-gpu", "--steps", 2, "--device", "cuda")
        model = self.folder / "no-model"
        commands = [
            ("train", train),
            ("bench", ["bench", "train", "--device", "cuda"]),
            (
                "evaluate",
                ["evaluate", "--model", model, "--data", self.folder / "valid", "--device", "cuda"],
            ),
        ]
        self.fails(
            run("bench", "train", "--device", "cpu", "--threads", -1),
            78,
            "threads = -1, allowed: 0 to 1024",
        )
        self.fails(
            run("bench", "train", "--device", "cpu", "--precision", "bf16"),
            78,
            "precision = bf16, allowed on a CPU: float32",
        )
        self.fails(
            run("bench", "train", "--device", "cpu", "--trace", self.folder / "trace"),
            78,
            "trace = ",
            "it lists a GPU's kernels",
        )
        self.fails(
            run("bench", "train", "--device", "cpu", "--bucket-mib", 0),
            78,
            "bucket-mib = 0, allowed: 1 to 1048576",
        )
        self.fails(
            run("bench", "train", "--device", "cpu", "--recompute", "some"),
            78,
            'recompute = "some", allowed: none, mlps, all',
        )
        if not self.has_gpu_program():
            for name, command in commands:
                with self.subTest(name):
                    self.fails(
                        run(*command),
                        78,
                        "--device cuda needs a build with CUDA (launch/build.sh gpu)",
                    )
        else:
            for name, command in commands:
                with self.subTest(name):
                    self.fails(
                        run(*command), 78, "no GPU was found on host", "run with --device cpu"
                    )
            self.fails(run(*train, ranks=2), 78, "ranks 0, 1: no GPU was found on host")
        self.assertFalse((self.folder / "no-gpu" / "checkpoints").exists())

    def test_benchmark_of_generation(self):
        tiny = [
            "bench",
            "generate",
            "--device",
            "cpu",
            "--vocab-size",
            50,
            "--model.layers",
            2,
            "--model.hidden-size",
            32,
            "--model.heads",
            2,
        ]
        for more, text in (
            (["--lengths", 0], "lengths = 0, allowed: 1 to 1099511627776"),
            (["--sequences-at-once", 0], "sequences-at-once = 0, allowed: 1 to 1099511627776"),
            (["--timed-steps", 0], "timed-steps = 0, allowed: 1 to 1099511627776"),
            (["--untimed-steps", -1], "untimed-steps = -1, allowed: 0 to 1099511627776"),
            (["--threads", -1], "threads = -1, allowed: 0 to 1024"),
            (["--vocab-size", 0], "vocab-size = 0"),
            (["--temperature", -1], "temperature = -1, allowed: 0 or more"),
            (["--top-k", -1], "top-k = -1, allowed: 0 or more"),
            (["--top-p", 0], "top-p = 0, allowed: above 0, up to 1"),
            (["--model.attention", "rfa"], "rfa"),
            (["--model", self.folder / "none"], "--model and [model] exclude each other"),
            (["--precision", "bf16"], "precision = bf16, allowed on a CPU: float32"),
            (
                ["--model.max-positions", 100, "--lengths", 10, 90],
                "position 169 is past the model's learned position table",
            ),
        ):
            with self.subTest(text):
                self.fails(run(*tiny, *more), 78, text)
        self.fails(
            run("bench", "generate", "--device", "cpu", "--model", self.folder / "none"),
            78,
            "is not a folder",
        )
        if shutil.which("nvidia-smi") is None:
            self.fails(
                run("bench", "generate", "--device", "cuda"),
                78,
                "GPU" if self.has_gpu_program() else "needs a build with CUDA",
            )

    @staticmethod
    def has_gpu_program():
        return (pathlib.Path(os.environ["T2R_BINARY"]).parent / "t2r_gpu").exists()

    def test_values_that_are_not_allowed(self):
        base = [
            "--output",
            self.folder / "never",
            "--train-data",
            self.folder / "train",
            "--model.layers",
            2,
        ]
        for more, text in (
            (["--steps", 2, "--batch-size", 0], "batch-size = 0, allowed: 1 or more"),
            (["--steps", 2, "--dropout", 1.5], "dropout = 1.5, allowed: 0 to 0.99"),
            (["--steps", 2, "--tokens", 100], "exactly one of steps and tokens"),
            (["--steps", 2, "--schedule", "cosin"], 'schedule = "cosin", allowed: cosine'),
            (
                ["--steps", 2, "--model.hidden-size", 30, "--model.heads", 4],
                "a multiple of model.heads = 4",
            ),
            (["--steps", 2, "--model", self.model], "exclude each other"),
        ):
            self.fails(run("train", *base, *more), 78, text)
        self.assertFalse((self.folder / "never" / "checkpoints").exists())

    def test_dump_config_reads_back(self):
        first = self.must(
            "train",
            "--output",
            "x",
            "--steps",
            3,
            "--learning-rate",
            1e-3,
            "--model.layers",
            2,
            "--dump-config",
        )
        path = self.folder / "dump.toml"
        path.write_text(first.stdout)
        second = self.must("train", "--config", path, "--dump-config")
        self.assertEqual(first.stdout, second.stdout)
        third = self.must("train", "--config", path, "--learning-rate", 2e-3, "--dump-config")
        self.assertIn("learning-rate = 0.002", third.stdout)

    # --- data

    def test_tokenizer_and_shard_that_do_not_belong_together(self):
        other = self.other_tokenizer()
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "mismatch",
                "--train-data",
                self.folder / "train",
                "--tokenizer",
                other,
                "--model.layers",
                2,
                "--steps",
                2,
                "--sequence-length",
                32,
            ),
            78,
            "made with another tokenizer",
        )
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "mismatch",
                "--train-data",
                self.folder / "other",
                "--model",
                self.model,
                "--steps",
                2,
                "--sequence-length",
                32,
            ),
            78,
            "made with another tokenizer",
        )

    def test_shard_with_a_flipped_byte(self):
        copy = self.folder / "flipped"
        shutil.copytree(self.folder / "train", copy)
        shard = next(copy.glob("*.h5"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 4
        shard.write_bytes(data)
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "never",
                "--train-data",
                copy,
                "--model.layers",
                2,
                "--steps",
                2,
                "--sequence-length",
                32,
            ),
            65,
            shard.name,
        )
        self.assertFalse((self.folder / "never" / "checkpoints").exists())

    def prepare(self, text, *more, **options):
        source = self.folder / "source.txt"
        source.write_bytes(text)
        output = self.folder / "prepared"
        result = run(
            "prepare",
            "lm",
            "--inputs",
            source,
            "--tokenizer",
            self.tokenizer,
            "--output",
            output,
            *more,
            **options,
        )
        if result.returncode != 0:
            self.assertEqual(list(output.glob("**/*")) if output.exists() else [], [])
        shutil.rmtree(output, ignore_errors=True)
        return result

    def test_empty_text(self):
        self.fails(self.prepare(b""), 65, "source.txt")
        (self.folder / "empty.txt").write_text("")
        self.fails(
            run(
                "prepare",
                "vocab",
                "--inputs",
                self.folder / "empty.txt",
                "--output",
                self.folder / "e.model",
            ),
            65,
            "empty.txt",
        )
        self.assertFalse((self.folder / "e.model").exists())

    def test_invalid_utf8(self):
        self.fails(
            self.prepare(b"good\nbad \xff\xfe here\n"),
            65,
            "source.txt",
            "byte 9",
            "--allow-invalid-utf8",
        )
        self.assertEqual(
            self.prepare(b"good\nbad \xff\xfe here\n", "--allow-invalid-utf8").returncode, 0
        )

    def test_full_disk(self):
        self.fails(
            self.prepare((self.folder / "train.txt").read_bytes(), limit_bytes=4096), 73, "prepared"
        )

    def test_prepare_with_two_ranks_writes_the_same(self):
        inputs = [self.folder / "train.txt", self.folder / "valid.txt"]
        for ranks in (1, 2):
            self.must(
                "prepare",
                "lm",
                "--inputs",
                *inputs,
                "--tokenizer",
                self.tokenizer,
                "--output",
                self.folder / f"ranks{ranks}",
                ranks=ranks,
            )
        for name in ("train-00000.h5", "valid-00000.h5"):
            self.assertEqual(
                (self.folder / "ranks1" / name).read_bytes(),
                (self.folder / "ranks2" / name).read_bytes(),
            )


if __name__ == "__main__":
    unittest.main()
