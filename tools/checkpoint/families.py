"""The families of checkpoints, each a recipe. config.json alone decides which it is.

SPDX-License-Identifier: MIT
"""

import dataclasses
import pathlib

from . import decoder, layout, settings, store, tower, vocabulary
from .broken import Broken
from .recipe import BOOL, Recipe, STRING, U32

# transformers leaves out of a file what equals LlamaConfig's defaults.
LLAMA_DEFAULTS = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                  "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


@dataclasses.dataclass
class Source:
    """A checkpoint folder, opened. Of the weights, only names and places are known."""
    folder: pathlib.Path
    config: settings.Settings
    family: "Family"
    tensors: dict  # by common name
    layout: layout.Layout
    vision_tower: pathlib.Path = None
    skip_ratio: float = None
    clip_alone: bool = False  # the tower's tensors are from a folder of CLIP, which has a text model too


# ---------------------------------------------------------- original families

def clip_alone(folder, config, given):
    """(tensors, names) of CLIP from a folder of its own, for a checkpoint that has none."""
    place = tower.clip_folder(folder, config, given)
    if not place:
        name = config.get("mm_vision_tower", str)
        raise Broken(f"{folder}: has no vision tower in it; download {name} and give its folder with --vision-tower")
    return layout.renamed(store.read_folder(place), layout.CLIP)


TEXT_DROPS = [("text_model.*", "reads text"), ("text_projection.*", "reads text"),
              ("logit_scale", "compares pictures with text"), ("visual_projection.*", "compares pictures with text")]


def image_rule(config):
    """(squint.vision.type, are there tiles)"""
    word = config.get("image_aspect_ratio", str, "square")
    if word == "anyres":
        return "clip_anyres", True
    if word.startswith("anyres"):
        raise config.broken("image_aspect_ratio", f'is "{word[:40]}"; of this kind squint knows anyres alone')
    return ("clip_pad" if word == "pad" else "clip_crop"), False


def check_llava(config):
    config.get("mm_projector_type", str)
    config.only("mm_projector_type", str, "mlp2x_gelu")
    config.only("mm_vision_select_feature", str, "patch", "patch")


def original_anyres(recipe, config, clip, d):
    config.only("mm_patch_merge_type", str, "spatial_unpad", "flat")
    tower.anyres_keys(recipe, clip, tower.pinpoints(config, clip), config.get("max_num_patches", int, 0))
    recipe.add("model.image_newline", (d,), "model.image_newline")


def original_tower(recipe, source, d):
    """CLIP and projector of LLaVA-1.5 and NeXT. Returns whether a picture goes in tiles."""
    config = source.config
    check_llava(config)
    if source.clip_alone:
        recipe.drops += TEXT_DROPS
    clip = tower.original_clip(source.folder, config, source.vision_tower)
    kind, anyres = image_rule(config)
    run = tower.layers_run(config, "mm_vision_select_layer", clip.layers)
    tower.clip_keys(recipe, clip, clip.image, run, kind)
    tower.plain_clip(recipe, clip, run)
    tower.projector(recipe, clip.d, d)
    if anyres:
        original_anyres(recipe, config, clip, d)
    else:
        recipe.drops.append(("model.image_newline", "this model has no tiles"))
    return anyres


def llava(recipe, source):
    shape = decoder.Shape(source.config)
    original_tower(recipe, source, shape.d)
    decoder.keys(recipe, shape)
    decoder.parts(recipe, shape, source.tensors)
    return shape


def pmod(recipe, source):
    shape = decoder.Shape(source.config)
    anyres = original_tower(recipe, source, shape.d)
    decoder.keys(recipe, shape)
    routed = decoder.pmod(recipe, shape, anyres)
    decoder.parts(recipe, shape, source.tensors, routed)
    return shape


def dual(recipe, source, mgm):
    """Two towers: LLaVA-HR's or Mini-Gemini's."""
    config, shape = source.config, decoder.Shape(source.config)
    check_llava(config)
    config.only("image_aspect_ratio", str, "pad", "square")
    clip = tower.original_clip(source.folder, config, source.vision_tower)
    n = (tower.mini_gemini if mgm else tower.llava_hr)(recipe, config, clip, source.tensors)
    tower.projector(recipe, clip.d, shape.d)
    decoder.keys(recipe, shape)
    if config.has("mod"):
        decoder.gamma(recipe, shape, source.tensors, mgm, n, source.skip_ratio)
        recipe.key("squint.prompt.image_first", BOOL, True)
    decoder.parts(recipe, shape, source.tensors)
    return shape


def gamma(recipe, source, mgm):
    source.config.get("mod", dict)
    return dual(recipe, source, mgm)


# --------------------------------------------------------------- transformers

def check_preprocessor(rule, side):
    """What squint does with every picture, whatever its shape."""
    rule.only("resample", int, 3)  # Pillow's number of bicubic
    size = rule.get("size", dict, {})
    if set(size.values()) - {side}:
        raise rule.broken("size", f"is {size}; squint makes pictures as large as the tower takes them, {side}")


def hf_image_rule(rule):
    """What preprocessor_config.json does with a picture that is not square."""
    if rule.get("do_pad", bool, False):
        return "clip_pad"
    return "clip_crop" if rule.get("do_center_crop", bool, True) else "clip_stretch"


def transformers(recipe, source, anyres):
    config = source.config
    text = config.section("text_config", LLAMA_DEFAULTS)
    text.only("model_type", str, "llama")
    config.only("projector_hidden_act", str, "gelu")
    config.only("vision_feature_select_strategy", str, "default")
    shape = decoder.Shape(text)
    vision = config.section("vision_config", tower.CLIP_DEFAULTS)
    vision.only("model_type", str, "clip_vision_model")
    rule = tower.preprocessor(source.folder)
    clip = tower.Clip(vision, rule)
    check_preprocessor(rule, clip.image)
    run = tower.layers_run(config, "vision_feature_layer", clip.layers, -2)
    tower.clip_keys(recipe, clip, clip.image, run, "clip_anyres" if anyres else hf_image_rule(rule))
    tower.plain_clip(recipe, clip, run)
    tower.projector(recipe, clip.d, shape.d)
    if anyres:
        sizes = [(w, h) for h, w in tower.pinpoints(config, clip)]  # height first, unlike everywhere else
        tower.anyres_keys(recipe, clip, sizes, 0)
        recipe.add("model.image_newline", (shape.d,), "model.image_newline")
    decoder.keys(recipe, shape)
    decoder.parts(recipe, shape, source.tensors)
    return shape


# ------------------------------------------------------------------ which one

@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    rules: tuple  # of names
    build: object


LLAVA = Family("LLaVA", layout.ORIGINAL, llava)
HR = Family("LLaVA-HR", layout.ORIGINAL, lambda recipe, source: dual(recipe, source, False))
HF = Family("transformers' LLaVA", layout.TRANSFORMERS, lambda recipe, source: transformers(recipe, source, False))
HF_NEXT = Family("transformers' LLaVA-NeXT", layout.TRANSFORMERS,
                 lambda recipe, source: transformers(recipe, source, True))
PMOD = Family("p-MoD", layout.ORIGINAL, pmod)
GAMMA_HR = Family("gamma-MoD LLaVA-HR", layout.ORIGINAL, lambda recipe, source: gamma(recipe, source, False))
GAMMA_MGM = Family("gamma-MoD Mini-Gemini", layout.ORIGINAL, lambda recipe, source: gamma(recipe, source, True))
BY_TYPE = {"llava": LLAVA, "llava_llama": LLAVA, "llava_next": HF_NEXT, "pmod_llava_llama": PMOD,
           "mod_llava_llama": GAMMA_HR, "mod_mgm": GAMMA_MGM}


def family_of(config):
    kind = config.get("model_type", str)
    architectures = config.get("architectures", list, [])
    if kind not in BY_TYPE:
        raise config.broken("model_type", f'is "{kind[:60]}"; squint converts {", ".join(BY_TYPE)}')
    if kind == "llava" and "LlavaForConditionalGeneration" in architectures:
        return HF
    if BY_TYPE[kind] is LLAVA and config.get("is_multipath_encoder", bool, False):
        return HR
    return BY_TYPE[kind]


def hub_name(folder):
    """What a folder is called; of the Hub's cache, ORGANISATION/NAME at REVISION."""
    folder = folder.resolve()
    cache = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cache.startswith("models--"):
        return f"{cache[len('models--'):].replace('--', '/')} at {folder.name}"
    return folder.name


def general_keys(recipe, source, name):
    where = hub_name(source.folder)
    recipe.keys += [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, name or where.split(" at ")[0].split("/")[-1]),
        ("general.quantization_version", U32, 2),
        ("squint.source", STRING, where),
    ]


def chat_keys(recipe, source):
    recipe.keys += [
        ("squint.chat.template", STRING, "vicuna_v1"),
        ("squint.max_expanded_length", U32, source.config.get("tokenizer_model_max_length", int, 0)),
    ]


def open_folder(folder, vision_tower=None, skip_ratio=None):
    config = settings.load(folder / "config.json")
    family = family_of(config)
    tensors, names = layout.renamed(store.read_folder(folder), family.rules)
    alone = family in (LLAVA, PMOD) and not any(name.startswith(layout.TOWER) for name in tensors)
    if alone:
        clip, names = clip_alone(folder, config, vision_tower)
        tensors.update(clip)
    return Source(folder, config, family, tensors, names, vision_tower, skip_ratio, alone)


def recipe_of(source, name=None):
    recipe = Recipe(source.family.name)
    general_keys(recipe, source, name)
    shape = source.family.build(recipe, source)
    chat_keys(recipe, source)
    vocabulary.keys(recipe, source.folder, shape.vocab, shape.config)
    return recipe
