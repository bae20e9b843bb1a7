"""Prints results.jsonl of launch/experiments/smollm2.sh as a Markdown table."""

import json
import sys

print(
    "| model | tokens | train s | valid ppl | test ppl per token | test ppl per word |\n"
    "|---|--:|--:|--:|--:|--:|"
)
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    print(
        f"| {row['name']} | {row['tokens'] / 1e6:.1f}M | {row['seconds']:.0f} "
        f"| {row['valid']['perplexity_per_token']:.2f} | {row['test']['perplexity_per_token']:.2f} "
        f"| {row['test']['perplexity_per_word']:.2f} |"
    )
