#!/usr/bin/env python3
"""Expected token ids for tests/data_tokenizer_test.cpp, computed with Hugging Face tokenizers.

Writes into tests/goldens/tokenizers:
  hostile_strings.json  strings that break tokenizers, base64 (some are no UTF-8)
  tiny_*/               tokenizers trained here on text of our own, with every hostile string's ids
  gpt2_ids.json         ids with GPT-2's vocabulary (not copied: GPT2 names the folder), and for
  smollm2_ids.json      WikiText-2's test file their number and hash; likewise SmolLM2's, with
                        both pre-tokenizers

    pip install tokenizers==0.23.3 xxhash
    make_tokenizer_goldens.py OUT [--gpt2 FOLDER] [--smollm2 tokenizer.json] [--wikitext2 test.txt]
"""

import argparse
import base64
import json
import os
import random
import sys

import xxhash
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {
    "byte_level": BYTE_LEVEL,
    "digits_byte_level": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]},
}


def hostile_strings():
    texts = [
        "",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\n\n\n ",
        " \n \n ",
        "\t\t\tx",
        "a\t b",
        "x ",
        "x  ",
        " x",
        "  x",
        "Hello world",
        "Hello, world!",
        "hello  world   again    ",
        "The quick brown fox jumps over the lazy dog.",
        "it's I'll we've you're I'd they'm don't",
        "IT'S I'LL WE'VE YOU'RE I'D DON'T",
        "'s 't 're 've 'm 'll 'd",
        "'S'T'RE'VE'M'LL'D",
        "''s ''' 'll's s' 'sx 'lll 're're",
        "it\u2019s I\u2019ll don\u2019t \u2018quoted\u2019 \u201cdouble\u201d \u02bcn",
        "'\u017f 'K\u212a",
        "0",
        "1",
        "12",
        "123",
        "1234567890",
        "3.14159",
        "1,000,000",
        "1 2 3",
        " 1  22   333",
        "a1b2c3",
        "v1.2.3-rc4",
        "0x1F 1e-10 50% #1 $5",
        "\u0663\u0664 \u096a\u096b \u09ea \uff11\uff12",
        "\u00b2\u00b3\u00b9 \u00bd\u00bc \u2460\u2461 \u2167 \u3007\u3021 \u5341\u4e8c",
        "x\u00b2+y\u00b3=z\u2074",
        "\u216b\u2188 \u0bf0 \u0f33 \u1369 \U00010107 \U0001d7d8 \U0001f100",
        "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u212bngstro\u0308m",
        "\u0301",
        "\u0301\u0302 a\u0301\u0302\u0303b",
        "Z\u0351\u036b\u0343\u036aa\u0334\u0323lg\u0321o",
        "\u1100\u1161\u11a8 \uac00\ub098\ub2e4 \ud55c\uad6d\uc5b4",
        "\u4f60\u597d\uff0c\u4e16\u754c\uff01",
        "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u30ab\u30bf\u30ab\u30ca\u3002",
        "\u4e2d\u6587abc123\u4e2d\u6587",
        "\U00020000\U0002a6d6 \U0002b740 \U000300ff",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
        "\u202bRTL\u202c \u200fmark\u200e",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
        "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
        "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
        "\U0001f600",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
        "\U0001f44d\U0001f3fd\U0001f44d\U0001f3ff",
        "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
        "\u2764\ufe0f\u200d\U0001f525 1\ufe0f\u20e3",
        "a\U0001f600b \U0001f600 1\U0001f6002",
        "\x00",
        "a\x00b",
        "\x00\x00\x00 \x00",
        "\x01\x02\x03\x1b[31m\x7f",
        "\x1c\x1d\x1e\x1f",
        "a\x0bb\x0cc",
        "\x80\x81\x9f",
        "\x04\x06\x13\x14\x16\x1d",
        "a\u0085b",
        "a\u00a0b",
        "a\u00a0 b \u00a0c",
        "a\u1680b",
        "a\u180eb",
        "a\u200bb",
        "a\u2028b\u2029c",
        "a\u202fb\u205fc",
        "a\u3000b",
        " \u3000 x",
        "\ufeffBOM",
        "a\ufeffb",
        "soft\u00adhyphen",
        "a\u2060b",
        "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a.",
        "\ue000\uf8ff",
        "\U000f0000\U0010fffd",
        "\ufdd0\ufffe\uffff",
        "\U0010fffe\U0010ffff x\U0010fffe7",
        "\ufffd",
        "\ufffd\ufffdx",
        "\u0378\u0379 \u0530",
        "\U0003ffff \U000e0001",
        "\u0558\u058b\u088f",
        "\u1c89\u1c8a \ua7cb\ua7dc",
        "\U000105c0\U000105f3 \U00010d40\U00010d49",
        "\U0002ebf0\U00031350 \U000323b0",
        "\U00011de0\U00011de9 \U00016ff4 \U0001ccf0",
        "\u01c5 \u02b0 \u00aa\u00ba \u3005",
        "\u2160\u2161 \u2183 \u2184",
        "_snake_case __init__ -kebab-case- CamelCase",
        "http://example.org/a?b=c&d=%20#e",
        "user@example.org",
        "C:\\dir\\file.txt",
        "/usr/lib/x86_64",
        "def f(x):\n    return x ** 2\n\n\nclass A:\n\tpass\n",
        '<html><body class="a">&amp;</body></html>',
        '{"k": [1, 2, {"x": null}]}',
        "#include <vector>\nint main() { return 0; }",
        "a" * 1000,
        "ab" * 700,
        "\u00e9" * 300,
        " " * 1000,
        "\t" * 257,
        "\n" * 1000,
        "!" * 500,
        "1" * 333,
        "-" * 80,
        "=" * 79 + "\n",
        " \n" * 100,
        "\r\n" * 50,
        "\u3000" * 40,
        "\U0001f600" * 50,
        "antidisestablishmentarianism" * 12,
        "x" + " " * 50 + "y",
        "x" + "\n" * 5 + " y",
        "end with spaces" + " " * 17,
        "a \n b\n  c\n\td ",
        "...",
        "?!?!",
        "--- *** ___",
        "(a)[b]{c}<d>",
        "\u2026\u2014\u2013\u2212",
        "\u20ac5 \u00a35 \u00a55 \u20bf",
        "\u2200x\u2208\u211d: \u222bf\u2260\u221e",
        "<|endoftext|>",
        "a<|endoftext|>b",
        " <|endoftext|> ",
        "<|endoftext|><|endoftext|>",
        "<|endoftext|",
        "<|ENDOFTEXT|>",
        "<<|endoftext|>>",
        "\n<|endoftext|>\n",
        "<|im_start|>user\nHi<|im_end|>\n",
        "  <|left|>  <|right|>  x",
        "a \u00a0\u3000<|left|>\tb",
        "<|left|><|right|> \n<|left|>",
        "<|right|>   <|right|> \u2003z",
        "<|pair|>",
        "<|pair|>s",
        "x<|pair|>sy",
        "<|later|>",
        "a <|later|><|endoftext|> <|later|>s",
        "\u00e9\u00e8 <caf\u00e9>",
        "<|endof\u200btext|>",
        "<|endoftext|>'s 12 <|endoftext|>12",
        "\u0120a \u010a",
        "\u2581a",
        " = Title = \n \n The @-@ and @,@ <unk> .",
        "A\u030a\u0327 \u1e69 s\u0323\u0307",
        "\ufb01\ufb02 \uff21\uff22\uff23 \u24b6",
        "I\u0307stanbul \u0130\u0131 \u00df \u1e9e",
        "\u0660x\u06f0y\u0966z",
        "1\u0301 2\u20e3",
        "\u00bd cup 1\u00bd",
        "10\u2075 H\u2082O",
        "\U0001d400\U0001d401 \U0001d7ce1",
        "\U00012400 \U00010140 \u1372",
        "mixed \u0441yrillic \u03b1nd latin",
        "\u0e51\u0e52 \u17e1",
        "tab\there\tthere",
    ]
    strings = [text.encode() for text in texts]
    strings += [
        b"\xff",
        b"\xc0\x80",
        b"a\x80b",
        b"\xc3",
        b"\xc3(",
        b"\xe2\x82",
        b"\xe2\x82x",
        b"\xe2\x28\xa1",
        b"\xf0\x9f\x98",
        b"\xf0\x9f\x98 \xf0\x9f",
        b"\xf0\x28\x8c\xbc",
        b"\xed\xa0\x80",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xed\xbf\xbf\xef\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfe\xff",
        b"\xe0\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xc1\xbf\xc2\x80",
        b"good \xe9t\xe9 latin-1",
        b"\x80\x81\x82\x83",
        b"\xf1\x80\x80\x80 \xf2\x80\x80\x80",
        b"<|endoftext|>\xff<|endoftext|>",
        b"x\xc3\xa9\xc3",
        b"\xef\xbf",
        b"\x00\xff\x00",
    ]
    generator = random.Random(20240229)
    alphabet = (
        "aZ09 \t\n'.,_-<|>\x00\u00e9\u0301\u00a0\u2019\u3000\u4e2d\u0663\u00bd\u05d0\U0001f600"
        "\u200d\u180e\u1c89"
    )
    for _ in range(60):
        strings.append(
            "".join(generator.choice(alphabet) for _ in range(generator.randint(3, 60))).encode()
        )
    for _ in range(30):
        strings.append(bytes(generator.randrange(256) for _ in range(generator.randint(4, 40))))
    for _ in range(30):
        points = (
            generator.choice(
                [
                    generator.randrange(0x250),
                    generator.randrange(0xD800),
                    generator.randrange(0xE000, 0x110000),
                ]
            )
            for _ in range(24)
        )
        strings.append("".join(map(chr, points)).encode())
    return strings


def training_lines():
    """Text of our own: sentences with words, numbers, contractions, accents and code."""
    generator = random.Random(7)
    subjects = (
        "the small network,a teacher,our student,every token,the decoder,she,they,nobody,"
        "the committee,my neighbour"
    ).split(",")
    verbs = (
        "reads,forgets,doesn't see,converts,has measured,won't repeat,remembered,trains on,"
        "isn't using,couldn't find"
    ).split(",")
    objects = (
        "the state,12 layers,a feature map,caf\u00e9 menus,3.5 million words,na\u00efve guesses,"
        "\u00fcber long lines,what it's given,1024 steps,the answer"
    ).split(",")
    endings = [
        ".",
        "!",
        "?",
        "...",
        "; and then again.",
        " (as before).",
        ", in 1998.",
        " - they're sure.",
        ' "quoted".',
        "\n",
    ]
    for _ in range(600):
        yield " ".join(
            generator.choice(part) for part in (subjects, verbs, objects)
        ) + generator.choice(endings)
    for name in ("alpha", "beta", "gamma"):
        yield f"def {name}(x, y):\n    return x[{name}] + 2 * y  # {name.upper()}\n"


def train(pre_tokenizer, num_merges, vocab_tokens, ignore_merges=False):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        training_lines(),
        trainers.BpeTrainer(
            vocab_size=256 + len(vocab_tokens) + num_merges,
            special_tokens=vocab_tokens,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return tokenizer


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def hash_ids(ids):
    return xxhash.xxh3_128_hexdigest(b"".join(i.to_bytes(4, "little", signed=True) for i in ids))


def every_code_point_hash(tokenizer):
    """Hash of the ids of every code point of the planes in use between neighbours of each class;
    the C++ test builds the same texts.
    """
    digest = xxhash.xxh3_128()
    for start in [*range(0, 0x40000, 0x1000), 0xE0000, 0x10F000]:
        points = [chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c <= 0xDFFF]
        if points:
            ids = encode(tokenizer, "".join(f"a{c}a1{c}1!{c}! {c} " for c in points))
            digest.update(b"".join(i.to_bytes(4, "little", signed=True) for i in ids))
    return digest.hexdigest()


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, separators=(",", ":"))
        file.write("\n")


def expected(tokenizer, strings):
    return [encode(tokenizer, string.decode("utf-8", errors="replace")) for string in strings]


def add_boundary_merges(model):
    """Merges of ASCII neighbours with the first and last bytes of characters: without them no id
    would show whether the pre-tokenizer cuts beside a character that the training text lacks."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)}
    pairs = [(symbol[ord(n)], symbol[lead]) for n in "a1! " for lead in range(0xC2, 0xF5)]
    pairs += [(symbol[last], symbol[ord(n)]) for n in "a1! " for last in range(0x80, 0xC0)]
    for left, right in pairs:
        if left + right not in model["vocab"]:
            model["vocab"][left + right] = len(model["vocab"])
            model["merges"].append([left, right])


def make_tiny(out, name, tokenizer, strings, string_merges=False):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    data = json.loads(tokenizer.to_str())
    num_before = len(data["model"]["vocab"])
    add_boundary_merges(data["model"])
    for token in data["added_tokens"]:  # those outside the vocabulary come after it
        token["id"] += len(data["model"]["vocab"]) - num_before if token["id"] >= num_before else 0
    if string_merges:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    write_json(os.path.join(folder, "tokenizer.json"), data)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    write_json(
        os.path.join(folder, "expected.json"),
        {"ids": expected(tokenizer, strings), "every_code_point": every_code_point_hash(tokenizer)},
    )
    return data


def make_all_tiny(out, strings):
    end = AddedToken("<|endoftext|>", normalized=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    data = make_tiny(
        out, "tiny_byte_level", train(byte_level, 600, [end]), strings, string_merges=True
    )
    write_json(os.path.join(out, "tiny_byte_level", "vocab.json"), data["model"]["vocab"])
    with open(os.path.join(out, "tiny_byte_level", "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(merge + "\n" for merge in data["model"]["merges"]))
    digits = train(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        300,
        [end],
    )
    digits.add_special_tokens(
        [
            AddedToken("<|left|>", lstrip=True, normalized=False),
            AddedToken("<|right|>", rstrip=True, normalized=False),
            AddedToken("<|pair|>", normalized=False),
            AddedToken("<|pair|>s", normalized=False),
        ]
    )
    digits.add_tokens(
        [
            AddedToken("<|later|>", normalized=True),
            AddedToken("<|later|><|end", normalized=True),
            AddedToken("<caf\u00e9>", normalized=True),
        ]
    )
    make_tiny(out, "tiny_digits", digits, strings)
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole = train(split, 200, [end], ignore_merges=True)
    data = json.loads(whole.to_str())
    data["pre_tokenizer"]["pretokenizers"].insert(1, {"type": "Digits", "individual_digits": False})
    # A token that no merge makes: found only because merges are ignored for whole pieces.
    data["model"]["vocab"]["\u0120quick"] = len(data["model"]["vocab"])
    make_tiny(out, "tiny_split", Tokenizer.from_str(json.dumps(data)), strings)


def make_real(out, name, tokenizers, strings, wikitext):
    results = {}
    for key, tokenizer in tokenizers.items():
        results[key] = {"ids": expected(tokenizer, strings)}
        if wikitext:
            with open(wikitext, encoding="utf-8", newline="") as file:
                ids = encode(tokenizer, file.read())
            results[key]["wikitext2_test"] = {"count": len(ids), "hash": hash_ids(ids)}
    write_json(os.path.join(out, name + "_ids.json"), results)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    for option in ("--gpt2", "--smollm2", "--wikitext2"):
        parser.add_argument(option)
    arguments = parser.parse_args()
    strings = hostile_strings()
    os.makedirs(arguments.out, exist_ok=True)
    write_json(
        os.path.join(arguments.out, "hostile_strings.json"),
        [base64.b64encode(s).decode() for s in strings],
    )
    make_all_tiny(arguments.out, strings)
    if arguments.gpt2:
        tokenizer = Tokenizer(
            models.BPE.from_file(
                os.path.join(arguments.gpt2, "encoder.json"),
                os.path.join(arguments.gpt2, "vocab.bpe"),
            )
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens(["<|endoftext|>"])
        make_real(arguments.out, "gpt2", {"byte_level": tokenizer}, strings, arguments.wikitext2)
    if arguments.smollm2:
        with open(arguments.smollm2, encoding="utf-8") as file:
            data = json.load(file)
        variants = {
            key: Tokenizer.from_str(json.dumps({**data, "pre_tokenizer": value}))
            for key, value in PRE_TOKENIZERS.items()
        }
        make_real(arguments.out, "smollm2", variants, strings, arguments.wikitext2)
    print(len(strings), "strings", file=sys.stderr)


if __name__ == "__main__":
    main()
