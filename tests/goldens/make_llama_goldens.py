#!/usr/bin/env python3
"""Writes tokenizers/tiny_llama: a sentencepiece BPE model as Llama 2 has it, its tokenizer.json,
and what transformers makes of both under several configurations. Needs transformers 5.24,
tokenizers 0.23, sentencepiece and protobuf. Usage: make_llama_goldens.py"""

import io
import json
import os
import random
import tempfile

import sentencepiece
from transformers import AutoTokenizer

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizers", "tiny_llama")
WORDS = (
    "the small network forgets nothing and the other one forgets all of it café naïve 12 don't foo"
).split()
BITS = [
    "the",
    "The",
    "small",
    " ",
    "  ",
    "\n",
    "\t",
    "<unk>",
    "<s>",
    "</s>",
    "<extra>",
    "foo",
    "lo",
    "café",
    "e\u0301",
    "中文",
    "😀",
    "▁",
    "1234",
    "don't",
    "!",
    "\0",
    "\u00a0",
    "<0x41>",
    "[PAD]",
    " leading",
    "x ",
    "xlo",
]
CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "bos_token": "<s>",
    "unk_token": "<unk>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
}


def flags(content, **changed):
    return {
        "content": content,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
        "special": False,
        **changed,
    }


def listed(first, *extra):
    tokens = ["<unk>", "<s>", "</s>"]
    return {
        "added_tokens_decoder": {
            **{str(i): flags(t, special=True) for i, t in enumerate(tokens)},
            **{str(first + i): token for i, token in enumerate(extra)},
        }
    }


def train():
    random.seed(1)
    lines = [" ".join(random.choice(WORDS) for _ in range(12)) for _ in range(300)]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=9,
    )
    return buffer.getvalue()


def load(model, files):
    with tempfile.TemporaryDirectory() as folder:
        if model is not None:
            with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
                file.write(model)
        for name, content in files.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with tempfile.TemporaryDirectory() as saved:
            tokenizer.save_pretrained(saved)
            with open(os.path.join(saved, "tokenizer.json"), encoding="utf-8") as file:
                return tokenizer, json.load(file)


def case(name, model, files, texts, uses_model=True):
    tokenizer, _ = load(model if uses_model else None, files)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    begin = tokenizer("x").input_ids[
        : len(tokenizer("x").input_ids) - len(tokenizer("x", add_special_tokens=False).input_ids)
    ]
    some = [[random.randrange(len(tokenizer) + 10) for _ in range(8)] for _ in range(20)]
    kept = {file: content for file, content in files.items() if file != "tokenizer.json"}
    return {
        "name": name,
        "files": kept,
        "model": uses_model,
        "json": "tokenizer.json" in files,
        "normalizer": files.get("tokenizer.json", {}).get("normalizer"),
        "ids": ids,
        "begin": begin,
        "end": tokenizer.eos_token_id,
        "size": len(tokenizer),
        "decoded": some,
        "decoded_text": [tokenizer.decode(x, skip_special_tokens=False) for x in some],
    }


def main():
    model = train()
    random.seed(2)
    texts = ["", " ", " x", "a <unk> b", "<s> x", "  <s>  x"] + [
        "".join(random.choice(BITS) + random.choice(["", " "]) for _ in range(random.randint(1, 9)))
        for _ in range(30)
    ]
    tokenizer, content = load(model, {"tokenizer_config.json": CONFIG})
    size = len(tokenizer)
    legacy = {
        **content,
        "pre_tokenizer": None,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    }
    extra = flags("<extra>", lstrip=True, rstrip=True)
    word = flags("lo", normalized=True, single_word=True)
    other = {**CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"}
    model_only = {
        name: {"tokenizer_config.json": config}
        for name, config in {
            "model": CONFIG,
            "model, legacy": {**CONFIG, "legacy": True},
            "model, no prefix": {**CONFIG, "add_prefix_space": False},
            "model, add_bos_token not said": {
                k: v for k, v in CONFIG.items() if k != "add_bos_token"
            },
            "model, tokens with flags": {**CONFIG, **listed(size, extra, word)},
            "model, another end": {**CONFIG, **listed(size, extra), "eos_token": "<extra>"},
            "model, another class, legacy": {**other, "legacy": True},
            "model, another class": {**other, "legacy": False},
        }.items()
    }
    model_only["model, added_tokens.json"] = {
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
        "added_tokens.json": {"[PAD]": size, "<extra>": size + 1},
        "special_tokens_map.json": {
            "pad_token": "[PAD]",
            "eos_token": flags("<extra>"),
            "bos_token": "<s>",
        },
    }
    cases = [case(name, model, files, texts) for name, files in model_only.items()]
    cases.append(
        case(
            "both files", model, {"tokenizer.json": content, "tokenizer_config.json": CONFIG}, texts
        )
    )
    cases.append(
        case(
            "both files, as Llama 2 has them",
            model,
            {"tokenizer.json": legacy, "tokenizer_config.json": {**CONFIG, **listed(size)}},
            texts,
        )
    )
    cases.append(
        case(
            "json, Prepend",
            model,
            {"tokenizer.json": legacy, "tokenizer_config.json": other},
            texts,
            False,
        )
    )
    cases.append(case("json alone", model, {"tokenizer.json": legacy}, texts, False))
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, "tokenizer.model"), "wb") as file:
        file.write(model)
    for name, value in (
        ("tokenizer.json", content),
        ("expected.json", {"texts": texts, "cases": cases}),
    ):
        with open(os.path.join(FOLDER, name), "w", encoding="utf-8") as file:
            file.write(
                json.dumps(value, ensure_ascii=name == "expected.json", separators=(",", ":"))
                + "\n"
            )


if __name__ == "__main__":
    main()
