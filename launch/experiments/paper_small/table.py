"""Prints results.jsonl of launch/experiments/paper_small.sh as a Markdown table: every model beside
its teacher and the finetuned teacher.
"""

import json
import sys

rows = {
    row["name"]: row for row in map(json.loads, open(sys.argv[1], encoding="utf-8"))
}  # the last of a name counts


def change(row, base):
    """The perplexity of `row` over that of `base` in per cent, empty without the base."""
    if base not in rows:
        return ""
    ratio = row["test"]["perplexity_per_token"] / rows[base]["test"]["perplexity_per_token"]
    return f"{100 * (ratio - 1):+.1f} %"


print(
    "| model | tokens | train s | valid ppl | test ppl per token | to teacher "
    "| to softmax with the same tokens | test ppl per word |"
)
print("|---|--:|--:|--:|--:|--:|--:|--:|")
for row in rows.values():
    print(
        f"| {row['name']} | {row['tokens'] / 1e6:.1f}M | {row['seconds']:.0f} "
        f"| {row['valid']['perplexity_per_token']:.2f} | {row['test']['perplexity_per_token']:.2f} "
        f"| {change(row, 'teacher')} | {change(row, 'softmax')} "
        f"| {row['test']['perplexity_per_word']:.2f} |"
    )
