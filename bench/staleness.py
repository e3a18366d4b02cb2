#!/usr/bin/env python3
"""Plots what `weft-bench staleness --json FILE` has recorded: staleness.py FILE FOLDER writes consistency-convex.svg and consistency-deep.svg and prints
what the runs came to as a table.

Each has a plot by clocks, with workers of one pace, and one by seconds, with a slow worker. Convex: the mean regret, beside the bound of Ho et al.
2013, dashed; both scales are logarithms. Needs nothing but Python."""
import json
import math
import sys

COLOURS = {0: "#1b6ca8", 1: "#2a9d5c", 4: "#c78a00", 16: "#c0392b", -1: "#7d3c98"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 270, 62, 34, 84
KEY_WIDTH = 130


def name_of(staleness):
    return "asynchronous" if staleness < 0 else f"staleness {staleness}"


def ticks_of(low, high, log):
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
        return [m * 10.0**e for e in decades for m in steps if low * (1 - 1e-9) <= m * 10.0**e <= high * (1 + 1e-9)]
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next((m for m in (5, 2) if (high - low) / (step * m) >= 3), 1)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Plot:
    def __init__(self, left, title, x_title, y_title, lines, log):
        """lines: (staleness, dashed, [(x, y)])"""
        self.left, self.log = left, log
        xs = [x for _, _, points in lines for x, _ in points]
        ys = [y for _, _, points in lines for _, y in points]
        self.x_range, self.y_range = (min(xs), max(xs)), (min(ys), max(ys))
        self.parts = [f'<text x="{left + WIDTH / 2}" y="{TOP - 14}" text-anchor="middle" font-size="13">{title}</text>',
                      f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{x_title}</text>',
                      f'<text transform="translate({left - 46},{TOP + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{y_title}</text>',
                      f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
        self.axes()
        for staleness, dashed, points in lines:
            path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
            dash = ' stroke-dasharray="5 4" opacity="0.7"' if dashed else ""
            self.parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[staleness]}" stroke-width="1.6"{dash}/>')

    def share(self, value, ends):
        low, high = (math.log10(end) for end in ends) if self.log else ends
        return ((math.log10(value) if self.log else value) - low) / (high - low or 1)

    def x(self, value):
        return self.left + WIDTH * self.share(value, self.x_range)

    def y(self, value):
        return TOP + HEIGHT * (1 - self.share(value, self.y_range))

    def axes(self):
        for tick in ticks_of(*self.x_range, self.log):
            self.parts.append(f'<line x1="{self.x(tick):.1f}" x2="{self.x(tick):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#ddd"/>'
                              f'<text x="{self.x(tick):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{tick:g}</text>')
        for tick in ticks_of(*self.y_range, self.log):
            self.parts.append(f'<line x1="{self.left}" x2="{self.left + WIDTH}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}" stroke="#ddd"/>'
                              f'<text x="{self.left - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')


def lines_of(records, problem, slow, x, y, skip=0):
    lines = []
    for staleness in COLOURS:
        rows = [r for r in records if r["problem"] == problem and (r["slow_ms"] > 0) == slow and r["staleness"] == staleness]
        points = [(r[x], r[y]) for r in rows if y in r and r["clock"] > skip and r[y] > 0]
        if points:
            lines.append((staleness, y == "bound", points))
    return lines


def write(path, plots):
    width, height = len(plots) * (WIDTH + GAP) + 10, TOP + HEIGHT + 72
    key = "".join(f'<line x1="{LEFT + KEY_WIDTH * i}" x2="{LEFT + KEY_WIDTH * i + 22}" y1="{height - 10}" y2="{height - 10}" stroke="{colour}" stroke-width="2"/>'
                  f'<text x="{LEFT + KEY_WIDTH * i + 28}" y="{height - 6}">{name_of(staleness)}</text>' for i, (staleness, colour) in enumerate(COLOURS.items()))
    with open(path, "w", encoding="utf-8") as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">\n'
                  f'<rect width="{width}" height="{height}" fill="white"/>\n')
        out.write("\n".join(part for plot in plots for part in plot.parts) + "\n" + key + "\n</svg>\n")


def table(records):
    """The last of each run."""
    print("| staleness | convex: mean regret | bound | with a slow worker | seconds | deep: loss | with a slow worker | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for staleness in COLOURS:
        def last(problem, slow):
            return [r for r in records if r["problem"] == problem and (r["slow_ms"] > 0) == slow and r["staleness"] == staleness][-1]
        one, late, deep, deep_late = last("convex", False), last("convex", True), last("deep", False), last("deep", True)
        bound = f'{one["bound"]:.3g}' if "bound" in one else "none"
        print(f'| {name_of(staleness).removeprefix("staleness ")} | {one["regret"]:.4f} | {bound} | {late["regret"]:.4f} | {late["seconds"]:.2f} | '
              f'{deep["loss"]:.3f} | {deep_late["loss"]:.3f} | {deep_late["seconds"]:.2f} |')


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    table(records)
    right = LEFT + WIDTH + GAP
    slow = max(r["slow_ms"] for r in records)
    convex = lines_of(records, "convex", False, "clock", "regret") + lines_of(records, "convex", False, "clock", "bound")
    write(f"{sys.argv[2]}/consistency-convex.svg",
          [Plot(LEFT, "workers of one pace; dashed: the bound", "clock", "mean regret", convex, True),
           Plot(right, f"one worker sleeps {slow:g} ms a clock", "seconds", "mean regret", lines_of(records, "convex", True, "seconds", "regret"), True)])
    write(f"{sys.argv[2]}/consistency-deep.svg",
          [Plot(LEFT, "workers of one pace", "clock", "loss", lines_of(records, "deep", False, "clock", "loss", 10), True),
           Plot(right, f"one worker sleeps {slow:g} ms a clock", "seconds", "loss", lines_of(records, "deep", True, "seconds", "loss", 10), True)])


if __name__ == "__main__":
    main()
