"""Closed form against refitting and against training, side by side in one run.

`choices`: every shrinkage x set of parts x left-out person of `moment_lda`, beside scikit-learn's LDA
refitted for each (timed for one person and one shrinkage, and multiplied). `camera`: centring, Sinkhorn and answers for one new camera, beside encoding its clips
once (measured on a few frames). `bootstrap`: resampling people from counts, beside resampling rows.
`bank`: an epoch of the class-token heads on the same clips, times the recipe's epochs. Features are random;
only time is measured here. Ratios hold on any machine; seconds are of this one.

    python benchmarks/adaptation.py                  # the size of the demo: 424 clips, 384 features
    python benchmarks/adaptation.py --clips 1272     # six clips a segment
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fmhar.adaptation.apply import CANDIDATES
from fmhar.adaptation.features import centred
from fmhar.adaptation.knowledge import known
from fmhar.adaptation.logits import PriorMatching
from fmhar.adaptation.moment_lda import SHRINKAGES, MomentLDA
from fmhar.adaptation.moments import standard_tokens, temporal_features
from fmhar.contracts import Features
from fmhar.evaluation.predictions import Predictions
from fmhar.fusion.base import FUSIONS
from fmhar.fusion.thirteen import TABLE_3
from fmhar.probe import ProbeBank, ProbeSpec
from fmhar.statistics import bootstrap
from fmhar.trainer.loop import fit
from fmhar.trainer.recipe import Recipe

T, PEOPLE, CLASSES = 16, 8, 18


def seconds(work, rounds=3) -> float:
    "The fastest of a few rounds, in seconds of this process"
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


class Clips:
    "Random features with what a trainer asks of a dataset"

    def __init__(self, n: int, dim: int):
        g = torch.Generator().manual_seed(0)
        self.labels = torch.arange(n) % CLASSES
        self.segments, self.people = torch.arange(n), torch.arange(n) % PEOPLE
        self.cls = torch.randn(n, T, dim, generator=g) + torch.randn(CLASSES, 1, dim)[self.labels]
        self.classes = [f'c{i:02d}' for i in range(CLASSES)]

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        return Features(self.cls[torch.as_tensor(indices)])


def refitted(x, y, who, s: float) -> dict:  # parts -> answers for the first person
    "scikit-learn without the first person, once for each set of parts"
    answers = {}
    for parts in CANDIDATES:
        features = temporal_features(x, parts).astype(float)
        lda = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=s)
        lda.fit(features[who != 0], y[who != 0])
        answers[parts] = lda.predict(features[who == 0])
    return answers


def choices(clips: Clips) -> tuple[float, float]:
    "Ours; scikit-learn's for one person and shrinkage, times how many there are. They must agree"
    x, y, who, theirs = clips.cls.numpy(), clips.labels.numpy(), clips.people.numpy(), {}
    fast = seconds(lambda: MomentLDA(CANDIDATES).fit(x, y, who), rounds=2)
    slow = seconds(lambda: theirs.update(refitted(x, y, who, 0.3)), rounds=1)
    for parts, answers in theirs.items():
        ours = MomentLDA(parts, shrinkage=0.3).fit(x, y, who)
        assert (ours.held_out_[who == 0].argmax(1) == answers).mean() > 0.98
    return fast, slow * len(SHRINKAGES) * PEOPLE


def camera(clips: Clips, n: int = 78) -> float:
    "Centre by recording, answer, match the prior"
    x = standard_tokens(clips.cls)
    y = clips.labels.numpy()
    head = MomentLDA(norm=False, shrinkage=0.3).fit(x, y, clips.people.numpy())
    matching = PriorMatching().fit(head.held_out_, y)
    table = pd.DataFrame(dict(segment=range(n), view='new', path=[f'{i % 3}' for i in range(n)]))

    def adapt():
        z, _ = centred(x[:n], table, 'recording', np.zeros(x.shape[-1]))
        return matching.adapt_logits(head.decision_function(z), known(table, 'recording'))

    return seconds(adapt)


def resampling(n_resamples=10_000, heads=20, people=12, segments=1890) -> tuple[float, float]:
    "The bootstrap from counts, and 20 resamples of the rows times as many as it takes"
    rng = np.random.default_rng(0)
    i = np.arange(segments)
    table = pd.DataFrame(dict(segment=i, view=[f'v{k % 6}' for k in i], subject=i // 6 % people))
    table['label'] = [f'c{k:02d}' for k in rng.integers(CLASSES, size=segments)]
    table.attrs['cluster'] = 'subject'
    logits = rng.normal(size=(heads, segments, CLASSES)).astype(np.float32)
    p = Predictions(
        table, logits, [f'h{k}' for k in range(heads)], [f'c{k:02d}' for k in range(18)]
    )
    fast = seconds(lambda: bootstrap(p, trained_view='v0', n_resamples=n_resamples), rounds=2)
    answers, who = logits.argmax(2), table.subject.to_numpy()
    of = [np.flatnonzero(who == k) for k in range(people)]

    def by_rows():
        for _ in range(20):
            rows = np.concatenate([of[k] for k in rng.integers(people, size=people)])
            for v in range(6):
                mine = rows[rows % 6 == v]
                for a in answers:
                    hit = a[mine] == p.labels[mine]
                    n = np.bincount(p.labels[mine], minlength=CLASSES)
                    (np.bincount(p.labels[mine][hit], minlength=CLASSES)[n > 0] / n[n > 0]).mean()

    return fast, seconds(by_rows, rounds=1) * n_resamples / 20


def bank(clips: Clips) -> float:
    "Seconds of the recipe's epochs for the class-token heads of the thirteen"
    heads = [h for h in TABLE_3 if FUSIONS[h].tokens == 'cls']
    probes = ProbeBank([ProbeSpec(h) for h in heads], clips.cls.shape[2], CLASSES)
    recipe = Recipe(epochs=1)
    once = seconds(
        lambda: fit(probes, clips, recipe=recipe, device='cpu', progress=False), rounds=1
    )
    return once * Recipe().epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--clips', type=int, default=424)
    parser.add_argument('--dim', type=int, default=384)
    args = parser.parse_args()
    torch.set_num_threads(1)
    clips = Clips(args.clips, args.dim)
    (fast, slow), (counts, rows) = choices(clips), resampling()
    trained, adapted = bank(clips), camera(clips)
    n = len(CANDIDATES) * len(SHRINKAGES) * PEOPLE
    lines = [
        (f'moment_lda, {n} choices x people', fast, slow / fast, "scikit-learn's LDA refitted"),
        ('moment_lda, the same', fast, trained / fast, '60 epochs of the class-token heads'),
        ('a camera of 78 clips', adapted, np.nan, ''),
        ('10,000 resamples of people', counts, rows / counts, 'resampling rows'),
    ]
    table = pd.DataFrame(lines, columns=['what', 'seconds', 'times faster', 'than'])
    print(f'{args.clips} clips of {T} x {args.dim}, one thread, CPU seconds of this machine')
    print(table.to_string(index=False, float_format='{:.3g}'.format, na_rep=''))


if __name__ == '__main__':
    main()
