"""Checkpoints of another run: another model or data are refused, other options said."""

import json
import shutil
import unittest

from checkpoint_runs import Run, contents, manifest
from support import run


class Identity(Run):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.models = {}
        for name, seed in (("first", 1), ("second", 2)):
            teaching = cls.folder / f"teaching-{name}"
            cls.must(
                *cls.train_arguments(
                    cls, teaching, "--steps", 1, "--model.attention", "softmax", "--seed", seed
                )
            )
            cls.models[name] = teaching / "checkpoints/step-00000001"
        cls.models["elu"] = cls.folder / "elu"
        cls.must(
            "convert",
            "--model",
            cls.models["first"],
            "--output",
            cls.models["elu"],
            "--feature-map",
            "elu",
        )

    def test_another_model_is_refused_and_the_field_is_named(self):
        output = self.folder / "finetuned"
        self.must(*self.finetune(output, self.models["first"], "--steps", 2))
        before = contents(output / "checkpoints")
        result = run(*self.finetune(output, self.models["second"], "--steps", 4, "--resume"))
        self.fails(result, 78, "made with other options", "model-weights = ")
        self.assertNotIn("sequence-length = ", result.stderr)  # only what differs
        self.fails(
            run(*self.finetune(output, self.models["elu"], "--steps", 4, "--resume")),
            78,
            "model.attention = softmax there, model.attention = elu here",
        )
        self.fails(
            run(
                *self.train_arguments(
                    output, "--steps", 4, "--model.attention", "softmax", "--resume"
                )
            ),
            78,
            "model-weights = ",
            "[model] from the seed here",
        )
        self.assertEqual(contents(output / "checkpoints"), before)
        moved, renamed = self.folder / "moved", self.folder / "renamed"
        shutil.move(output, moved)
        shutil.copytree(self.models["first"], renamed)
        self.must(
            *self.finetune(moved, renamed, "--steps", 4, "--resume")
        )  # the same weights, elsewhere
        self.assertEqual(manifest(moved)["step"], 4)

    def test_changed_options_are_said_in_one_line_and_an_event(self):
        output = self.copy("changed")
        result = self.resume(
            output,
            8,
            "--learning-rate",
            1e-3,
            "--dropout",
            0.1,
            "--clip-norm",
            2,
            "--weight-decay",
            0.2,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = [line for line in result.stderr.splitlines() if "other options than before" in line]
        self.assertEqual(len(lines), 1)
        for text in (
            "learning-rate = 0.003 before, learning-rate = 0.001 here",
            "dropout = 0.0 before",
            "clip-norm = 1.0 before",
            "weight-decay = 0.1 before",
            "steps = 6 before, steps = 8 here",
        ):
            self.assertIn(text, lines[0])
        events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        changes = [event for event in events if event["event"] == "changed_options"]
        self.assertEqual(len(changes), 1)
        self.assertIn("dropout = 0.0 before, dropout = 0.1 here", changes[0]["changes"])
        self.assertEqual(changes[0]["step"], 6)
        again = self.resume(
            output,
            8,
            "--learning-rate",
            1e-3,
            "--dropout",
            0.1,
            "--clip-norm",
            2,
            "--weight-decay",
            0.2,
        )
        self.assertNotIn("other options than before", again.stderr)


if __name__ == "__main__":
    unittest.main()
