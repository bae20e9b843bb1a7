#!/usr/bin/env python3
"""Prints the quickstart's results as one table: table.py RESULTS.jsonl"""

import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
teacher = rows[0]["evaluation"]["perplexity_per_token"]
print(
    "| model | perplexity / token | to teacher | / word | tokens | seconds "
    "| tokens/s at 128 | at 1,024 | state bytes at 128 | at 1,024 |"
)
print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
for row in rows:
    score, short, long = row["evaluation"], row["short"], row["long"]
    change = 100 * (score["perplexity_per_token"] / teacher - 1)
    print(
        f"| {row['name']} | {score['perplexity_per_token']:.2f} | {change:+.1f} % "
        f"| {score['perplexity_per_word']:.2f} | {row['tokens']:,} | {row['seconds']} "
        f"| {short['tokens_per_second']:.0f} | {long['tokens_per_second']:.0f} "
        f"| {short['state_bytes']:,} | {long['state_bytes']:,} |"
    )
