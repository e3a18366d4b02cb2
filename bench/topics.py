#!/usr/bin/env python3
"""Samplers of train_topics by iterations and by seconds.

topics.py BIN FILE [CASE...]  learns from made corpora, one thread on one rank, and adds each case's measurements to FILE, an object a line: its case, and
                              after so many iterations and seconds (without those of measuring) the perplexity of held-out documents. No case: all.
topics.py --plot FILE FOLDER  writes topics.svg and prints what the runs came to as a table.

Needs nothing but Python."""
import json
import os
import subprocess
import sys
import tempfile

import staleness as plots

# Corpora: topics, documents, words of one, different words; and how many iterations.
CORPORA = {"short": (100, 12000, 100, 10000)}
ITERATIONS = {("short", "mh"): 90, ("short", "cycles"): 90, ("short", "gibbs"): 90}
NAMES = {"mh": "document and word at once", "cycles": "cycles (LightLDA)", "gibbs": "plain Gibbs sampling"}
COLOURS = {"mh": "#1b6ca8", "cycles": "#c78a00", "gibbs": "#7d3c98"}


def learn(tools, corpus, sampler):
    topics, documents, length, words = CORPORA[corpus]
    with tempfile.TemporaryDirectory() as work:
        data, log = os.path.join(work, "corpus"), os.path.join(work, "log")
        program = os.path.join(tools, "train_topics")
        subprocess.run([program, "--make", data, "--topics", str(topics), "--documents", str(documents), "--length", str(length), "--words", str(words)], check=True)
        subprocess.run([program, "--data", data, "--topics", str(topics), "--sampler", sampler, "--iterations", str(ITERATIONS[corpus, sampler]), "--every", "2",
                        "--quiet", "--log", log], check=True)
        seconds = 0
        with open(log, encoding="utf-8") as file:
            for line in map(json.loads, file):
                seconds += line["words"] / line["words_per_second"]
                if "perplexity" in line:
                    yield {"corpus": corpus, "sampler": sampler, "iteration": line["iteration"], "seconds": round(seconds, 4),
                           "perplexity": round(line["perplexity"], 2), "words_per_second": round(line["iteration"] * line["words"] / seconds)}


def lines_of(records, corpus, x):
    """From the second measurement on: before, all are near the number of words."""
    return [(sampler, False, [(r[x], r["perplexity"]) for r in records if r["corpus"] == corpus and r["sampler"] == sampler][1:]) for sampler in NAMES]


def plot(path, folder):
    with open(path, encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if "corpus" in record]
    plots.COLOURS, plots.name_of = COLOURS, NAMES.get
    plots.KEY_WIDTH = 190
    right = plots.LEFT + plots.WIDTH + plots.GAP
    plots.write(f"{folder}/topics.svg", [plots.Plot(plots.LEFT, "100 topics, documents of 100 words", "iterations", "perplexity", lines_of(records, "short", "iteration"), True),
                                         plots.Plot(right, "the same", "seconds", "perplexity", lines_of(records, "short", "seconds"), True)])
    print("| topics | documents | sampler | words/s | perplexity after iterations | seconds |\n|---|---|---|---|---|---|")
    for corpus, (topics, documents, length, _) in CORPORA.items():
        for sampler, name in NAMES.items():
            last = [r for r in records if r["corpus"] == corpus and r["sampler"] == sampler][-1:]
            for r in last:
                print(f'| {topics:,} | {documents:,} of {length} words | {name} | {r["words_per_second"] / 1e6:.2f} million | {r["perplexity"]:,.0f} after {r["iteration"]} | {r["seconds"]:.1f} |')


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--plot":
        plot(*sys.argv[2:])
    elif len(sys.argv) >= 3:
        wanted = [tuple(case.split()) for case in sys.argv[3:]] or list(ITERATIONS)
        for case in wanted:
            records = list(learn(sys.argv[1], *case))
            with open(sys.argv[2], "a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
