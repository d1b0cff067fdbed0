"A page needs nothing beside it, shows what the folder holds and reads on a phone and a wide window"

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import random_baseline, score
from fmhar.paper import page
from fmhar.paper.printed import THIRTEEN, VIEW_COLOURS, printed

VIEWS = list(VIEW_COLOURS)[:6]
NAMES = dict(zip(VIEWS, 'front-top right-top back face-view left-top kinect-color'.split()))
CLASSES = [f'action_{i}' for i in range(12)]
TRAINED = 'inner_mirror'
HEADS = list(THIRTEEN)
EVIL = '<script>document.title = "stolen"</script>'
CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)


def predictions(views=VIEWS, heads=HEADS, seed=0):
    "Logits that are better in the trained view"
    table = pd.DataFrame(
        dict(segment=f'{e}{v}', clip=0, event=e, view=v, subject=f'vp{e % 5}', split='test')
        | dict(label=CLASSES[e % 12])
        for e in range(60)
        for v in views
    )
    table.attrs = dict(trained_view=TRAINED, cluster='subject', classes=CLASSES, view_names=NAMES)
    truth = np.eye(12)[table.label.map(CLASSES.index)]
    gain = np.where(table.view == TRAINED, 2.0, 0.5)[:, None]
    noise = np.random.default_rng(seed).normal(size=(len(heads), *truth.shape))
    return Predictions(table, (gain * truth + noise).astype(np.float32), list(heads), CLASSES)


def rows_of(p):
    rows = pd.concat([f(p, trained_view=TRAINED) for f in (score, random_baseline)])
    said = dict(dataset='made_up', backbone='none', weights='random(0)', size=70, seed=0, code='x')
    return rows.assign(fusion=rows.probe, **said)


RECORD = dict(
    settings=dict(root='videos', reader=[['split', 0]], recipe=dict(epochs=60, grad_clip=None)),
    backbone=dict(name='none', weights='random(0)', note=f'Made-up logits. {EVIL}'),
    versions=dict(fmhar='0.1.0', torch='2.15.0'),
    stages=[
        dict(stage='features', seconds=30.0, share=75.0, items=900.0, unit='frames', rate=30.0),
        dict(stage='train the bank', seconds=10.0, share=25.0, items=np.nan, unit=None, rate=None),
    ],
    clips=360,
    failed=[
        dict(path='videos/' + 'long_folder_name/' * 12 + f'{EVIL}.mp4', view='ceiling', position=17)
        | dict(message='cut short: 40 of 90 frames could be decoded', n_clips=3)
    ],
    diverged=dict(tcn='epoch 3: the loss is not finite'),
)


def leave(folder, p=None, record=RECORD):
    "A folder as `fmhar run` leaves it"
    p = p or predictions()
    (folder / 'runs' / 'abc').mkdir(parents=True)
    p.save(folder / 'runs' / 'abc' / 'predictions.parquet')
    for place in (folder, folder / 'runs' / 'abc'):
        rows_of(p).to_csv(place / 'rows.csv', index=False)
    (folder / 'run.json').write_text(json.dumps(record))  # NaN and all, as older versions did
    for name, size in (('figure3_embeddings', (1950, 1640)), ('figure5_examples', (1890, 825))):
        Image.new('RGB', size, 'white').save(folder / f'{name}.png')
    (folder / 'table6.csv').write_text(
        f'Model,Trained-view/Acc.,Trained-view/Mean\n{EVIL},63.64,\n'
    )
    return folder


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = leave(tmp_path_factory.mktemp('results') / 'out')
    return page.write_report(folder, folder / 'report.html')


class Elements(HTMLParser):
    "Every element with its attributes, and the text"

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [a for t, a in self.elements if t == tag]


# -- what it holds -------------------------------------------------------------------------------
def test_it_loads_nothing_and_runs_nothing(report):
    text = report.read_text()
    seen = Elements(text)
    for tag, attributes in seen.elements:
        assert tag not in ('script', 'iframe', 'object', 'embed')
        assert not any(name.startswith('on') for name in attributes)
        for name in ('src', 'href'):
            assert attributes.get(name, '#').startswith(('data:', '#')), attributes[name]
    style = text[text.index('<style>') : text.index('</style>')]
    assert 'url(' not in style and '@import' not in style
    assert EVIL not in text and text.count(html.escape(EVIL, quote=False).split('"')[0]) >= 3


def test_it_holds_what_the_folder_holds(report):
    seen = Elements(report.read_text())
    said = ' '.join(' '.join(seen.texts).split())
    for head in HEADS:
        assert printed(head) in said
    for text in ('cut short: 40 of 90', 'epoch 3: the loss', 'recipe.epochs', '2.15.0', '63.64',
                 '30.0 frames a second', 'random(0)', 'Made-up logits', 'kinect- color'):  # fmt: skip
        assert text.replace('- ', '-') in said, text
    assert len(seen.all('img')) == 2 and all(i['alt'] for i in seen.all('img'))
    row = rows_of(predictions()).set_index(['probe', 'view']).loc[('lstm', 'ceiling')]
    assert f'{100 * row.balanced_accuracy:.1f}' in said and f'{row.top1:.4g}' in said


def test_links_lead_somewhere_and_headings_say_what_they_head(report):
    seen = Elements(report.read_text())
    ids = [a['id'] for _, a in seen.elements if 'id' in a]
    assert len(ids) == len(set(ids)) > 8
    assert {a['href'][1:] for a in seen.all('a')} == set(ids)
    assert all('scope' in a for a in seen.all('th')) and seen.all('html')[0]['lang'] == 'en'


def test_the_answer_is_in_the_rows(report):
    wide = rows_of(predictions()).pivot(index='probe', columns='view', values='balanced_accuracy')
    best = wide[TRAINED].idxmax()
    trained, novel = 100 * wide.loc[best, [TRAINED, 'novel']]
    kept = 100 * (novel - 100 / 12) / (trained - 100 / 12)
    text, cards = page.answer(*page.read_results(report.parent))
    assert text.startswith(f'{printed(best)} recognises {trained:.1f} %')
    assert f'never seen it recognises {novel:.1f} %' in text
    assert f'{kept:.0f} % of what it has over guessing is retained' in text
    assert 'front-top' in text and '8.3 %' in text
    assert [c['value'] for c in cards] == pytest.approx(
        [trained, novel, 100 * wide.novel.drop('random').max(), 100 / 12]
    )


def test_what_a_file_says_is_not_bold_and_guessing_never_is(report):
    table = pd.DataFrame({'Head': ['a', 'b', 'Random'], 'V/Mean Acc.': [3.14, 3.12, 9.0]})
    lines = page.grid(table, 'T', decimals=1).groups[0][1]
    assert [line[1].text for line in lines] == ['3.1', '3.1', '9.0']
    assert not any(line[1].best for line in lines)
    (run,) = page.read_results(report.parent)
    lines = {line[0].text: line for _, lines in page.results_of(run).groups for line in lines}
    assert not any(c.best for c in lines['Random'])
    assert any(c.best for line in lines.values() for c in line)


def test_rendered_data_and_smoke_tests_are_said_before_any_number(tmp_path):
    rows = rows_of(predictions(heads=['lstm'])).assign(data='rendered', n=12)
    rows.to_csv(tmp_path / 'rows.csv', index=False)
    text = page.write_report(tmp_path, tmp_path / 'report.html').read_text()
    lead = text[text.index('class="lead"') :]
    assert lead.index('rendered') < lead.index('recognises')
    assert 'do not read the numbers' in lead[: lead.index('recognises')]


def test_a_long_table_is_cut_and_says_so():
    made = page.grid(pd.DataFrame({'a': range(3000)}), 'T')
    assert len(made.groups[0][1]) == 1000 and made.notes == ('the first 1000 of 3000 lines',)


# -- other folders -------------------------------------------------------------------------------
def test_rows_alone_are_enough(tmp_path):
    rows = rows_of(predictions())
    rows.sample(frac=1, random_state=0).to_csv(tmp_path / 'rows.csv', index=False)
    (run,) = page.read_results(tmp_path)
    assert run.trained_view == TRAINED  # found from the mean over novel views
    text = page.write_report(tmp_path, tmp_path / 'report.html').read_text()
    assert 'there is no run.json' in text and '95 % interval' not in text
    assert 'Time by stage' not in text


def test_runs_beneath_one_folder_with_tables_beside(tmp_path):
    "As a study leaves them: no run.json, one stages.json for all, tables at the top"
    for i in range(2):
        folder = tmp_path / 'runs' / f'r{i}'
        folder.mkdir(parents=True)
        p = predictions(seed=i)
        p.save(folder / 'predictions.parquet')
        rows_of(p).to_csv(folder / 'rows.csv', index=False)
    stages = {'features': dict(unit='frames', items=10, seconds=4.0), 'fit': dict(seconds=1.0)}
    (tmp_path / 'stages.json').write_text(json.dumps(stages))
    (tmp_path / 'table5.csv').write_text('Model,Acc.\nX-CLIP,40.27\n')
    text = page.write_report(tmp_path, tmp_path / 'report.html').read_text()
    assert '(runs/r0)' in text and '(runs/r1)' in text and text.count('id="part-1"') == 1
    assert text.count('2.5 frames a second') == 2 and text.count('40.27') == 1
    assert 'Beside the runs' in text


def test_a_run_is_shown_once_whichever_code_wrote_its_rows(tmp_path):
    leave(tmp_path)
    path = tmp_path / 'runs' / 'abc' / 'rows.csv'
    path.write_text(path.read_text().replace(',x\n', ',y\n'))  # the column `code`
    assert len(page.read_results(tmp_path)) == 1
    path.write_text(path.read_text().replace(',70,', ',98,'))  # the column `size`
    runs = page.read_results(tmp_path)
    assert len(runs) == 2
    text = page.write_report(tmp_path, tmp_path / 'report.html').read_text()
    assert '2 runs' in text and text.count('class="lead"') == 1


def test_broken_files_are_listed_from_the_run_where_there_is_no_record(tmp_path):
    leave(tmp_path)
    (tmp_path / 'run.json').unlink()
    said = 'path,view,message,position,n_clips\n'
    (tmp_path / 'runs' / 'abc' / 'failed.csv').write_text(said)
    assert (
        'Every file could be read' in page.write_report(tmp_path, tmp_path / 'a.html').read_text()
    )
    (tmp_path / 'runs' / 'abc' / 'failed.csv').write_text(f'{said}x.mp4,back,cut short,7,3\n')
    text = page.write_report(tmp_path, tmp_path / 'b.html').read_text()
    assert (
        'cut short' in text and '1 videos could not be read' in text and 'failed</h3>' not in text
    )


def test_intervals_of_a_table_are_one_column(tmp_path):
    cells = 'a,21.3,20.04,18,22.25,-1.26\nb,9.1,,,,\n'
    head = 'Model,V Mean Acc./paper,V Mean Acc./ours,V Mean Acc./low,V Mean Acc./high,V Mean Acc./diff.'
    (tmp_path / 'table5_beside_paper.csv').write_text(f'{head}\n{cells}')
    (made,) = page.further_tables(tmp_path)
    assert made.title == 'Table 5 beside paper'
    assert [h[0] for h in made.heads[1]] == ['paper', 'ours', 'interval', 'diff.']
    texts = [[cell[0] for cell in line] for line in made.groups[0][1]]
    assert texts == [['a', '21.30', '20.04', '18.0 to 22.2', '-1.26'], ['b', '9.10', *'–––']]
    assert not any(cell.best for cell in made.groups[0][1][0])


def test_a_head_that_knows_nothing_has_nothing_to_keep(tmp_path):
    p = predictions(heads=['lstm'])
    p.logits[:] = np.eye(12)[np.zeros(len(p.table), int)]  # always the first class
    leave(tmp_path, p)
    text, _ = page.answer(*page.read_results(tmp_path))
    assert 'at chance even on the trained view' in text and 'nan' not in text


def test_one_view_has_no_novel_ones(tmp_path):
    leave(tmp_path, predictions(views=[TRAINED], heads=['lstm']))
    text, cards = page.answer(*page.read_results(tmp_path))
    assert 'never seen' not in text and [c['label'] for c in cards] == ['Trained view', 'Guessing']
    page.write_report(tmp_path, tmp_path / 'report.html')


def test_a_diverged_probe_has_empty_cells(tmp_path):
    p = predictions(heads=['lstm', 'tcn'])
    p.logits[1] = np.nan
    leave(tmp_path, p)
    (run,) = page.read_results(tmp_path)
    line = next(x for _, lines in page.results_of(run).groups for x in lines if x[0].text == 'TCN')
    assert {cell.text for cell in line[1:]} == {'–'}
    assert page.answer(run)[0].startswith('LSTM')
    p.logits[0] = np.nan
    leave(tmp_path / 'all', p)
    assert 'Every probe diverged' in page.answer(*page.read_results(tmp_path / 'all'))[0]
    page.write_report(tmp_path / 'all', tmp_path / 'report.html')


def test_a_folder_without_results_is_refused(tmp_path):
    out = tmp_path / 'report.html'
    with pytest.raises(InputError, match='no such folder'):
        page.write_report(tmp_path / 'nowhere', out)
    with pytest.raises(InputError, match='No results'):
        page.write_report(tmp_path, out)
    (tmp_path / 'rows.csv').write_text('a,b\n1,2\n')
    with pytest.raises(InputError, match='balanced_accuracy'):
        page.write_report(tmp_path, out)
    rows = rows_of(predictions(heads=['lstm']))
    for wrong in (pd.concat([rows, rows]), rows[rows.probe != 'random']):
        wrong.to_csv(tmp_path / 'rows.csv', index=False)
        with pytest.raises(InputError, match='rows of one run'):
            page.write_report(tmp_path, out)
    (tmp_path / 'rows.csv').write_bytes(b'\xff\xfe\x00\x81')
    with pytest.raises(InputError, match='Not a CSV file'):
        page.write_report(tmp_path, out)
    assert not out.exists()


def test_the_wheel_carries_templates_and_styles(tmp_path):
    root = Path(page.__file__).parents[2]
    command = [sys.executable, 'setup.py', '-q', 'build', '--build-base', tmp_path]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    built = {p.name for p in (tmp_path / 'lib' / 'fmhar' / 'paper').iterdir()}
    assert {'page.html', 'page.css', 'table.html', 'table.css'} <= built


# -- in a browser --------------------------------------------------------------------------------
MEASURE = """<script>addEventListener('load', () => {
  const inner = (e) => e.scrollWidth - e.clientWidth;
  parent.postMessage({width: innerWidth, over: inner(document.documentElement),
    boxes: [...document.querySelectorAll('.scroll')].map((e) =>
      ({right: e.getBoundingClientRect().right, inside: inner(e), top: e.innerText.slice(0, 60)})),
    cut: [...document.querySelectorAll('td.text')].filter((e) => e.clientWidth < 60).length,
    blank: [...document.images].filter((e) => !e.naturalWidth).length}, '*');
})</script></body>"""


def browse(url, *options):
    "What Chromium makes of a page, and what it logs"
    if CHROMIUM is None:
        pytest.skip('no chromium, chromium-browser or google-chrome on this machine')
    flags = '--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom'.split()
    done = subprocess.run([CHROMIUM, *flags, *options, url], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def measured(report, tmp_path, width):
    "Sizes in a window of a width; a frame, since a headless window is never narrower than 500"
    copy = report.read_text().replace('</body>', MEASURE)
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(copy)}">'
    listen = "addEventListener('message', (e) => { document.body.title = JSON.stringify(e.data) })"
    wrapper = tmp_path / 'wrapper.html'
    wrapper.write_text(f'<body><script>{listen}</script>{frame}</iframe></body>')
    dom, _ = browse(wrapper.as_uri(), '--window-size=1600,1000')
    sizes = json.loads(html.unescape(re.search(r'<body title="(.*?)">', dom).group(1)))
    assert sizes['width'] == width
    return sizes


def test_no_console_errors(report, tmp_path):
    broken = tmp_path / 'broken.html'
    broken.write_text('<script>missing()</script><img src="none.png">')
    assert browse(broken.as_uri())[1], 'errors would go unnoticed'
    dom, errors = browse(report.as_uri(), '--window-size=1400,1000')
    assert not errors and 'stolen' not in Elements(dom).texts[0]


def test_on_a_phone_only_the_boxes_scroll(report, tmp_path):
    sizes = measured(report, tmp_path, 375)
    assert sizes['over'] == 0 and sizes['blank'] == 0
    assert all(box['right'] <= 375 for box in sizes['boxes'])
    table3 = next(b for b in sizes['boxes'] if b['top'].startswith('Table 3'))
    assert table3['inside'] > 300  # wider than the phone, so it must scroll


def test_on_a_wide_window_the_tables_are_whole(report, tmp_path):
    sizes = measured(report, tmp_path, 1400)
    assert sizes['over'] == 0
    assert len(sizes['boxes']) > 7
    assert [b for b in sizes['boxes'] if b['inside'] > 0] == []


def test_the_paper_s_tables_stand_beside_ours(tmp_path):
    folder = tmp_path / 'results'
    (folder / 'tables').mkdir(parents=True)
    for name in ('.', 'tables'):
        csv = 'Group,Model,Acc./paper,Acc./ours,Acc./low,Acc./high,Acc./diff.\n,I3D,63.64,39.7,1,90,-23.9\n'
        (folder / name / 'table6.csv').write_text(csv)
    titles = [t.title for t in page.further_tables(folder)]
    assert titles == ['Table 6', 'Table 6, beside the paper']
