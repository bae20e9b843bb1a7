#!/usr/bin/env python3
"""Counts of the code's layout, as docs/results/house.md has them; run in the root of a checkout.

    tests/code_figures.py            # one line a figure
    tests/code_figures.py --names    # and what each counts

Functions are found by the layout that clang-format gives: a definition begins at the margin (or one
step in, inside a class) and ends with a brace below its beginning.
"""

import argparse
import pathlib
import re
import statistics
import subprocess

ROOMS = ("base", "data", "dist", "model", "launch")
HEADERS, SOURCES = (".h", ".cuh"), (".cpp", ".cu", ".inl")
NOT_FUNCTIONS = re.compile(
    r"^(namespace|struct|class|enum|union|extern|typedef|"
    r"if|for|while|switch|else|do|return|case|#)\b"
)


def functions(lines):
    """(name, number of lines) of each function that is defined in a file."""
    found, start = [], None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if indent in (0, 2) and text.endswith("{") and start is None:
            first = number
            while (
                first > 0
                and lines[first - 1].strip()
                and not re.search(
                    r"[;{}]$|^\s*(//|#|public:|private:|protected:|template)", lines[first - 1]
                )
            ):
                first -= 1
            head = " ".join(part.strip() for part in lines[first : number + 1])
            head_indent = len(lines[first]) - len(lines[first].lstrip())
            if "(" in head and not NOT_FUNCTIONS.match(head) and head_indent in (0, 2):
                name = re.search(r"([\w:~]+|operator\S+)\s*\(", head)
                start = (name.group(1) if name else head, first, head_indent)
        elif start and indent == start[2] and text.startswith("}"):
            found.append((start[0], number - start[1] + 1))
            start = None
    return found


def comment_share(files):
    total = comments = 0
    for lines in files:
        for line in lines:
            if text := line.strip():
                total += 1
                comments += text.startswith(("//", "/*", "*"))
    return 100 * comments / max(total, 1)


def figures():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    files = {}
    for name in listed.split():
        path = pathlib.Path(name)
        if (
            path.suffix in (*HEADERS, *SOURCES, ".py", ".sh", ".cmake")
            or path.name == "CMakeLists.txt"
        ):
            files[path] = path.read_text().split("\n")
    code = {p: l for p, l in files.items() if p.suffix in (*HEADERS, *SOURCES)}
    product = {p: l for p, l in code.items() if p.parts[0] in ROOMS}
    kernels = {
        p: l for p, l in product.items() if "kernels" in p.parts or p.suffix in (".cu", ".cuh")
    }
    host = {p: l for p, l in product.items() if p not in kernels}
    lengths = {
        kind: [(f"{p}: {n}", size) for p, l in group.items() for n, size in functions(l)]
        for kind, group in (("host", host), ("kernels", kernels))
    }
    yield "files over 450 lines (C++, CUDA, Python, shell)", [
        f"{p}: {len(l)}" for p, l in files.items() if len(l) > 450
    ]
    yield "functions over 60 lines outside kernels", [
        f"{n}: {s}" for n, s in lengths["host"] if s > 60
    ]
    yield "functions over 120 lines in kernels", [
        f"{n}: {s}" for n, s in lengths["kernels"] if s > 120
    ]
    yield "lines over 100 columns (all of the above)", [
        f"{p}:{i + 1}" for p, l in files.items() for i, line in enumerate(l) if len(line) > 100
    ]
    yield "is_cuda in model, outside ops and kernels", [
        f"{p}:{i + 1}"
        for p, l in product.items()
        if p.parts[0] == "model" and not {"ops", "kernels"} & set(p.parts)
        for i, line in enumerate(l)
        if "is_cuda" in line
    ]
    yield "tests of the family outside model/families", [
        f"{p}:{i + 1}"
        for p, l in product.items()
        if "families" not in p.parts
        for i, line in enumerate(l)
        if re.search(r"is_gpt2|is_llama|Family::\w", line)
    ]
    yield "files of launch that name DecoderLM", [
        str(p) for p, l in product.items() if p.parts[0] == "launch" and "DecoderLM" in "\n".join(l)
    ]
    units = {}
    for p in product:
        units.setdefault(p.parent, set()).add(p.stem)
    yield "folders of more than 16 units", [
        f"{folder}: {len(names)}" for folder, names in units.items() if len(names) > 16
    ]
    yield "lines of the median header", statistics.median(
        len(l) for p, l in product.items() if p.suffix == ".h"
    )
    yield "comments, % of the lines of .cpp files", round(
        comment_share(l for p, l in product.items() if p.suffix == ".cpp"), 1
    )
    yield "comments, % of the lines of CUDA files", round(
        comment_share(l for p, l in product.items() if p.suffix in (".cu", ".cuh")), 1
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", action="store_true", help="list what was counted")
    names = parser.parse_args().names
    for what, found in figures():
        listed = found if isinstance(found, list) else []
        print(f"{what}: {len(found) if isinstance(found, list) else found}")
        if names:
            print("".join(f"    {name}\n" for name in listed), end="")


if __name__ == "__main__":
    main()
