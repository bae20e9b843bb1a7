"""Checkpoints that cannot be read, used or written at their moment: what readers and runs do then."""
import json
import os
import struct
import unittest

from checkpoints_test import Run, manifest, names
from support import run, weights
import xxh3


class Readers(Run):
    def evaluate(self, output, name="latest"):
        return run("evaluate", "--model", output / "checkpoints" / name, "--data", self.folder / "valid", "--context", 32,
                   "--max-tokens", 64, "--json")

    def test_a_newest_manifest_that_cannot_be_read_is_not_passed_over(self):
        output = self.copy("unreadable")
        file = output / "checkpoints/step-00000006/manifest.json"
        file.unlink()
        os.symlink("/proc/self/mem", file)  # opens, and gives EIO
        result = self.evaluate(output)
        self.fails(result, 65, "step-00000006/manifest.json", "Input/output error")
        self.assertEqual(result.stdout, "")

    def test_a_damaged_newest_manifest_is_named_once_before_an_older_one_is_taken(self):
        output = self.copy("damaged")
        (output / "checkpoints/step-00000006/manifest.json").write_text("")
        result = self.evaluate(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("checkpoint step-00000006 is damaged and not used: "), 1, result.stderr)
        loss, older = (json.loads(one.stdout)["loss_nats_per_token"] for one in (result, self.evaluate(output, "step-00000004")))
        self.assertEqual(loss, older)


class NotFinite(Run):
    def test_weights_that_are_not_finite_are_left_for_the_older_checkpoint(self):
        output = self.copy("nan")
        folder = output / "checkpoints/step-00000006"
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-4:] = struct.pack("<f", float("nan"))
        file.write_bytes(data)
        text = json.dumps(manifest(output, "step-00000006"), indent=2) + "\n"
        record = manifest(output, "step-00000006")["files"][file.name]["xxh3_128"]
        (folder / "manifest.json").write_text(xxh3.sealed(text.replace(record, xxh3.xxh3_128(bytes(data)).hexdigest())))
        result = self.resume(output)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("step-00000006 is damaged and not used", result.stderr)
        self.assertIn("not finite", result.stderr)
        self.assertIn("damaged-step-00000006", names(output))
        self.assertEqual(weights(output), weights(self.eight))


if __name__ == "__main__":
    unittest.main()
