"What pip installs is whole: a wheel in a clean environment imports, runs and carries its files"

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from the tracked files in a folder of its own"
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    names = ['setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'fmhar']
    subprocess.run(['cp', '-r', *(ROOT / n for n in names), source], check=True)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '--wheel-dir', out, source], check=True)
    return next(out.glob('fmhar-*.whl'))


def test_the_wheel_carries_every_module_and_every_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    kinds = ('.py', '.html', '.css', '.js', '.typed')
    ours = {str(p.relative_to(ROOT)) for p in ROOT.glob('fmhar/**/*') if p.suffix in kinds}
    ours |= {'fmhar/py.typed'}
    assert len(ours) > 60
    assert not ours - inside


def test_a_plain_install_imports_and_runs(wheel, tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env'], check=True)
    python = tmp_path / 'env/bin/python'
    site = next((tmp_path / 'env/lib').glob('python*/site-packages'))
    install = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps']
    subprocess.run([*install, wheel], check=True)
    # the libraries come from this environment, whose link to the source folder is not followed
    env = os.environ | dict(PYTHONPATH=sysconfig.get_path('purelib'))
    where = 'import fmhar as fm; print(fm.__file__); fm.FUSIONS, fm.load_drive_act'
    run = dict(cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert str(site) in subprocess.run([python, '-c', where], **run).stdout
    said = subprocess.run([tmp_path / 'env/bin/fmhar', '--help'], **run).stdout
    assert 'extract' in said and 'demo' in said
