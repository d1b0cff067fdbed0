"""Training the fusion heads: the usual ways beside a bank, on the same features, in one run.

(a) the usual recipe: for every head, every epoch, the float32 encoder runs on every clip (without
    decoding, which would only add to it), and heads are PyTorch's own layers
(b) the same heads one after the other on stored features, each with its own reads
(c) V-JEPA 2's loop: a batch is read once for a list of the same heads, each with a forward, a
    backward and an optimiser of its own
(d) a bank: one read, folded and piecewise attention, one backward, one optimiser

and a sweep of 20 learning rates x weight decays of each kind: our heads one after the other, (c) and
(d). What takes minutes is measured on a few clips or steps and scaled; the table says how many. Times
are the best of `--rounds`, or of as many as fit into eight seconds (the first ones find the memory
cold), each way in turn, so that other work on the machine disturbs all alike.

    python benchmarks/bank.py                      # ViT-S at 224 px: 257 tokens
    python benchmarks/bank.py --tokens 17 --batch 32 --rounds 2
"""

import argparse
import itertools
import os
import time
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmhar.backbones.load import load_backbone, random_weights
from fmhar.backbones.sources import find_source
from fmhar.contracts import Features
from fmhar.devices import PRECISIONS, pick_device
from fmhar.fusion.base import FUSIONS
from fmhar.fusion.thirteen import LSTM, TABLE_3
from fmhar.probe import ProbeBank, ProbeSpec, sweep
from fmhar.trainer.labels import cross_entropy
from fmhar.trainer.recipe import make_optimizer

N_CLASSES, T = 34, 16


class Usual(nn.Module):
    "A head as it is usually written: `nn.MultiheadAttention`, nothing folded, no shortcut"

    def __init__(self, name: str, dim: int):
        super().__init__()
        self.name, self.norm = name, nn.LayerNorm(dim)
        if 'attention' in name:
            self.attention = nn.MultiheadAttention(dim, max(1, dim // 64), batch_first=True)
            self.query = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        else:
            self.head = FUSIONS[name](dim)
        self.linear = nn.Linear(dim, N_CLASSES)

    def forward(self, features: Features):
        x = features.tokens if FUSIONS[self.name].tokens == 'all' else features.cls
        return self.linear(self.pooled(x.float().flatten(1, -2)))

    def pooled(self, x):
        if self.name.startswith('self_attention'):
            z = self.norm(x)
            y = z + self.attention(z, z, z)[0]  # PyTorch's default also returns the weights
            return y.amax(1) if self.name.endswith('max') else y.mean(1)
        if self.name == 'weighted_self_attention':
            z = self.norm(x)
            return (self.attention(z, z, z)[1].mean(1, keepdim=True) @ z)[:, 0]
        if self.name.startswith('cross_attention'):
            z, query = self.norm(x), self.query.expand(len(x), -1, -1)
            return self.attention(query, z, z, need_weights=False)[0][:, 0]
        return self.head(x)


def usual_step(name: str, dim: int, device):
    "One step of one head, on features and labels"
    head = Usual(name, dim).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.02)

    def run(features, labels):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()

    return run


def bank_step(specs: list[ProbeSpec], dim: int, device, dtype):
    "One step of all probes of a bank, on features and labels"
    bank = ProbeBank(specs, dim, N_CLASSES).to(device)
    bank.lay_out()  # as `fit` does
    optimizer = make_optimizer(bank)

    def run(features, labels):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = bank(features)
        optimizer.zero_grad()
        cross_entropy(logits, F.one_hot(labels, N_CLASSES)).sum().backward()
        optimizer.step()

    return run


class Bench:
    "Steps on one batch of stored features"

    def __init__(self, args):
        self.args, self.device = args, pick_device(args.device)
        self.dtype = PRECISIONS[args.precision]
        g = torch.Generator().manual_seed(0)
        n = 2 * args.batch  # a store in memory, of which a batch is read
        self.labels = torch.randint(N_CLASSES, (n,), generator=g).to(self.device)
        tokens = 2 * torch.randn(n, T, args.tokens, args.dim, generator=g)
        self.tokens = tokens.half().to(self.device)
        self.cls = self.tokens[:, :, 0].contiguous()
        self.order = torch.randperm(n, generator=g)[: args.batch].to(self.device)

    def read(self, tokens: bool, n: int = None):
        "The first n clips of a batch"
        i = self.order[:n]
        return Features(self.cls[i], self.tokens[i] if tokens else None), self.labels[i]

    def usual(self, name: str) -> tuple[object, float]:
        "A step on a batch that was read, and how often it must be repeated for all of it"
        quadratic = name.startswith('self_attention_all') and self.args.tokens > 64
        n = 1 if quadratic else min(self.args.batch, 8 if FUSIONS[name].tokens == 'all' else 999)
        run, tokens = usual_step(name, self.args.dim, self.device), FUSIONS[name].tokens == 'all'
        batch = self.read(tokens, n)
        return lambda: run(*batch), self.args.batch / n

    def ours(self, specs: list[ProbeSpec]):
        run = bank_step(specs, self.args.dim, self.device, self.dtype)
        tokens = any(FUSIONS[spec.fusion].tokens == 'all' for spec in specs)
        return lambda: run(*self.read(tokens))

    def seconds(self, steps: dict) -> dict:
        "Best time of each step, in turns"
        best, began = dict.fromkeys(steps, float('inf')), time.perf_counter()
        for i in itertools.count():  # the first warms up
            if i > self.args.rounds and time.perf_counter() - began > 8:
                return best
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if self.device.type == 'cuda':
                    torch.cuda.synchronize()
                if i:
                    best[name] = min(best[name], time.perf_counter() - start)


def encoders(bench: Bench, n_frames: int = 8) -> dict:
    "A few frames through the encoder: as the usual code runs it, and as `extract` does"
    name = 'facebook/dinov2-' + bench.args.encoder
    source = find_source(name, 'random', None)
    model = random_weights(source.family, source.config, 0).eval().to(bench.device)
    model.set_attn_implementation('eager')
    pixels = torch.rand(n_frames, 3, 224, 224, device=bench.device)
    ours = load_backbone(name, weights='random', device=bench.args.device)
    frames = torch.randint(256, (1, n_frames, 3, 224, 224), dtype=torch.uint8)
    return {
        'usual encoder': torch.no_grad()(lambda: model(pixels)),
        'ours': lambda: ours.encode(frames),
    }


def limits(bench: Bench) -> tuple[float, float]:
    "What a large matrix product and a large sum reach here: FLOP/s, bytes/s"
    n = 8192 if bench.device.type == 'cuda' else 3072
    a, b = (torch.randn(n, n, device=bench.device).to(bench.dtype) for _ in range(2))
    x = torch.ones(2**27, device=bench.device)
    best = bench.seconds({'product': lambda: a @ b, 'sum': lambda: x.sum()})
    return 2 * n**3 / best['product'], 4 * len(x) / best['sum']


def work(bench: Bench, name: str) -> tuple[float, float]:
    "FLOP of the products of a step, forward and backward, and the bytes that it must read"
    step = bench.ours([ProbeSpec(name)])
    with FlopCounterMode(display=False) as counter:
        step()
    flop = counter.get_total_flops()
    if FUSIONS[name] is LSTM:  # not counted: weights of four gates, input and state, three passes
        flop = 3 * 2 * bench.args.batch * T * 8 * bench.args.dim**2
    x = bench.tokens if FUSIONS[name].tokens == 'all' else bench.cls
    return flop, x.nbytes // 2


def table_3(bench: Bench) -> pd.DataFrame:
    "Every head alone, in the usual form and in ours, and what bounds ours"
    usual = {name: bench.usual(name) for name in TABLE_3}
    steps = {('usual', name): run for name, (run, _) in usual.items()}
    steps |= {('alone', name): bench.ours([ProbeSpec(name)]) for name in TABLE_3}
    steps |= {('read', every): partial(bench.read, every) for every in (False, True)}
    best = bench.seconds(steps)
    flops, bandwidth = limits(bench)
    rows = {}
    for name in TABLE_3:
        flop, read = work(bench, name)
        ours = best['alone', name]
        bound = max(flop / flops, read / bandwidth)
        rows[name] = {
            'read ms': 1e3 * best['read', FUSIONS[name].tokens == 'all'],
            'usual ms': 1e3 * best['usual', name] * usual[name][1],
            'ours ms': 1e3 * ours,  # with its read
            'GFLOP': flop / 1e9,
            'bound ms': 1e3 * bound,
            'of bound %': 100 * bound / ours,
            'bound by': 'compute' if flop / flops > read / bandwidth else 'memory',
            'usual from': f'{round(bench.args.batch / usual[name][1])} clips',
        }
    table = pd.DataFrame(rows).T
    faster = (table['usual ms'] + table['read ms']) / table['ours ms']
    table.insert(3, 'times faster', faster)
    print(f'Products reach {flops / 1e9:.0f} GFLOP/s, reading {bandwidth / 1e9:.0f} GB/s')
    return table


def ways(bench: Bench, heads: pd.DataFrame) -> pd.DataFrame:
    "Seconds for Table 3, by (a) to (d), for all heads and without the two largest"
    cheap = [k for k in TABLE_3 if not k.startswith('self_attention_all')]
    steps = encoders(bench) | {len(names): bench.ours(sweep(names)) for names in (TABLE_3, cheap)}
    best = bench.seconds(steps)
    encode, once = (best[k] * T / 8 for k in ('usual encoder', 'ours'))  # seconds a clip
    clips, once = bench.args.clips * bench.args.epochs, once * bench.args.clips
    rows = {}
    for names in TABLE_3, cheap:
        batches = clips / bench.args.batch
        step, reads = (heads.loc[list(names), f'{k} ms'].sum() / 1e3 for k in ('usual', 'read'))
        ways = {
            '(a) usual recipe': clips * encode * len(names) + batches * step,
            '(b) stored, in turn': once + batches * (reads + step),
            '(c) stored, V-JEPA 2 loop': once + batches * (heads['read ms'].max() / 1e3 + step),
            '(d) bank': once + batches * best[len(names)],
            'of (d) encoding': once,
        }
        ours = ways['(d) bank']
        rows[f'{len(names)} heads'] = ways | {
            f'({k}) / (d)': v / ours for k, v in zip('abc', ways.values())
        }
    return pd.DataFrame(rows)


def sweeps(bench: Bench, heads: pd.DataFrame) -> pd.DataFrame:
    "20 learning rates x weight decays of each kind, a step on a batch"
    lrs, decays = [5e-3, 3e-3, 1e-3, 3e-4, 1e-4], [0.01, 0.1, 0.4, 0.8]  # V-JEPA 2's
    kinds = {k: [k] for k in TABLE_3 if not k.startswith('self_attention_all')}
    kinds['the four pooled'] = [k for k in TABLE_3 if 'pooling' in k]  # 80 probes
    rows = {}
    for name, heads_of in kinds.items():
        specs = sweep(heads_of, lr=lrs, weight_decay=decays)
        alone = [bench.ours([spec]) for spec in specs]
        one_by_one = lambda alone=alone: [step() for step in alone]  # noqa: E731
        best = bench.seconds({'in turn': one_by_one, 'bank': bench.ours(specs)})
        read, usual = heads['read ms'][heads_of].max(), heads['usual ms'][heads_of].sum()
        times = {
            'in turn ms': 1e3 * best['in turn'],
            'V-JEPA 2 loop ms': read + 20 * usual,  # scaled
            'bank ms': 1e3 * best['bank'],
        }
        faster = {f'{k[:-3]} / bank': v / times['bank ms'] for k, v in list(times.items())[:2]}
        rows[name] = times | faster
    return pd.DataFrame(rows).T


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--encoder', default='small', choices=['small', 'base', 'large'])
    parser.add_argument('--tokens', type=int, default=257, help='of a frame')
    parser.add_argument('--batch', type=int, default=32, help='clips')
    parser.add_argument('--clips', type=int, default=1000, help='for the totals')
    parser.add_argument('--epochs', type=int, default=60, help='for the totals')
    parser.add_argument('--precision', default='bf16', choices=list(PRECISIONS))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--device', default='auto')
    args = parser.parse_args()
    args.dim = dict(small=384, base=768, large=1024)[args.encoder]
    bench = Bench(args)
    pd.options.display.float_format = '{:,.2f}'.format
    print(f'{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, {bench.device}, ours in')
    print(
        f'{args.precision}; {args.batch} clips of {T} x {args.tokens} x {args.dim}, best of {args.rounds}'
    )
    heads = table_3(bench)
    print(
        '\nA step of each head alone; usual: on a batch that was read\n', heads.to_string(), sep=''
    )
    text = ways(bench, heads).map(lambda x: f'{x:,.1f}' if x < 100 else f'{x:,.0f}').to_string()
    print(f'\nSeconds for {args.clips} clips x {args.epochs} epochs\n{text}')
    print('\nSweep of 20 (lr x wd), a step\n', sweeps(bench, heads).to_string(), sep='')


if __name__ == '__main__':
    main()
