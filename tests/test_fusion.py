"Every head against an independent form of itself; what must not change does not"

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fmhar.fusion
import fmhar.fusion.attention
import fmhar.fusion.base
from fmhar.contracts import Features
from fmhar.errors import InputError
from fmhar.fusion.attention import PiecewiseAttention, Received
from fmhar.fusion.base import FUSIONS, Fusion, make_fusion, register, standardise
from fmhar.fusion.thirteen import cost
from fmhar.fusion.together import Together, stacked
from fmhar.probe import ProbeBank, sweep

TABLE_3 = [
    'average_pooling',
    'average_pooling_relu',
    'max_pooling',
    'max_pooling_relu',
    'self_attention_all_avg',
    'self_attention_all_max',
    'self_attention_cls_avg',
    'self_attention_cls_max',
    'weighted_self_attention',
    'cross_attention_all',
    'cross_attention_cls',
    'lstm',
    'tcn',
]
ORDERED = ['lstm', 'tcn']


def build(name, dim=16, seed=0, dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_fusion(name, dim, **options).to(dtype).eval()


def clip(head, shape=(3, 6, 5), dim=16, seed=0, dtype=torch.float64, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(*shape, dim, generator=g, dtype=torch.float64)
    return (x if head.tokens == 'all' else x[:, :, 0]).to(dtype)


def as_mha(attention):
    "The same weights in `nn.MultiheadAttention`"
    a, dim = attention, attention.q.in_features
    mha = nn.MultiheadAttention(dim, a.heads, batch_first=True).to(a.q.weight.dtype)
    mha.in_proj_weight.data = torch.cat([p.weight for p in (a.q, a.k, a.v)]).detach()
    mha.in_proj_bias.data = torch.cat([a.q.bias, torch.zeros_like(a.q.bias), a.v.bias]).detach()
    mha.out_proj.load_state_dict(a.out.state_dict())
    return mha


def test_keys_are_the_rows_of_table_3_in_order():
    assert list(fmhar.fusion.TABLE_3) == TABLE_3


@pytest.mark.parametrize('name', TABLE_3)
def test_contract(name):
    head = build(name)
    assert head.tokens == ('all' if '_all' in name else 'cls')
    y = head(clip(head))
    assert y.shape == (3, head.out_dim) and y.isfinite().all()
    assert build(name, dtype=torch.float32)(clip(head).half()).dtype == torch.float32


@pytest.mark.parametrize('name', TABLE_3)
def test_clips_do_not_mix(name):
    head = build(name)
    x = clip(head)
    torch.testing.assert_close(head(x)[1:2], head(x[1:2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', TABLE_3)
@pytest.mark.parametrize('time', [None, 'learned', 'sincos'])
def test_order_of_frames(name, time):
    head = build(name, time=time)
    if time == 'learned':
        nn.init.normal_(head.time)
    x = clip(head)
    change = (head(x) - head(x.flip(1))).abs().max()
    sums = 'average_pooling' in name  # a mean of sums has no order either
    blind = name not in ORDERED and (time is None or sums)
    assert change < 1e-12 if blind else change > 1e-3


@pytest.mark.parametrize('name', [n for n in TABLE_3 if n not in ORDERED])
def test_shuffled_frames_in_single_precision(name):
    head = build(name, dim=64, dtype=torch.float32)
    x = clip(head, (2, 16, 5), 64, dtype=torch.float32)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(x), head(x[:, order]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', [n for n in TABLE_3 if '_all' in n])
@pytest.mark.parametrize('scope', ['joint', 'per_frame'])
def test_scope(name, scope):
    "Joint heads do not care which frame a token is in; per-frame heads do"
    head = build(name, scope=scope)
    x = clip(head)
    moved = x.clone()
    moved[:, 0, 1], moved[:, 1, 1] = x[:, 1, 1], x[:, 0, 1]
    change = (head(x) - head(moved)).abs().max()
    assert change < 1e-12 if scope == 'joint' else change > 1e-6


def test_pooling_against_numpy():
    head = build('average_pooling')
    x = clip(head)
    assert np.allclose(head(x), x.numpy().mean(1), rtol=0, atol=1e-14)
    assert np.array_equal(build('max_pooling')(x), x.numpy().max(1))
    for name, pooled in ('average_pooling_relu', x.mean(1)), ('max_pooling_relu', x.amax(1)):
        head = build(name, hidden=7)
        weight, bias = (p.detach().numpy() for p in (head.layer.weight, head.layer.bias))
        expected = np.maximum(pooled.numpy() @ weight.T + bias, 0)
        assert np.allclose(head(x).detach(), expected, rtol=0, atol=1e-12)
        assert torch.equal(build(name, hidden=0)(x), pooled.relu())


@pytest.mark.parametrize('name', [n for n in TABLE_3 if n.startswith('self_attention')])
@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('shape', [(3, 6, 5), (2, 8, 9)])  # 72 tokens > 2 D: winners only
def test_self_attention_against_multihead_attention(name, residual, shape):
    head = build(name, heads=4, residual=residual)
    x = clip(head, shape)
    z = standardise(x).flatten(1, -2)
    y = as_mha(head.attention)(z, z, z, need_weights=False)[0] + (z if residual else 0)
    expected = y.amax(1) if name.endswith('max') else y.mean(1)
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('mlp', [0, 4])
@pytest.mark.parametrize('name', ['self_attention_all_avg', 'self_attention_all_max'])
def test_shortcuts_have_the_gradients_of_the_plain_form(name, mlp):
    head = build(name, heads=2, mlp=mlp)
    x = clip(head, (2, 8, 9))
    z = standardise(x).flatten(1, -2)
    plain = head.attended(z, z)
    plain = plain.amax(1) if name.endswith('max') else plain.mean(1)
    target = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(3))
    parameters = list(head.parameters())
    ours = torch.autograd.grad((head(x) * target).sum(), parameters)
    theirs = torch.autograd.grad((plain * target).sum(), parameters)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize('piece', [1, 40, 10_000])
def test_pieces_of_any_size_give_the_same(piece, monkeypatch):
    monkeypatch.setitem(fmhar.fusion.attention.PIECE, 'cpu', piece)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 4, generator=g).double().requires_grad_() for n in (5, 7, 7))
    p = torch.softmax(q @ k.transpose(1, 2), -1)
    target = torch.randn(3, 5, 4, generator=g).double()
    pairs = [
        (PiecewiseAttention.apply(q, k, v), p @ v, target, (q, k, v)),
        (Received.apply(q, k), p.mean(1), torch.randn(3, 7, generator=g).double(), (q, k)),
    ]
    for ours, plain, weight, leaves in pairs:
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
        ours = torch.autograd.grad((ours * weight).sum(), leaves, retain_graph=True)
        plain = torch.autograd.grad((plain * weight).sum(), leaves, retain_graph=True)
        for a, b in zip(ours, plain):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_long_clips_never_build_the_whole_matrix():
    "2048 tokens: 4.2 million scores a head; no piece is larger than `PIECE`"
    sizes = []
    real = fmhar.fusion.attention.scores

    def spy(q, k):
        p = real(q, k)
        sizes.append(p.numel())
        return p

    head = build('self_attention_all_avg', dim=8, dtype=torch.float32)
    x = clip(head, (1, 8, 256), 8, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fmhar.fusion.attention, 'scores', spy)
        head(x).sum().backward()
    assert max(sizes) <= fmhar.fusion.attention.PIECE['cpu'] < 2048**2
    assert sum(sizes) == 2 * 2048**2  # forward, and again backward


@given(
    n=st.integers(1, 40),
    heads=st.sampled_from([1, 2, 4, 8]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_folded_cross_attention_is_exact(n, heads, scale, seed):
    head = build('cross_attention_cls', heads=heads, seed=seed, norm=False)
    nn.init.normal_(head.query)
    x = clip(head, (2, n, 1), seed=seed, scale=scale)
    mha, query = as_mha(head.attention), head.query.expand(2, 1, -1)
    expected = mha(query, x, x, need_weights=False)[0][:, 0]
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)


def test_folded_cross_attention_has_exact_gradients():
    head = build('cross_attention_all', heads=4, norm=False)
    x = clip(head)
    a = head.attention
    weight = torch.cat([p.weight for p in (a.q, a.k, a.v)])
    args = weight, torch.cat([a.q.bias, torch.zeros_like(a.q.bias), a.v.bias])
    kv = x.flatten(1, 2).transpose(0, 1)
    unfolded = F.multi_head_attention_forward(
        head.query.expand(1, 3, -1), kv, kv, 16, 4, *args, None, None, False, 0.0,
        a.out.weight, a.out.bias,
    )[0][0]  # fmt: skip
    torch.testing.assert_close(head(x), unfolded, rtol=0, atol=1e-10)
    parameters = list(head.parameters())
    ours = torch.autograd.grad(head(x).square().sum(), parameters)
    theirs = torch.autograd.grad(unfolded.square().sum(), parameters)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_folded_counts_sixty_times_fewer_operations():
    "At ViT-B/14: keys and values of 4112 tokens against one product with H folded queries"
    n, d, heads = 16 * 257, 768, 12
    unfolded = 2 * (2 * n * d * d + 2 * n * d + 2 * d * d)
    assert cost('cross_attention_all')[1] * 1e9 < unfolded / 60
    folded = 2 * n * d * heads * 2 + 4 * 2 * d * d  # scores and sums; q, fold, v, out
    assert cost('cross_attention_all')[1] * 1e9 == pytest.approx(folded, rel=0.01)


def test_weighted_self_attention_against_multihead_attention():
    head = build('weighted_self_attention', heads=4, of='attended')
    z = standardise(clip(head))
    y, weights = as_mha(head.attention)(z, z, z)  # weights: mean over heads
    expected = (weights.mean(1, keepdim=True) @ (y + z))[:, 0]
    torch.testing.assert_close(head(clip(head)), expected, rtol=0, atol=1e-10)
    plain = build('weighted_self_attention', heads=4)
    plain.attention.load_state_dict(head.attention.state_dict(), strict=False)
    expected = (weights.mean(1, keepdim=True) @ z)[:, 0]
    torch.testing.assert_close(plain(clip(head)), expected, rtol=0, atol=1e-10)


def test_lstm_against_its_equations():
    head = build('lstm', hidden=6, norm=False)
    x, p = clip(head), dict(head.lstm.named_parameters())
    h = c = torch.zeros(3, 6, dtype=x.dtype)
    for t in range(x.shape[1]):
        gates = x[:, t] @ p['weight_ih_l0'].T + p['bias_ih_l0']
        gates = gates + h @ p['weight_hh_l0'].T + p['bias_hh_l0']
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(head(x), h, rtol=0, atol=1e-12)


@pytest.mark.parametrize('kernel, dilations', [(3, (1, 2, 4)), (2, (1, 2)), (3, (1,))])
def test_receptive_field_of_the_tcn(kernel, dilations):
    "Changing a frame changes the output exactly if the last step can see it"
    head = build('tcn', kernel=kernel, dilations=dilations, norm=False)
    x = clip(head, (1, 40, 1))
    field = 1 + 2 * (kernel - 1) * sum(dilations)
    for t in range(40):
        y = x.clone()
        y[:, t] += 1
        assert ((head(y) - head(x)).abs().max() > 0) == (40 - t <= field)


def test_standardise():
    x = 50 + 7 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = standardise(x)
    expected = (x - x.mean(1, keepdim=True)) / (
        x.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(z, expected)
    assert standardise(x.half()).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        assert standardise(x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize('name', TABLE_3)
def test_bfloat16_is_close(name):
    head = build(name, dim=64, dtype=torch.float32)
    x = clip(head, (4, 8, 5), 64, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        y = head(x)
    error = (y.float() - head(x)).norm() / head(x).norm()
    assert error < 0.02
    if y.requires_grad:
        y.float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_costs_at_vit_base():
    parameters, gflop = cost('self_attention_all_max')
    n, d = 16 * 257, 768
    assert parameters == 4 * d * d + 3 * d
    assert gflop == pytest.approx(2 * (4 * n * d * d + 2 * n * n * d) / 1e9)
    assert cost('self_attention_all_avg')[1] == pytest.approx(gflop / 2, rel=0.01)
    assert cost('lstm') == (8 * d * d + 8 * d, pytest.approx(16 * 16 * d * d / 1e9))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match='did you mean cross_attention_all'):
        make_fusion('cross_atention_all', 16)
    with pytest.raises(InputError, match='Unknown option .width.'):
        make_fusion('lstm', 16, width=3)
    with pytest.raises(InputError, match='do not divide'):
        make_fusion('cross_attention_all', 16, heads=5)
    with pytest.raises(InputError, match='Unknown scope'):
        make_fusion('cross_attention_all', 16, scope='frames')
    with pytest.raises(InputError, match='Unknown time code'):
        make_fusion('max_pooling', 16, time='sine')
    with pytest.raises(InputError, match='n_frames=6'):
        build('max_pooling', time='learned', n_frames=5)(torch.zeros(1, 6, 16))
    with pytest.raises(InputError, match=r'reads \(B, T, N, D\)'):
        build('cross_attention_all')(torch.zeros(1, 6, 16))


def test_registering_again_replaces(monkeypatch):
    monkeypatch.setattr(fmhar.fusion.base, 'FUSIONS', dict(FUSIONS))

    @register
    class MaxPooling(Fusion):
        def fuse(self, x):
            return x.amax(1)

    assert fmhar.fusion.base.FUSIONS['max_pooling'] is MaxPooling
    assert list(fmhar.fusion.base.FUSIONS) == list(FUSIONS)


def test_large_tensors_are_standardised_clip_by_clip_to_the_same(monkeypatch):
    g = torch.Generator().manual_seed(0)
    for dtype in torch.float16, torch.float32, torch.float64:
        x = torch.randn(3, 4, 5, 16, generator=g).to(dtype)
        for autocast in False, True:
            with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                whole = standardise(x)
                with monkeypatch.context() as m:
                    m.setattr(fmhar.fusion.base, 'LARGE', 1)
                    parts = standardise(x)
            assert whole.dtype == parts.dtype and torch.equal(whole, parts)


def parameters(n=4, shape=(3, 2)):
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64)) for _ in range(n)]


def test_stacked_is_stack_in_values_and_gradients():
    rows, plain = parameters(), parameters()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    Together(rows)
    for _ in range(3):
        ours, theirs = (stack @ x for stack in (stacked(rows), torch.stack(plain)))
        assert torch.equal(ours, theirs)
        for row, want in zip(
            torch.autograd.grad(ours.square().sum(), rows),
            torch.autograd.grad(theirs.square().sum(), plain),
        ):
            assert torch.equal(row, want)
    assert torch.autograd.gradcheck(lambda *rows: stacked(rows) @ x, rows)


def test_stacked_follows_what_an_optimiser_does():
    rows, plain = parameters(), parameters()
    Together(rows)
    for mine, stack in (rows, stacked), (plain, torch.stack):
        optimizer = torch.optim.AdamW([{'params': [p], 'lr': 10.0**-i} for i, p in enumerate(mine)])
        for _ in range(3):
            optimizer.zero_grad()
            stack(mine).pow(3).sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(rows, plain))


@pytest.mark.parametrize('take', [[0, 1, 3], [2, 1, 0, 3], [1], [0, 0, 1]])
def test_stacked_of_some_or_in_another_order(take):
    "Also after all of them were laid out, and where one comes twice"
    rows, was = parameters(), parameters()
    Together(rows)
    some = [rows[i] for i in take]
    for _ in range(2):
        assert torch.equal(stacked(some), torch.stack([was[i] for i in take]))
        assert torch.equal(stacked(rows), torch.stack(was))


def test_stacked_moves_nothing():
    "Whether a gradient is wanted or not"
    rows = parameters()
    places = [row.data_ptr() for row in rows]
    assert torch.equal(stacked(rows), torch.stack(rows))
    with torch.no_grad():
        assert torch.equal(stacked(rows), torch.stack(rows))
    assert [row.data_ptr() for row in rows] == places


def test_parted_rows_have_their_own_memory(tmp_path):
    "A saved row is no larger than itself, and loading into rows that lie together reaches the block"
    rows, was = parameters(shape=(64, 64)), parameters(shape=(64, 64))
    block = Together(rows)
    with torch.no_grad():
        rows[1].copy_(was[0])
    assert torch.equal(stacked(rows)[1], was[0])
    block.part()
    torch.save(rows[0].detach(), tmp_path / 'a.pt')
    torch.save(was[0].detach().clone(), tmp_path / 'b.pt')
    assert (tmp_path / 'a.pt').stat().st_size == (tmp_path / 'b.pt').stat().st_size
    assert torch.equal(rows[0], was[0]) and not hasattr(rows[0], 'together')


# --- heads of others


def test_what_a_bank_cannot_train_is_not_registered():
    class Plain(nn.Module):
        pass

    class NoFuse(Fusion):
        pass

    class OwnForward(FUSIONS['max_pooling']):
        def forward(self, x):
            return x.sum(1)

    for cls, match in (Plain, 'not a Fusion'), (NoFuse, 'has no fuse'), (OwnForward, 'forward'):
        with pytest.raises(InputError, match=match):
            register(cls)
    assert not {'plain', 'no_fuse', 'own_forward'} & set(FUSIONS)


def head_of_ones_own(base, name, where):
    "A subclass with a parameter, used in `fuse`, in `pooled` or in `prepare`"

    class Scaled(FUSIONS[base]):
        def __init__(self, dim, **options):
            super().__init__(dim, **options)
            self.scale = nn.Parameter(torch.rand(dim) + 0.5)

        if where == 'fuse':

            def fuse(self, x):
                return super().fuse(x * self.scale)

        if where == 'pooled':

            def pooled(self, x):
                return (x * self.scale).amax(1)

        if where == 'prepare':

            def prepare(self, x, standardised=None):
                return super().prepare(x, standardised) * self.scale

    Scaled.__name__ = name
    return Scaled


@pytest.mark.parametrize('where', ['fuse', 'pooled', 'prepare'])
@pytest.mark.parametrize('base', ['max_pooling', 'average_pooling_relu', 'cross_attention_cls'])
def test_heads_that_inherit_sharing_and_add_a_parameter_train_as_alone(base, where, monkeypatch):
    "Before, the second probe of a sweep got the first one's vector, and no gradient"
    monkeypatch.setattr(fmhar.fusion.base, 'FUSIONS', FUSIONS)
    if base == 'cross_attention_cls' and where == 'pooled':
        where = 'fuse'
    register(head_of_ones_own(base, 'ScaledOne', where))
    try:
        specs = sweep(['scaled_one'], seed=[0, 1])
        bank, x = ProbeBank(specs, 16, 3), Features(clip(build('lstm'), dtype=torch.float32))
        bank(x).square().sum().backward()
        for i, probe in enumerate(bank.probes):
            alone = ProbeBank([specs[i]], 16, 3)
            alone(x).square().sum().backward()
            assert probe.fusion.scale.grad is not None
            for a, b in zip(probe.parameters(), alone.parameters()):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    finally:
        del FUSIONS['scaled_one']


def test_hidden_layers_are_rounded_alike_alone_and_in_a_sweep():
    "In bfloat16, where PyTorch's own linear layer would round its sum with the bias once more"
    for name in 'average_pooling_relu', 'max_pooling_relu':
        bank = ProbeBank(sweep([name], seed=range(4)), 64, 5)
        x = Features(clip(build(name), (8, 6, 5), 64, dtype=torch.float32))
        with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
            together, alone = bank(x), torch.stack([probe(x) for probe in bank.probes])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dim', [200, 500, 888])
@pytest.mark.parametrize('name', list(FUSIONS))
def test_widths_that_64_does_not_divide(name, dim):
    head = build(name, dim, dtype=torch.float32)
    y = head(clip(head, (1, 3, 2), dim, dtype=torch.float32))
    assert y.shape == (1, head.out_dim) and y.isfinite().all()


def test_weights_of_cross_attention_want_joined_tokens():
    head = build('cross_attention_all')
    with pytest.raises(InputError, match=r'(?s)shape \(3, 6, 5, 16\).*flatten'):
        head.weights(clip(head))
    assert head.weights(clip(head).flatten(1, 2)).shape == (3, 1, 30)


def test_scope_of_class_tokens_is_one():
    with pytest.raises(InputError, match='self_attention_cls_avg reads one token a frame'):
        make_fusion('self_attention_cls_avg', 16, scope='per_frame')


@pytest.mark.parametrize('name', list(FUSIONS))
def test_heads_run_on_a_gpu_that_is_not_there(name):
    "Forward on CUDA tensors that have shapes only: devices agree, and nothing waits for a number"
    if name == 'lstm' and not torch.cuda.is_available():
        pytest.skip("PyTorch's LSTM calls the driver itself, whatever the tensors are")
    head = make_fusion(name, 16)
    state = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    with FakeTensorMode():
        state = {k: torch.empty(v.shape, dtype=v.dtype, device='cuda') for k, v in state.items()}
        x = torch.empty(2, 16, 40, 16, dtype=torch.float16, device='cuda')  # many tokens
        x = x if head.tokens == 'all' else x[:, :, 0]
        y = torch.func.functional_call(head, state, (x,))
        assert y.device.type == 'cuda' and y.shape == (2, head.out_dim)
