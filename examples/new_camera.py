"""Every head x every kind of knowledge on the embedded set, in folds of people: the rows of `new_camera.ipynb`.

    python examples/new_camera.py features results/demo/drive_act /tmp/new_camera   # encode: hours on two cores
    python examples/new_camera.py train    results/demo/drive_act /tmp/new_camera   # the trained heads
    python examples/new_camera.py answers  results/demo/drive_act /tmp/new_camera nbs/results/new_camera.parquet

Each step keeps what is there. The trained camera is encoded twice: its frames as they are, and randomly
cropped (40 to 100 % of the area, a crop a clip); all other clips once. Everybody is tested once, by heads
that never saw them. Choices (parts, shrinkage, temperature) are made on the trained camera's other people.
What is written: the answers, and the answers within pairs of reversals, of every segment.
"""

import os
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from PIL import Image

from fmhar.adaptation.apply import CANDIDATES
from fmhar.adaptation.features import Centre, centred, move
from fmhar.adaptation.knowledge import Known, known
from fmhar.adaptation.logits import T3A, Lame, PriorMatching, finite, lame_logits, t3a_logits
from fmhar.adaptation.moment_lda import MomentLDA
from fmhar.adaptation.moments import standard_tokens, temporal_features
from fmhar.backbones.load import load_backbone
from fmhar.contracts import Features
from fmhar.datasets.clips import even_frames, random_frames
from fmhar.datasets.drive_act import load_drive_act
from fmhar.datasets.pairs import symmetric_pairs
from fmhar.datasets.video import sweep
from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import within_pairs
from fmhar.experiments.description import refold
from fmhar.files import whole_file
from fmhar.probe import ProbeBank, ProbeSpec
from fmhar.trainer.loop import fit
from fmhar.trainer.recipe import Recipe

T, CROPS, FOLDS, SIZE = 8, 2, 4, 112
HEADS = 'max_pooling_relu', 'tcn', 'lstm', 'temporal_moments'
RULES = 'recording', 'causal', 'camera', 'footage'


# --- features


def random_box(rng, width: int, height: int) -> tuple[int, int, int, int]:
    "Left, top, right, bottom of 40 to 100 % of the area, sides 3:4 to 4:3"
    while True:
        area = rng.uniform(0.4, 1) * width * height
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return left, top, left + w, top + h


def encode(backbone, images) -> np.ndarray:  # (n, D)
    parts = torch.from_numpy(np.stack(images)).split(32)
    return torch.cat([backbone.forward(x)[0].float() for x in parts]).half().numpy()


def cropped(path: str, rows: pd.DataFrame, backbone) -> np.ndarray:  # (n, CROPS, T, D)
    "Random frames of each segment, one random square a clip"
    chosen = {
        (i, k): random_frames(r.start, r.end, T, rng=np.random.default_rng([int(i), k]))
        for i, r in zip(rows.index, rows.itertuples())
        for k in range(CROPS)
    }
    wanted, pictures = {int(f) for fs in chosen.values() for f in fs}, {}
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                pictures[i] = Image.fromarray(frame.to_ndarray(format='rgb24'))
    images = []
    for i in rows.index:
        rng = np.random.default_rng([7, int(i)])
        for k in range(CROPS):
            box = random_box(rng, *pictures[int(chosen[i, k][0])].size)
            for f in chosen[i, k]:
                small = pictures[int(f)].resize((SIZE, SIZE), Image.BILINEAR, box=box)
                images.append(np.asarray(small).transpose(2, 0, 1))
    return encode(backbone, images).reshape(len(rows), CROPS, T, -1)


def features(segments: pd.DataFrame, folder: Path):
    "One .npz a video"
    backbone = load_backbone('dinov2-small-imgfocus', size=SIZE)
    for path, rows in segments.groupby('path'):
        file = folder / 'features' / f'{rows["view"].iloc[0]}_{Path(path).name}.npz'
        if file.exists():
            continue
        frames = {
            i: even_frames(r.start, r.end, 2 * T, n_clips=1)[0][::2]
            for i, r in zip(rows.index, rows.itertuples())
        }
        wanted = sorted({int(f) for fs in frames.values() for f in fs})
        z = encode(backbone, [image for _, image in sweep(path, wanted, backbone.transform)])
        place = {f: k for k, f in enumerate(wanted)}
        even = np.stack([z[[place[int(f)] for f in frames[i]]] for i in rows.index])
        arrays = dict(index=rows.index.to_numpy(), even=even)
        if rows['view'].iloc[0] == segments.attrs['trained_view']:
            arrays['cropped'] = cropped(path, rows, backbone)
        with whole_file(file) as tmp:
            np.savez(tmp, **arrays)
        print(file.name, flush=True)


class Stored:
    "Segments that were encoded, and their class tokens"

    def __init__(self, segments: pd.DataFrame, folder: Path):
        self.even, self.cropped = {}, {}
        for file in sorted((folder / 'features').glob('*.npz')):
            with np.load(file) as arrays:
                self.even |= dict(zip(arrays['index'].tolist(), arrays['even']))
                if 'cropped' in arrays:
                    self.cropped |= dict(zip(arrays['index'].tolist(), arrays['cropped']))
        number = {c: i for i, c in enumerate(segments.attrs['classes'])}
        rows = segments[segments.index.isin(list(self.even))]
        self.table = rows.assign(segment=rows.index, clip=0, y=rows.label.map(number))
        self.table.attrs = dict(segments.attrs)

    def of(self, rows: pd.DataFrame, crops: bool) -> tuple[np.ndarray, pd.DataFrame]:
        "Class tokens (n, T, D) of clips, and their table"
        n = CROPS if crops else 1
        x = [self.cropped[i][:CROPS] if crops else self.even[i][None] for i in rows.index]
        table = rows.loc[rows.index.repeat(n)].reset_index(drop=True)
        table['clip'] = np.tile(np.arange(n), len(rows))
        table.attrs = dict(self.table.attrs)
        return np.concatenate(x).astype(np.float32), table

    def folds(self):
        "Training rows of the trained camera, all others' rows, and test rows, in turn"
        trained = self.table.attrs['trained_view']
        for k in range(FOLDS):
            s = refold(self.table, k, FOLDS)
            train = self.table[(s['view'] == trained) & (s.split != 'test')]
            yield train, self.table[s.split != 'test'], self.table[s.split == 'test']


# --- trained heads


class InMemory:
    "What a trainer asks of a dataset"

    def __init__(self, x: np.ndarray, table: pd.DataFrame):
        self.cls, self.labels = torch.from_numpy(x), torch.tensor(table.y.to_numpy())
        self.segments = torch.tensor(pd.factorize(table.segment)[0])

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        return Features(self.cls[torch.as_tensor(indices)])


def empty_bank(stored: Stored) -> ProbeBank:
    return ProbeBank([ProbeSpec(h) for h in HEADS], 384, len(stored.table.attrs['classes']))


def train(stored: Stored, folder: Path):
    "The heads of the bank on cropped clips, by the paper's recipe"
    (folder / 'banks').mkdir(exist_ok=True)
    for k, (rows, _, _) in enumerate(stored.folds()):
        file = folder / 'banks' / f'{k}.pt'
        if not file.exists():
            bank = empty_bank(stored)
            data = InMemory(*stored.of(rows, crops=True))
            fit(bank, data, recipe=Recipe(), device='cpu', progress=False)
            torch.save(bank.state_dict(), file)
            print(f'fold {k}', flush=True)


# --- answers


class Answers:
    "Logits of every way for every test clip, collected over folds"

    def __init__(self, classes):
        self.classes, self.parts = classes, {}

    def put(self, name: str, logits: np.ndarray):
        self.parts.setdefault(name, []).append(np.asarray(finite(logits), np.float32))

    def scores(self, head: MomentLDA, x: np.ndarray) -> np.ndarray:
        out = np.full((len(x), len(self.classes)), -np.inf)
        out[:, head.classes_] = head.decision_function(x)
        return finite(out)

    def matching(self, head: MomentLDA, table: pd.DataFrame, **options) -> PriorMatching:
        held_out = np.full((len(table), len(self.classes)), -np.inf)
        held_out[:, head.classes_] = head.held_out_
        shares = np.bincount(table.y, minlength=len(self.classes)).astype(float)
        return PriorMatching(**options).fit(held_out, table.y.to_numpy(), shares)


def lda(x, table, parts=CANDIDATES, **options) -> MomentLDA:
    head = MomentLDA(list(parts), norm=False, **options)
    return head.fit(x, table.y.to_numpy(), table.subject, table.segment)


def few_of(blocks: list[Known], n: int, rng) -> list[Known]:
    "At most n of the known clips, drawn for each asked clip"
    out = []
    for b in blocks:
        may = np.zeros_like(b.may)
        for row, known_ones in zip(may, b.may):
            places = np.flatnonzero(known_ones)
            row[rng.choice(places, min(n, len(places)), replace=False)] = True
        out.append(Known(b.asked, b.known, may))
    return out


def one_fold(stored: Stored, folder: Path, k: int, rows, others, tested, a: Answers):
    "Everything that is compared, for one fold's people"
    raw, test = stored.of(tested, crops=False)
    z, blocks = standard_tokens(raw), {r: known(test, r) for r in RULES}
    for crops in (False, True):
        x, table = stored.of(rows, crops)
        x = standard_tokens(x)
        tag = '' if crops else ', no crops'
        plain = lda(x, table)
        a.put(f'none{tag}', a.scores(plain, z))
        m = a.matching(plain, table)
        for rule in ('recording', 'footage'):
            a.put(f'prior by {rule}{tag}', m.adapt_logits(a.scores(plain, z), blocks[rule]))
        xc, home = centred(x, table, 'recording')
        head = lda(xc, table)
        m = a.matching(head, table)
        for rule in RULES if crops else ('recording',):
            scores = a.scores(head, centred(z, test, rule, home)[0])
            a.put(f'{rule}{tag}', scores)
            a.put(f'{rule} + prior{tag}', m.adapt_logits(scores, blocks[rule]))
    zc = centred(z, test, 'recording', home)[0]
    parts_of_it(a, x, xc, z, zc, table)
    known_methods(a, plain, x, z, test, blocks)
    limits(a, head, m, z, home, test, blocks['recording'], k)
    with_labels(a, stored, others, xc, table, z, zc, test, k)
    trained_heads(a, stored, folder, k, rows, raw, test, blocks)
    return test


def parts_of_it(a, x, xc, z, zc, table):
    "One thing at a time: what is kept of a clip, and how carefully one chooses"
    kinds = ('m0',), *CANDIDATES
    for parts in kinds:
        name = ' '.join(parts)
        a.put(f'only {name}', a.scores(lda(x, table, [parts]), z))
        a.put(f'only {name}, recording', a.scores(lda(xc, table, [parts]), zc))
    a.put('best of the trained view', a.scores(lda(x, table, careful=0), z))
    a.put('best of the trained view, recording', a.scores(lda(xc, table, careful=0), zc))


def known_methods(a, head, x, z, test, blocks):
    "T3A, LAME, and moving the features under a head that was not centred"
    n = len(a.classes)
    weights, offsets = np.zeros((n, head.coef_.shape[1])), np.full(n, -np.inf)
    weights[head.classes_], offsets[head.classes_] = head.coef_, head.intercept_
    scores, vectors = a.scores(head, z), temporal_features(z, head.parts_, norm=False)
    a.put(
        'T3A by footage',
        t3a_logits(T3A().fit(weights, offsets), scores, vectors, blocks['footage']),
    )
    calm = scores / head.temperature_
    a.put('LAME by recording', lame_logits(Lame(), calm, vectors, blocks['recording']))
    for name, estimator in (('moved', Centre()), ('moved and scaled', Centre(scale=True))):
        a.put(f'{name} by recording', a.scores(head, move(estimator, x, z, test, 'recording')[0]))


def limits(a, head, m, z, home, test, blocks, k):
    "Few clips, the wrong camera, half the prior, and people who do other things"
    rng, of_clips = np.random.default_rng(k), z.mean(1)
    for n in (1, 2, 4, 8, 16):
        some, zf = few_of(blocks, n, rng), z - home
        for b in some:
            zf[b.asked] = z[b.asked] - b.mean(of_clips)[:, None]
        a.put(f'recording, {n} clips', a.scores(head, zf))
        a.put(f'recording + prior, {n} clips', m.adapt_logits(a.scores(head, zf), some))
    views = list(test['view'].unique())
    means = {
        key: of_clips[i].mean(0) for key, i in test.groupby(['view', 'subject']).indices.items()
    }
    next_view = dict(zip(views, views[1:] + views[:1]))
    wrong = np.stack([means[next_view[v], s] for v, s in zip(test['view'], test.subject)])
    a.put('recording of another camera', a.scores(head, z - wrong[:, None]))
    zc = centred(z, test, 'recording', home)[0]
    half = PriorMatching(0.5)
    half.prior_, half.temperature_, half.spread_ = m.prior_, m.temperature_, m.spread_
    a.put('recording + half the prior', half.adapt_logits(a.scores(head, zc), blocks))
    shifted = few_classes(test, blocks)
    a.put('recording + prior, 6 classes known', m.adapt_logits(a.scores(head, zc), shifted))


def few_classes(test: pd.DataFrame, blocks: list[Known], n: int = 6) -> list[Known]:
    "The known clips are of six classes only: the prior's assumption is wrong"
    kept = test.y.isin(range(0, 3 * n, 3)).to_numpy()
    return [Known(b.asked, b.known, b.may & kept[b.known]) for b in blocks]


def with_labels(a, stored, others, xc, table, z, zc, test, k):
    "For scale: some labelled clips of the new camera, and a head trained on it"
    shape = len(test), len(a.classes)
    oracle, labelled = np.full(shape, -np.inf), {n: np.full(shape, -np.inf) for n in (1, 3)}
    for view in test['view'].unique():
        mine = np.flatnonzero(test['view'] == view)
        v, there = stored.of(others[others['view'] == view], crops=False)
        vc, _ = centred(standard_tokens(v), there, 'recording')
        oracle[mine] = a.scores(lda(vc, there), zc[mine])
        for n, out in labelled.items():
            pick = there.sample(frac=1, random_state=k).groupby('y').head(n).index.to_numpy()
            both = pd.concat([table, there.loc[pick]], ignore_index=True)
            out[mine] = a.scores(lda(np.concatenate([xc, vc[pick]]), both), zc[mine])
    a.put('oracle', oracle)
    for n, out in labelled.items():
        a.put(f'{n} labelled a class', out)


def trained_heads(a, stored, folder, k, rows, raw, test, blocks):
    "The bank on features as they are and moved; its logits brought to a spread of 2 for the prior"
    file = folder / 'banks' / f'{k}.pt'
    if not file.exists():
        return
    bank = empty_bank(stored)
    bank.load_state_dict(torch.load(file))
    x, table = stored.of(rows, crops=True)
    moved = move(Centre(), x, raw, test, 'recording')[0]
    m = PriorMatching()
    m.prior_, m.temperature_, m.spread_ = (
        np.bincount(table.y, minlength=len(a.classes)) / len(x),
        1,
        2,
    )
    for features_of, name, rule in ((raw, 'none', 'footage'), (moved, 'recording', 'recording')):
        with torch.inference_mode():
            logits = bank.eval()(Features(torch.from_numpy(features_of).float())).numpy()
        for head, of_head in zip(HEADS, logits):
            a.put(f'{head}, {name}', of_head)
            a.put(f'{head}, {name} + prior', m.adapt_logits(of_head, blocks[rule]))


def answers(stored: Stored, folder: Path, out: Path):
    "The answers of all folds, as one table of segments"
    a, tables = Answers(stored.table.attrs['classes']), []
    for k, (rows, others, tested) in enumerate(stored.folds()):
        tables.append(one_fold(stored, folder, k, rows, others, tested, a))
        print(f'fold {k}', flush=True)
    table = pd.concat(tables, ignore_index=True).assign(split='test')
    table.attrs = dict(stored.table.attrs)
    n = {name: sum(map(len, parts)) for name, parts in a.parts.items()}
    names = [name for name in n if n[name] == len(table)]
    logits = np.stack([np.concatenate(a.parts[name]) for name in names])
    p = Predictions(table, logits, names, list(a.classes))
    pairs = within_pairs(p, symmetric_pairs(p.classes))
    kept = table[['segment', 'event', 'view', 'subject', 'label', 'split']]
    in_pair = pd.DataFrame({f'pair: {n}': z.argmax(1) for n, z in zip(names, pairs.logits)})
    in_pair.index = pairs.table.segment
    best = pd.DataFrame({n: z.argmax(1).astype(np.int8) for n, z in zip(names, logits)})
    in_pair = in_pair.reindex(table.segment).fillna(-1).astype(np.int8).reset_index(drop=True)
    rows = pd.concat([kept, best, in_pair], axis=1)
    rows.attrs = dict(classes=list(a.classes), trained_view=table.attrs['trained_view'])
    with whole_file(out) as tmp:
        rows.to_parquet(tmp, index=False)
    print(f'{len(names)} ways, {len(rows)} segments: {out.name}')


def main():
    step, root, folder, *out = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    segments, folder = load_drive_act(root), Path(folder)
    if step == 'features':
        features(segments, folder)
    elif step == 'train':
        train(Stored(segments, folder), folder)
    else:
        answers(Stored(segments, folder), folder, Path(out[0]))


if __name__ == '__main__':
    main()
