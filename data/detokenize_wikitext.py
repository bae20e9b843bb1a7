#!/usr/bin/env python3
"""Turns WikiText's tokenised text back into English as people write it, for models that were
pretrained on such text.

    data/detokenize_wikitext.py wiki.train.tokens > train.txt

Punctuation loses the spaces around it, "@-@" becomes "-", headings keep their "=". "<unk>" stays:
the words behind it are not known. The rules are the ones in common use for WikiText with byte-level
tokenizers (Megatron-LM, lm-evaluation-harness).
"""

import re
import sys

RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" (@([-,.])@) ", r"\2"),  # 1 @,@ 000 -> 1,000
        (r" ([.,:;?!%]) ", r"\1 "),
        (r" ([.,:;?!%])$", r"\1"),
        (r"\( *([^()]*?) *\)", r"(\1)"),
        (r"\[ *([^\[\]]*?) *\]", r"[\1]"),
        (r"\{ *([^{}]*?) *\}", r"{\1}"),
        (r'" *([^"]*?) *"', r'"\1"'),
        (r"(?<= )' +([^']*?) +'(?= )", r"'\1'"),
        (r" ('(?:s|t|re|ve|m|ll|d)\b)", r"\1"),  # the game 's -> the game's
        (r"(s) (') ", r"\1\2 "),  # players ' turns -> players' turns
        (r" n't\b", "n't"),
        (r"(?<=\d) – (?=\d)", "–"),  # 1914 – 1918
        (r"(?<=[£$€]) (?=\d)", ""),
        (r" ° (?=[CFNSEW]\b)", " °"),
    )
]


def detokenize(line):
    text = line.strip()
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
        if replacement == r"\1 ":  # neighbours share a space, which one pass takes once
            text = pattern.sub(replacement, text)
    return text


def main(paths):
    if not paths or paths[0] in ("-h", "--help"):
        sys.exit(__doc__)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                print(detokenize(line))


if __name__ == "__main__":
    main(sys.argv[1:])
