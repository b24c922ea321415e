"""LLaVA-1.5 and LLaVA-NeXT as transformers runs them, with hooks for the stages.

SPDX-License-Identifier: MIT
"""

import types

import torch

from reference.clip import silent


def of_class(module, name):
    return [m for m in module.modules() if type(m).__name__ == name]


def rows_of(output):
    return output[0] if isinstance(output, tuple) else output


class Model:
    """What model.Model has, for dump_reference.py."""

    def __init__(self, folder, transformers):
        kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        self.net = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32,
                                                               attn_implementation="eager").eval()
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder)
        self.config = self.net.config
        self.name = f"transformers {transformers.__version__}, {kind}, {type(self.processor).__name__}"
        self.tower = of_class(self.net, "CLIPEncoderLayer")
        self.layers = of_class(self.net, "LlamaDecoderLayer")
        self.image, self.past = None, None
        self.decoder = types.SimpleNamespace(lengths=self.lengths)

    def lengths(self):
        return [self.past.get_seq_length(l) for l in range(len(self.layers))]

    def tower_hooks(self, note):
        """Of the blocks that are run; hooks are to be removed again."""
        def each(stage, first=0):
            def tell(_module, _args, out):
                for i, x in enumerate(rows_of(out)):
                    note(f"tower.{i}.{stage}", x[first:])
            return tell

        blocks, select = len(self.tower), self.config.vision_feature_layer
        run = select if select >= 0 else blocks + 1 + select
        norm = next(m for name, m in self.net.named_modules() if name.endswith("pre_layrnorm"))
        handles = [norm.register_forward_hook(each("embd"))]
        for i, layer in enumerate(self.tower[:run]):
            handles.append(layer.register_forward_hook(each(f"blk.{i}")))
        return handles + [self.tower[run - 1].register_forward_hook(each("out", 1))]

    def decoder_hooks(self, note):
        handles = [self.layers[0].register_forward_pre_hook(
            lambda _m, args, kwargs: note("embd", (args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True)]
        for i, layer in enumerate(self.layers):
            handles.append(layer.register_forward_hook(lambda _m, _a, out, i=i: note(f"blk.{i}", rows_of(out)[0])))
        return handles

    def see(self, image, note=silent):
        self.image = self.processor(image, return_tensors="pt")
        for i, x in enumerate(self.image["pixel_values"].flatten(0, -4)):
            note(f"pixels.{i}", x)
        handles = self.tower_hooks(note)
        features = self.net.get_image_features(**self.image)
        for handle in handles:
            handle.remove()
        rows = getattr(features, "pooler_output", features)[0]
        note("projected", rows)
        return rows, len(rows)

    def prefill(self, ids, vision, _base, n_logits, note=silent):
        token = self.config.image_token_id
        ids = [j for i in ids for j in ([token] * len(vision) if i == -200 else [i])]
        handles = self.decoder_hooks(note)
        out = self.net(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                       use_cache=True, **self.image)
        for handle in handles:
            handle.remove()
        self.past = out.past_key_values
        note("logits", out.logits[0, -n_logits:])
        return out.logits[0, -n_logits:]

    def append(self, token):
        out = self.net(input_ids=torch.tensor([[token]]), past_key_values=self.past, use_cache=True)
        self.past = out.past_key_values
        return out.logits[0, -1]
