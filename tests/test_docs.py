"The documentation site can be made: every page goes through nbdev's processing on a clean copy"

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_page_goes_through_nbdev_docs(tmp_path):
    "`nbdev_docs` does this and then calls quarto, which not every machine has"
    for name in ('settings.ini', 'setup.py', 'README.md'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('nbs', 'fmhar'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('.*', '_proc'))
    code = "from nbdev.serve import proc_nbs; proc_nbs('nbs', n_workers=2, force=True)"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONPATH=str(tmp_path))
    run = dict(cwd=tmp_path, env=env, capture_output=True, text=True)
    done = subprocess.run([sys.executable, '-c', code], **run)
    assert done.returncode == 0, done.stderr[-2000:]
    made = {p.relative_to(tmp_path / '_proc') for p in (tmp_path / '_proc').rglob('*.ipynb')}
    ours = {p.relative_to(tmp_path / 'nbs') for p in (tmp_path / 'nbs').rglob('*.ipynb')}
    assert ours <= made and len(ours) > 60


def test_no_remote_code():
    sources = [p.read_text() for p in (ROOT / 'fmhar').rglob('*.py')]
    assert sources and not [s for s in sources if 'trust_remote_code' in s]
