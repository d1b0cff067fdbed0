"Two sound videos and one that is cut, in a table on the disk, and a tiny encoder: for stores and processes"

import json
import os
from pathlib import Path

import pandas as pd
import torch
import transformers as tf
from numbered import write_video

from fmhar import features
from fmhar.backbones.load import quietly

ENV = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TQDM_DISABLE='1')
N = 240  # frames of a video


def write_tiny_set(root: Path):
    "segments.csv with 24 segments in each of three views, and the folder encoder"
    rows = []
    for view in ('front', 'side', 'top'):
        write_video(root / f'{view}.mkv', N, g=20)
        for i in range(24):
            split, label = ('train', 'test')[i % 3 == 2], ('open', 'close')[i % 2]
            start, end = 10 * i, 10 * i + 10
            rows.append((f'{view}.mkv', view, f's{i % 3}', f'e{i}', start, end, label, split, 30))
    whole = (root / 'top.mkv').read_bytes()
    (root / 'top.mkv').write_bytes(whole[: len(whole) // 2])
    columns = 'path view subject event start end label split fps'.split()
    pd.DataFrame(rows, columns=columns).to_csv(root / 'segments.csv', index=False)
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    with quietly():
        config = tf.Dinov2Config(**small, image_size=28, patch_size=7)
        tf.Dinov2Model(config).save_pretrained(root / 'encoder')
    tf.BitImageProcessor(size=32, crop_size=28).save_pretrained(root / 'encoder')


def read_tiny_set(root: Path) -> pd.DataFrame:
    segments = pd.read_csv(root / 'segments.csv')
    segments['path'] = [str(root / p) for p in segments.path]
    segments.attrs = dict(classes=['open', 'close'], trained_view='front')
    return segments


def content(store: features.FeatureStore, tokens: bool = True) -> dict[str, bytes]:
    "Every key with the bytes of its features; a key that is there twice was computed twice"
    shards = [json.loads(p.read_text()) for p in features.shard_files(store.path)]
    keys = [k for shard in shards for k in shard['keys']]
    assert len(keys) == len(set(keys)), 'computed twice'
    return {
        k: store.cls([k]).tobytes() + (store.tokens([k]).tobytes() if tokens else b'') for k in keys
    }
