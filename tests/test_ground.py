"What lies under all rooms: messages, files, devices, contracts"

import subprocess
import sys

import numpy as np
import pytest
import torch

from fmhar.contracts import ArrayDataset, ClipDataset, Encoder
from fmhar.devices import n_workers, pick_device
from fmhar.errors import InputError, MissingVideo, VideoError, missing_video
from fmhar.files import disk_error, read_json

IPYTHON = """
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell('''
from fmhar.errors import InputError
def inner():
    raise InputError("A column is missing", where="a.csv", do="add it")
inner()
''')
"""


def test_a_notebook_shows_the_message_and_no_traceback():
    pytest.importorskip('IPython')
    shown = subprocess.run([sys.executable, '-c', IPYTHON], capture_output=True, text=True).stdout
    assert shown.strip() == (
        'InputError: A column is missing\n  where:    a.csv\n  do:       add it'
    )


def test_a_missing_video_is_a_kind_of_its_own():
    error = missing_video('a.mp4')
    assert isinstance(error, MissingVideo) and isinstance(error, VideoError)
    assert error.position is None and 'a.mp4' in str(error)


@pytest.mark.parametrize('workers', [-1, -8])
def test_less_than_no_thread_is_refused(workers):
    with pytest.raises(InputError, match='0 or more'):
        n_workers(workers)


def test_an_unknown_device_is_a_message():
    with pytest.raises(InputError, match='Unknown device'):
        pick_device('gpu:0')


def test_a_quota_is_told_whatever_the_library_says(tmp_path):
    for error in (
        RuntimeError('[enforce fail at inline_container.cc] . unexpected pos 128 vs 22'),
        OSError('4096 requested and 0 written'),
    ):
        assert isinstance(disk_error(error, tmp_path / 'a.pt'), InputError)
    ours = RuntimeError('mat1 and mat2 shapes cannot be multiplied')
    assert disk_error(ours, tmp_path / 'a.pt') is ours


def test_json_of_another_encoding_is_a_message(tmp_path):
    for name, data in {'a': '{}'.encode('utf-16'), 'b': bytes(range(256))}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match='UTF-8'):
            read_json(tmp_path / name)
    with pytest.raises(InputError, match='Cannot read'):
        read_json(tmp_path)


def test_contracts_are_what_the_rooms_hold():
    assert isinstance(ArrayDataset(np.zeros((2, 3, 4), np.float32), torch.zeros(2)), ClipDataset)
    assert not isinstance(torch.zeros(2), ClipDataset)
    assert not isinstance(torch.nn.Linear(1, 1), Encoder)


def test_checks_need_no_torch():
    code = 'import sys; from fmhar.datasets import check, overlap; from fmhar.datasets.checks import check_dataset; '
    code += 'assert "torch" not in sys.modules and "transformers" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
