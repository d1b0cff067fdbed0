"""Random batches of clips from a feature store, beside a plain memory map of the same bytes, in one run.

The store finds each clip by its key, in many shards; the plain map is one file, indexed by row. Both
give an array of their own. `warm`: from the page cache, as in every epoch but the first. `cold`: the
kernel was asked to forget the files before every batch. The ways take turns, so that other work on the
machine disturbs all alike; rates are those of the lower quartile of the times.

    python benchmarks/store.py                     # ViT-B at 224 px: CLS 24 KiB a clip, tokens 6 MiB
    python benchmarks/store.py --tokens 65 --clips 800
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fmhar.features.claims import ShardWriter
from fmhar.features.store import FeatureStore, list_shards

T = 16  # frames a clip


def fill(folder: Path, n: int, n_tokens: int, dim: int) -> tuple[FeatureStore, list[str]]:
    "A store as `extract` writes it, and beside it the same rows in one file"
    rng, keys = np.random.default_rng(0), [f'{i:020x}' for i in range(n)]
    writer = ShardWriter(FeatureStore(folder / 'store'))
    shape = (n, T, n_tokens, dim) if n_tokens else (n, T, dim)
    with open(folder / 'plain.npy', 'wb') as plain:  # written as the shards are: that decides how
        header = dict(descr='<f2', fortran_order=False, shape=shape)  # the kernel keeps its pages
        np.lib.format.write_array_header_1_0(plain, header)
        for key in keys:
            row = rng.integers(-1000, 1000, shape[1:], np.int16).astype(np.float16)
            plain.write(row)
            writer.add(key, row[:, 0] if n_tokens else row, row if n_tokens else None)
    writer.flush()
    return FeatureStore(folder / 'store'), keys


def forget(folder: Path):
    "Ask the kernel to drop the files from its cache; what is mapped stays, so maps are closed before"
    for file in folder.rglob('*.npy'):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(folder: Path, store: FeatureStore, keys: list[str], name: str, cold: bool, args):
    "Seconds a batch: from the store, from the plain map"
    rng, seconds = np.random.default_rng(1), {'store': [], 'memmap': []}
    read = store.tokens if name == 'tokens' else store.cls
    plain = np.load(folder / 'plain.npy', mmap_mode='r')
    assert np.array_equal(read(keys[-args.batch :]), plain[-args.batch :])
    for _ in range(args.batches):
        rows = rng.permutation(len(keys))[: args.batch]
        for way in seconds:
            if cold:
                plain = None
                store._maps.clear()
                forget(folder)
            start = time.perf_counter()
            if way == 'store':
                batch = read([keys[i] for i in rows])
            else:
                plain = np.load(folder / 'plain.npy', mmap_mode='r') if cold else plain
                batch = plain[rows]
            seconds[way].append(time.perf_counter() - start)
            del batch
    later = slice(
        0 if cold else len(seconds['store']) // 2, None
    )  # warm: all pages are mapped by then
    return [float(np.percentile(s[later], 25)) for s in seconds.values()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--clips', type=int, default=400, help='with tokens; CLS: 50 times as many')
    parser.add_argument('--tokens', type=int, default=257, help='of a frame')
    parser.add_argument('--dim', type=int, default=768)
    parser.add_argument('--batch', type=int, default=32, help='clips')
    parser.add_argument('--batches', type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, n, n_tokens in (('cls', 50 * args.clips, 0), ('tokens', args.clips, args.tokens)):
        folder = Path(tempfile.mkdtemp())
        try:
            store, keys = fill(folder, n, n_tokens, args.dim)
            shards = (list_shards(folder / 'store').features == name).sum()
            size = store.read(name, keys[:1]).nbytes * args.batch / 2**20
            for cold in (False, True):
                ours, plain = measure(folder, store, keys, name, cold, args)
                state = 'cold' if cold else 'warm'
                rows.append((name, n, shards, state, size, size / ours, size / plain, plain / ours))
        finally:
            shutil.rmtree(folder)
    columns = 'features clips shards cache MiB/batch store_MiB/s memmap_MiB/s ratio'.split()
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))


if __name__ == '__main__':
    main()
