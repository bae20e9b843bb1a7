"""What tests on GPUs share. Import it first: support asks the environment where tests run."""

import os
import subprocess

os.environ["T2R_TEST_ON_GPU"] = "1"  # before support is read

from support import Case


def num_gpus():
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return len(listed.stdout.strip().splitlines()) if listed.returncode == 0 else 0


class GpuCase(Case):
    FAMILIES = {
        "gpt2, one softmax layer": ["--model.family", "gpt2", "--model.softmax-layers", 1],
        # At the others' 3e-3 this one amplifies rounding: two instruction sets of one CPU differ by
        # 1.7e-4 within 20 steps.
        "llama, grouped queries": [
            "--model.family",
            "llama",
            "--model.heads",
            4,
            "--model.kv-heads",
            2,
            "--model.hidden-size",
            128,
            "--learning-rate",
            1e-3,
        ],
        "elu": ["--model.attention", "elu", "--model.feature-size", 0],
        "hedgehog": ["--model.attention", "hedgehog", "--model.feature-size", 64],
        # With T2R's kinks these amplify rounding, too: two instruction sets differ by up to 3e-4.
        "norms of heads": [
            "--model.family",
            "qwen3",
            "--model.attention",
            "hedgehog",
            "--model.feature-size",
            64,
        ],
        "norms behind branches": [
            "--model.family",
            "olmo2",
            "--model.attention",
            "hedgehog",
            "--model.feature-size",
            64,
        ],
    }

    def arguments(self, output, *more):
        # Head size 32, the smallest that the kernels have.
        return self.train_arguments(output, "--model.hidden-size", 64, *more)

    def train(self, name, *more, **options):
        output = self.folder / name
        self.must(*self.arguments(output, *more), **options)
        return output
