#!/usr/bin/env python3
"""Turns the unpacked packages libreoffice-help-{en-us,de,fr,zh-cn} into language-model and parallel
text.

Writes lm/{train,valid,test}.txt (English; a line per paragraph, an empty line between pages) and
parallel/{train,valid,test}.en-XX.{en,XX} for XX in de, fr, zh (line n of one belongs to line n of
the other). A page goes to one part as a whole, by a hash of its name: 90 / 5 / 5 per cent. No text
of one part occurs in another one.
"""

import argparse
import collections
import hashlib
import html
import pathlib
import re
import sys

LANGUAGES = {"de": "de", "fr": "fr", "zh": "zh-CN"}  # our suffix: LibreOffice's folder
PARTS = ("train", "valid", "test")
PARAGRAPH = re.compile(
    r'<(p|h[1-6]|td|th)\b[^>]*\bid="((?:par|hd|bm|tit)_id[^"]+)"[^>]*>(.*?)</\1>', re.DOTALL
)
TAG = re.compile(r"<[^>]+>")


def part_of(page):
    """The part that the page goes to; depends on its name alone, so that every language agrees."""
    percent = int.from_bytes(hashlib.sha256(page.encode()).digest()[:4], "big") % 100
    return "train" if percent < 90 else "valid" if percent < 95 else "test"


def read_pages(folder):
    """{page: {(paragraph id, its occurrence): text}} of one language, pages sorted by name."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        occurrences = collections.Counter()
        paragraphs = {}
        for match in PARAGRAPH.finditer(path.read_text(encoding="utf-8")):
            occurrences[match.group(2)] += 1
            text = " ".join(html.unescape(TAG.sub("", match.group(3))).split())
            if text:
                paragraphs[match.group(2), occurrences[match.group(2)]] = text
        if paragraphs:
            pages[path.relative_to(folder).as_posix()] = paragraphs
    return pages


def write_monolingual(pages, folder):
    """Every paragraph once, where it occurs first. Prints the counts."""
    folder.mkdir(parents=True)
    documents = {part: [] for part in PARTS}
    seen = set()
    for page, paragraphs in pages.items():
        lines = [text for text in dict.fromkeys(paragraphs.values()) if text not in seen]
        seen.update(lines)
        if lines:
            documents[part_of(page)].append("\n".join(lines) + "\n")
    for part in PARTS:
        text = "\n".join(documents[part])
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")
        print(f"lm/{part}.txt: {len(text.split()):,} words, {len(documents[part]):,} pages")


def aligned_pairs(source, target):
    """{part: [(source text, target text)]}, each pair once.

    A text belongs to the part where it occurs first: a pair with a text of another part is left
    out, and so is a pair that was not translated.
    """
    pairs = {part: {} for part in PARTS}
    owners = ({}, {})
    for page, paragraphs in source.items():
        part = part_of(page)
        for key, text in paragraphs.items():
            owned = owners[0].setdefault(text, part) == part
            translation = target.get(page, {}).get(key)
            if not owned or not translation or translation == text:
                continue
            if owners[1].setdefault(translation, part) == part:
                pairs[part][text, translation] = None
    return {part: list(pairs[part]) for part in PARTS}


def write_parallel(pairs, suffix, folder):
    """Two files per part; prints the counts."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        for index, language in enumerate(("en", suffix)):
            lines = "".join(pair[index] + "\n" for pair in pairs[part])
            (folder / f"{part}.en-{suffix}.{language}").write_text(lines, encoding="utf-8")
        words = sum(len(text.split()) for text, _ in pairs[part])
        print(f"parallel/{part}.en-{suffix}: {len(pairs[part]):,} pairs, {words:,} English words")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root", type=pathlib.Path, help="folder into which the packages were unpacked (dpkg-deb -x)"
    )
    parser.add_argument(
        "folder", type=pathlib.Path, help="where to write; lm and parallel must not be there yet"
    )
    arguments = parser.parse_args()
    help_root = arguments.root / "usr/share/libreoffice/help"
    for language in ("en-US", *LANGUAGES.values()):
        if not (help_root / language).is_dir():
            sys.exit(
                f"libreoffice_help: {help_root / language} is missing; unpack its package there"
            )
    english = read_pages(help_root / "en-US")
    write_monolingual(english, arguments.folder / "lm")
    for suffix, language in LANGUAGES.items():
        pairs = aligned_pairs(english, read_pages(help_root / language))
        write_parallel(pairs, suffix, arguments.folder / "parallel")


if __name__ == "__main__":
    main()
