"Each head against a long way round; who knows the order, and how"

import math

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torch import nn

from fmhar.errors import InputError
from fmhar.fusion.base import FUSIONS, make_fusion, standardise
from fmhar.fusion.further import cosines
from fmhar.fusion.thirteen import TABLE_3, cost

BEYOND = [
    'step',
    'attentive_pooler',
    'efficient_probing',
    'multiframe_transformer',
    'temporal_moments',
    'attended_moments',
]


def build(name, dim=32, seed=0, dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_fusion(name, dim, **options).to(dtype).eval()


def clip(head, shape=(3, 6, 5), dim=32, seed=0, dtype=torch.float64):
    x = torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x if head.tokens == 'all' else x[:, :, 0]).to(dtype)


def in_projection(a):
    "Weight and bias of `nn.MultiheadAttention`"
    bias = torch.cat([a.q.bias, torch.zeros_like(a.q.bias), a.v.bias])
    return torch.cat([a.q.weight, a.k.weight, a.v.weight]).detach(), bias.detach()


def test_they_stand_beside_the_thirteen():
    assert [k for k in FUSIONS if k not in TABLE_3] == BEYOND


@pytest.mark.parametrize('name', BEYOND)
def test_contract(name):
    head = build(name)
    x = clip(head)
    y = head(x)
    assert y.shape == (3, head.out_dim) and y.isfinite().all()
    torch.testing.assert_close(y[1:2], head(x[1:2]), rtol=0, atol=1e-12)
    with torch.autocast('cpu', torch.bfloat16):
        z = build(name, dtype=torch.float32)(x.float())
    assert (z - y).norm() < 0.03 * y.norm()
    if z.requires_grad:
        z.float().square().sum().backward()


@pytest.mark.parametrize('name', BEYOND)
def test_order(name):
    head = build(name)
    for parameter in ('code', 'time'):
        if isinstance(getattr(head, parameter, None), nn.Parameter):
            nn.init.normal_(getattr(head, parameter))
    x = clip(head)
    change = (head(x) - head(x.flip(1))).abs().max()
    assert change < 1e-12 if name == 'efficient_probing' else change > 1e-3


def test_step_is_a_block_read_at_the_global_token():
    head = build('step', heads=4)
    nn.init.normal_(head.code), nn.init.normal_(head.token)
    x = clip(head)
    sequence = (standardise(x) + head.code[:6, None])[:, :, 1:].flatten(1, 2)
    sequence = torch.cat([head.token.expand(3, 1, -1), sequence], 1)
    y = (sequence + head.attention.between(sequence, sequence))[:, 0]
    torch.testing.assert_close(head(x), y, rtol=0, atol=1e-12)
    parameters = list(head.parameters())
    ours = torch.autograd.grad(head(x).square().sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=0, atol=1e-10)


def test_step_does_not_read_the_class_tokens_of_frames():
    head = build('step')
    x = clip(head)
    other = x.clone()
    other[:, :, 0] += torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1)).double()
    assert torch.equal(head(x), head(other))


def test_attentive_pooler_against_multihead_attention():
    "Depth 2, by PyTorch's own encoder layer and attention"
    head = build('attentive_pooler', depth=2, heads=4)
    nn.init.normal_(head.query)
    for block in head.blocks:  # PyTorch's LayerNorm before attention has an affine part: none here
        layer = nn.TransformerEncoderLayer(
            32, 4, 128, 0.0, 'gelu', norm_first=True, batch_first=True
        )
        layer = layer.double().eval()
        weight, bias = in_projection(block.attention)
        layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = weight, bias
        layer.self_attn.out_proj.load_state_dict(block.attention.out.state_dict())
        layer.norm2.load_state_dict(block.mlp[0].state_dict())
        layer.linear1.load_state_dict(block.mlp[1].state_dict())
        layer.linear2.load_state_dict(block.mlp[3].state_dict())
        block.expected = layer
    x = clip(head)
    z = (standardise(x) + head.time[:6, None]).flatten(1, 2)
    z = standardise(head.blocks[0].expected(z))
    a = head.attention
    q, k, v = (
        p.unflatten(-1, (4, 8)).transpose(-3, -2) for p in (a.q(head.query[None]), a.k(z), a.v(z))
    )
    y = nn.functional.scaled_dot_product_attention(q.expand(3, -1, -1, -1), k, v)
    y = head.query + y.transpose(1, 2).flatten(1)
    torch.testing.assert_close(head(x), y + head.mlp(y), rtol=0, atol=1e-10)


def test_efficient_probing_query_by_query():
    head = build('efficient_probing', queries=8)
    nn.init.normal_(head.queries)
    x = clip(head)
    z, value = standardise(x).flatten(1, 2), head.attention.v
    values = value(z).unflatten(-1, (8, 4))  # (B, N, Q, D / Q)
    for i, query in enumerate(head.queries):
        a = (z @ query / math.sqrt(32)).softmax(1)  # (B, N)
        expected = torch.einsum('bn,bnd->bd', a, values[:, :, i])
        torch.testing.assert_close(head(x)[:, 4 * i : 4 * i + 4], expected, rtol=0, atol=1e-12)


def test_multiframe_transformer_against_multihead_attention():
    head = build('multiframe_transformer', heads=4)
    x = clip(head)
    z = standardise(x)
    c = z + head.time[:6]
    mha = nn.MultiheadAttention(32, 4, batch_first=True).double()
    mha.in_proj_weight.data, mha.in_proj_bias.data = in_projection(head.attention)
    mha.out_proj.load_state_dict(head.attention.out.state_dict())
    y = c + mha(c, c, c, need_weights=False)[0]
    expected = (z + y + head.mlp(y)).mean(1)
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('t', [1, 2, 5, 16])
def test_moments_are_scipys_cosine_transform(t):
    x = np.random.default_rng(0).normal(size=(t, 4))
    order = min(3, t - 1)
    expected = dct(x, axis=0, type=2, norm='ortho')[: order + 1]
    assert np.allclose(cosines(t, order, static=True).numpy() @ x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', ['temporal_moments', 'attended_moments'])
def test_what_stands_still_is_not_seen(name):
    "Equal frames give the same vector whatever is in them; with static=True they do not"
    head, other = build(name), build(name, static=True)
    still = clip(head)[:, :1].expand(-1, 6, *[-1] * (clip(head).dim() - 2))
    assert (head(still)[0] - head(still)[1]).abs().max() < 1e-12
    assert (other(still)[0] - other(still)[1]).abs().max() > 1e-3


def test_moments_backwards():
    head = build('temporal_moments')
    x = clip(head)
    signs = torch.tensor([-1, 1, -1]).repeat_interleave(32)
    torch.testing.assert_close(head(x.flip(1)), head(x) * signs, rtol=0, atol=1e-12)


def test_attended_moments_the_long_way():
    "Values of all tokens, attention in each frame, then moments over frames"
    head = build('attended_moments', heads=4, static=True)
    nn.init.normal_(head.query)
    x = clip(head)
    z, a = standardise(x), head.attention
    q, k, v = (
        a.q(head.query).unflatten(0, (4, 8)),
        *(p(z).unflatten(-1, (4, 8)) for p in (a.k, a.v)),
    )
    w = (torch.einsum('hd,btnhd->bthn', q, k) / math.sqrt(8)).softmax(-1)
    y = torch.einsum('bthn,btnhd->bthd', w, v - a.v.bias.view(4, 8)).flatten(2)  # (B, T, D)
    y = torch.einsum('kt,btd->bkd', cosines(6, 3, static=True), y)
    torch.testing.assert_close(head(x), a.out(y + a.v.bias).flatten(1), rtol=0, atol=1e-10)


def test_costs_at_vit_base():
    d = 768
    assert cost('step')[0] == 4 * d * d + 3 * d + 17 * d  # a third of a full block's 12 d^2
    assert cost('step')[1] < 0.2 < 300 < cost('attentive_pooler', depth=4)[1] < 350
    assert cost('temporal_moments')[0] == 0


def test_errors():
    with pytest.raises(InputError, match='n_frames=6'):
        build('step', n_frames=5)(torch.zeros(1, 6, 2, 32))
    with pytest.raises(InputError, match='do not divide'):
        build('efficient_probing', queries=5)
