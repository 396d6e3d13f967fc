"""Claims on six people who search for a book among 84 covers: 20 of the 100 displays are kept for testing.

    .venv/bin/python acceptance/gaze-scanpath/book_covers.py

`Amazon.json` is that of github.com/DFKI-Interactive-Machine-Learning/STI-Dataset (CC BY-NC-SA 4.0). Pictures are not
used: of a cover the model knows where it is.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path

import numpy as np
from support import claims

from polyhead_gaze.formats import open_files
from polyhead_gaze.scores import BEHAVIOUR, behaviour, pack, sequence_score
from polyhead_gaze.settings import DisplaySettings

MARKOV = ("distance-Markov", "distance-Markov, knows the target")
PEOPLE = "other viewers"
OPTIONS = ("--threads", "1", "--epochs", "100", "--set", "train.validate_epochs=10")
NAMES = ("nll", "sequence_score", "multimatch_position", "scanmatch", "levenshtein", "nss", "delta")


REFERENCE = {
    "found": 0.880,
    "length": 12.887,
    "search": 0.784,
    "refixation": 0.173,
    "revisit": 0.0435,
    "ever on the target": 0.973,
    "sequence score between people": 0.211,
}
"""Known of the same file by the published protocol: 585 trials on a grid of 14 by 6."""


def measured(path: Path) -> dict[str, float]:
    """Return what `REFERENCE` states, computed from the file."""
    trials = open_files(path, DisplaySettings()).trials
    paths, target = pack([trial.path for trial in trials]), np.array([trial.target for trial in trials])
    pairs = itertools.combinations(range(len(trials)), 2)
    first, second = np.array([pair for pair in pairs if trials[pair[0]].display == trials[pair[1]].display]).T
    return {
        **dict(zip(BEHAVIOUR, behaviour(paths, target).mean(0).tolist(), strict=True)),
        "ever on the target": float((paths == target[:, None]).any(1).mean()),
        "sequence score between people": float(sequence_score(paths[first], paths[second]).mean()),
    }


def main() -> int:
    """Fit, compare, print."""
    path = claims.shared_file(
        "amazon-book-covers", "Amazon.json", fetch="It is AmazonCovers/Amazon.json of the STI data set."
    )
    runs = [
        claims.run(
            f"covers-seed-{seed}", "fit", "--data", str(path), *OPTIONS, "--seed", str(seed), result="metrics.json"
        )
        for seed in claims.SEEDS
    ]
    baselines = runs[0]["baselines"]
    figures = {name: [run["metrics"][name] for run in runs] for name in NAMES}
    mean = {name: statistics.fmean(values) for name, values in figures.items()}
    score = mean["sequence_score"]
    markov = max(baselines[name]["sequence_score"] for name in MARKOV)
    found = measured(path)
    stated = [
        claims.at_most(
            "largest deviation from the reference values of the file",
            max(abs(found[name] - value) for name, value in REFERENCE.items()),
            0.003,
        ),
        claims.at_most("test NLL per fixation, nat (mean of three seeds)", mean["nll"], 3.2),
        claims.at_least("sequence score over that of the better distance-Markov", score / markov, 1.4),
        claims.at_most("delta of the behavioural metric", mean["delta"], 0.4),
    ]
    return claims.finish(
        {
            "title": "Book covers: six viewers, displays unseen in training",
            "data": runs[0]["data"],
            "seeds": claims.SEEDS,
            "options": OPTIONS,
            "reference": REFERENCE,
            "measured": found,
            "figures": figures,
            "mean": mean,
            "baselines": {name: {key: each.get(key) for key in NAMES} for name, each in baselines.items()},
            "people": baselines[PEOPLE]["sequence_score"],
            "gap_to_people": baselines[PEOPLE]["sequence_score"] - score,
            "claims": stated,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
