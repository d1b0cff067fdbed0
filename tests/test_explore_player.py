"The player: what is cut out of a recording, what the browser is told, and what a saved notebook holds"

import base64
import io
import re
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from numbered import SIDE, number, write_video

import fmhar
from fmhar.errors import InputError, VideoError
from fmhar.explore.cutting import cut
from fmhar.explore.player import about_event, events
from fmhar.explore.source import as_source

ASSETS = Path(fmhar.__file__).parent / 'explore'


def numbers(piece):
    "Numbers of the frames that a browser would show of a piece"
    with av.open(io.BytesIO(piece.data)) as file:
        shown = [(float(f.time), f.to_ndarray(format='rgb24')) for f in file.decode(video=0)]
    inside = [f for t, f in shown if piece.begins - 1e-3 <= t < piece.begins + piece.seconds - 1e-3]
    return [number(f.transpose(2, 0, 1)) for f in inside]


@pytest.mark.parametrize(
    'name, codec, options',
    [
        ('closed.mp4', 'libx264', dict(g=20)),
        ('b_frames.mp4', 'libx264', dict(g=25, bf=3)),
        ('one_key.mkv', 'libx264', dict(g=1000)),
        ('vp9.mp4', 'libvpx-vp9', dict(g=20, deadline='realtime')),
    ],
)
def test_what_browsers_play_is_copied_frame_by_frame(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, 120, codec, **options)
    for start, end in ((0, 10), (37, 61), (100, 120)):
        piece = cut(path, start, end)
        assert piece.copied
        assert numbers(piece) == list(range(start, end))


@pytest.mark.parametrize(
    'name, codec, pix_fmt', [('a.avi', 'mpeg4', 'yuv420p'), ('b.mp4', 'libx264', 'yuv444p')]
)
def test_what_browsers_do_not_play_is_encoded_and_said_so(tmp_path, name, codec, pix_fmt):
    path = write_video(tmp_path / name, 60, codec, pix_fmt=pix_fmt)
    piece = cut(path, 30, 45)
    assert not piece.copied and 'encoded' in piece.note
    assert numbers(piece) == list(range(30, 45))


def test_a_copy_is_much_smaller_than_the_recording(tmp_path):
    path = write_video(tmp_path / 'long.mp4', 600, g=30)
    assert len(cut(path, 300, 330).data) < path.stat().st_size / 8


def test_a_folder_of_frames_plays(tmp_path):
    from PIL import Image

    for i in range(8):
        Image.new('RGB', (SIDE, SIDE), (20 * i, 0, 0)).save(tmp_path / f'{i:03}.png')
    piece = cut(tmp_path, 2, 6, fps=10)
    assert piece.seconds == pytest.approx(0.4)


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(VideoError, match='gone.mp4'):
        cut(tmp_path / 'gone.mp4', 0, 5)


@pytest.fixture
def segments(tmp_path):
    "Two events in three views: one at half the rate, one late by 3 frames and missing once"
    write_video(tmp_path / 'front.mp4', 90, g=30)
    write_video(tmp_path / 'half.mp4', 45, rate=15, g=30)
    write_video(tmp_path / 'late.mp4', 93, g=30)
    rows = []
    for event, start, label in (('e0', 0, 'open'), ('e1', 45, 'close')):
        for view, k, late in (('front', 1, 0), ('half', 2, 0), ('late', 1, 3)):
            if (event, view) != ('e1', 'late'):
                span = start // k, (start + 30) // k
                rows.append(
                    (str(tmp_path / f'{view}.mp4'), view, 's', event, *span, label, 30 / k, late)
                )
    columns = ['path', 'view', 'subject', 'event', 'start', 'end', 'label', 'fps', 'offset']
    table = pd.DataFrame(rows, columns=columns)
    table.attrs = dict(classes=['open', 'close'], trained_view='front')
    return table


def test_rates_offsets_and_missing_cameras(segments):
    source = as_source(segments)
    info = about_event(source, 'e1', None)
    assert info['seconds'] == 1.0
    assert [c['missing'] for c in info['cameras']] == ['', '', 'no recording of this event']
    player, got = events(segments), {}
    for row in source.rows('e0').itertuples():
        got[row.view] = numbers(player._piece(row))
    assert got['front'] == list(range(30))
    assert got['half'] == list(range(15))
    assert got['late'] == list(range(3, 33))


def test_the_browser_gets_one_message_a_camera_and_errors_in_their_place(segments, monkeypatch):
    Path(segments.path[1]).write_bytes(b'no video')
    player, sent = events(segments), []
    player.wait()
    monkeypatch.setattr(player, 'send', lambda m, buffers=None: sent.append((m, buffers)))
    player._heard(player, dict(type='ready'), [])
    player.wait()
    kinds = {m['view']: m['type'] for m, _ in sent}
    assert kinds == dict(front='piece', half='broken', late='piece')
    sent.clear()
    player.event = 'e1'
    player.wait()
    assert {m['ticket'] for m, _ in sent} == {player.info['ticket']}


def test_the_bar_tells_all_segments_of_the_recording(segments):
    info = about_event(as_source(segments), 'e0', None)
    assert [s[:3] for s in info['bar']['segments']] == [[0.0, 1.0, 0], [1.5, 2.5, 1]]
    assert info['bar']['now'] == [0.0, 1.0]


def test_an_event_of_another_class_can_be_shown_while_a_class_is_chosen(segments):
    player = events(segments)
    player.kind = 'close'
    assert player.event == 'e1'
    player.event = 'e0'
    assert player.kind == player.ALL and player.info['label'] == 'open'


def test_things_that_cannot_be_explored_are_named():
    with pytest.raises(InputError, match='int'):
        events(3)
    with pytest.raises(InputError, match='event, start'):
        events(pd.DataFrame(dict(path=['x'], view=['v'], end=[1], label=['a'])))


def test_a_notebook_runs_and_its_saved_cell_holds_a_small_still(segments, tmp_path):
    segments.to_csv(tmp_path / 's.csv', index=False)
    code = """
import pandas as pd
from fmhar.explore.player import events
events(pd.read_csv('s.csv'))
"""
    nb = new_notebook(cells=[new_code_cell(code)])
    NotebookClient(
        nb, kernel_name='python3', resources=dict(metadata=dict(path=tmp_path))
    ).execute()
    widget, below = (o['data'] for o in nb.cells[0].outputs)
    assert 'application/vnd.jupyter.widget-view+json' in widget
    picture = base64.b64decode(below['image/jpeg'])
    assert picture[:2] == b'\xff\xd8'
    assert len(str(nb.cells)) < 1_000_000


@pytest.mark.parametrize('path', sorted(ASSETS.glob('*.[jc]s*')), ids=lambda p: p.name)
def test_the_browsers_part_fetches_nothing(path):
    text = path.read_text()
    assert not re.search(
        r'https?:|fetch\(|XMLHttpRequest|WebSocket|@import|import\s*\(|eval\(', text
    )


def test_the_answers_of_a_head_are_told(segments):
    from fmhar.evaluation.predictions import Predictions

    table = segments.assign(segment=range(len(segments)))
    table.attrs = segments.attrs
    logits = np.log(np.tile(np.float32([0.8, 0.2]), (1, len(table), 1)))
    player = events(Predictions(table, logits, ['lstm'], ['open', 'close']), event='e1')
    camera = player.info['cameras'][0]
    assert (camera['prediction'], camera['right']) == ('open', False)
    assert [round(p, 2) for _, p, _ in camera['top']] == [0.8, 0.2]
