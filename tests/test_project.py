"The project holds together: notebooks and modules agree, imports run one way, nothing private leaks"

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
MODULES = sorted(ROOT.glob('fmhar/*.py'))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the project in which the notebooks were cleaned and all modules made anew"
    copy = tmp_path_factory.mktemp('export')
    for name in ('settings.ini', 'setup.py', 'README.md'):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.*'))
    (copy / 'fmhar').mkdir()
    shutil.copy(ROOT / 'fmhar/__init__.py', copy / 'fmhar')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # nbdev exports nothing in a test
    for tool in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent / tool], cwd=copy, env=env, check=True)
    return copy


def test_modules_are_what_the_notebooks_export(exported):
    fresh = {p.name: p.read_text() for p in exported.glob('fmhar/*.py')}
    assert len(fresh) > 3
    ours = {p.name: p.read_text() for p in MODULES}
    assert sorted(ours) == sorted(fresh), 'a module without a notebook, or the reverse'
    stale = [name for name in fresh if fresh[name] != ours[name]]
    assert not stale, 'run nbdev_export'


def test_notebooks_are_clean(exported):
    dirty = [
        p.name for p in NOTEBOOKS if (exported / p.relative_to(ROOT)).read_text() != p.read_text()
    ]
    assert not dirty, 'run nbdev_clean'


def notebook_of(module: str) -> str | None:
    "File name of the notebook that exports `module`"
    for p in NOTEBOOKS:
        if re.search(rf'# ?\| default_exp {module}(\\n)?"', p.read_text()):
            return p.name


def test_imports_point_to_lower_numbers():
    checked = 0
    for path in (p for p in MODULES if not p.stem.startswith('_')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:  # nbdev writes them relative
                names = [node.module] if node.module else [n.name for n in node.names]
                for name in names:
                    here, there = notebook_of(path.stem), notebook_of(name)
                    assert here and there, f'{path.name} or {name} has no notebook'
                    assert there < here, f'{here} imports from {there}'
                    checked += 1
    assert checked > 30


def saved_text(path: Path) -> str:
    "All text outputs of a notebook"
    cells = json.loads(path.read_text())['cells']
    return json.dumps(
        [
            {k: v for k, v in o.get('data', o).items() if not k.startswith('image/png')}
            for c in cells
            for o in c.get('outputs', [])
        ]
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs_hold_nothing_of_the_machine(path):
    leak = re.search(
        r'/(?:home|tmp|root|Users)/|it/s\b|0x[0-9a-f]{9,}|"output_type": "error"', saved_text(path)
    )
    assert not leak, leak


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_a_page(path):
    assert path.stat().st_size < 200_000
    cells = json.loads(path.read_text())['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    exported = [s for s in sources if re.search(r'^# ?\| export', s, re.M)]
    assert len(sources) - len(exported) >= len(exported) / 2, 'more that shows, less that exports'
    for s in exported:  # a class may not fit on a page; nothing else may be longer than one
        tree = ast.parse(s).body
        one_class = [type(n) for n in tree] == [ast.ClassDef]
        assert s.count('\n') < (100 if one_class else 45), s.splitlines()[1]
    first = next(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    assert re.match(r'# .+\n+> .+', first), 'begins with a title and a one-line summary'


def test_notebooks_together_stay_small():
    assert sum(p.stat().st_size for p in NOTEBOOKS) < 3_000_000
