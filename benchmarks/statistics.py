"""Resamples of people a second from counts, against recomputing the scores of every resample

    python benchmarks/statistics.py [--resamples 10000] [--heads 20]

Made-up answers at the size of a Drive&Act test split: people, six views, 34 classes. Both ways see
the same resamples and must give the same numbers; the second is timed on a few and multiplied.
"""

import argparse
import time

import numpy as np
import pandas as pd

from fmhar.evaluation.predictions import Predictions
from fmhar.metrics import balanced_accuracy
from fmhar.statistics import bootstrap

VIEWS = [f'view {i}' for i in range(6)]


def made_up(n_people, n_events, n_heads, n_classes=34):
    "Segments of every person in every view, answered rightly half of the time"
    rng = np.random.default_rng(0)
    person, view = np.divmod(np.arange(n_people * n_events * len(VIEWS)), n_events * len(VIEWS))
    names = np.array([f'c{i:02d}' for i in range(n_classes)])
    label = rng.integers(0, n_classes, len(person))
    table = pd.DataFrame(dict(segment=np.arange(len(person)), label=names[label], split='test'))
    table = table.assign(subject=person, view=np.array(VIEWS)[view % len(VIEWS)])
    table.attrs = dict(cluster='subject', trained_view=VIEWS[0])
    right = rng.random((n_heads, len(person))) < 0.5
    answer = np.where(right, label, rng.integers(0, n_classes, (n_heads, len(person))))
    logits = np.eye(n_classes, dtype=np.float32)[answer]
    return Predictions(table, logits, [f'head {i}' for i in range(n_heads)], list(names))


def recomputed(p, drawn):
    "The scores of every resample from its segments: (R, heads, views)"
    y, answers = p.labels, p.logits.argmax(2)
    people, view = p.table.subject.to_numpy(), p.table.view.to_numpy()
    out = np.empty((len(drawn), len(answers), len(VIEWS)))
    for r, times in enumerate(drawn):
        for v, name in enumerate(VIEWS):
            rows = np.flatnonzero(view == name)
            rows = np.repeat(rows, times[people[rows]])
            for h, answer in enumerate(answers):
                out[r, h, v] = balanced_accuracy(y[rows], answer[rows], len(p.classes))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--resamples', type=int, default=10_000)
    parser.add_argument('--heads', type=int, default=20)
    parser.add_argument('--people', type=int, default=12)
    parser.add_argument('--events', type=int, default=150, help='of each person')
    a = parser.parse_args()
    p, few = made_up(a.people, a.events, a.heads), 3
    start = time.process_time()
    boot = bootstrap(p, trained_view=VIEWS[0], n_resamples=a.resamples, seed=0)
    ours = time.process_time() - start
    drawn = np.random.default_rng(0).multinomial(
        a.people, np.full(a.people, 1 / a.people), a.resamples
    )
    start = time.process_time()
    theirs = recomputed(p, drawn[:few])
    per_resample = (time.process_time() - start) / few
    gap = np.abs(theirs - boot.resampled[:few, :, : len(VIEWS)]).max()
    print(f'{a.heads} heads, {len(VIEWS)} views, {len(p.table)} segments, {a.people} people')
    print(f'{a.resamples} resamples from counts: {ours:.2f} s of processor time, counting included')
    print(f'recomputing the scores: {per_resample:.2f} s a resample')
    print(f'ratio: {per_resample * a.resamples / ours:.0f} (largest difference {gap:.0e})')


if __name__ == '__main__':
    main()
