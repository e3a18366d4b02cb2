"""Tables of simulated times in Markdown: usage: tables.py scaling.jsonl"""
import json
import sys


def size(n):
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n} {unit}"
        n //= 1024
    return f"{n} GiB"


def cell(results):
    """The chosen algorithm's time beside the model's; and the fastest, where that is another."""
    chosen = next((r for r in results if r["chosen"]), None)
    if not chosen:
        return ""
    best = min(results, key=lambda r: r["us"])
    text = f"{chosen['algorithm']} {chosen['us']:,.0f} ({chosen['model_us']:,.0f})"
    if best["us"] < 0.95 * chosen["us"]:
        text += f"; {best['algorithm']} {best['us']:,.0f}"
    return text


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        results = [json.loads(line) for line in file]
    for per_node in sorted({r["per_node"] for r in results}):
        print(f"## {per_node} rank{'s' if per_node > 1 else ''} a host\n")
        for kind in dict.fromkeys(r["kind"] for r in results):
            mine = [r for r in results if r["kind"] == kind and r["per_node"] == per_node]
            if not mine:
                continue
            sizes = sorted({r["bytes"] for r in mine})
            print(f"### {kind}\n\n| ranks | " + " | ".join(size(s) for s in sizes) + " |")
            print("|---" * (len(sizes) + 1) + "|")
            for ranks in sorted({r["ranks"] for r in mine}):
                cells = [cell([r for r in mine if r["ranks"] == ranks and r["bytes"] == s]) for s in sizes]
                print(f"| {ranks} | " + " | ".join(cells) + " |")
            print()


main()
