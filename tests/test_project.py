"The project holds together: notebooks and modules agree, rooms import downwards, pages read as pages"

import ast
import builtins
import inspect
import json
import os
import re
import shutil
import statistics
import subprocess
import symtable
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
MODULES = sorted(ROOT.glob('fmhar/**/*.py'))


def cells(path: Path) -> list[tuple[str, str]]:
    "(kind, source) of a notebook's cells"
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text())['cells']]


def is_exported(source: str) -> bool:
    return bool(re.search(r'^# ?\| ?export', source, re.M))


def module_of(path: Path) -> str | None:
    "Dotted name below fmhar of the module that a notebook exports"
    for _, source in cells(path):
        if found := re.search(r'^# ?\| ?default_exp (\S+)', source, re.M):
            return found[1]


def label(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(''))


# Notebooks and modules


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the project in which the notebooks were cleaned and all modules made anew"
    copy = tmp_path_factory.mktemp('export')
    for name in ('settings.ini', 'setup.py', 'README.md'):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.*'))
    (copy / 'fmhar').mkdir()
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # nbdev exports nothing in a test
    for tool in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent / tool], cwd=copy, env=env, check=True)
    return copy


def test_modules_are_what_the_notebooks_export(exported):
    fresh = {str(p.relative_to(exported)): p.read_text() for p in exported.glob('fmhar/**/*.py')}
    ours = {str(p.relative_to(ROOT)): p.read_text() for p in MODULES}
    assert len(fresh) > 50
    assert sorted(ours) == sorted(fresh), 'a module without a notebook, or the reverse'
    stale = [name for name in fresh if fresh[name] != ours[name]]
    assert not stale, 'run nbdev_export'


def test_notebooks_are_clean(exported):
    dirty = [
        label(p) for p in NOTEBOOKS if (exported / p.relative_to(ROOT)).read_text() != p.read_text()
    ]
    assert not dirty, 'run nbdev_clean'


@pytest.mark.parametrize('path', MODULES, ids=label)
def test_a_module_is_short(path):
    lines = path.read_text().count('\n')
    assert lines <= 500 or path.name == '_modidx.py', f'{lines} lines: cut the room'


# Rooms: a module imports from rooms below its own, and in its room from those with a lower number

FLOORS = """
faces errors contracts | files devices processes metrics | datasets synthetic | backbones
features fusion | probe | trainer | classifier evaluation | statistics | analysis | adaptation
finetune | experiments | protocols | paper | explore | demo | study | exchange | cli
"""
FLOOR = {
    room: floor
    for floor, rooms in enumerate(FLOORS.replace('\n', ' | ').split('|'))
    for room in rooms.split()
}
NOTEBOOK_OF = {module_of(p): p for p in NOTEBOOKS if module_of(p)}


def imports_of(source: str) -> set[str]:
    "Modules of the project that the code imports anywhere, dotted below fmhar"
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('fmhar.'):
            inner = node.module.removeprefix('fmhar.')
            names = {f'{inner}.{n.name}' for n in node.names} & set(NOTEBOOK_OF)
            found |= names or {inner}
        elif isinstance(node, ast.ImportFrom) and node.module == 'fmhar':
            found |= {n.name for n in node.names}
        elif isinstance(node, ast.Import):
            names = [n.name for n in node.names if n.name.startswith('fmhar.')]
            found |= {n.removeprefix('fmhar.') for n in names}
    return found


@pytest.mark.parametrize('module', sorted(set(NOTEBOOK_OF) - {'__init__', '__main__'}))
def test_imports_go_down(module):
    path, room = NOTEBOOK_OF[module], module.split('.')[0]
    source = '\n'.join(s for kind, s in cells(path) if kind == 'code' and is_exported(s))
    for other in imports_of(source):
        there = other.split('.')[0]
        assert there in FLOOR, f'{module} imports {other}, which has no floor'
        if there != room:
            assert FLOOR[there] < FLOOR[room] or (
                FLOOR[there] == FLOOR[room] and NOTEBOOK_OF.get(other, path) < path
            ), f'{module} imports from {other}, which lies above'
        elif not module.endswith('__init__'):
            assert other in NOTEBOOK_OF, f'{module} imports the face of its own room'
            assert NOTEBOOK_OF[other] < path, f'{module} imports from {other}, a later page'


def test_every_module_has_a_floor():
    rooms = {m.split('.')[0] for m in NOTEBOOK_OF} - {'__init__', '__main__'}
    assert rooms == set(FLOOR) & rooms and len(rooms) > 15


# Pages


def saved_text(path: Path) -> str:
    "All text outputs of a notebook"
    return json.dumps(
        [
            {k: v for k, v in o.get('data', o).items() if not k.startswith(('image/', 'video/'))}
            for c in json.loads(path.read_text())['cells']
            for o in c.get('outputs', [])
        ]
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=label)
def test_saved_outputs_hold_nothing_of_the_machine(path):
    leak = re.search(
        r'/(?:home|tmp|root|Users)/|it/s\b|0x[0-9a-f]{9,}|"output_type": "error"', saved_text(path)
    )
    assert not leak, leak


def body(source: str) -> list[str]:
    "Lines of a cell that are neither blank, nor directives, imports or words of a docstring"
    words = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            words |= set(range(node.body[0].lineno + 1, node.body[0].end_lineno + 1))
    kept = [line for i, line in enumerate(source.splitlines(), 1) if i not in words]
    plain = re.sub(r'^(from|import) [^\n(]*(\([^)]*\))?', '', '\n'.join(kept), flags=re.M)
    return [line for line in plain.splitlines() if line.strip() and not re.match(r'# ?\|', line)]


def is_one_class(source: str) -> bool:
    return [type(n) for n in ast.parse(source).body] == [ast.ClassDef]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=label)
def test_notebook_is_a_page(path):
    assert path.stat().st_size < 600_000
    page = cells(path)
    first = next(source for kind, source in page if kind == 'markdown')
    assert re.match(r'# [^#\s].*\n+> .+', first), 'begins with a title and a one-line summary'
    code = [(i, s) for i, (kind, s) in enumerate(page) if kind == 'code' and is_exported(s)]
    for i, source in code:
        if not body(source):
            continue  # imports
        before = page[i - 1][0] == 'markdown'
        after = i + 1 < len(page) and not (page[i + 1][0] == 'code' and is_exported(page[i + 1][1]))
        assert before or after, f'no word before and no demo after:\n{source[:200]}'


def test_cells_are_short():
    "Half of the exported cells have at most 10 lines, nine in ten at most 25; a class may fill a page"
    lengths = [
        len(body(source))
        for path in NOTEBOOKS
        for kind, source in cells(path)
        if kind == 'code' and is_exported(source) and body(source) and not is_one_class(source)
    ]
    assert len(lengths) > 400
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 25


@pytest.mark.parametrize('path', NOTEBOOKS, ids=label)
def test_names_of_a_page_are_defined_on_it(path):
    "Also those that its text advises in `code` with a call"
    page = cells(path)
    code = '\n'.join(
        '\n'.join(line for line in s.splitlines() if not re.match(r'\s*[!%]', line))
        for kind, s in page
        if kind == 'code'
    )
    table = symtable.symtable(code, str(path), 'exec')
    known = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    known |= {s.get_name() for s in table.get_symbols() if s.is_namespace()}
    known |= set(dir(builtins)) | {'display', 'get_ipython', '__file__', '__name__', '__doc__'}

    def unknown_in(scope):
        for s in scope.get_symbols():
            top = scope.get_type() == 'module'
            if s.is_referenced() and (top or s.is_global()) and s.get_name() not in known:
                yield s.get_name()
        for child in scope.get_children():
            yield from unknown_in(child)

    assert not set(unknown_in(table))
    advised = set()
    if 'results' in path.parts:  # pages whose text and comments tell what to call
        words = [s for kind, s in page if kind == 'markdown']
        words += [w for kind, s in page if kind == 'code' for w in re.findall(r'# (study = .*)', s)]
        advised = set(re.findall(r'(?<![\w.])(own|embedded|from_environment)\(', '\n'.join(words)))
    assert advised <= known, 'the page advises a name that it does not import'


def test_notebooks_together_stay_small():
    assert sum(p.stat().st_size for p in NOTEBOOKS) < 12_000_000


# Public names


def public_names() -> dict[str, str]:
    "{name: module} of everything in an `__all__` outside the command line, faces left out"
    names = {}
    for module in sorted(NOTEBOOK_OF):
        if module in ('__init__', '__main__', 'cli') or module.endswith('.__init__'):
            continue
        for name in import_module(f'fmhar.{module}').__all__:
            names[name] = module
    return names


def test_public_names_are_chosen():
    assert 60 <= len(public_names()) <= 120


@pytest.mark.parametrize('name, module', sorted(public_names().items()), ids=lambda x: x)
def test_public_names_have_a_docstring(name, module):
    thing = getattr(import_module(f'fmhar.{module}'), name)
    if not callable(thing):
        return
    doc = inspect.getdoc(thing) or ''
    assert 'Examples' in doc, 'an example'
    if isinstance(thing, type) and issubclass(thing, (BaseException,)):
        return
    wanted = [
        p
        for p, kind in inspect.signature(thing).parameters.items()
        if p != 'self' and kind.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
    ]
    missing = [p for p in wanted if not re.search(rf'^\s*(\w+, )*{p}(, \w+)*\s*:', doc, re.M)]
    assert not missing, f'parameters without a word: {missing}'
    if inspect.isfunction(thing) and re.search(
        r'^    (return|yield) ', inspect.getsource(thing), re.M
    ):
        assert re.search(r'^(Returns|Yields)$', doc, re.M), 'what comes back'


def test_the_faces_offer_what_is_public():
    import fmhar as fm

    assert 55 <= len([n for n in dir(fm) if not inspect.ismodule(getattr(fm, n))]) <= 90
    for name in dir(fm):
        assert getattr(fm, name) is not None
    public = public_names()
    rooms = [m.removesuffix('.__init__') for m in NOTEBOOK_OF if m.endswith('.__init__')]
    for room in rooms:
        face = import_module(f'fmhar.{room}')
        for name in dir(face):
            assert public.get(name, '').startswith(room + '.'), f'{room}.{name} is not public'


def loaded_by(statement: str) -> set[str]:
    "Top-level packages and modules that an import brings in, in a fresh process"
    code = f'{statement}\nimport sys; print(*sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


def test_the_package_is_imported_lazily():
    assert not {'torch', 'pandas', 'av', 'transformers'} & loaded_by('import fmhar; dir(fmhar)')


@pytest.mark.parametrize('module', ['probe', 'statistics', 'paper.tables', 'paper.figures'])
def test_rooms_that_need_no_encoder_load_none(module):
    heavy = {'transformers', 'av', 'torch.distributed.tensor', 'huggingface_hub'}
    assert not heavy & loaded_by(f'import fmhar.{module}')


# What users import today

README = (ROOT / 'README.md').read_text()
OLD = json.loads((ROOT / 'tests/old_names.json').read_text())


@pytest.mark.parametrize('module', sorted(OLD))
def test_old_paths_are_found(module):
    found = import_module(f'fmhar.{module}')
    missing = [name for name in OLD[module] if not hasattr(found, name)]
    assert not missing


def test_imports_of_the_readme_work():
    lines = re.findall(r'^(?:from fmhar\S* import .*|import fmhar.*)$', README, re.M)
    assert lines
    for line in lines:
        exec(line, {})


def test_links_of_the_readme_exist():
    links = re.findall(r'\]\((?!http|#)([^)\s#]+)', README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
