"""A result table of `dipole-vla rl` as a page of markdown: each method with omega and N chosen on the other seeds.

    python benchmarks/rl_table.py benchmarks/results/rl/cube-single-task2.csv

The rows with the most updates are the full table, the others the learning curve. For each seed a method's omega and N
are those that are best on average over the *other* seeds, once with N = 1 and once with N > 1 (rejection sampling).
Intervals are 95 % bootstrap intervals of the difference to `bc` with the same kind of N: seeds are drawn, and within
each the episodes as independent successes, so they hold for success rates only.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

Setting = tuple[float, int]  # omega, N
Table = dict[str, dict[Setting, dict[int, float]]]  # method -> setting -> seed -> success rate in percent
DRAWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    with open(options.results, newline="") as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["updates"]) for row in rows)
    final = [row for row in rows if int(row["updates"]) == last]
    episodes = min(int(row["episodes"]) for row in final)
    table = read(final)
    seeds = sorted({int(row["seed"]) for row in final})
    print(f"{final[0]['task']}, {last} updates, {episodes} episodes for each of seeds {seeds}\n")
    print("| method | candidates | return | each seed (omega, N) | minus bc |\n|---|---|---|---|---|")
    for is_choosing in (False, True):
        reference = chosen(table["bc"], seeds, is_choosing)
        for method, settings in table.items():
            own = chosen(settings, seeds, is_choosing)
            each = ", ".join(f"{value:.0f} ({omega:g}, {count})" for value, (omega, count) in own)
            values, base = (np.array([value for value, _ in side]) for side in (own, reference))
            low, high = interval(values, base, episodes)
            gain = "" if method == "bc" else f"{(values - base).mean():+.1f} [{low:+.1f}, {high:+.1f}]"
            print(f"| {method} | {'best of N' if is_choosing else 'one'} | {values.mean():.1f} | {each} | {gain} |")
    print("\nThe whole grid, mean over seeds:\n")
    counts = sorted({count for settings in table.values() for _, count in settings})
    print("| method, omega | " + " | ".join(f"N = {count}" for count in counts) + " |\n|---|" + "---|" * len(counts))
    for method, settings in table.items():
        for omega in sorted({omega for omega, _ in settings}):
            found = [settings.get((omega, count)) for count in counts]
            shown = [f"{np.mean(list(cell.values())):.1f}" if cell else "–" for cell in found]
            print(f"| {method}, {omega:g} | " + " | ".join(shown) + " |")
    print("\nLearning curve, mean over seeds:\n")
    curve = [row for row in rows if int(row["updates"]) < last]
    marks = sorted({int(row["updates"]) for row in curve})
    print("| method, omega, N | " + " | ".join(map(str, marks)) + " |\n|---|" + "---|" * len(marks))
    at = {mark: read([row for row in curve if int(row["updates"]) == mark]) for mark in marks}
    for key in dict.fromkeys((row["method"], float(row["omega"]), int(row["candidates"])) for row in curve):
        means = [np.mean(list(at[mark][key[0]][key[1:]].values())) for mark in marks]
        print(f"| {key[0]}, {key[1]:g}, {key[2]} | " + " | ".join(f"{mean:.0f}" for mean in means) + " |")


def read(rows: list[dict[str, str]]) -> Table:
    table: Table = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        table[row["method"]][float(row["omega"]), int(row["candidates"])][int(row["seed"])] = float(row["return"])
    return table


def chosen(
    settings: dict[Setting, dict[int, float]], seeds: list[int], is_choosing: bool
) -> list[tuple[float, Setting]]:
    """For each seed the value at the setting that is best on the other seeds (the first of equals)."""
    open_to = [setting for setting in settings if (setting[1] > 1) == is_choosing]
    found = []
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        best = max(open_to, key=lambda setting: sum(settings[setting][other] for other in others))
        found.append((settings[best][seed], best))
    return found


def interval(values: np.ndarray, base: np.ndarray, episodes: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(DRAWS, len(values)))
    means = [100 * rng.binomial(episodes, side[drawn] / 100) / episodes for side in (values, base)]
    low, high = np.quantile((means[0] - means[1]).mean(1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
