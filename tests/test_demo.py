"The whole line from the command line: what it leaves, that it resumes, and what it says of bad input"

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from fmhar.analysis.companions import METHODS
from fmhar.cli import app
from fmhar.errors import InputError
from fmhar.fusion.thirteen import TABLE_3
from fmhar.synthetic.film import write_synthetic
from fmhar.synthetic.scripts import SyntheticConfig

FMHAR = Path(sys.executable).parent / 'fmhar'
TRAINED = 'inner_mirror'


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    "An uninterrupted quick demo, made with no way to a network"

    def no_network(self, address):
        assert self.family == socket.AF_UNIX, f'reached for {address}'

    out = tmp_path_factory.mktemp('demo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', no_network)
        result = CliRunner().invoke(app, ['demo', '--quick', '--out', str(out)])
    assert result.exit_code == 0, result.output
    return out / 'quick', result.output


def test_the_demo_leaves_what_it_says(quick):
    out, printed = quick
    table = pd.read_csv(out / 'table3.csv')
    assert len(table) == 13 + 3 + 1 and table['Group'].iloc[-1] == 'Random Baseline'
    rows = pd.read_csv(out / 'rows.csv')
    assert set(rows.probe) == {*TABLE_3, *METHODS, 'random'} and rows.view.nunique() == 6 + 1
    assert rows.balanced_accuracy.between(0, 1).all()
    for name in ('figure3_embeddings', 'figure4_views', 'figure5_examples'):
        with Image.open(out / f'{name}.png') as im:
            assert min(im.size) > 400
    for text in (printed, (out / 'table3.md').read_text()):
        assert "not Meta's weights" in text and 'LSTM' in text


def test_the_record_tells_settings_time_and_failures(quick):
    record = json.loads((quick[0] / 'run.json').read_text())
    assert record['backbone']['name'] == 'dinov2-small-imgfocus'
    assert record['settings']['n_frames'] == 16 and record['failed'] == []
    stages = {s['stage']: s for s in record['stages']}
    for stage, unit in {'render the videos': 'frames', 'features': 'frames', 'train the bank': 'clips',
                        'test views': 'frames'}.items():  # fmt: skip
        assert stages[stage]['rate'] > 0 and stages[stage]['unit'] == unit
    assert stages['load backbone']['rate'] is None
    assert 'NaN' not in (quick[0] / 'run.json').read_text()
    assert sum(s['share'] for s in record['stages']) == pytest.approx(100)
    assert 'torch' in record['versions']


def test_everything_a_demo_writes_says_rendered(quick):
    out, printed = quick
    files = [
        p for p in out.iterdir() if p.is_file() and p.suffix in ('.csv', '.md', '.png', '.pdf')
    ]
    files += [out / 'run.json', *out.glob('runs/*/rows.csv'), *out.glob('runs/*/run.json')]
    files += out.glob('runs/*/predictions.parquet')
    assert len(files) >= 15
    silent = [p.name for p in files if b'rendered' not in p.read_bytes()]
    assert not silent
    assert 'rendered' in printed and 'do not read the numbers' in printed
    page = out / 'report.html'
    assert CliRunner().invoke(app, ['report', str(out), '-o', str(page)]).exit_code == 0
    assert 'rendered' in page.read_text().split('recognises')[0]


def test_the_terminal_fits_120_columns(quick):
    table = quick[1].split('Backbone:')[0]
    table = table[table.index('Temporal') :]
    assert max(map(len, table.splitlines())) <= 120 and 'Same' in table


STAGES = {
    'filming': 'drive_act/**/*.*',
    'extracting': 'features/*.*',
    'training': 'runs/*/*.*',
    'drawing': 'runs/*/predictions.parquet',
}


@pytest.mark.parametrize(
    'stages', [['training'], pytest.param(list(STAGES), marks=pytest.mark.slow)], ids=' '.join
)
def test_killed_again_and_again_it_ends_at_the_same_rows(stages, quick, tmp_path):
    command = [FMHAR, 'demo', '--quick', '--out', tmp_path]
    for stage in stages:
        p = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while p.poll() is None and not any((tmp_path / 'quick').glob(STAGES[stage])):
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(p.pid, signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL, 'it had finished before it could be killed'
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = (pd.read_csv(o / 'rows.csv') for o in (tmp_path / 'quick', quick[0]))
    where = ['code', 'features']  # keys name the videos by path and time
    pd.testing.assert_frame_equal(ours.drop(columns=where), theirs.drop(columns=where))


# --- bad input: a small Drive&Act folder, spoilt in one way each --------------------------------


@pytest.fixture(scope='module')
def whole_set(tmp_path_factory):
    return write_synthetic(
        tmp_path_factory.mktemp('set') / 'set', SyntheticConfig.tiny(), progress=False
    )


@pytest.fixture
def root(whole_set, tmp_path):
    return Path(shutil.copytree(whole_set, tmp_path / 'set', copy_function=os.link))


def run(root, *options, out=None):
    "`fmhar run` with a small random encoder and one cheap head"
    small = '--backbone facebook/dinov2-small --weights random --size 28 --epochs 2'.split()
    out = out or root.parent / 'out'
    if '--fusion' not in options:
        options += ('--fusion', 'average_pooling')  # none of figure 3's heads: no UMAP to compile
    if '--augment' not in options:
        options += ('--augment', 'none')
    command = ['run', str(root), '--out', str(out), *small, *options]
    return CliRunner().invoke(app, command), out


def refused(root, *options):
    "The error that `fmhar run` ends with"
    result, _ = run(root, *options)
    assert result.exit_code != 0
    assert isinstance(result.exception, InputError), result.exception
    return result.exception


def test_it_runs_and_random_weights_are_said_everywhere(root):
    result, out = run(root)
    assert result.exit_code == 0, result.output
    assert 'random(0)' in result.output and 'random(0)' in (out / 'table3.md').read_text()
    assert set(pd.read_csv(out / 'rows.csv').weights) == {'random(0)'}


def test_three_crops(root):
    result, out = run(
        root, '--crops', '3', '--class', 'opening_bottle', '--class', 'closing_bottle'
    )
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(out / 'rows.csv')
    assert {'average_pooling', 'ridge'} <= set(rows.fusion)  # a head, and a companion joined to it


def test_a_head_with_an_option_is_a_row_of_its_own(root):
    heads = 'average_pooling', 'lstm', 'lstm hidden=32'
    result, out = run(root, *(word for head in heads for word in ('--fusion', head)))
    assert result.exit_code == 0, result.output
    assert {*heads} <= set(pd.read_csv(out / 'rows.csv').probe)
    table = (out / 'table3.md').read_text()
    assert re.search(r'\| LSTM +\|', table) and re.search(r'\| lstm hidden=32 +\|', table)


def test_a_pilot_of_few_segments_ends_with_its_table(root):
    few = '--view inner_mirror --class opening_bottle --class closing_bottle --fusion max_pooling'
    result, out = run(root, *few.split())
    assert result.exit_code == 0, result.output
    assert 'figure3_embeddings.png could not be drawn' in result.output
    assert 'Max Pooling' in result.output and 'do not read the numbers' in result.output
    record = json.loads((out / 'run.json').read_text())
    assert 'figure3' in record['not_drawn'][0] and not (out / 'figure3_embeddings.png').exists()


def test_a_smoke_test_does_not_overwrite_a_larger_result(root):
    few = '--view inner_mirror --class opening_bottle --class closing_bottle'.split()
    result, out = run(root, *few)
    rows = pd.read_csv(out / 'rows.csv')
    rows.assign(n=400).to_csv(out / 'rows.csv', index=False)
    result, _ = run(root, *few)
    assert isinstance(result.exception, InputError) and 'larger result' in str(result.exception)


def test_missing_root(tmp_path):
    assert 'nowhere' in str(refused(tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    'options, named',
    [
        (['--fusion', 'max_poling'], 'did you mean max_pooling'),
        (['--fusion', 'lstm hiden=32'], 'did you mean hidden'),
        (['--class', 'open_bottle'], 'opening_bottle'),
        (['--view', 'inner_miror'], 'inner_mirror'),
        (['--trained-view', 'inner_miror'], 'inner_mirror'),
        (['--dataset', 'drive'], 'drive_act'),
        (['--option', 'split=3'], 'split'),
        (['--option', 'splitt=0'], 'did you mean split'),
    ],
)
def test_unknown_names_list_the_known_ones(root, options, named):
    assert named in str(refused(root, *options))


def rewrite(path: Path, content):
    "Replace a file that is a hard link to the shared set"
    path.unlink()
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)


def annotations(root, view=TRAINED, split='test'):
    return next(root.rglob(f'{view}/midlevel.chunks_90.split_0.{split}.csv'))


def test_a_column_left_out(root):
    path = annotations(root)
    rewrite(path, pd.read_csv(path).drop(columns='frame_end').to_csv(index=False))
    error = refused(root)
    assert 'frame_end' in str(error) and path.name in str(error.where)


@pytest.mark.parametrize('spoil', ['truncated', 'empty', 'text', 'missing'])
def test_a_broken_video_is_listed_and_the_rest_goes_on(root, spoil):
    subject = pd.read_csv(annotations(root, 'ceiling')).file_id.iloc[0]
    video = root / 'ceiling' / f'{subject}.mp4'
    content = {
        'truncated': video.read_bytes()[: video.stat().st_size // 2],
        'empty': b'',
        'text': b'this is no video',
        'missing': b'',
    }[spoil]
    rewrite(video, content)
    if spoil == 'missing':
        video.unlink()
    result, out = run(root)
    assert result.exit_code == 0, result.output
    failed = json.loads((out / 'run.json').read_text())['failed']
    assert [Path(f['path']).name for f in failed] == [video.name] and failed[0]['n_clips'] > 0
    assert '1 videos could not be read' in (out / 'table3.md').read_text()


@pytest.mark.parametrize('where', [TRAINED, '.'])
def test_without_a_readable_training_video_it_says_so(root, where):
    for video in (root / where).rglob('*.mp4'):
        rewrite(video, b'this is no video')
    error = refused(root)
    assert 'train on' in str(error) and 'fmhar check' in str(error)


@pytest.mark.parametrize('view', [TRAINED, '*'])
@pytest.mark.parametrize('fusion', ['average_pooling', 'cross_attention_all'])
def test_without_a_readable_test_video_it_says_so(root, view, fusion):
    for path in root.rglob('midlevel.chunks_90.split_0.test.csv'):
        if path.parent.match(f'*/{view}'):
            for name in set(pd.read_csv(path).file_id):
                rewrite(root / path.parent.name / f'{name}.mp4', b'this is no video')
    error = refused(root, '--fusion', fusion)
    assert 'test clip of the trained view' in str(error) and 'fmhar check' in str(error)


def test_frames_beyond_the_file_are_named(root):
    path = annotations(root)
    df = pd.read_csv(path)
    df.loc[df.index[-1], 'frame_end'] += 10_000
    rewrite(path, df.to_csv(index=False))
    result, out = run(root)
    assert result.exit_code == 0, result.output
    failed = json.loads((out / 'run.json').read_text())['failed']
    assert len(failed) == 1 and 'frame' in failed[0]['message']


def test_a_full_disk_is_said_without_a_traceback(root):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    small = '--backbone facebook/dinov2-small --weights random --size 28 --fusion average_pooling'
    command = [FMHAR, 'run', root, '--out', root.parent / 'out', *small.split()]
    p = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files)
    assert p.returncode == 1
    assert 'Cannot write' in p.stderr and 'Traceback' not in p.stderr


def test_the_mean_over_official_splits(root):
    folders = (root / 'iccv_activities_3s').rglob('*split_0*.csv')
    for path in list(folders):
        name = path.name.replace('split_0', 'split_1')
        path.with_name(name).write_text(path.read_text())
    result, out = run(root, '--option', 'split=0,1')
    assert result.exit_code == 0, result.output
    assert 'Mean over the splits 0, 1' in result.output
    mean, one = (pd.read_csv(out / f / 'table3.csv') for f in ('.', 'split_0'))
    pd.testing.assert_frame_equal(mean, one)  # the same split twice
    counts = [pd.read_csv(out / f / 'rows.csv').n.sum() for f in ('.', 'split_0')]
    assert counts[0] == 2 * counts[1]
