"One process needs nothing; two real ones agree; a launcher that is not understood is told"

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fmhar
from fmhar.errors import InputError
from fmhar.processes import Processes, launched, processes

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
GOOD = dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='1')


def run_on(n, code, folder):
    "Run a script in n processes of gloo; what they printed, and whether all ended well"
    script = folder / 'script.py'
    script.write_text(code)
    here = str(Path(fmhar.__file__).parents[1])
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': here}
    command = [*TORCHRUN, '--nproc_per_node', str(n), script]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_alone_nothing_is_started():
    code = 'from fmhar.processes import processes; me = processes(); me.barrier(); '
    code += 'assert me.gather(3) == [3] and me.once(int, "7") == 7; '
    code += 'import torch.distributed as d; print(me, d.is_initialized())'
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert ran.stdout == 'Processes(rank=0, world=1) False\n'


def test_shares_cover_everything_once():
    for world in 1, 2, 3, 7:
        shares = [Processes(r, world).share(range(20)) for r in range(world)]
        assert sorted(i for s in shares for i in s) == list(range(20))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    'given, what',
    [
        (dict(RANK='0'), 'is not set'),
        (dict(WORLD_SIZE='2'), 'is not set'),
        ({k: v for k, v in GOOD.items() if k != 'MASTER_PORT'}, 'is not set'),
        (GOOD | dict(RANK='2'), 'between 0 and WORLD_SIZE - 1'),
        (GOOD | dict(RANK='-1'), 'between 0 and WORLD_SIZE - 1'),
        (GOOD | dict(WORLD_SIZE='two'), 'must be numbers'),
    ],
)
def test_a_launcher_that_contradicts_itself(given, what, monkeypatch):
    for name in GOOD:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=what):
        processes()


def test_a_world_of_one(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('RANK', '0')
    assert processes() == launched() == Processes()


TOGETHER = """
import os, time, torch
import torch.distributed as dist
from fmhar.errors import InputError
from fmhar.processes import processes

me = processes()
assert processes() == me and dist.get_backend() == 'gloo'

tensors = [torch.full((2, 3), me.rank + 1.0), torch.tensor(10.0 ** me.rank), torch.zeros(0)]
leaf = torch.nn.Parameter(torch.ones(2))
me.add_up([*tensors, leaf])
assert (tensors[0] == 6).all() and tensors[1] == 111 and (leaf == 3).all()
g = torch.Generator().manual_seed(me.rank)
x = torch.randn(1000, generator=g)
me.add_up([x])
every = me.gather(dict(rank=me.rank, x=x))
assert [e['rank'] for e in every] == [0, 1, 2]
assert all(torch.equal(e['x'], x) for e in every)  # the same bits everywhere
me.add_up([])
assert me.map(lambda i: i * i, range(8)) == [i * i for i in range(8)]
assert me.map(str, [3]) == ['3'] and me.map(str, []) == []
try:
    me.map(str, range(me.rank))
except InputError as e:
    assert '[0, 1, 2]' in str(e)
else:
    raise SystemExit('no error')
done = []
me.map(done.append, list('abcde'))
assert sum(me.gather(done), []) == ['a', 'd', 'b', 'e', 'c']

assert me.once(os.getpid) == me.gather(os.getpid())[0]


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def fail(how):
    if how == 'user':
        raise InputError('Bad', where='here', do='mend it')
    raise Odd('strange', 2)


for how, kind, text in ('user', InputError, 'mend it'), ('odd', RuntimeError, 'strange'):
    try:
        me.once(fail, how)
    except kind as e:
        assert text in str(e)
    else:
        raise SystemExit('no error')

if me.first:
    time.sleep(0.5)
before = time.time()
me.barrier()
assert me.first or time.time() - before > 0.3
me.add_up([torch.zeros(1)])
if me.first:
    print('well')
"""


def test_three_together(tmp_path):
    ran = run_on(3, TOGETHER, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == 'well\n' and 'destroy_process_group' not in ran.stderr


def test_a_group_that_is_there_is_used(tmp_path):
    "As an `Accelerator` makes one"
    code = 'import torch.distributed as d\nfrom fmhar.processes import processes\n'
    code += "d.init_process_group('gloo')\nme = processes()\nassert me.gather(me.rank) == [0, 1]\n"
    code += 'd.destroy_process_group()\n'
    assert run_on(2, code, tmp_path).returncode == 0


@pytest.mark.slow
def test_accelerate_launch(tmp_path):
    pytest.importorskip('accelerate')
    (tmp_path / 'two.py').write_text(
        'from fmhar.processes import processes\nme = processes()\n'
        'ranks = me.gather(me.rank)\nif me.first:\n    print(ranks)\n'
    )
    launch = [
        Path(sys.executable).parent / 'accelerate',
        'launch',
        '--multi_gpu',
        '--num_processes',
    ]
    options = ['2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
    ran = subprocess.run(
        [*launch, *options, tmp_path / 'two.py'], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout == '[0, 1]\n', ran.stderr
