"""Models that follow a script, for tests of `t2r generate`."""

import json
import pathlib
import tempfile

from scripted_models import write_byte_tokenizer, write_scripted_model
from support import Case

END, BEGIN, WORD = 256, 257, 258  # ids of <|endoftext|>, <|begin|> and <word> behind the bytes


PROMPT = "ab c"  # four tokens


class GenerateCase(Case):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="t2r-cli-"))

    def model(self, script, prompt_tokens=len(PROMPT), vocab_size=260, begin=None, **options):
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "model"
        script = list(script.encode()) if isinstance(script, str) else script
        write_scripted_model(folder, script, prompt_tokens, vocab_size, **options)
        return write_byte_tokenizer(folder, ["<|endoftext|>", "<|begin|>"], begin, ["<word>"])

    def text(self, model, *more, prompt=PROMPT, **options):
        return self.must("generate", "--model", model, "--prompt", prompt, *more, **options).stdout

    def json(self, model, *more, prompt=PROMPT):
        return [
            json.loads(line)
            for line in self.text(model, "--json", *more, prompt=prompt).splitlines()
        ]
