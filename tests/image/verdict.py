"""Prints a verdict for people; exit code 1 if anything in it failed.

usage: verdict.py VERDICT.json
"""

import json
import sys


def main():
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            verdict = json.load(file)
    except FileNotFoundError:
        sys.exit("image-test: the image gave no verdict: see console.txt beside it")
    for item in verdict["boot"]:
        print(f"{'ok  ' if item['pass'] else 'FAIL'}  {item['check']}")
        if not item["pass"]:
            print(f"      {item['detail']}")
    if verdict["matrix"]:
        print(f"\n{'':6}{'mode':9}{'fault':26}{'expected':10}{'got':44}{'back':>7}")
    for row in verdict["matrix"]:
        got = ", ".join(f"{count} {what}" for what, count in sorted(row["results"].items()))
        back = "-" if row["back_s"] is None else f"{row['back_s']:.2f} s"
        print(f"{'ok  ' if row['pass'] else 'FAIL'}  {row['mode']:9}{row['fault']:26}{row['expected']:10}{got:44}{back:>7}")
        for problem in row["problems"]:
            print(f"      {problem}")
    for what in verdict.get("skipped", []):
        print(f"SKIP  {what}")
    if "error" in verdict:
        print(f"FAIL  {verdict['error']}")
    sys.exit(0 if verdict["pass"] else 1)


main()
