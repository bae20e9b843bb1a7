"""Learning from a teacher (--teacher), as a user runs it."""

import shutil
import unittest

from support import Case, relative, run, step_losses, weights


class Distillation(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        teaching = cls.folder / "teaching"
        cls.must(
            *cls.train_arguments(
                cls,
                teaching,
                "--steps",
                40,
                "--model.attention",
                "softmax",
                "--model.family",
                "gpt2",
            )
        )
        cls.teacher = teaching / "checkpoints" / "latest"
        cls.converted = cls.folder / "converted"
        cls.must("convert", "--model", cls.teacher, "--output", cls.converted, "--feature-size", 8)

    def distill(self, output, *more, model=None):
        return self.finetune(output, model or self.converted, "--teacher", self.teacher, *more)

    def test_a_model_that_is_its_teacher_has_nothing_to_learn(self):
        output = self.folder / "itself"
        self.must(*self.distill(output, "--steps", 1, model=self.teacher))
        self.assertLess(abs(float(step_losses(output)[1])), 1e-6)

    def test_the_student_comes_nearer_to_its_teacher(self):
        # A fresh one: on such a small text a converted model has lost next to nothing.
        result = self.must(
            *self.train_arguments(self.folder / "student", "--steps", 60, "--teacher", self.teacher)
        )
        self.assertIn(" parameters has 1 of the loss", result.stderr)
        losses = step_losses(self.folder / "student")
        self.assertLess(float(losses[60]), 0.5 * float(losses[1]))

    def test_shares_add_up(self):
        loss = {}
        for share in (0, 0.25, 1):
            output = self.folder / f"share-{share}"
            self.must(*self.distill(output, "--steps", 1, "--distillation", share))
            loss[share] = float(step_losses(output)[1])
        self.assertLess(relative(loss[0.25], 0.75 * loss[0] + 0.25 * loss[1]), 1e-5)
        self.must(*self.finetune(self.folder / "text-alone", self.converted, "--steps", 1))
        self.assertLess(relative(step_losses(self.folder / "text-alone")[1], loss[0]), 1e-6)

    def test_two_ranks_learn_what_one_learns_behind_transfer_as_well(self):
        for name, more in (("alone", []), ("transfer", ["--transfer-steps", 4])):
            one, two = (self.folder / f"{name}-{ranks}" for ranks in (1, 2))
            self.must(*self.distill(one, "--steps", 8, *more))
            self.must(*self.distill(two, "--steps", 8, *more), ranks=2)
            losses = step_losses(one)
            self.assertEqual(sorted(losses), list(range(1 + len(more) * 2, 9)))
            for step in losses:  # differences of probabilities that are alike already
                self.assertLess(
                    abs(float(step_losses(two)[step]) - float(losses[step])),
                    1e-6,
                    f"{name}, step {step}",
                )

    def test_ranks_and_resuming(self):
        options = ["--dropout", 0.1, "--schedule", "constant", "--checkpoint-every", 5]
        whole, parts = self.folder / "whole", self.folder / "parts"
        self.must(*self.distill(whole, *options, "--steps", 10), ranks=2)
        self.must(*self.distill(parts, *options, "--steps", 5), ranks=2)
        self.must(*self.distill(parts, *options, "--steps", 10, "--resume"), ranks=2)
        self.assertEqual(step_losses(whole), step_losses(parts))
        self.assertEqual(weights(whole), weights(parts))
        self.fails(
            run(*self.distill(parts, *options, "--steps", 12, "--resume", "--distillation", 0.5)),
            78,
            "made with other options",
            "distillation = 1",
            "distillation = 0.5",
        )
        self.fails(
            run(
                *self.finetune(
                    parts,
                    self.converted,
                    "--teacher",
                    self.converted,
                    *options,
                    "--steps",
                    12,
                    "--resume",
                )
            ),
            78,
            "made with other options",
            "teacher = ",
        )

    def test_bad_input(self):
        never = self.folder / "never"
        self.fails(
            run(*self.distill(never, "--steps", 1, "--distillation", 1.5)),
            78,
            "distillation = 1.5, allowed: 0 to 1",
        )
        self.fails(
            run(*self.finetune(never, self.converted, "--steps", 1, "--distillation", 0.5)),
            78,
            "distillation = 0.5, allowed: 1 without a teacher",
        )
        self.fails(
            run(
                *self.finetune(
                    never, self.converted, "--steps", 1, "--teacher", self.folder / "nowhere"
                )
            ),
            78,
            "nowhere is not a folder",
        )
        stranger = self.folder / "stranger"  # as many entries, of another tokenizer
        shutil.copytree(self.teacher, stranger)
        (stranger / "manifest.json").unlink()
        self.must(
            "prepare",
            "vocab",
            "--inputs",
            self.folder / "valid.txt",
            "--output",
            self.folder / "same-size.model",
            "--vocab-size",
            320,
        )
        shutil.copy(self.folder / "same-size.model", stranger / self.tokenizer.name)
        self.fails(
            run(*self.finetune(never, self.converted, "--steps", 1, "--teacher", stranger)),
            78,
            "made with another tokenizer",
            str(stranger),
        )
        self.fails(
            run(
                *self.train_arguments(
                    never, "--steps", 1, "--sequence-length", 64, "--teacher", self.teacher
                )
            ),
            78,
            "sequence-length = 64, allowed with this teacher: 1 to 32, its learned positions",
        )
        self.other_tokenizer()
        self.fails(
            run(
                "train",
                "--output",
                never,
                "--train-data",
                self.folder / "other",
                "--model.layers",
                1,
                "--steps",
                1,
                "--sequence-length",
                32,
                "--teacher",
                self.teacher,
            ),
            78,
            "the teacher's vocabulary has 320 entries, the model's 300",
            "must have the model's tokenizer",
        )
        self.assertFalse((never / "checkpoints").exists())


if __name__ == "__main__":
    unittest.main()
