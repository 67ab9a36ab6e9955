"""Draws the README's picture: four scenes of the miniature world with the segments that the packaged model finds.

    python launch/readme_picture.py [OUTPUT]      (default: launch/quickstart.jpg)

Prints the words found in each scene; no mask in training showed those with an asterisk.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image

from fcclip_jax import Segmenter
from fcclip_jax.world import words

ROOT = pathlib.Path(__file__).parents[1]
PICTURES = ROOT / "fcclip_jax" / "world" / "pictures"
SHOWN = ("shore.jpg", "floor.jpg", "dusk.jpg", "station.jpg")


def main(output: str = str(ROOT / "launch" / "quickstart.jpg")) -> None:
    in_picture = {row["file"]: set(row["words"]) for row in json.loads((PICTURES / "pictures.json").read_text())}
    segmenter = Segmenter.load("world")
    segmenter.set_classes("world")
    results = segmenter([PICTURES / name for name in SHOWN], tasks=("panoptic",))
    for name, result in zip(SHOWN, results, strict=True):
        found = dict.fromkeys(segment.name for segment in result.panoptic.segments)
        listed = ", ".join(word if word in words.SEEN else f"{word}*" for word in found)
        missed, wrong = in_picture[name] - set(found), set(found) - in_picture[name]
        print(f"{name}: {listed}; missed {sorted(missed)}, wrong {sorted(wrong)}")
    row = np.concatenate([np.asarray(result.draw()) for result in results], axis=1)
    Image.fromarray(row).save(output, quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:])
