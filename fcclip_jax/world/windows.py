"""Small pictures of the world with captions, for CLIP's pre-training. They show all words; no mask is used.

Squares of 64 pixels show one object; larger ones up to three, more than half of them two or more. The sizes of objects
in pixels are those of scenes.
"""

import numpy as np

from fcclip_jax.data.captions import Caption, CaptionExample
from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.world import words
from fcclip_jax.world.scenes import World

PICTURES = 1_000_000
"""The length of an epoch, which has no meaning here: no two pictures of the stream are equal."""
ONE_OBJECT_SIDE = 64
SMALL, MIDDLE, LARGE = (44.0, 72.0), (44.0, 96.0), (72.0, 128.0)
"""Ranges of the objects' longest side in pixels: alone in 64 pixels, several in a larger picture, alone in it."""
ALONE = 0.35
"""The share of larger pictures with one object."""
STUFF_FIRST = 0.13
"""The share of pictures whose first caption names a background: there are few, so they are learnt quickly."""
WHOLE_FIRST = 0.2
"""The share of pictures of several things whose first caption names everything in them."""


class Windows:
    """A CaptionSource of pictures composed for each step.

    Each thing has a caption, in random order. In some pictures a caption of a background, or of everything, comes first.
    """

    def __init__(self, designs: tuple[str, ...], seed: int) -> None:
        """Raises what `sprites.load_sprites` raises."""
        self.name = f"the world in {', '.join(designs)}"
        self._world = World(designs, seed)

    def __len__(self) -> int:
        return PICTURES

    def example(self, index: int, rng: np.random.Generator, side: int) -> CaptionExample:
        del index  # the generator's state tells pictures apart
        if side <= ONE_OBJECT_SIDE:
            objects, backgrounds, sizes = 1, 1, SMALL
        elif rng.random() < ALONE:
            objects, backgrounds, sizes = 1, 1, LARGE
        else:
            objects, backgrounds, sizes = int(rng.integers(1, 4)), int(rng.integers(1, 3)), MIDDLE
        scene = self._world.compose(rng, shape=(side, side), objects=objects, backgrounds=backgrounds, sizes=sizes)
        things = [name for name in dict.fromkeys(scene.names) if name not in words.STUFF]
        stuff = [name for name in scene.names if name in words.STUFF]
        rng.shuffle(things)
        captions = [_name_one(name, rng) for name in things]
        if not things or rng.random() < STUFF_FIRST:
            captions.insert(0, _name_one(stuff[rng.integers(len(stuff))], rng))
        if len(things) > 1 and rng.random() < WHOLE_FIRST:
            captions.insert(0, Caption(_name_all(things, stuff, rng), (*things, *stuff)))
        return CaptionExample(scene.image, scene.names, tuple(captions))


def _name_one(name: str, rng: np.random.Generator) -> Caption:
    return Caption(PROMPT_TEMPLATES[rng.integers(len(PROMPT_TEMPLATES))].format(name), (name,))


def _name_all(things: list[str], stuff: list[str], rng: np.random.Generator) -> str:
    """Names everything: "a photo of a cat, a dog and a key on grass and snow."."""
    listed = ", a ".join(things[:-1]) + f" and a {things[-1]} on {' and '.join(stuff)}"
    return PROMPT_TEMPLATES[rng.integers(len(PROMPT_TEMPLATES))].format(listed)
