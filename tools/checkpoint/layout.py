"""One set of names for all checkpoints: those of the original repositories.

SPDX-License-Identifier: MIT
"""

TOWER = "model.vision_tower.vision_tower.vision_model."

# Names of transformers' LLaVA classes: as on the hub, as since 4.52 in memory, as since 5 in new files.
TRANSFORMERS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
    ("vision_tower.vision_model.", TOWER),
    ("model.vision_tower.vision_model.", TOWER),
    ("vision_tower.", TOWER),
    ("model.vision_tower.", TOWER),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
    ("model.image_newline", "model.image_newline"),
)
CLIP = (("vision_model.", TOWER),)
ORIGINAL = ()


class Layout:
    """Renames by prefix, both ways; a name that no rule knows stays what it is."""

    def __init__(self, rules):
        self.rules, self.used = rules, []

    def common(self, name):
        for rule in self.rules:
            if name.startswith(rule[0]):
                if rule not in self.used:
                    self.used.append(rule)
                return rule[1] + name[len(rule[0]):]
        return name

    def spelt(self, name):
        """A common name as this checkpoint would spell it."""
        nested = any(theirs.startswith("model.") for theirs, _ in self.used)
        fitting = [rule for rule in self.rules if name.startswith(rule[1])]
        if not fitting:
            return name
        theirs, ours = max(fitting, key=lambda rule: (len(rule[1]), rule in self.used,
                                                      rule[0].startswith("model.") == nested))
        return theirs + name[len(ours):]


def renamed(tensors, rules):
    """({common name: Stored}, Layout)"""
    layout, common = Layout(rules), {}
    for name, tensor in tensors.items():
        twin = common.setdefault(layout.common(name), tensor)
        if twin is not tensor:
            raise tensor.broken(f"is there twice: {twin.name} is another name of it; take one checkpoint")
    return common, layout
