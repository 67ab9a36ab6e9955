"""The sets of emoji that draw_sprites.py reads: the package of each design, and the exceptions from its names."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """One design.

    package: the folder of the unpacked package.
    complete: every thing must have a drawing.
    overrides: the set's own name for a word, or None where its drawing shows something else or more than the thing.
    """

    package: str
    complete: bool = True
    overrides: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


SETS = {
    "twemoji": EmojiSet("iconify-json-twemoji-1.2.5"),
    "fluent": EmojiSet("iconify-json-fluent-emoji-flat-1.2.6"),
    "openmoji": EmojiSet("iconify-json-openmoji-1.2.29"),
    "emojione": EmojiSet(
        "iconify-json-emojione-1.2.3",
        complete=False,
        # A hoop, a rider, landscapes, and drawings that are half transparent.
        overrides=dict.fromkeys(("basketball", "motorcycle", "tent", "rainbow", "skull", "anchor")),
    ),
    "emojione_v1": EmojiSet(
        "iconify-json-emojione-v1-1.2.3",
        complete=False,
        # Landscapes in a square, a road sign, a monitor, a thin bicycle, and drawings that show something else.
        overrides=dict.fromkeys(
            ("castle", "factory", "tent", "ferris wheel", "shield", "laptop", "bicycle", "skull", "headphones", "bread")
            + ("chili pepper", "helicopter", "backpack", "candle", "rainbow")
        ),
    ),
    "fxemoji": EmojiSet(
        "iconify-json-fxemoji-1.2.2",
        complete=False,
        overrides={
            # Landscapes in a square, a smiling face, a flat domino, a closed umbrella, a monitor, half-transparent.
            **dict.fromkeys(("sailboat", "factory", "tent", "ferris wheel", "volcano", "rainbow")),
            **dict.fromkeys(("sunglasses", "dice", "umbrella", "laptop", "anchor")),
            "backpack": "schoolsatchel",
            "camel": "bactriancamel",
            "cat": "catside",
            "corn": "earofmaize",
            "dartboard": "directhit",
            "diamond": "gem",
            "dog": "dogside",
            "eggplant": "aubergine",
            "fishing pole": "fishingpoleandfish",
            "flashlight": "electrictorch",
            "gift": "present",
            "globe": "europeafricaglobe",
            "high heel": "heels",
            "house": "housebuilding",
            "knife": "hocho",
            "lantern": "izakayalantern",
            "leopard": "leopardside",
            "locomotive": "steamlocomotive",
            "magnifying glass": "leftmagnifyingglass",
            "mailbox": "closedmailboxraised",
            "mouse": "mouseside",
            "padlock": "lock",
            "paintbrush": "lowerleftpaintbrush",
            "panda": "pandaface",
            "pig": "pigside",
            "pine tree": "evergreen",
            "pizza": "sliceofpizza",
            "rabbit": "bunny",
            "scissors": "blackscissors",
            "shirt": "mansshirt",
            "sun": "whitesun",
            "telephone": "blacktelephone",
            "tiger": "tigerside",
        },
    ),
    "streamline": EmojiSet(
        "iconify-json-streamline-emojis-1.2.4",
        complete=False,
        # A flag, landscapes in a frame, and drawings among bubbles or notes.
        overrides=dict.fromkeys(
            ("turkey", "castle", "factory", "tent", "ferris wheel", "rainbow", "anchor", "headphones")
        ),
    ),
    "noto": EmojiSet("iconify-json-noto-1.2.9"),
}
