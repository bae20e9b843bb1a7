"""t2r prepare as a user meets it: many files, empty ones, several ranks, kills, what is no text."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
import unittest

from support import BINARY, Case, make_text, run, start


class Prepare(Case):
    def lm(self, output, *inputs, more=(), **options):
        return run(
            "prepare",
            "lm",
            "--inputs",
            *inputs,
            "--tokenizer",
            self.tokenizer,
            "--output",
            self.folder / output,
            *more,
            **options,
        )

    def names(self, output):
        folder = self.folder / output
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def test_a_failure_on_one_rank_publishes_nothing(self):
        good = [self.write(f"agree/good{i}.txt", make_text(20 + i, i)) for i in range(4)]
        bad = self.write("agree/bad.txt", b"\xff no UTF-8\n")
        for ranks in (1, 2, 3):
            with self.subTest(ranks=ranks):
                result = self.lm("agreed", *good, bad, ranks=ranks)
                self.fails(result, 65, "bad.txt: byte 0 is not valid UTF-8")
                self.assertEqual(self.names("agreed"), [])
        # What was there stays, too.
        self.must(
            "prepare",
            "lm",
            "--inputs",
            *good,
            "--tokenizer",
            self.tokenizer,
            "--output",
            self.folder / "agreed",
        )
        before = {p.name: p.read_bytes() for p in (self.folder / "agreed").iterdir()}
        self.fails(self.lm("agreed", *good, bad, more=["--overwrite"], ranks=2), 65, "bad.txt")
        self.assertEqual(
            {p.name: p.read_bytes() for p in (self.folder / "agreed").iterdir()}, before
        )

    def test_a_kill_leaves_a_folder_that_is_refused_and_can_be_cleaned(self):
        text = self.write("killed/long.txt", make_text(40000, 3))
        other = self.write("killed/other.txt", make_text(30, 4))
        output = self.folder / "kill"
        process = start(
            "prepare",
            "lm",
            "--inputs",
            text,
            other,
            "--tokenizer",
            self.tokenizer,
            "--output",
            output,
        )
        deadline = time.monotonic() + 60
        while (
            not list(output.glob("*.unfinished"))
            and time.monotonic() < deadline
            and process.poll() is None
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.assertEqual([p.name for p in output.iterdir()], ["prepare-rank-0.unfinished"])
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "never",
                "--train-data",
                output,
                "--model.layers",
                1,
                "--steps",
                1,
            ),
            65,
            "prepare-rank-0.unfinished",
            "--overwrite",
        )
        self.fails(self.lm("kill", other), 78, "prepare-rank-0.unfinished", "--overwrite")
        # One of more ranks than there are now.
        shutil.move(output / "prepare-rank-0.unfinished", output / "prepare-rank-7.unfinished")
        self.fails(self.lm("kill", other), 78, ".unfinished", "--overwrite")
        self.assertEqual(self.lm("kill", other, more=["--overwrite"]).returncode, 0)
        self.assertEqual(self.names("kill"), ["other-00000.h5"])

    def test_empty_inputs_are_left_out_and_counted(self):
        good = self.write("some/good.txt", make_text(5, 1))
        empty = [self.write(f"some/empty{i}.txt", "") for i in range(5)]
        for ranks in (1, 2):
            result = self.lm(f"some{ranks}", *empty, good, ranks=ranks)
            self.fails(result, 0, "5 input(s) give no tokens and are left out", "empty", "...")
            self.assertEqual(self.names(f"some{ranks}"), ["good-00000.h5"])
            result = self.lm(f"none{ranks}", *empty, ranks=ranks)
            self.fails(result, 65, "gives no tokens", "other 4 input(s)")
            self.assertEqual(self.names(f"none{ranks}"), [])

    def test_many_small_files_share_shards_that_open_anywhere(self):
        texts = self.folder / "small"
        texts.mkdir()
        for i in range(1500):
            (texts / f"t{i:04d}.txt").write_text(f"The cat number {i} crosses a bridge.\n")
        inputs = sorted(texts.iterdir())
        one, two = self.lm("many1", *inputs), self.lm("many2", *inputs, ranks=2)
        self.fails(one, 0, "1500 documents")
        self.assertEqual(one.stdout.replace("many1", ""), two.stdout.replace("many2", ""))
        self.assertEqual(self.names("many1"), ["filled-00000-00000.h5"])
        self.assertEqual(self.names("many2"), self.names("many1"))
        content = lambda name: (self.folder / name / "filled-00000-00000.h5").read_bytes()
        self.assertEqual(content("many1"), content("many2"))
        # A shard each, as earlier versions made them: the same corpus, and it opens where few files
        # may be open.
        few = inputs[:250]
        self.fails(self.lm("separate", *few), 0, "250 documents", "250 shard(s)")
        self.fails(
            self.lm("filled", *few, more=["--fill-shards", "true"]),
            0,
            "250 documents",
            "1 shard(s)",
        )

        def limit():
            resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))

        losses = []
        for name in ("filled", "separate"):
            command = [
                "train",
                "--output",
                self.folder / f"run-{name}",
                "--train-data",
                self.folder / name,
                "--model.layers",
                1,
                "--model.hidden-size",
                32,
                "--model.heads",
                2,
                "--steps",
                3,
                "--sequence-length",
                16,
                "--batch-size",
                4,
                "--log-every",
                1,
            ]
            result = subprocess.run(
                [BINARY, *map(str, command)],
                capture_output=True,
                text=True,
                preexec_fn=limit,
                timeout=120,
            )
            self.assertEqual(result.returncode, 0, result.stderr)
            lines = (self.folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()
            losses.append(
                [
                    line.split('"loss"')[1].split(",")[0]
                    for line in lines
                    if '"step"' in line and '"loss"' in line
                ][:3]
            )
        self.assertEqual(losses[0], losses[1])

    def test_filled_and_separate_shards_do_not_mix(self):
        a, b = self.write("mix/a.txt", make_text(5, 1)), self.write("mix/b.txt", make_text(5, 2))
        self.assertEqual(self.lm("mixed", a, b, more=["--fill-shards", "true"]).returncode, 0)
        self.fails(self.lm("mixed", a), 78, "filled-00000-00000.h5", "twice")
        self.fails(self.lm("mixed", a, more=["--overwrite"]), 78, "filled-00000-00000.h5", "twice")
        self.fails(self.lm("mixed", a, b, more=["--fill-shards", "true"]), 78, "--overwrite")
        self.assertEqual(self.lm("apart", a, b).returncode, 0)
        self.assertEqual(
            self.lm("apart", a, b, more=["--fill-shards", "true", "--overwrite"]).returncode, 0
        )
        self.assertEqual(self.names("apart"), ["filled-00000-00000.h5"])
        # Equal names without folder and ending: one shard each cannot be, filled ones can.
        same = self.write("mix2/a.txt", make_text(5, 3))
        self.fails(
            self.lm("same", a, same), 78, "would both write a-00000.h5", "--fill-shards true"
        )
        self.assertEqual(self.lm("same", a, same, more=["--fill-shards", "true"]).returncode, 0)
        self.fails(self.lm("twice", a, a, more=["--fill-shards", "true"]), 78, "is given twice")

    def test_says_what_an_input_is_that_is_no_text(self):
        shard = next((self.folder / "train").glob("*.h5"))
        cases = [
            (shard, 65, "is a shard of tokens, not text"),
            (self.folder, 78, "a folder; name the text files in it"),
            (self.folder / "none.txt", 78, "does not exist"),
            (
                self.write(
                    "pointer.txt",
                    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
                ),
                65,
                "Git LFS pointer",
            ),
            (self.write("text.gz", b"\x1f\x8b\x08\0\0\0\0\0"), 65, "compressed (gzip)"),
            (self.write("utf16.txt", "a text".encode("utf-16")), 65, "UTF-16"),
        ]
        for path, code, text in cases:
            with self.subTest(text):
                self.fails(self.lm("no-text", path), code, path.name, text)
                self.fails(
                    run(
                        "prepare",
                        "vocab",
                        "--inputs",
                        path,
                        "--output",
                        self.folder / "never.model",
                    ),
                    code,
                    text,
                )
        self.assertEqual(self.names("no-text"), [])

    def test_documents_begin_and_end_as_the_tokenizer_says(self):
        folder = self.folder / "llama"
        folder.mkdir()
        shutil.copy(self.tokenizer, folder / "tokenizer.model")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "LlamaTokenizer",
                    "add_bos_token": True,
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                }
            )
        )
        text = self.write("lines.txt", "the cat\na song\nsome rain\n")
        count = lambda result: int(result.stdout.split(": ")[1].split(" tokens")[0])
        lm = lambda output, tokenizer, *more: run(
            "prepare",
            "lm",
            "--inputs",
            text,
            "--tokenizer",
            tokenizer,
            "--output",
            self.folder / output,
            "--documents",
            "line",
            *more,
        )
        begun, plain = lm("begun", folder), lm("plain", folder, "--begin-of-text", "false")
        self.fails(begun, 0, "each document begins with token 1")
        self.assertEqual(count(begun), count(plain) + 3)
        self.assertEqual(
            lm("insisted", folder, "--begin-of-text", "true").stdout.replace("insisted", "begun"),
            begun.stdout,
        )
        # Shards with and without it do not mix.
        shutil.copy(
            self.folder / "plain" / "lines-00000.h5", self.folder / "begun" / "plain-00000.h5"
        )
        self.fails(
            run(
                "train",
                "--output",
                self.folder / "never",
                "--train-data",
                self.folder / "begun",
                "--model.layers",
                1,
                "--steps",
                1,
            ),
            65,
            "plain-00000.h5",
            "--begin-of-text",
        )
        # A byte-level tokenizer that names neither.
        bare = self.folder / "bare"
        bare.mkdir()
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
        (bare / "vocab.json").write_text(
            json.dumps({letter: i for i, letter in enumerate(letters)})
        )
        (bare / "merges.txt").write_text("#version: 0.2\n")
        self.fails(lm("bare-out", bare), 0, "names no token that ends a document")
        self.assertNotIn("names no token", lm("bare-out2", bare, "--end-of-document=false").stderr)
        self.fails(
            lm("bare-out3", bare, "--begin-of-text", "true"),
            78,
            "begin-of-text = true",
            "allowed here: auto, false",
        )
        self.assertEqual(self.names("bare-out3"), [])

    def test_a_vocabularys_numbers_are_not_cut(self):
        output = self.folder / "cut.model"
        for option, value, allowed in (
            ("vocab-size", 2**32 + 300, "1 to 16777216"),
            ("vocab-size", -1, "1 to"),
            ("threads", 2**32 + 1, "0 to 1024"),
            ("threads", -1, "0 to 1024"),
            ("seed", -1, "0 or more"),
        ):
            result = run(
                "prepare",
                "vocab",
                "--inputs",
                self.folder / "train.txt",
                "--output",
                output,
                f"--{option}",
                value,
            )
            self.fails(result, 78, f"{option} = {value}, allowed: {allowed}")
            self.assertFalse(output.exists())

    def test_vocabulary_finds_out_first_that_it_cannot_be_written(self):
        for output in (self.folder / "no" / "such" / "tokenizer.model", self.folder):
            # Training would find out that there are not so many pieces.
            result = run(
                "prepare",
                "vocab",
                "--inputs",
                self.folder / "train.txt",
                "--output",
                output,
                "--vocab-size",
                30000,
            )
            self.fails(result, 73, str(output))
        self.assertEqual([p.name for p in self.folder.iterdir() if ".tmp." in p.name], [])


if __name__ == "__main__":
    unittest.main()
