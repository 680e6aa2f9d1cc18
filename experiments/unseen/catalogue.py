"""What to build of each library: ``LIBRARIES[library]() -> {name: build}``, ``build() -> (model, inputs)``.

``inputs(batch, seed, scale)`` makes arguments for the network: a tuple or a dict. ``scale`` multiplies the images' side
or the text's length. A library is imported only when it is asked for; no weights are loaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int, int, float], Any]
Build = Callable[[], tuple[nn.Module, Inputs]]
LARGE = 60e6  # parameters; above it a family is represented by a smaller member, or by fewer layers


def images(*shape: int) -> Inputs:
    """Random images ``[batch, *shape]``; the last two (or three) sizes are scaled."""

    def make(batch: int, seed: int, scale: float = 1.0) -> tuple[Tensor]:
        sides = [round(size * scale) for size in shape[1:]]
        return (torch.randn(batch, shape[0], *sides, generator=torch.Generator().manual_seed(seed)),)

    return make


def tokens(words: int, length: int = 12, **more: Any) -> Inputs:
    """Random token ids ``[batch, length]`` with a mask of ones, as keyword arguments; no id below 3."""

    def make(batch: int, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
        shape = (batch, round(length * scale))
        ids = torch.randint(3, words, shape, generator=torch.Generator().manual_seed(seed))
        ids[:, -1] = 2  # some classify at the end of the text
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | more

    return make


def timm() -> dict[str, Build]:
    """The smallest member of every family, with the smallest images that it takes."""
    import timm

    def build(family: str) -> tuple[nn.Module, Inputs]:
        sized: dict[str, int] = {}
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                try:
                    sized[name] = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
                except (RuntimeError, NotImplementedError, ValueError):
                    continue
        # batch norm on maps of 1 x 1 sees two values or so, and is chaotic
        sides = (
            (128, 224, 256, None)
            if family in ("levit", "shvit", "efficientvit_msra")
            else (64, 96, 128, 224, 256, None)
        )
        error: Exception | None = None
        for name in sorted(sized, key=sized.__getitem__)[:3] or timm.list_models(module=family)[:3]:
            for side in sides:
                for options in ({"img_size": side}, {}) if side else ({},):
                    if sized.get(name, 0) > 2e8:
                        options = options | {"depth": 2}
                    try:
                        model = timm.create_model(name, num_classes=10, **options)
                        found = side or timm.data.resolve_data_config({}, model=model)["input_size"][-1]
                        return runs(model, images(3, found, found))
                    except Exception as wrong:  # not this size, or no such option
                        error = error or wrong
        raise RuntimeError(f"no member runs: {error}")

    return {family: functools.partial(build, family) for family in timm.list_modules()}


def vit_pytorch() -> dict[str, Build]:
    """Every class of the package that takes ``num_classes``; arguments by their names."""
    import vit_pytorch

    common = dict(
        image_size=32, patch_size=8, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=96, dim_head=16, cls_depth=1,
        frames=4, frame_patch_size=2, image_patch_size=8, spatial_depth=1, temporal_depth=1, seq_len=32, ndim=2,
        input_shape=(32, 32), freq_patch_size=8, max_tokens_per_depth=(16, 8), num_residual_streams=2, num_slots=4,
        sm_dim=48, lg_dim=64, num_hierarchies=2, block_repeats=1, max_frames=4, reduction_factor=(4, 2), channels=3,
    )  # fmt: skip
    special: dict[str, dict[str, Any]] = {
        "cross_vit": dict(sm_patch_size=8, lg_patch_size=16, sm_enc_heads=4, lg_enc_heads=4, depth=1, lg_enc_depth=1),
        "crossformer": dict(depth=(1, 1, 1, 1), image=224),
        "jumbo_vit": dict(jumbo_cls_k=2),
        "cvt": dict(s3_depth=1, s2_depth=1, s2_emb_dim=96, s3_emb_dim=96, image=64),
        "regionvit": dict(dim=(16, 32, 64, 64), depth=(1, 1, 1, 1), image=224),
        "twins_svt": dict(s3_depth=1, s4_depth=1, s3_emb_dim=96, s4_emb_dim=128, image=224),
        "levit": dict(image_size=64, dim=(32, 48, 64), depth=1, heads=(2, 3, 4), mlp_mult=2, dim_key=16, dim_value=16),
        "max_vit": dict(depth=(1, 1), image=112),
        "max_vit_with_registers": dict(depth=(1, 1), image=112),
        "scalable_vit": dict(depth=(1, 1), heads=(2, 4), window_size=(4, None), image=64),
        "sep_vit": dict(depth=(1, 1), heads=(1, 2), image=56),
        "mobile_vit": dict(
            image_size=(64, 64),
            image=64,
            patch_size=(2, 2),
            dims=(48, 56, 64),
            channels=(16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96),
        ),
        "pit": dict(depth=(1, 1)),
        "nest": dict(image_size=64, patch_size=4),
        "t2t": dict(image_size=64, depth=2, heads=4, mlp_dim=96),
        "look_vit": dict(image_size=96, depth=1, highres_patch_size=12, patch_size=16, heads=4, cross_attn_heads=4),
        "efficient": dict(transformer=vit_pytorch.vit.Transformer(64, 2, 4, 16, 96)),
        "vit_with_patch_merger": dict(depth=4, patch_merge_num_tokens=4),
    }
    shapes = {"seq_len": (3, 32), "frames": (3, 4, 32, 32)}

    def build(kind: type[nn.Module], name: str) -> tuple[nn.Module, Inputs]:
        options = dict(common | special.get(name, {}))
        parameters = inspect.signature(kind.__init__).parameters
        side = options.pop("image", options["image_size"])
        wanted = {k for k, p in parameters.items() if p.default is p.empty} | set(special.get(name, {})) - {"image"}
        wanted |= {"dim_head", "image_size", "patch_size", "input_shape"} & set(parameters)
        model = kind(**{k: v for k, v in options.items() if k in wanted})
        return runs(model, images(*next((s for k, s in shapes.items() if k in parameters), (3, side, side))))

    found: dict[str, Build] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(vit_pytorch.__path__)):
        try:
            members = vars(importlib.import_module(f"vit_pytorch.{module}"))
        except ImportError:  # of a package that is not here
            continue
        for name, kind in members.items():
            if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__.endswith(f".{module}"):
                parameters = inspect.signature(kind.__init__).parameters
                if "num_classes" in parameters and name not in ("Adapter", "TransformerClassifier"):
                    found[f"{module}.{name}"] = functools.partial(build, kind, module)
    for name, make in {"cct": "cct_2", "cct_3d": "cct_2"}.items():
        function = getattr(importlib.import_module(f"vit_pytorch.{name}"), make, None)
        shape = {"img_size": 32, "num_classes": 10} | ({"num_frames": 4} if name == "cct_3d" else {})
        if function:
            made = functools.partial(function, **shape, n_conv_layers=1, kernel_size=7, stride=2, padding=3)
            found[name] = lambda made=made, name=name: runs(made(), images(3, *[4] * (name == "cct_3d"), 32, 32))
    return found


def transformers() -> dict[str, Build]:
    """Image and sequence classifiers of every model type, made small by the settings that configs share."""
    import transformers
    from transformers.models.auto import modeling_auto

    small = dict(
        num_hidden_layers=2, hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, image_size=64, patch_size=16, vocab_size=99, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, num_labels=7, d_model=48, encoder_layers=2, decoder_layers=2, num_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=80, n_embd=48,
        n_layer=2, n_layers=2, n_head=4, n_heads=4, dim=48, hidden_dim=80, n_inner=80, embedding_size=24, ffn_dim=80,
        emb_dim=48, d_ff=80, d_kv=12, num_heads=4, embed_dim=48, type_vocab_size=2,
        word_embed_proj_dim=48, num_local_experts=4, num_experts=4, moe_intermediate_size=40, ffn_hidden_size=80,
        attention_window=4, projection_dim=48, rotary_dim=8, max_seq_len=64, n_positions=64,
    )  # fmt: skip
    vision = dict(
        num_hidden_layers=2, hidden_size=48, intermediate_size=80, num_attention_heads=4, image_size=64, patch_size=16
    )
    of_text = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    of_text += " head_dim max_position_embeddings pad_token_id bos_token_id eos_token_id"
    text = {name: small[name] for name in of_text.split()}
    sliding = dict(layer_types=["sliding_attention", "full_attention"])
    linear = dict(
        linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    latent = dict(
        head_dim=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, kv_lora_rank=24, q_lora_rank=32,
        num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2,
    )  # fmt: skip
    special: dict[str, dict[str, Any]] = {  # what the others exclude or only some have; None: as it is
        "axk1": latent,
        "axk2": latent | dict(index_topk=64, index_head_dim=8, index_n_heads=2, gated_norm_rank=8),
        "canine": dict(num_hash_buckets=99, local_transformer_stride=8),
        "cvt": dict(embed_dim=[16, 48, 96], depth=[1, 2, 3]),
        "cohere_compass_text": sliding | dict(
            rope_parameters={kind: dict(rope_type="default", rope_theta=1e4) for kind in sliding["layer_types"]},
        ),
        "deepseek_v2": latent | dict(n_group=1),
        "deepseek_v3": latent | dict(first_k_dense_replace=1),
        "deit": dict(architectures=["DeiTForImageClassification"]),
        "efficientnet": dict(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        "falcon": dict(head_dim=None),
        "funnel": dict(num_hidden_layers=None, block_sizes=[1, 1, 1], d_head=12, d_inner=80, num_decoder_layers=1),
        "luke": dict(entity_vocab_size=50, entity_emb_size=24),
        "minicpm3": latent,
        "mistral4": latent | dict(head_dim=16, n_group=1),
        "qwen3_5": dict(
            text_config=text | linear,
            vision_config=dict(
                depth=1, hidden_size=48, intermediate_size=80, num_heads=4, out_hidden_size=48,
                num_position_embeddings=16,
            ),
        ),
        "qwen3_next": linear | dict(num_experts_per_tok=2, shared_expert_intermediate_size=40),
        "reformer": dict(
            num_hidden_layers=None, attn_layers=["local", "local"], axial_pos_embds=False, attention_head_size=12,
            feed_forward_size=80, local_attn_chunk_length=6,
        ),
        "siglip": dict(vision_config=vision),
        "stablelm": dict(hidden_size=64),
        "t5": dict(decoder_start_token_id=0),
        "t5gemma2": dict(
            encoder=dict(text_config=text | sliding, vision_config=vision), decoder=text | sliding,
        ),
        "ultravbert": dict(text_config=text | sliding | dict(prediction_head_size=48), vision_config=vision),
        "xmod": dict(default_language="en_XX"),
        "zamba": dict(
            attention_hidden_size=96, attention_head_dim=24, mamba_dt_rank=4, mamba_d_state=8, num_hidden_layers=3,
            layers_block_type=["hybrid", "linear_attention", "hybrid"],
        ),
        "zamba2": dict(
            mamba_d_state=8, adapter_rank=8, chunk_size=8, layers_block_type=["linear_attention", "hybrid"],
        ),
    }  # fmt: skip

    def configs(kind: str) -> Iterator[Any]:
        """Small; only shallow; as it is: whichever runs first."""
        defaults = transformers.AutoConfig.for_model(kind)
        own = special.get(kind, {})
        options = {k: v for k, v in small.items() if hasattr(defaults, k) or k in ("pad_token_id", "num_labels")}
        options = {k: v for k, v in options.items() if k not in own}
        listed = {k for k in options if isinstance(getattr(defaults, k, None), list | tuple)}
        shallow = {k: v for k, v in options.items() if "layers" in k or k.endswith("_id") or k == "num_labels"}
        own = {k: v for k, v in own.items() if v is not None}
        for settings in ({k: v for k, v in options.items() if k not in listed} | own, shallow | own, {"num_labels": 7}):
            for more in ({"depths": [1] * len(defaults.depths)}, {}) if hasattr(defaults, "depths") else ({},):
                with contextlib.suppress(Exception):  # settings that exclude each other
                    yield transformers.AutoConfig.for_model(kind, **settings, **more)

    def build(kind: str, task: str) -> tuple[nn.Module, Inputs]:
        auto, error = getattr(transformers, f"AutoModelFor{task}Classification"), None
        for config in configs(kind):
            try:
                config.use_cache = False
                model = auto.from_config(config)
                if task == "Sequence" or kind == "imagegpt":  # it reads colours as words; one has no list of words
                    return runs(model, tokens(min(90, getattr(config.get_text_config(), "vocab_size", 90))))
                inner = getattr(config, "vision_config", config)
                side = getattr(inner, "image_size", None) or 64
                side = side if isinstance(side, int) else side[0]
                return runs(model, images(getattr(inner, "num_channels", 3), side, side))
            except Exception as wrong:
                error = error or wrong
        raise RuntimeError(f"no config runs: {error}")

    found: dict[str, Build] = {}
    for task in ("Image", "Sequence"):
        for kind in sorted(getattr(modeling_auto, f"MODEL_FOR_{task.upper()}_CLASSIFICATION_MAPPING_NAMES")):
            found[f"{kind} ({task.lower()})"] = functools.partial(build, kind, task)
    return found


def segmentation_models_pytorch() -> dict[str, Build]:
    """Every decoder over small encoders of several kinds."""
    import segmentation_models_pytorch as smp

    def build(decoder: str, encoder: str) -> tuple[nn.Module, Inputs]:
        options = {"encoder_output_stride": 16} if decoder == "PAN" else {}
        side = {"PAN": 128, "DPT": 224}.get(decoder, 64)  # it pools three times more; its encoder takes one size
        model = smp.create_model(decoder, encoder, encoder_weights=None, classes=3, **options)
        return runs(model, images(3, side, side))

    decoders = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus Segformer UPerNet"
    pairs = [(decoder, "resnet18") for decoder in decoders.split()]
    encoders = "mobilenet_v2 efficientnet-b0 mit_b0 vgg11_bn densenet121 se_resnet50 dpn68 xception timm-regnetx_002"
    pairs += [("Unet", encoder) for encoder in (encoders + " mobileone_s0 timm-res2net50_26w_4s").split()]
    pairs += [("DPT", "tu-vit_tiny_patch16_224")]
    return {f"{decoder}, {encoder}": functools.partial(build, decoder, encoder) for decoder, encoder in pairs}


def monai() -> dict[str, Build]:
    """Two- and three-dimensional networks for medical images."""
    from monai.networks import nets

    unet = dict(spatial_dims=2, in_channels=1, out_channels=2)
    flat, solid = (1, 32, 32), (1, 16, 16, 16)
    made: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "AHNet": (dict(spatial_dims=2, psp_block_num=0, out_channels=2), (1, 64, 64)),
        "AttentionUnet": (unet | dict(channels=(8, 16, 32), strides=(2, 2)), flat),
        "AutoEncoder": (unet | dict(channels=(8, 16), strides=(2, 2)), flat),
        "BasicUNet": (dict(spatial_dims=2, features=(8, 8, 16, 32, 64, 8)), flat),
        "BasicUNetPlusPlus": (dict(spatial_dims=2, features=(8, 8, 16, 32, 64, 8)), flat),
        "Classifier": (dict(in_shape=flat, classes=4, channels=(8, 16), strides=(2, 2)), flat),
        "DenseNet121": (unet, flat),
        "DiffusionModelUNet": (unet | dict(channels=(16, 32), num_res_blocks=1, num_head_channels=16, norm_num_groups=8,
                                           attention_levels=(False, True)), flat),
        "DynUNet": (unet | dict(kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2)), flat),
        "EfficientNetBN": (dict(model_name="efficientnet-b0", pretrained=False, num_classes=4), (3, 64, 64)),
        "FlexibleUNet": (dict(in_channels=1, out_channels=2, backbone="efficientnet-b0"), (1, 64, 64)),
        "FullyConnectedNet": (dict(in_channels=10, out_channels=3, hidden_channels=(16, 16)), (10,)),
        "HighResNet": (dict(spatial_dims=2), flat),
        "MaskedAutoEncoderViT": (dict(in_channels=1, img_size=(32, 32), patch_size=(8, 8), hidden_size=48, mlp_dim=64,
                                      num_layers=1, num_heads=4, spatial_dims=2, decoder_hidden_size=48,
                                      decoder_mlp_dim=64, decoder_num_layers=1, decoder_num_heads=4), flat),
        "MedNeXt": (dict(spatial_dims=2, init_filters=8, in_channels=1), (1, 64, 64)),
        "ResNet": (dict(block="basic", layers=(1, 1, 1, 1), block_inplanes=(8, 16, 32, 64), spatial_dims=2,
                        n_input_channels=1, num_classes=4), (1, 64, 64)),
        "SEResNet50": (dict(spatial_dims=2, in_channels=1, num_classes=4), (1, 64, 64)),
        "SegResNet": (dict(spatial_dims=2), flat),
        "SegResNetDS": (dict(spatial_dims=2), flat),
        "SwinUNETR": (dict(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2), (1, 64, 64)),
        "UNETR": (dict(in_channels=1, out_channels=2, img_size=(32, 32), feature_size=8, hidden_size=48, mlp_dim=64,
                       num_heads=4, spatial_dims=2), flat),
        "UNet": (unet | dict(channels=(8, 16, 32), strides=(2, 2), num_res_units=1), flat),
        "UNet, 3d": (dict(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16), strides=(2,)), solid),
        "VNet": (dict(spatial_dims=3), (1, 16, 16, 16)),
        "ViT": (dict(in_channels=1, img_size=(32, 32), patch_size=(8, 8), hidden_size=48, mlp_dim=64, num_layers=2,
                     num_heads=4, spatial_dims=2, classification=True), flat),
        "ViTAutoEnc": (dict(in_channels=1, img_size=(32, 32), patch_size=(4, 4), hidden_size=48, mlp_dim=64,
                            num_layers=2, num_heads=4, spatial_dims=2), flat),
    }  # fmt: skip

    def build(name: str) -> tuple[nn.Module, Inputs]:
        options, shape = made[name]
        model = getattr(nets, name.partition(",")[0])(**options)
        if name == "DiffusionModelUNet":  # a time step an image beside it
            return runs(model, lambda n, seed, scale=1.0: (*images(*shape)(n, seed, scale), torch.arange(n) * 7 + seed))
        return runs(model, images(*shape))

    return {name: functools.partial(build, name) for name in made}


def pytorchcv() -> dict[str, Build]:
    """The smallest member of every family of image models that takes images alone."""
    from pytorchcv.model_provider import _models

    families: dict[str, list[str]] = {}
    for name, function in _models.items():
        if not name.endswith(("_cifar100", "_svhn")):  # as for CIFAR-10, with other heads
            families.setdefault(function.__module__.rpartition(".")[2], []).append(name)

    def build(family: str) -> tuple[nn.Module, Inputs]:
        with torch.device("meta"):
            sized = {name: sum(p.numel() for p in _models[name]().parameters()) for name in families[family]}
        make, error = _models[min(sized, key=sized.__getitem__)], None
        # batch norm on maps of 1 x 1 sees two values or so, and is chaotic
        for side in (32,) if "cifar" in family else (64, 96, 128, 224, 299, 480):
            for options in ({"in_size": (side, side)}, {}):
                try:
                    return runs(make(**options), images(3, side, side))
                except Exception as wrong:  # not this size, or no such option
                    error = error or wrong
        raise RuntimeError(f"runs on no image of up to 480 pixels: {error}")

    # sound, video, meshes, pairs of images
    other = "jasper jasperdr quartznet raft propainter propainter_rfc propainter_ip voca nvpattexp visemenet prnet"
    return {name: functools.partial(build, name) for name in families if name not in other.split()}


def efficientnet_pytorch() -> dict[str, Build]:
    from efficientnet_pytorch import EfficientNet

    return {
        "efficientnet-b0": lambda: runs(EfficientNet.from_name("efficientnet-b0", num_classes=10), images(3, 64, 64))
    }


def pretrainedmodels() -> dict[str, Build]:
    """One of each family of Cadene's collection."""
    import pretrainedmodels

    names = "fbresnet152 bninception resnext101_32x4d inceptionv4 inceptionresnetv2 nasnetamobile dpn68 xception"

    def build(name: str) -> tuple[nn.Module, Inputs]:
        model = pretrainedmodels.__dict__[name](num_classes=1000, pretrained=None)
        model.last_linear = (
            nn.Linear(model.last_linear.in_features, 10)
            if hasattr(model.last_linear, "in_features")
            else model.last_linear
        )
        for side in (64, 96, 128, 224, 299, 331):
            try:
                return runs(model, images(3, side, side))
            except Exception:
                continue
        raise RuntimeError("runs on no image of up to 331 pixels")

    return {name: functools.partial(build, name) for name in (names + " se_resnet50 cafferesnet101 polynet").split()}


LIBRARIES = {
    library.__name__: library
    for library in (
        timm,
        vit_pytorch,
        transformers,
        segmentation_models_pytorch,
        monai,
        pytorchcv,
        efficientnet_pytorch,
        pretrainedmodels,
    )
}


@torch.no_grad()
def runs(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """The same, if the network runs on two samples in both modes; else its own error."""
    from torch.utils._pytree import tree_leaves

    example = inputs(2, 0, 1.0)
    for training in (False, True):
        outputs = model.train(training)(**example) if isinstance(example, dict) else model.train(training)(*example)
        assert all(t.isfinite().all() for t in tree_leaves(outputs) if isinstance(t, Tensor)), "not finite"
    return model, inputs
