"A bank is exactly its probes, whatever stands beside them"

import subprocess
import sys
from dataclasses import replace
from inspect import signature

import pytest
import torch

from fmhar.contracts import Features
from fmhar.errors import InputError
from fmhar.fusion.base import FUSIONS
from fmhar.fusion.thirteen import TABLE_3
from fmhar.probe import Probe, ProbeBank, ProbeSpec, load_bank, read_head, save_bank, sweep


def features(b=5, t=4, n=3, dim=16, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    tokens = (2 * torch.randn(b, t, n, dim, generator=g)).to(dtype)
    return Features(tokens[:, :, 0], tokens)


def test_names_are_short_and_tell_what_differs():
    assert ProbeSpec('lstm').name == 'lstm'
    spec = ProbeSpec('lstm', 3e-4, 0.1, 2, {'time': 'learned', 'hidden': 8})
    assert spec.name == 'lstm lr=0.0003 weight_decay=0.1 seed=2 hidden=8 time=learned'
    assert len({s.name for s in sweep(lr=[1e-3, 1e-4], weight_decay=[0.02, 0], seed=[0, 1])}) == 104


def test_specs_are_keys_whatever_the_order_of_options():
    a = ProbeSpec('tcn', options={'kernel': 2, 'dilations': [1, 2]})
    b = ProbeSpec('tcn', options=(('dilations', (1, 2)), ('kernel', 2)))
    assert a == b and len({a, b}) == 1


def test_sweep_is_the_product():
    specs = sweep(['lstm', 'tcn'], lr=[1e-3, 1e-4], seed=[0, 1, 2])
    assert len(specs) == len(set(specs)) == 12
    assert tuple(s.fusion for s in sweep()) == TABLE_3


@pytest.mark.parametrize('name', TABLE_3)
def test_a_probe_is_the_same_alone_and_in_a_bank(name):
    "Same start, same logits, same gradient, whoever stands before it"
    specs = sweep([name], seed=[1]) + sweep(seed=[0]) + sweep([name], lr=[1e-2], seed=[0, 3])
    bank, x = ProbeBank(specs, 16, 4), features()
    weight = torch.randn(len(specs), 5, 4, generator=torch.Generator().manual_seed(1))
    logits = bank(x)
    (logits * weight).sum().backward()
    for i in 0, 14, 15:
        alone = Probe(specs[i], 16, 4)
        for a, b in zip(alone.parameters(), bank.probes[i].parameters()):
            assert torch.equal(a, b)
        y = alone(x)
        torch.testing.assert_close(y, logits[i])
        (y * weight[i]).sum().backward()
        for a, b in zip(alone.parameters(), bank.probes[i].parameters()):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', FUSIONS)
def test_a_layer_is_read_as_if_the_features_held_no_other(name):
    x, alike = features(dim=48), ProbeSpec(name, seed=5, layer=(0, 3))
    bank = ProbeBank([alike, *sweep([name], layers=3)], 48, 4)
    for probe, logits in zip(bank.probes, bank(x)):
        k, part = (
            probe.spec.layer[0],
            slice(16 * probe.spec.layer[0], 16 * probe.spec.layer[0] + 16),
        )
        alone = Probe(replace(probe.spec, layer=(0, 1)), 16, 4)
        torch.testing.assert_close(alone(Features(x.cls[..., part], x.tokens[..., part])), logits)
        assert probe.spec.name.endswith(f'layer={k}/3')
        assert probe.spec.head == f'{name} layer={k}/3'
    assert bank.dim == 48


def test_label_sets_do_not_change_each_others_logits():
    x, sets = features(), dict(label=4, verb=2, noun=7)
    bank = ProbeBank(sweep(labels=sets), 16, sets)
    logits = bank(x)
    assert logits.shape == (39, 5, 7) and bank.n_classes == 7 and bank.label_sets == sets
    for probe, z in zip(bank.probes, logits):
        n = sets[probe.spec.labels]
        alone = Probe(replace(probe.spec, labels='label'), 16, n)
        torch.testing.assert_close(alone(x), z[:, :n])
        assert (z.log_softmax(-1).exp()[:, n:] == 0).all() and z.isfinite().all()
    part = bank.keep([s.name for s in bank.specs if s.labels == 'verb'])
    assert part.n_classes == 2 and torch.allclose(part(x), logits[1::3, :, :2])


def test_layers_that_do_not_exist():
    with pytest.raises(InputError, match='no such layer'):
        ProbeSpec('lstm', layer=(2, 2))
    with pytest.raises(InputError, match='16 features for 3 layers'):
        ProbeBank(sweep(['lstm'], layers=3), 16, 4)


def test_start_depends_on_the_seed_alone_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = Probe(ProbeSpec('tcn', seed=1), 16, 4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    b = Probe(ProbeSpec('tcn', lr=0.5, seed=1), 16, 4)
    c = Probe(ProbeSpec('tcn', seed=2), 16, 4)
    assert torch.equal(a.linear.weight, b.linear.weight)
    assert not torch.equal(a.linear.weight, c.linear.weight)


def test_stored_half_precision_is_read_in_full():
    bank = ProbeBank(sweep(), 16, 4)
    x = features(dtype=torch.float16)
    logits = bank(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, bank(Features(x.cls.float(), x.tokens.float())))


def test_logits_are_full_precision_under_autocast():
    bank, x = ProbeBank(sweep(), 16, 4), features()
    with torch.autocast('cpu', torch.bfloat16):
        logits = bank(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, bank(x), rtol=0.05, atol=0.05)


def test_class_token_heads_need_no_tokens():
    bank = ProbeBank(sweep(), 16, 4)
    cls_only = bank.keep([s.name for s in bank.specs if FUSIONS[s.fusion].tokens == 'cls'])
    assert bank.needs_tokens and not cls_only.needs_tokens and len(cls_only.specs) == 10
    x = features()
    torch.testing.assert_close(
        cls_only(Features(x.cls)), bank(x)[[0, 1, 2, 3, 6, 7, 8, 10, 11, 12]]
    )
    assert cls_only.probes[0] is bank.probes[0]
    with pytest.raises(InputError, match='self_attention_all_avg.*cross_attention_all'):
        bank(Features(x.cls))


def test_errors():
    with pytest.raises(InputError, match='Two probes of one name'):
        ProbeBank([ProbeSpec('lstm'), ProbeSpec('lstm')], 16, 4)
    with pytest.raises(InputError, match='Unknown fusion head'):
        ProbeBank([ProbeSpec('gru')], 16, 4)
    with pytest.raises(InputError, match='Unknown option'):
        Probe(ProbeSpec('lstm', options={'dropout': 0.5}), 16, 4)
    with pytest.raises(InputError, match='lstm cannot be built.*\n.*hidden=big'):
        Probe(read_head('lstm hidden=big'), 16, 4)
    with pytest.raises(InputError, match='^Unknown time code'):
        Probe(read_head('lstm time=sinus'), 16, 4)
    with pytest.raises(InputError, match='Unknown probe'):
        ProbeBank([ProbeSpec('lstm')], 16, 4).keep(['tcn'])
    assert replace(ProbeSpec('lstm'), seed=3).name == 'lstm seed=3'


@pytest.mark.parametrize('name', FUSIONS)
def test_a_head_is_read_back_from_its_name(name):
    known = {k: v.default for k, v in list(signature(FUSIONS[name]).parameters.items())[1:]}
    options = dict(n_frames=8, norm=not known['norm'], time='sincos')
    for some in ({}, options, dict(n_frames=8), dict(time=None)):
        spec = ProbeSpec(name, options={k: v for k, v in some.items() if k in known})
        assert read_head(spec.head) == spec
    spec = ProbeSpec(name, lr=0.1, seed=3, layer=(1, 2))
    assert read_head(spec.fusion) == ProbeSpec(name)
    with pytest.raises(InputError, match='Unknown option'):
        read_head(f'{name} dephs=4')


def test_saved_and_loaded(tmp_path):
    specs = [*sweep(lr=[1e-4], seed=[3]), ProbeSpec('tcn', options={'dilations': (1, 2)})]
    specs += sweep(['lstm'], layers=2) + [ProbeSpec('lstm', labels='verb')]
    bank, x = ProbeBank(specs, 16, dict(label=4, verb=2)), features()
    save_bank(bank, tmp_path / 'bank', classes=list('abcd'), backbone='dinov2', store='1f2e')
    again, about = load_bank(tmp_path / 'bank')
    assert again.specs == specs and torch.equal(again(x), bank(x)) and not again.training
    assert about['classes'] == list('abcd') and about['notes'] == dict(
        backbone='dinov2', store='1f2e'
    )
    assert sorted(p.name for p in (tmp_path / 'bank').iterdir()) == [
        'probes.json',
        'probes.safetensors',
    ]


@pytest.mark.parametrize('harm', ['weights', 'missing', 'json', 'head', 'shape'])
def test_half_a_bank_is_refused(harm, tmp_path):
    save_bank(ProbeBank([ProbeSpec('lstm')], 16, 4), tmp_path)
    weights, said = tmp_path / 'probes.safetensors', tmp_path / 'probes.json'
    if harm == 'weights':
        weights.write_bytes(weights.read_bytes()[:-4])
    if harm == 'missing':
        weights.unlink()
    text = said.read_text()
    edits = {'json': text[:100], 'head': text.replace('lstm', 'gru')}
    said.write_text(
        edits.get(harm, text.replace('"dim": 16', '"dim": 32') if harm == 'shape' else text)
    )
    with pytest.raises(InputError):
        load_bank(tmp_path)


def test_an_axis_may_be_one_value():
    assert sweep('lstm', lr=3e-4, seed=2) == [ProbeSpec('lstm', 3e-4, seed=2)]
    assert [s.seed for s in sweep('lstm', seed=range(3))] == [0, 1, 2]


def test_reading_a_bank_moves_and_changes_nothing():
    "Forward twice, with and without gradients: same weights at the same places"
    bank, x = ProbeBank(sweep(['max_pooling_relu', 'tcn'], seed=range(3)), 16, 4), features()
    places = [(p.data_ptr(), p.detach().clone()) for p in bank.parameters()]
    bank(x).sum().backward()
    with torch.no_grad():
        bank(x)
    assert all(
        p.data_ptr() == at and torch.equal(p, was)
        for p, (at, was) in zip(bank.parameters(), places)
    )


def test_a_bank_laid_out_gives_the_same_and_is_parted_whole():
    specs = sweep(['max_pooling_relu', 'max_pooling', 'lstm'], seed=range(3))
    bank, x = ProbeBank(specs, 16, 4), features()
    logits = bank(x)
    blocks = bank.lay_out()
    assert len(blocks) == 4  # hidden layers; linear layers of three kinds
    torch.testing.assert_close(bank(x), logits)
    torch.testing.assert_close(bank.keep([specs[1].name])(x)[0], logits[1])  # one of a block
    for block in blocks:
        block.part()
    for p in bank.parameters():
        assert p.untyped_storage().nbytes() == p.nbytes
    assert torch.equal(bank(x), logits)


def test_importing_probes_needs_no_encoder_or_decoder():
    "Heads are for those who have features: neither transformers nor PyAV, nor a process group"
    code = """
import sys, fmhar.probe
heavy = {'transformers', 'av', 'timm', 'torchvision', 'huggingface_hub', 'matplotlib', 'pandas'}
assert not heavy & {name.split('.')[0] for name in sys.modules}, heavy & set(sys.modules)
from fmhar.fusion.base import FUSIONS
assert 'temporal_moments' in FUSIONS and list(FUSIONS)[0] == 'average_pooling'
"""
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
