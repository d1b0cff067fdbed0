"I3D is the published network, training is exact after a kill, and nothing unreadable goes unsaid"

import math
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from numbered import number, write_video
from torch import nn
from torchvision.models import video as torchvision_video
from torchvision.models.video.swin_transformer import SwinTransformer3d
from torchvision.ops import StochasticDepth

from fmhar import finetune as ft
from fmhar.datasets.segments import as_segments
from fmhar.datasets.video import sweep
from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import score
from fmhar.finetune import frames, loop
from fmhar.finetune.loop import finetune, predict_videos
from fmhar.finetune.networks import FINETUNE, I3D, FinetuneRecipe

# The layer table read once more: Inception-v1 (Szegedy et al. 2015, Table 1) inflated to 3D.
STEM = {'Conv3d_1a_7x7': (3, 64, 7), 'Conv3d_2b_1x1': (64, 64, 1), 'Conv3d_2c_3x3': (64, 192, 3)}
INCEPTION = {  # inputs; 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5 (here 3x3); pool projection
    'Mixed_3b': (192, 64, 96, 128, 16, 32, 32),
    'Mixed_3c': (256, 128, 128, 192, 32, 96, 64),
    'Mixed_4b': (480, 192, 96, 208, 16, 48, 64),
    'Mixed_4c': (512, 160, 112, 224, 24, 64, 64),
    'Mixed_4d': (512, 128, 128, 256, 24, 64, 64),
    'Mixed_4e': (512, 112, 144, 288, 32, 64, 64),
    'Mixed_4f': (528, 256, 160, 320, 32, 128, 128),
    'Mixed_5b': (832, 256, 160, 320, 32, 128, 128),
    'Mixed_5c': (832, 384, 192, 384, 48, 128, 128),
}
STAGES = {  # channels, T, H, W for 64 frames of 224 x 224
    'Conv3d_1a_7x7': (64, 32, 112, 112),
    'MaxPool3d_2a_3x3': (64, 32, 56, 56),
    'Conv3d_2b_1x1': (64, 32, 56, 56),
    'Conv3d_2c_3x3': (192, 32, 56, 56),
    'MaxPool3d_3a_3x3': (192, 32, 28, 28),
    'Mixed_3b': (256, 32, 28, 28),
    'Mixed_3c': (480, 32, 28, 28),
    'MaxPool3d_4a_3x3': (480, 16, 14, 14),
    'Mixed_4b': (512, 16, 14, 14),
    'Mixed_4c': (512, 16, 14, 14),
    'Mixed_4d': (512, 16, 14, 14),
    'Mixed_4e': (528, 16, 14, 14),
    'Mixed_4f': (832, 16, 14, 14),
    'MaxPool3d_5a_2x2': (832, 8, 7, 7),
    'Mixed_5b': (832, 8, 7, 7),
    'Mixed_5c': (1024, 8, 7, 7),
}


def published_shapes(n_classes=400):
    "Key -> shape of the published checkpoint"
    convolutions = dict(STEM)
    for name, (c, b0, b1a, b1b, b2a, b2b, b3b) in INCEPTION.items():
        convolutions |= {f'{name}.b0': (c, b0, 1), f'{name}.b3b': (c, b3b, 1)}
        convolutions |= {f'{name}.b1a': (c, b1a, 1), f'{name}.b1b': (b1a, b1b, 3)}
        convolutions |= {f'{name}.b2a': (c, b2a, 1), f'{name}.b2b': (b2a, b2b, 3)}
    shapes = {}
    for name, (c, out, k) in convolutions.items():
        shapes[f'{name}.conv3d.weight'] = (out, c, k, k, k)
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'{name}.bn.{part}'] = (out,)
    shapes['logits.conv3d.weight'] = (n_classes, 1024, 1, 1, 1)
    return shapes | {'logits.conv3d.bias': (n_classes,)}


def write_checkpoint(path, n_classes=400, **changes):
    "A file with the published keys; `changes` replaces tensors, None leaves one out"
    generator = torch.Generator().manual_seed(1)
    shapes = published_shapes(n_classes)
    state = {k: torch.rand(s, generator=generator) for k, s in shapes.items()} | changes
    torch.save({k: v for k, v in state.items() if v is not None}, path)
    return path


# I3D


def test_i3d_has_the_published_keys_and_shapes():
    with torch.device('meta'):
        state = I3D().state_dict()
    own = {k: tuple(v.shape) for k, v in state.items() if 'num_batches_tracked' not in k}
    assert own == published_shapes()


def test_i3d_has_the_published_number_of_parameters():
    stem = 3 * 64 * 343 + 64 * 64 + 64 * 192 * 27
    mixed = {  # weights of the six convolutions of each block
        n: c * (b0 + b1a + b2a + b3b) + 27 * (b1a * b1b + b2a * b2b)
        for n, (c, b0, b1a, b1b, b2a, b2b, b3b) in INCEPTION.items()
    }
    norms = 2 * (64 + 64 + 192 + sum(sum(row[1:]) for row in INCEPTION.values()))
    assert stem + sum(mixed.values()) + norms == 12_287_264
    with torch.device('meta'):
        net = I3D()
    assert sum(p.numel() for p in net.parameters()) == 12_287_264 + 1024 * 400 + 400 == 12_697_264
    norm = 2 * sum(INCEPTION['Mixed_4d'][1:])
    assert sum(p.numel() for p in net.Mixed_4d.parameters()) == mixed['Mixed_4d'] + norm


def test_i3d_has_the_published_shape_at_every_stage():
    with torch.device('meta'):
        net, seen = I3D(), {}
    for name in STAGES:
        hook = lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])})  # noqa: E731
        getattr(net, name).register_forward_hook(hook)
    assert net(torch.empty(2, 3, 64, 224, 224, device='meta')).shape == (2, 400)
    assert list(seen.items()) == list(STAGES.items())


def test_same_padding_is_tensorflows():
    for n in range(1, 40):
        for k in range(1, 8):
            for s in range(1, 4):
                total = max(k - (s if n % s == 0 else n % s), 0)  # TensorFlow's documentation
                before, after = ft.same_padding((n,), (k,), (s,))
                assert (before, after) == (total // 2, total - total // 2)
                assert (n + total - k) // s + 1 == math.ceil(n / s)


def test_convolution_pads_behind_first():
    layer = ft.Conv3d(1, 1, (1, 1, 3), (1, 1, 2)).eval()
    nn.init.ones_(layer.conv3d.weight)
    x = torch.tensor([1.0, 2, 4, 8, 16, 32]).view(1, 1, 1, 1, 6)
    sums = layer(x).flatten() * math.sqrt(1 + 1e-3)  # undo the untrained batch norm
    torch.testing.assert_close(sums, torch.tensor([1.0 + 2 + 4, 4 + 8 + 16, 16 + 32]))


def test_i3d_averages_pairs_of_time_steps():
    net = I3D(3).eval()
    for name in ft.I3D_TABLE:
        setattr(net, name, nn.Identity())
    x = torch.rand(2, 1024, 4, 7, 7)
    space = x.mean((3, 4))
    pairs = (space[:, :, 1:] + space[:, :, :-1]) / 2  # kernel 2, stride 1
    weight, bias = net.logits.conv3d.weight.flatten(1), net.logits.conv3d.bias
    torch.testing.assert_close(net(x), pairs.mean(2) @ weight.T + bias)


# Weights


def test_a_checkpoint_with_the_published_keys_loads(tmp_path):
    path = write_checkpoint(tmp_path / 'rgb_imagenet.pt')
    net, source, note = ft.initial_model('i3d', 34, weights=path)
    file, own = torch.load(path, weights_only=True), net.state_dict()
    assert all(torch.equal(own[k], v) for k, v in file.items() if not k.startswith('logits'))
    assert own['logits.conv3d.weight'].shape[0] == 34
    assert source.startswith('rgb_imagenet.pt ') and len(source.split()[1]) == 12
    assert note == 'classifier of 400 classes replaced by a new one of 34'
    net, _, note = ft.initial_model('i3d', 400, weights=path)
    assert torch.equal(net.logits.conv3d.weight, file['logits.conv3d.weight'])
    assert note == 'classifier of the file kept'


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'Mixed_3b.b1a.conv3d.weight': None}, '1 missing: Mixed_3b.b1a.conv3d.weight'),
        ({'Mixed_3b.b1.weight': torch.ones(1)}, '1 unknown: Mixed_3b.b1.weight'),
        ({'Mixed_5c.b0.bn.bias': torch.ones(9)}, '1 of another shape: Mixed_5c.b0.bn.bias'),
        ({'logits.conv3d.bias': None}, '1 missing: logits.conv3d.bias'),
        ({'logits.conv3d.weight': torch.ones(400, 512, 1, 1, 1)}, 'logits.conv3d.weight'),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, changes, said):
    path = write_checkpoint(tmp_path / 'a.pt', **changes)
    with pytest.raises(InputError, match='not of this network') as e:
        ft.initial_model('i3d', 400, weights=path)
    assert said in str(e.value) and str(path) in str(e.value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'sprung'),)

    torch.save({'logits.conv3d.bias': Trap()}, tmp_path / 'trap.pt')
    (tmp_path / 'text.pt').write_text('not weights')
    torch.save([1, 2], tmp_path / 'list.pt')
    for name in ('trap', 'text', 'list'):
        with pytest.raises(InputError, match='Not a file of weights'):
            ft.initial_model('i3d', 34, weights=tmp_path / f'{name}.pt')
    with pytest.raises(InputError, match='File not found'):
        ft.initial_model('i3d', 34, weights=tmp_path / 'none.pt')
    assert not (tmp_path / 'sprung').exists()


def test_random_weights_come_by_name_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    (a, source, _), (b, _, _), (c, _, _) = (
        ft.initial_model('small', 3, weights='random', seed=s) for s in (7, 7, 8)
    )
    assert source == 'random(7)' and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)
    with pytest.raises(InputError, match="weights='random'"):
        ft.initial_model('i3d', 3)


@pytest.mark.parametrize(
    'name, letter, rate', [('_tiny', 't', 0.1), ('_small', 's', 0.2), ('', 'b', 0.3)]
)
def test_video_swin_is_torchvisions(name, letter, rate):
    arch = FINETUNE[f'video_swin{name}']
    with torch.device('meta'):
        net = arch.build(400)
    published = getattr(torchvision_video, f'Swin3D_{letter.upper()}_Weights').KINETICS400_V1
    assert arch.published is published
    assert sum(p.numel() for p in net.parameters()) == published.meta['num_params']
    drop = [m.p for m in net.modules() if isinstance(m, StochasticDepth)]
    assert drop[0] == 0 and drop[-1] == pytest.approx(rate)
    transform = published.transforms()
    assert (arch.pixels.mean, arch.pixels.std) == (tuple(transform.mean), tuple(transform.std))


def test_torchvisions_weights_come_from_its_cache_or_not_at_all(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError('no route')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.urlopen', no_network)
    with pytest.raises(InputError, match='cannot be had.*(?s:.*)no route(?s:.*)random'):
        ft.initial_model('video_swin_tiny', 5)
    net = torchvision_video.swin3d_t()
    file = Path(FINETUNE['video_swin_tiny'].published.url).name
    (tmp_path / 'hub/checkpoints').mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), tmp_path / 'hub/checkpoints' / file)
    got, source, note = ft.initial_model('video_swin_tiny', 5)
    assert torch.equal(got.patch_embed.proj.weight, net.patch_embed.proj.weight)
    assert source == 'torchvision Swin3D_T_Weights.KINETICS400_V1' and '400 classes' in note


# Frames

CLASSES = ['down', 'rising', 'shrinking', 'still']
VIEWS = ['inner_mirror', 'ceiling']


def film(path, action, seed, n=14, side=48):
    "A bright bar that moves as its class says, on a background of its own"
    rng = np.random.default_rng(seed)
    back = rng.integers(20, 90, (side, side, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', 30, width=side, height=side, pix_fmt='yuv420p')
        stream.options = {'preset': 'ultrafast', 'crf': '18'}
        for i in range(n):
            top = {'down': 2 * i, 'rising': 34 - 2 * i}.get(action, 18)
            wide = 44 - 3 * i if action == 'shrinking' else 40
            frame = back.copy()
            frame[top : top + 10, 2 : 2 + max(wide, 4)] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return path


def segments_of(folder, n_train=1, n_test=1):
    "One file a segment, two views"
    rows = []
    for split, n in (('train', n_train), ('test', n_test)):
        for k in range(n):
            for i, label in enumerate(CLASSES):
                for v, view in enumerate(VIEWS):
                    event = f'{split}{k}{label}'
                    path = folder / view / f'{event}.mp4'
                    if not path.exists():
                        film(path, label, seed=1000 * k + 10 * i + v)
                    row = dict(path=str(path), view=view, subject=f'vp{k}', event=event)
                    rows.append(row | dict(start=0, end=14, label=label, split=split, fps=30.0))
    return as_segments(
        pd.DataFrame(rows), dataset='bars', classes=CLASSES, trained_view='inner_mirror'
    )


@pytest.fixture(scope='module')
def segments(tmp_path_factory):
    return segments_of(tmp_path_factory.mktemp('bars'))


SMALL = FinetuneRecipe(
    lr=2e-3,
    backbone_lr=2e-3,
    weight_decay=0.01,
    epochs=3,
    warmup_epochs=0.5,
    batch_size=4,
    micro_batch=2,
    n_frames=8,
    frames_kept=10,
    resize=48,
    crop=40,
    area=None,
    flip=0.5,
)
QUIET = dict(weights='random', workers=0, device='cpu', progress=False)


def small_swin(n_classes, drop_path=0.2):
    return SwinTransformer3d(
        patch_size=[2, 8, 8],
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=[4, 3, 3],
        stochastic_depth_prob=drop_path,
        num_classes=n_classes,
    )


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    register_small(monkeypatch.setitem)


def register_small(setitem=dict.__setitem__):
    arch = FINETUNE['video_swin_tiny']
    setitem(FINETUNE, 'small', replace(arch, build=small_swin))
    setitem(FINETUNE, 'sure', replace(arch, build=lambda n: small_swin(n, drop_path=0)))


def numbered_segments(folder, n=60):
    path = str(write_video(folder / 'numbers.mp4', n))
    rows = [(path, 0, 5), (path, 3, 40), (path, 40, 60), (path, 3, 40)]
    common = dict(view='inner_mirror', subject='vp1', label='down', split='train', fps=30.0)
    rows = [
        dict(path=p, start=a, end=b, event=f'{i}', **common) for i, (p, a, b) in enumerate(rows)
    ]
    return as_segments(
        pd.DataFrame(rows), dataset='numbers', classes=CLASSES, trained_view='inner_mirror'
    )


WIDE = replace(SMALL, resize=64, crop=64, frames_kept=10)  # the whole numbered picture


def test_kept_frames_are_those_of_the_segment(tmp_path):
    segments = numbered_segments(tmp_path)
    files, failed = ft.cache_frames(segments, tmp_path / 'c', WIDE, workers=2, progress=False)
    kept = [[number(f) for f in np.load(file)] for file in files]
    assert failed.empty and [len(k) for k in kept] == [5, 10, 10, 10]
    assert kept[0] == list(range(5))
    assert kept[1] == [3 + int((i + 0.5) * 3.7) for i in range(10)] == kept[3]
    assert kept[2] == [41 + 2 * i for i in range(10)]
    assert len(list((tmp_path / 'c').iterdir())) == 3  # equal segments are kept once


def test_frames_are_decoded_once(tmp_path, monkeypatch):
    segments = numbered_segments(tmp_path)
    files, _ = ft.cache_frames(segments, tmp_path / 'c', WIDE, workers=0, progress=False)
    files[2].unlink()
    asked = []
    real = frames.decode_ahead
    spy = lambda jobs, *a, **k: asked.extend(jobs) or real(jobs, *a, **k)  # noqa: E731
    monkeypatch.setattr(frames, 'decode_ahead', spy)
    again, _ = ft.cache_frames(segments, tmp_path / 'c', WIDE, workers=0, progress=False)
    assert again == files and files[2].exists()
    assert [len(j.clips) for j in asked] == [1]
    other, _ = ft.cache_frames(
        segments, tmp_path / 'c', replace(WIDE, resize=70), workers=0, progress=False
    )
    assert not set(other) & set(files)  # another size lies elsewhere


def test_training_clips_are_random_but_in_order_and_within_the_square(tmp_path):
    kept = np.zeros((30, 3, 12, 20), np.uint8)
    kept[:, 0] = np.arange(30)[:, None, None]
    kept[:, 1] = np.arange(12)[:, None]
    kept[:, 2] = np.arange(20)
    np.save(tmp_path / 'a.npy', kept[..., :12])
    recipe = replace(SMALL, resize=12, crop=8, n_frames=10, flip=0.25)
    draw = lambda i: ft.training_clip(tmp_path / 'a.npy', recipe, np.random.default_rng(i))  # noqa
    clips = [draw(i) for i in range(200)]
    assert np.array_equal(clips[7], draw(7))
    first = np.stack([c[:, 0, 0, 0] for c in clips]).astype(int)
    assert np.all(first // 3 == np.arange(10))  # one frame of each bin
    assert all(len(set(first[:, i])) == 3 for i in range(10))  # any frame of it
    for c in clips:
        assert (c[:, 0] == c[:, 0, :1, :1]).all()  # the whole picture is of one frame
    tops, lefts = ({int(c[0, k].min()) for c in clips} for k in (1, 2))
    assert tops == lefts == set(range(5))
    mirrored = np.mean([c[0, 2, 0, 0] > c[0, 2, 0, 1] for c in clips])
    assert 0.17 < mirrored < 0.33  # 0.25 +- 2.6 standard errors


def test_by_default_clips_are_cropped_as_the_probes_are(tmp_path):
    "Pieces of 40 to 100 % of the square, of a ratio up to 4:3, scaled to what the network sees"
    kept = np.zeros((4, 3, 60, 60), np.uint8)
    kept[:, 1], kept[:, 2] = 4 * np.arange(60)[:, None], 4 * np.arange(60)
    np.save(tmp_path / 'a.npy', kept)
    recipe = FinetuneRecipe(resize=60, crop=48, n_frames=2)
    assert (recipe.area, recipe.flip) == ((0.4, 1.0), 0)
    sides = []
    for i in range(60):
        clip = ft.training_clip(tmp_path / 'a.npy', recipe, np.random.default_rng(i)).astype(float)
        assert clip.shape == (2, 3, 48, 48) and np.array_equal(clip[0], clip[1])
        height, width = (np.ptp(clip[0, k]) / 4 + 1 for k in (1, 2))
        sides.append((height, width))
    area, ratio = np.prod(sides, 1) / 60**2, np.divide(*np.transpose(sides))
    assert 0.33 < area.min() < 0.55 and 0.85 < area.max() <= 1
    assert 0.70 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.43


def test_sided_classes_are_not_mirrored():
    for label in ('looking_left', 'Right turn', 'turn (left)'):
        with pytest.raises(InputError, match='flip=0'):
            ft.check_flip(SMALL, ['a', label])
        ft.check_flip(replace(SMALL, flip=0), ['a', label])
    ft.check_flip(SMALL, ['bright', 'upright', 'leftover'])


# Training


def weights(net):
    return torch.cat([v.flatten().float() for v in net.model.state_dict().values()])


def test_only_training_segments_of_the_trained_view_are_read(segments, tmp_path, monkeypatch):
    seen = []
    real = loop.cache_frames
    spy = lambda s, *a, **k: seen.append(s) or real(s, *a, **k)  # noqa: E731
    monkeypatch.setattr(loop, 'cache_frames', spy)
    finetune('small', segments, cache=tmp_path, recipe=replace(SMALL, epochs=1), **QUIET)
    assert set(seen[0].split) == {'train'} and set(seen[0].view) == {'inner_mirror'}
    assert len(seen[0]) == len(CLASSES)


def test_gradients_accumulate(segments, tmp_path):
    recipes = [replace(SMALL, optimizer='sgd', epochs=1, micro_batch=m) for m in (1, 3, 4)]
    nets = [finetune('sure', segments, cache=tmp_path, recipe=r, **QUIET) for r in recipes]
    for net in nets[1:]:
        torch.testing.assert_close(weights(net), weights(nets[0]), rtol=1e-5, atol=1e-6)
    start = ft.initial_model('sure', 4, weights='random')[0].state_dict()
    assert not torch.equal(nets[0].model.state_dict()['head.weight'], start['head.weight'])


def test_training_is_reproducible_and_leaves_the_generator_alone(segments, tmp_path):
    before = torch.get_rng_state()
    a, b, c = (
        finetune('small', segments, cache=tmp_path, recipe=replace(SMALL, seed=s), **QUIET)
        for s in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(a), weights(b)) and a.rows == b.rows
    assert not torch.equal(weights(a), weights(c)) and a.weights == 'random(3)'


def train_small(folder, deadly_epoch=None):
    "Train; the killed process runs it too, and dies by SIGKILL while it saves an epoch"
    register_small()
    torch.set_num_threads(1)

    def deadly_save(state, path, save=torch.save):
        save(state, path)
        if state['epoch'] == deadly_epoch:
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = deadly_save if deadly_epoch else torch.save
    folder = Path(folder)
    options = dict(cache=folder / 'c', recipe=replace(SMALL, epochs=5), **QUIET)
    return finetune('small', segments_of(folder), checkpoint=folder / 'net.pt', **options)


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    checkpoint = tmp_path / 'net.pt'
    code = f'from test_finetune import train_small; train_small({str(tmp_path)!r}, 3)'
    process = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parent)
    assert process.returncode == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)['epoch'] == 2  # the third was half written
    threads = torch.get_num_threads()
    try:
        resumed = train_small(tmp_path)
        checkpoint.unlink()
        whole = train_small(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.rows == whole.rows and len(whole.rows) == 5


def test_a_checkpoint_of_something_else_is_refused(segments, tmp_path):
    path = tmp_path / 'net.pt'
    options = dict(cache=tmp_path / 'c', checkpoint=path, **QUIET)
    finetune('small', segments, recipe=replace(SMALL, epochs=1), **options)
    with pytest.raises(InputError, match='another recipe'):
        finetune('small', segments, recipe=SMALL, **options)
    one = replace(SMALL, epochs=1)
    with pytest.raises(InputError, match='another network'):
        finetune('sure', segments, recipe=one, **options)
    with pytest.raises(InputError, match='another data'):
        finetune('small', segments[segments.label != 'still'], recipe=one, **options)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match='Not a checkpoint'):
        finetune('small', segments, recipe=one, **options)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(segments, tmp_path):
    options = dict(cache=tmp_path / 'c', checkpoint=tmp_path / 'net.pt', **QUIET)
    recipe = replace(SMALL, optimizer='sgd', lr=1e20, backbone_lr=1e20, warmup_epochs=0)
    with pytest.raises(InputError, match='not finite') as e:
        finetune('small', segments, recipe=recipe, **options)
    assert 'epoch 2' in str(e.value)
    assert torch.load(tmp_path / 'net.pt', weights_only=True)['epoch'] == 1


def test_groups_hold_every_parameter_once():
    net = FINETUNE['video_swin_tiny'].build(7)
    recipe = FinetuneRecipe()
    groups = ft.make_groups(net, 'head', recipe)
    where = {id(p): (g['base_lr'], g['weight_decay']) for g in groups for p in g['params']}
    assert sum(len(g['params']) for g in groups) == len(where) == len(list(net.parameters()))
    for name, p in net.named_parameters():
        lr, decay = where[id(p)]
        assert lr == (recipe.lr if name.startswith('head') else recipe.backbone_lr)
        plain = name.endswith('.bias') or 'norm' in name or 'bias_table' in name
        assert decay == (0 if plain else recipe.weight_decay), name


def test_half_precision_on_request(segments, tmp_path):
    recipe = replace(SMALL, epochs=1, precision='bf16')
    half = finetune('small', segments, cache=tmp_path, recipe=recipe, **QUIET)
    full = finetune(
        'small', segments, cache=tmp_path, recipe=replace(recipe, precision='auto'), **QUIET
    )
    assert ft.autocast_type('auto', torch.device('cpu')) == torch.float32
    assert half.rows[0]['loss'] != full.rows[0]['loss']
    assert half.rows[0]['loss'] == pytest.approx(full.rows[0]['loss'], abs=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


# Broken videos


def test_broken_training_videos_are_told_and_left_out(tmp_path):
    segments = segments_of(tmp_path)
    train = segments[(segments.split == 'train') & (segments.view == 'inner_mirror')]
    cut, gone = Path(train.path.iloc[0]), Path(train.path.iloc[1])
    cut.write_bytes(cut.read_bytes()[:200])
    gone.unlink()
    one = replace(SMALL, epochs=1)
    with pytest.warns(UserWarning, match='2 of 4 training segments'):
        net = finetune('small', segments, cache=tmp_path / 'c', recipe=one, **QUIET)
    assert set(net.failed.path) == {str(cut), str(gone)} and net.failed.n_clips.sum() == 2
    for path in train.path:
        Path(path).unlink(missing_ok=True)
    with pytest.raises(InputError, match='no training segments'):
        finetune('small', segments, cache=tmp_path / 'c', recipe=one, **QUIET)


def test_frames_before_the_damage_are_used(tmp_path):
    segments = numbered_segments(tmp_path)
    beyond = segments.assign(end=segments.end.where(segments.end < 60, 70))
    files, failed = ft.cache_frames(beyond, tmp_path / 'c', WIDE, workers=0, progress=False)
    assert [f is not None for f in files] == [True, True, False, True]
    assert failed.n_clips.tolist() == [1] and failed.position.iloc[0] >= 60


# Predictions


@pytest.fixture(scope='module')
def trained(segments, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        register_small(patch.setitem)
        cache = tmp_path_factory.mktemp('cache')
        return finetune('small', segments, cache=cache, recipe=replace(SMALL, epochs=1), **QUIET)


@pytest.mark.parametrize('workers', [0, 2])
def test_predictions_are_those_of_the_frames(segments, trained, tmp_path, workers):
    p = predict_videos(trained, segments, batch_size=5, workers=workers, progress=False)
    assert len(p.table) == 3 * len(segments) and p.probes == ['small']
    assert p.table.segment.tolist() == np.repeat(segments.index, 3).tolist()
    assert p.table.split.tolist() == np.repeat(segments.split, 3).tolist()
    for row in (0, 17, 40):
        clip = p.table.iloc[row]
        frames = dict(sweep(clip.path, clip.frames, ft.Transform(48, 40)))
        x = torch.from_numpy(np.stack([frames[f] for f in clip.frames]))
        with torch.inference_mode():
            z = trained.logits(x[None])[0].numpy()
        np.testing.assert_allclose(p.logits[0, row], z, rtol=1e-4, atol=1e-5)
    p.save(tmp_path / 'p.parquet')
    attrs = Predictions.load(tmp_path / 'p.parquet').table.attrs
    assert attrs['network']['weights'] == 'random(0)' and attrs['failed'] == []
    rows = score(p, trained_view='inner_mirror')
    assert set(rows.view) == {*VIEWS, 'novel'} and set(rows.probe) == {'small'}


def test_predictions_tell_what_cannot_be_read(trained, tmp_path):
    segments = segments_of(tmp_path, n_train=0)
    Path(segments.path.iloc[3]).unlink()
    with pytest.warns(UserWarning, match='3 of 24 clips'):
        p = predict_videos(trained, segments, workers=0, progress=False)
    assert len(p.table) == 21 and np.isfinite(p.logits).all()
    assert [f['path'] for f in p.table.attrs['failed']] == [segments.path.iloc[3]]
    for path in segments.path:
        Path(path).unlink(missing_ok=True)
    with pytest.raises(InputError, match='no clips to read'):
        predict_videos(trained, segments, workers=0, progress=False)


def test_a_segment_shorter_than_a_clip_is_predicted_once_for_all_its_clips(trained, segments):
    short = segments[:1].assign(end=1)
    p = predict_videos(trained, short, workers=0, progress=False)
    assert len(p.table) == 3 and np.ptp(p.logits, 1).max() == 0


def test_other_classes_are_refused(trained, segments):
    other = segments.copy()
    other.attrs['classes'] = CLASSES[::-1]
    with pytest.raises(InputError, match='other classes'):
        predict_videos(trained, other, workers=0, progress=False)


# Run or load

ONCE = dict(recipe=replace(SMALL, epochs=2), n_clips=1) | QUIET


def folders(out):
    return sorted(p.name for p in (out / 'finetuned').glob('small-*'))


def test_what_was_trained_is_loaded(segments, tmp_path, monkeypatch, capsys):
    first = ft.finetuned('small', segments, tmp_path, **ONCE)
    assert set(first.table.split) == {'test'} and set(first.table.view) == set(VIEWS)
    monkeypatch.setattr(loop, 'finetune', None)
    again = ft.finetuned('small', segments, tmp_path, **ONCE)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert again.table.attrs['network']['weights'] == 'random(0)'
    said = capsys.readouterr().out.splitlines()
    name = folders(tmp_path)[0]
    assert said == [f'finetuned/{name}: trained now', f'finetuned/{name}: loaded']


def test_an_interrupted_network_goes_on_to_the_same_predictions(
    segments, tmp_path, monkeypatch, capsys
):
    whole = ft.finetuned('small', segments, tmp_path / 'whole', **ONCE)
    real = ft.train_epoch

    def interrupted(run, bar):
        if run.epoch == 1:
            raise KeyboardInterrupt
        return real(run, bar)

    monkeypatch.setattr(loop, 'train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        ft.finetuned('small', segments, tmp_path / 'parts', **ONCE)
    monkeypatch.setattr(loop, 'train_epoch', real)
    parts = ft.finetuned('small', segments, tmp_path / 'parts', **ONCE)
    np.testing.assert_array_equal(parts.logits, whole.logits)
    assert 'training continued' in capsys.readouterr().out


def test_a_run_is_named_after_all_that_decides_it(tmp_path):
    segments = segments_of(tmp_path / 'bars')
    said = dict(recipe=SMALL, weights='random', n_clips=1)

    def name(segments=segments, network='small', **other):
        return ft.run_name(network, segments, tmp_path / 'notes', **said | other)

    path = tmp_path / 'weights.pt'
    torch.save({}, path)
    names = [name(), name(network='i3d'), name(n_clips=3), name(recipe=replace(SMALL, lr=1))]
    names += [name(weights=None), name(weights=path), name(segments.iloc[1:])]
    torch.save({'other': torch.zeros(1)}, path)
    names.append(name(weights=path))
    film(tmp_path / 'bars' / VIEWS[0] / 'train0down.mp4', 'rising', seed=99)
    names.append(name())
    assert len(set(names)) == len(names)
    shutil.copytree(tmp_path / 'bars', tmp_path / 'moved')
    moved = segments.assign(path=segments.path.str.replace('/bars/', '/moved/'))
    moved.attrs = segments.attrs
    assert name(moved) == names[-1]


def test_the_embedded_sets_networks_start_from_random_weights_and_yours_do_not():
    for scale in ('quick', 'demo', 'full'):
        said = ft.task_specific(scale)
        assert list(said) == ['I3D', 'Video Swin']
        assert all(s['weights'] == 'random' for s in said.values())
    yours = ft.task_specific('own', i3d_weights='rgb_imagenet.pt')
    assert yours['I3D'] == dict(name='i3d', weights='rgb_imagenet.pt')
    assert yours['Video Swin'] == dict(name='video_swin')  # the paper's own recipe and weights
    assert 'I3D' not in ft.task_specific('own')


# The real networks learn


@pytest.mark.parametrize('name, epochs, lr', [('i3d', 16, 0.01), ('small', 30, 4e-3)])
def test_a_handful_of_clips_is_learnt_by_heart(segments, tmp_path, monkeypatch, name, epochs, lr):
    def build(n_classes):
        net = old.build(n_classes)
        for m in net.modules():  # the running averages must follow a run of a few steps
            if isinstance(m, nn.BatchNorm3d):
                m.momentum = 0.5
        return net

    old = FINETUNE[name]
    monkeypatch.setitem(FINETUNE, name, replace(old, build=build))
    fixed = dict(resize=48, crop=48, area=None, n_frames=8, frames_kept=8)
    speed = dict(lr=lr, backbone_lr=lr, epochs=epochs, warmup_epochs=1, batch_size=4, micro_batch=4)
    recipe = replace(old.recipe, **fixed, **speed)
    net = finetune(name, segments, cache=tmp_path, recipe=recipe, **QUIET)
    seen = segments[(segments.split == 'train') & (segments.view == 'inner_mirror')]
    rows = score(predict_videos(net, seen, workers=0, progress=False), trained_view='inner_mirror')
    assert net.rows[0]['loss'] > 1.0 > 0.5 > net.rows[-1]['loss'], net.rows
    assert rows.top1.iloc[0] == 1


def test_the_full_video_swin_makes_a_step(segments, tmp_path):
    recipe = replace(SMALL, epochs=1, n_frames=4, batch_size=2, micro_batch=2)
    two = segments[segments.label.isin(CLASSES[:2])]
    net = finetune('video_swin_tiny', two, cache=tmp_path, recipe=recipe, **QUIET)
    assert abs(net.rows[0]['loss'] - math.log(4)) < 0.5
    start = ft.initial_model('video_swin_tiny', 4, weights='random')[0]
    moved = [not torch.equal(a, b) for a, b in zip(net.model.parameters(), start.parameters())]
    assert np.mean(moved) > 0.9
