"`fmhar extract`, `fmhar store` and `python -m fmhar`, as a terminal sees them"

import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from tiny_set import ENV, content, write_tiny_set
from typer.testing import CliRunner

import fmhar.demo  # (it imports `run` before a test replaces it)
from fmhar import cli, features
from fmhar.errors import InputError
from fmhar.features.store import FeatureStore, list_shards, shard_files


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('set')
    write_tiny_set(root)
    table = pd.read_csv(root / 'segments.csv')
    table[table.view != 'top'].to_csv(root / 'sound.csv', index=False)
    return root


def extract(data, out, *options, table='sound.csv'):
    "`fmhar extract` of that table with the tiny encoder"
    fixed = ['--dataset', 'table', '--backbone', data / 'encoder', '--workers', '0', '--out', out]
    fixed += [] if '--augment' in options else ['--augment', 'none']
    return fmhar('extract', data / table, *fixed, *options)


def fmhar(*words):
    return CliRunner().invoke(cli.app, [str(w) for w in words])


@pytest.fixture
def store(data, tmp_path):
    assert extract(data, tmp_path / 'store').exit_code == 0
    return tmp_path / 'store'


def test_extract_takes_what_the_protocol_reads(data, store):
    "24 segments of the trained view (16 to train), 8 of the other's test split, 3 clips each"
    assert len(content(FeatureStore(store), tokens=False)) == 16 + 8 * 3 + 8 * 3
    again = extract(data, store)
    assert again.exit_code == 0 and '64 clips' in again.stdout and ' 0 of them new' in again.stdout
    more = extract(data, store, '--everything')
    assert '80 clips' in more.stdout and '16 of them new' in more.stdout


@pytest.mark.parametrize(
    'options, clips, shape',
    [
        (['--tokens'], 64, '16 x 17 x 16'),
        (['--tokens', '--token-pool', '2', '--token-dtype', 'int8'], 64, '16 x 5 x 18'),
        (['--n-clips', '1', '--n-train-clips', '2'], 48, '16 x 16'),
        (['--n-clips', '1', '--crops', '3'], 64, '16 x 16'),
        (['--layer', '0', '--layer', '-1', '--size', '14'], 64, '16 x 32'),
        (['--weights', 'random', '--identity', 'content', '--seed', '1'], 64, '16 x 16'),
        (['--trained-view', 'side'], 64, '16 x 16'),
    ],
)
def test_options_reach_the_store(data, tmp_path, options, clips, shape):
    result = extract(data, tmp_path, *options)
    assert result.exit_code == 0, result.output
    shards = list_shards(tmp_path)
    assert shards.clips.iloc[-1] == clips and shards['shape'].iloc[-1] == shape
    assert ('--weights' in options) == shards.weights[0].startswith('random(')


def test_a_broken_video_is_listed_and_counts(data, tmp_path):
    result = extract(data, tmp_path, '--everything', table='segments.csv')
    assert result.exit_code == 1 and result.exception.__class__ is SystemExit
    assert 'left out' in result.stdout and str(data / 'top.mkv') in result.stdout
    failed = pd.read_csv(tmp_path / 'broken.csv')
    assert list(failed['view']) == ['top'] and 0 < failed.n_clips[0] < 40
    n = len(content(FeatureStore(tmp_path), tokens=False))
    assert n == 120 - failed.n_clips[0] and f'{n} clips' in result.stdout
    assert extract(data, tmp_path).exit_code == 0  # without that view
    assert not (tmp_path / 'broken.csv').exists()


def test_only_the_first_rank_speaks(data, tmp_path, monkeypatch):
    "The launcher would stop the others, were one of them to end with status 1"
    monkeypatch.setenv('RANK', '1')
    result = extract(data, tmp_path, '--everything', table='segments.csv')
    assert (result.exit_code, result.stdout) == (0, '')


def test_plan_tells_and_writes_no_feature(data, tmp_path, monkeypatch):
    result = extract(data, tmp_path, '--tokens', '--plan')
    assert result.exit_code == 0, result.output
    assert '64 clips: 0 are stored' in result.stdout and 'frames/s' in result.stdout
    assert shard_files(tmp_path) == []
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(features.shutil, 'disk_usage', lambda path: free)
    result = extract(data, tmp_path, '--tokens', '--plan')
    assert result.exit_code == 1 and '64 clips' in result.stdout  # the plan, and then the refusal
    assert isinstance(result.exception, InputError)
    assert 'do not fit on this disk' in str(result.exception)
    assert isinstance(extract(data, tmp_path).exception, InputError)


@pytest.mark.parametrize(
    'options, named',
    [
        (['--decoder', 'decord'], 'pyav, torchcodec'),
        (['--identity', 'name'], 'state, content'),
        (['--token-dtype', 'int4', '--tokens'], 'int8'),
        (['--crops', '2'], '1 or 3'),
        (['--augment', 'views=many'], 'whole number'),
        (['--augment', 'crop=2'], 'views, area, ratio'),
        (['--augment', 'online'], 'stores nothing'),
        (['--augment', 'views=2', '--n-train-clips', '2'], 'views=2'),
        (['--workers', '-1'], 'at least 0'),
        (['--layer', '7'], 'has 2 blocks'),
        (['--backbone', 'dinov5'], 'dinov2'),
        (['--dataset', 'tables'], 'table'),
    ],
)
def test_bad_options(data, tmp_path, options, named):
    result = extract(data, tmp_path / 'store', *options)
    assert result.exit_code == 1 and isinstance(result.exception, InputError), result.exception
    assert named in str(result.exception)
    assert not (tmp_path / 'store').exists() or shard_files(tmp_path / 'store') == []


def test_store_commands(data, store):
    extract(data, store, '--tokens', '--token-pool', '2')
    listed = fmhar('store', 'ls', store)
    names = [p.stem for p in shard_files(store)]
    assert listed.exit_code == 0 and all(name in listed.stdout for name in names)
    usage = fmhar('store', 'du', store)
    assert usage.exit_code == 0 and 'tokens2' in usage.stdout and 'GiB' in usage.stdout
    assert 'are sound, 0 damaged' in fmhar('store', 'verify', store).stdout
    file = store / f'{names[0]}.cls.npy'
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = fmhar('store', 'verify', store)
    assert result.exit_code == 1 and '1 damaged' in result.stdout and str(file) in result.stdout
    result = fmhar('store', 'rm', store, names[0])
    assert result.exit_code == 0 and 'MiB freed' in result.stdout
    assert not list(store.glob(f'{names[0]}*')) and fmhar('store', 'verify', store).exit_code == 0


def test_rm_takes_what_killed_writers_left(store):
    shard, before = shard_files(store)[0].stem, {p for p in store.rglob('*') if p.is_file()}
    stem = '261124-0123456789ab'
    left = [f'.{stem}.cls.1a2b.tmp.npy', f'.{stem}.1a2b.tmp.json', f'{stem}.cls.npy']
    left += [f'.claims/{"0" * 20}.lock']
    for name in left:
        (store / name).write_bytes(bytes(2**20))
        os.utime(store / name, times=(time.time() - 7200,) * 2)
    (store / 'notes.txt').write_text('kept')
    new = store / f'.{stem[:-1]}c.cls.1a2b.tmp.npy'
    new.touch()  # of a writer that is at work
    mine = [store / 'x.npy', store / 'settings.json.bak', store / '.claims' / 'mine.lock']
    for file in mine:  # nothing of the store's
        file.write_bytes(b'mine')
        os.utime(file, times=(time.time() - 7200,) * 2)
    assert '0.0 MiB freed' in fmhar('store', 'rm', store, '--leftovers', 3).stdout
    assert '4.0 MiB freed' in fmhar('store', 'rm', store, '--leftovers', 1).stdout
    after = {p for p in store.rglob('*') if p.is_file()}
    assert after - before == {store / 'notes.txt', new, *mine} and before <= after
    assert FeatureStore(store)._shards == {shard}


@pytest.mark.parametrize('command', ['ls', 'du', 'verify', 'rm'])
def test_no_such_store(tmp_path, command):
    result = fmhar('store', command, tmp_path / 'nowhere', *['x'] * (command == 'rm'))
    assert result.exit_code == 1 and isinstance(result.exception, InputError)
    assert 'No such feature store' in str(result.exception)


def test_rm_of_nothing_or_of_what_is_not_there(store):
    for words, said in (([], 'Nothing to remove'), (['no-such'], 'Unknown shard')):
        result = fmhar('store', 'rm', store, *words)
        assert result.exit_code == 1 and said in str(result.exception)
    assert len(shard_files(store)) == 1


def test_report_is_the_page(tmp_path, monkeypatch):
    page = pytest.importorskip('fmhar.paper.page')
    (tmp_path / 'results').mkdir()

    def write(folder, out):
        assert folder == tmp_path / 'results'
        out.write_text('page')

    monkeypatch.setattr(page, 'write_report', write)
    result = fmhar('report', tmp_path / 'results', '-o', tmp_path / 'r.html')
    assert result.exit_code == 0 and str(tmp_path / 'r.html') in result.stdout


def test_main_prints_errors_without_traceback(data, tmp_path, monkeypatch, capsys):
    for words, code in ((['store', 'ls', tmp_path / 'nowhere'], 1), (['store', 'rm'], 2)):
        monkeypatch.setattr(sys, 'argv', ['fmhar', *map(str, words)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        err = capsys.readouterr().err
        assert e.value.code == code and err and 'Traceback' not in err


def test_python_m_fmhar(tmp_path):
    command = [sys.executable, '-m', 'fmhar', 'store', 'rm', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith('fmhar: Nothing to remove')
    assert 'Traceback' not in done.stderr


def test_run_says_how_clips_are_read(monkeypatch):
    from fmhar import experiments

    asked = []

    def take(exp, out, **options):
        asked.append(exp)
        raise InputError('enough')

    monkeypatch.setattr(experiments, 'run', take)
    words = '--n-clips 2 --n-train-clips 4 --crops 3 --decoder torchcodec --identity content'
    assert fmhar('run', 'somewhere', *words.split(), '--augment', 'none').exit_code == 1
    assert fmhar('run', 'somewhere', '--augment', 'views=6 area=0.3,1', '--stride', '0.2').exit_code
    frozen, exp = asked
    assert (frozen.n_clips, frozen.n_train_clips, frozen.n_crops) == (2, 4, 3)
    assert (frozen.decoder, frozen.identity) == ('torchcodec', 'content')
    assert frozen.augmentation == 'none' and exp.stride == 0.2
    assert exp.augmentation == 'views=6 area=0.3,1 ratio=0.75,1.3333'


def test_plan_counts_views(data, tmp_path):
    plain = extract(data, tmp_path, '--plan').stdout
    views = extract(data, tmp_path, '--plan', '--augment', 'views=3').stdout
    assert '16 training segments x 1 views: none' in plain
    assert '16 training segments x 3 views: views=3 area=0.4,1 ratio=0.75,1.3333' in views
    assert '96 clips' in views and shard_files(tmp_path) == []


def test_the_lists_name_what_there_is():
    heads, datasets = fmhar('heads').stdout, fmhar('datasets').stdout
    assert 'max_pooling' in heads and 'Max Pooling + ReLU' in heads
    assert 'drive_act' in datasets and 'trained_view' in datasets
    assert 'clip' in fmhar('backbones', '*clip*').stdout
    assert fmhar('--version').stdout.startswith('fmhar 0.')


def test_help_has_groups_and_an_example():
    for command in ('run', 'extract', 'check', 'demo', 'report'):
        text = fmhar(command, '--help').stdout
        assert 'Example' in text, command
    assert 'Heads and training' in fmhar('run', '--help').stdout


def test_a_log_file_has_lines_and_no_carriage_returns(data, tmp_path):
    words = ['extract', data / 'sound.csv', '--dataset', 'table', '--backbone', data / 'encoder']
    words += ['--augment', 'none', '--workers', 0, '--out', tmp_path / 'store']
    command = [sys.executable, '-m', 'fmhar', *map(str, words)]
    env = {k: v for k, v in ENV.items() if k != 'TQDM_DISABLE'}
    done = subprocess.run(command, capture_output=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b'\r' not in done.stderr and done.stderr.count(b'\n') < 20


def test_hints_are_options_in_a_terminal():
    assert cli.in_cli_words("ask with weights='random'") == 'ask with --weights random'
