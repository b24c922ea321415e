"""What sees: CLIP, ConvNeXt, LLaVA-HR's adapters, Mini-Gemini's mining, the projector.

SPDX-License-Identifier: MIT
"""

import pathlib
import re
import statistics

import numpy as np

from . import settings
from .broken import Broken
from .layout import TOWER
from .recipe import BOOL, F32, F32S, I32S, STRING, U32, U32S, U8S

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# transformers leaves out of a file what equals CLIPVisionConfig's defaults.
CLIP_DEFAULTS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "image_size": 224, "patch_size": 32, "projection_dim": 512, "layer_norm_eps": 1e-5,
                 "hidden_act": "quick_gelu"}
CLIP_L_336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 336, "patch_size": 14, "projection_dim": 768}
KNOWN_CLIP = {"clip-vit-large-patch14-336": CLIP_L_336}

HR_GROUPS = 4  # of CLIP's layers; an adapter after each but the last
HR_STRIDE = 32  # of ConvNeXt's map against the picture
DROP_POST = (f"{TOWER}post_layernorm.*", "LLaVA takes a hidden layer, before it")
DROP_IDS = ("*.embeddings.position_ids", "counts from 0")


class Clip:
    """CLIP's sizes, from the keys of a CLIPVisionConfig."""

    def __init__(self, config, image_config):
        self.config = config
        self.d, self.f = config.positive("hidden_size"), config.positive("intermediate_size")
        self.layers, self.heads = config.positive("num_hidden_layers"), config.positive("num_attention_heads")
        self.image, self.patch = config.positive("image_size"), config.positive("patch_size")
        self.eps, self.projection = config.get("layer_norm_eps", float), config.positive("projection_dim")
        config.only("hidden_act", str, "quick_gelu")
        if self.image % self.patch:
            raise config.broken("patch_size", f"is {self.patch}, which does not divide image_size {self.image}")
        self.grid = self.image // self.patch
        self.mean = colours(image_config, "image_mean", CLIP_MEAN)
        self.std = colours(image_config, "image_std", CLIP_STD)


def colours(config, key, default):
    values = config.get(key, list, default)
    if len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise config.broken(key, "is no list of three numbers")
    return [float(v) for v in values]


def preprocessor(folder):
    path = folder / "preprocessor_config.json"
    return settings.load(path) if path.is_file() else settings.Settings(path, {})


def clip_folder(folder, config, given):
    """Where mm_vision_tower's own folder is, if it is here."""
    if given:
        return given
    name = config.get("mm_vision_tower", str)
    return next((place for place in (folder / name, folder / pathlib.PurePath(name).name, pathlib.Path(name))
                 if (place / "config.json").is_file()), None)


def original_clip(folder, config, given):
    """The tower that mm_vision_tower names: by its folder, or known by its name."""
    found = clip_folder(folder, config, given)
    if found:
        values = settings.load(found / "config.json")
        section = values.section("vision_config", CLIP_DEFAULTS) if values.has("vision_config") else \
            settings.Settings(values.path, values.values, "", CLIP_DEFAULTS)
        return Clip(section, preprocessor(found))
    name = pathlib.PurePath(config.get("mm_vision_tower", str)).name
    if name not in KNOWN_CLIP:
        raise config.broken("mm_vision_tower", f'is "{name[:60]}", whose sizes squint does not know: download it and '
                            "give its folder with --vision-tower")
    return Clip(settings.Settings(config.path, {}, f"({name}) ", {**CLIP_DEFAULTS, **KNOWN_CLIP[name]}),
                preprocessor(folder))


def layers_run(config, key, layers, default=settings.REQUIRED):
    """hidden_states[n]: the output of layer n, or counted from behind."""
    chosen = config.get(key, int, default)
    run = chosen if chosen >= 0 else layers + 1 + chosen
    if not 1 <= run <= layers:
        raise config.broken(key, f"is {chosen}, but the tower has {layers} layers")
    return run


def clip_keys(recipe, clip, image, run, kind):
    recipe.keys += [
        ("clip.has_vision_encoder", BOOL, True),
        ("clip.has_text_encoder", BOOL, False),
        ("clip.has_llava_projector", BOOL, True),
        ("clip.projector_type", STRING, "mlp"),
        ("clip.use_gelu", BOOL, False),
        ("clip.vision.image_size", U32, image),
        ("clip.vision.patch_size", U32, clip.patch),
        ("clip.vision.embedding_length", U32, clip.d),
        ("clip.vision.feed_forward_length", U32, clip.f),
        ("clip.vision.projection_dim", U32, clip.projection),
        ("clip.vision.block_count", U32, run),
        ("clip.vision.attention.head_count", U32, clip.heads),
        ("clip.vision.attention.layer_norm_epsilon", F32, clip.eps),
        ("clip.vision.image_mean", F32S, clip.mean),
        ("clip.vision.image_std", F32S, clip.std),
        ("squint.vision.type", STRING, kind),
        ("squint.vision.layers_run", U32, run),
        ("squint.vision.drop_class", STRING, "before_pre_ln" if kind == "llava_hr" else "after"),
        ("squint.vision.pad_color", U8S, [int(m * 255) for m in clip.mean]),
    ]


def clip_layer(recipe, clip, n, source):
    name = f"v.blk.{n}."
    recipe.norm(f"{name}ln1", clip.d, f"{source}layer_norm1")
    for part, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
        recipe.linear(f"{name}attn_{part}", clip.d, clip.d, f"{source}self_attn.{theirs}")
    recipe.norm(f"{name}ln2", clip.d, f"{source}layer_norm2")
    # llama.cpp's names for a tower: what widens is called down
    recipe.linear(f"{name}ffn_down", clip.f, clip.d, f"{source}mlp.fc1")
    recipe.linear(f"{name}ffn_up", clip.d, clip.f, f"{source}mlp.fc2")


def clip_parts(recipe, clip, run, source=TOWER):
    """All but the class token and the positions."""
    recipe.conv("v.patch_embd", clip.d, 3, clip.patch, f"{source}embeddings.patch_embedding", False)
    recipe.norm("v.pre_ln", clip.d, f"{source}pre_layrnorm")
    for n in range(run):
        clip_layer(recipe, clip, n, f"{source}encoder.layers.{n}.")
    for n in range(run, clip.layers):
        recipe.drops.append((f"{source}encoder.layers.{n}.*", "LLaVA takes the output of an earlier layer"))
    recipe.drops += [(f"{source}post_layernorm.*", DROP_POST[1]), DROP_IDS]


def plain_clip(recipe, clip, run):
    """With its class token, at its own size."""
    recipe.add("v.class_embd", (clip.d,), f"{TOWER}embeddings.class_embedding")
    recipe.add("v.position_embd.weight", (clip.grid ** 2 + 1, clip.d), f"{TOWER}embeddings.position_embedding.weight")
    clip_parts(recipe, clip, run)


def projector(recipe, d_in, d):
    recipe.linear("mm.0", d, d_in, "model.mm_projector.0")
    recipe.linear("mm.2", d, d, "model.mm_projector.2")


def anyres_keys(recipe, clip, sizes, max_patches):
    """@param sizes  [(width, height)], in the order in which the first of equals wins"""
    recipe.keys += [
        ("clip.vision.image_grid_pinpoints", I32S, [side for size in sizes for side in size]),
        ("clip.vision.image_crop_resolution", U32, clip.image),
        ("clip.vision.image_aspect_ratio", STRING, "anyres"),
        ("clip.vision.mm_patch_merge_type", STRING, "spatial_unpad"),
        ("squint.vision.max_num_patches", U32, max_patches),
    ]


def pinpoints(config, clip):
    """image_grid_pinpoints as pairs."""
    pairs = config.get("image_grid_pinpoints", list)
    good = pairs and all(isinstance(pair, list) and len(pair) == 2 and all(
        type(side) is int and side > 0 and side % clip.image == 0 for side in pair) for pair in pairs)
    if not good:
        raise config.broken("image_grid_pinpoints", f"is {str(pairs)[:60]}, no list of pairs of multiples of "
                            f"{clip.image}")
    return [tuple(pair) for pair in pairs]


# ------------------------------------------------------------------- ConvNeXt

class ConvNext:
    """Widths and depths, from the tensors themselves; what is not there is missed later, by its name."""

    def __init__(self, tensors, stem, stages, scale, eps):
        self.stem, self.stages, self.scale, self.eps = stem, stages, scale, eps
        block = re.compile(re.escape(stages) + r"\.(\d+)\.blocks\.(\d+)\.")
        found = [tuple(map(int, at.groups())) for at in map(block.match, tensors) if at]
        self.depths = [1 + max((j for stage, j in found if stage == i), default=0) for i in range(4)]
        self.dims = [self.width(tensors, i) for i in range(4)]

    def width(self, tensors, i):
        """What most of a stage's biases say: one that is not there or is wrong will be told by its name."""
        biases = (f"{self.stages}.{i}.blocks.{j}.{part}.bias" for j in range(self.depths[i])
                  for part in ("conv_dw", "norm", "mlp.fc2"))
        widths = [tensors[name].shape[0] for name in biases if name in tensors and tensors[name].shape]
        return statistics.mode(widths) if widths else 1


def scaled_rows(arrays):
    """A layer scale folded into what comes before it."""
    weight, scale = arrays
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def convnext_block(recipe, name, source, c, scale, tensors):
    """The layer scale is "weight" in LLaVA-HR's code and "gamma" in timm's; transformers renames the latter."""
    names = [f"{source}{word}" for word in (scale, "gamma", "weight")]
    scale = next((found for found in names if found in tensors), names[0])
    recipe.add(f"{name}dw.weight", (c, 1, 7, 7), f"{source}conv_dw.weight")
    recipe.add(f"{name}dw.bias", (c,), f"{source}conv_dw.bias")
    recipe.norm(f"{name}norm", c, f"{source}norm")
    recipe.linear(f"{name}pw1", 4 * c, c, f"{source}mlp.fc1")
    recipe.scaled(f"{name}pw2", c, 4 * c, f"{source}mlp.fc2", scale, scaled_rows)


def convnext(recipe, net, tensors):
    recipe.keys += [
        ("squint.vision.slow.dims", U32S, net.dims),
        ("squint.vision.slow.depths", U32S, net.depths),
        ("squint.vision.slow.ln_eps", F32, net.eps),
    ]
    recipe.conv("v.slow.stem.conv", net.dims[0], 3, 4, f"{net.stem}.0")
    recipe.norm("v.slow.stem.norm", net.dims[0], f"{net.stem}.1")
    for i, (c, depth) in enumerate(zip(net.dims, net.depths)):
        stage = f"{net.stages}.{i}."
        if i:
            recipe.norm(f"v.slow.stg.{i}.down.norm", net.dims[i - 1], f"{stage}downsample.0")
            recipe.conv(f"v.slow.stg.{i}.down.conv", c, net.dims[i - 1], 2, f"{stage}downsample.1")
        for j in range(depth):
            convnext_block(recipe, f"v.slow.stg.{i}.blk.{j}.", f"{stage}blocks.{j}.", c, net.scale, tensors)


# ------------------------------------------------------------------- LLaVA-HR

def cubic(x):
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))


def resampling(n_in, n_out):
    """float64[n_out][n_in]: bicubic with antialiasing, weights renormalised at the borders, as torch and Pillow do."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    matrix = np.zeros((n_out, n_in))
    for o in range(n_out):
        centre = (o + 0.5) * scale
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), n_in)
        row = cubic((np.arange(first, last) - centre + 0.5) / stretch)
        matrix[o, first:last] = row / row.sum()
    return matrix


def resampled_positions(table, grid):
    """Rows 1.. of a table, a square map, at another size. The class token's row 0 goes."""
    side = round((len(table) - 1) ** 0.5)
    patches = table[1:].reshape(side, side, -1)
    if side == grid:
        return patches
    matrix = resampling(side, grid)
    return np.einsum("ai,bj,ijc->abc", matrix, matrix, patches.astype(np.float64), optimize=True).astype(np.float32)


def adapter(recipe, name, source, d, c):
    recipe.conv1(f"{name}slow_conv", c, c, f"{source}slow_conv")
    recipe.conv1(f"{name}slow_proj", d, c, f"{source}slow_proj")
    recipe.conv(f"{name}fast_conv", d, 1, 7, f"{source}fast_conv")
    recipe.conv1(f"{name}fast_proj", d, d, f"{source}fast_proj")
    recipe.linear(f"{name}gate.0", d // 2, 2 * d, f"{source}gate.0")
    recipe.linear(f"{name}gate.2", 1, d // 2, f"{source}gate.2")


def hr_eps(config):
    name = config.get("vision_tower_slow", str)
    if "convnext_xxlarge" in name:
        return 1e-5
    if "convnext_large" in name:
        return 1e-6
    raise config.broken("vision_tower_slow", f'is "{name[:60]}"; known are convnext_large and convnext_xxlarge')


def llava_hr(recipe, config, clip, tensors):
    """Both towers and what joins them. Returns the number of tokens."""
    tower, side = "model.vision_tower.", config.positive("input_image_size", 1024)
    fast = f"{tower}fast_vision_tower.vision_tower.vision_model."
    slow = f"{tower}slow_vision_tower.vision_tower."
    config.only("freeze_vision", bool, False)
    clip_side = max(side * clip.patch // HR_STRIDE, clip.image)
    if side % HR_STRIDE or clip_side % clip.patch or clip.layers % HR_GROUPS:
        raise config.broken("input_image_size", f"is {side}, which the towers cannot halve down")
    grid = clip_side // clip.patch
    clip_keys(recipe, clip, clip_side, clip.layers, "llava_hr")
    recipe.key("squint.vision.input_size", U32, side)
    recipe.key("squint.vision.slow.groups", U32S, [clip.layers // HR_GROUPS] * HR_GROUPS)
    recipe.add("v.position_embd.weight", (grid ** 2, clip.d), f"{fast}embeddings.position_embedding.weight",
               (clip.grid ** 2 + 1, clip.d), make=lambda arrays: resampled_positions(arrays[0], grid))
    clip_parts(recipe, clip, clip.layers, fast)
    net = ConvNext(tensors, f"{slow}stem", f"{slow}stages", "weight", hr_eps(config))
    convnext(recipe, net, tensors)
    for k in range(HR_GROUPS - 1):
        adapter(recipe, f"v.hr.{k}.", f"{tower}align_stages_latent.{k}.", clip.d, net.dims[3])
    recipe.linear("v.hr.out.fast", clip.d, clip.d, f"{tower}align_stages.0.fast_proj")
    recipe.linear("v.hr.out.slow", clip.d, net.dims[3], f"{tower}align_stages.0.slow_proj")
    recipe.drops += [(f"{fast}embeddings.class_embedding", "LLaVA-HR runs CLIP without a class token"),
                     (f"{slow}head.*", "classifies ImageNet"), ("*.num_batches_tracked", "counts training steps")]
    return grid ** 2


# ---------------------------------------------------------------- Mini-Gemini

def mining(recipe, d, aux):
    for name, theirs, k in (("q", "query", d), ("k", "aux", aux), ("v", "val", aux)):
        recipe.norm(f"mm.uni.{name}.norm", k, f"model.vlm_uni_{theirs}_projector.0")
        recipe.linear(f"mm.uni.{name}.proj", d, k, f"model.vlm_uni_{theirs}_projector.1")


def mini_gemini(recipe, config, clip, tensors):
    """Both towers and the mining. Returns the number of tokens."""
    side, grid = config.positive("image_size_aux"), config.positive("image_grid", 1)
    whole = config.get("image_global", bool, False)
    run = layers_run(config, "mm_vision_select_layer", clip.layers)
    if grid not in (1, 2):
        raise config.broken("image_grid", f"is {grid}; squint runs 1 and 2")
    if side % (4 * grid * clip.grid):
        raise config.broken("image_size_aux", f"is {side}, no multiple of {4 * grid * clip.grid}: CLIP's tokens cannot "
                            "share the map")
    clip_keys(recipe, clip, clip.image, run, "mgm")
    recipe.keys += [("squint.vision.input_size", U32, side), ("squint.vision.grid", U32, grid),
                    ("squint.vision.global", BOOL, whole)]
    plain_clip(recipe, clip, run)
    aux = "model.vision_tower_aux."
    net = ConvNext(tensors, f"{aux}vision_stem", f"{aux}vision_stages", "gamma", 1e-6)
    convnext(recipe, net, tensors)
    mining(recipe, clip.d, sum(net.dims))
    recipe.drops.append(("*.num_batches_tracked", "counts training steps"))
    return clip.grid ** 2 * (grid ** 2 + (whole and grid > 1))
