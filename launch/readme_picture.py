"""Draws the README's pictures: scenes of the miniature world with the segments that the packaged model finds.

    python launch/readme_picture.py [FOLDER]      (default: launch)

quickstart.jpg has four scenes, all words offered; three_vocabularies.jpg has one of them, in three lists of words. Prints the words
found in each; no mask in training showed those with an asterisk.
"""

import json
import pathlib
import sys

import numpy as np
from PIL import Image

from fcclip_jax import Result, Segmenter
from fcclip_jax.world import words

ROOT = pathlib.Path(__file__).parents[1]
PICTURES = ROOT / "fcclip_jax" / "world" / "pictures"
SHOWN = ("shore.jpg", "floor.jpg", "dusk.jpg", "station.jpg")
VOCABULARIES = (
    ["tractor", "snow"],
    ["socks", "sunflower", "snow"],
    ["skateboard", "sunflower", "tractor", "sea", "snow"],
)


def main(folder: str = str(ROOT / "launch")) -> None:
    in_picture = {row["file"]: set(row["words"]) for row in json.loads((PICTURES / "pictures.json").read_text("utf-8"))}
    segmenter = Segmenter.load("world")
    segmenter.set_classes("world")
    results = segmenter([PICTURES / name for name in SHOWN], tasks=("panoptic",))
    for name, result in zip(SHOWN, results, strict=True):
        found = {segment.name for segment in result.panoptic.segments}
        missed, wrong = in_picture[name] - found, found - in_picture[name]
        print(f"{name}: {listed(result)}; missed {sorted(missed)}, wrong {sorted(wrong)}")
    save(results, pathlib.Path(folder, "quickstart.jpg"))

    results = []
    for classes in VOCABULARIES:
        stuff = [entry for entry in classes if entry in words.STUFF]
        segmenter.set_classes(classes, stuff=stuff)
        results.append(segmenter(PICTURES / SHOWN[0], tasks=("panoptic",)))
        print(f"{'; '.join(classes)}: {listed(results[-1])}")
    save(results, pathlib.Path(folder, "three_vocabularies.jpg"))


def listed(result: Result) -> str:
    """Returns the words found, each once."""
    found = dict.fromkeys(segment.name for segment in result.panoptic.segments)
    return ", ".join(word if word in words.SEEN else f"{word}*" for word in found)


def save(results: list[Result], path: pathlib.Path) -> None:
    """Saves the drawings side by side."""
    row = np.concatenate([np.asarray(result.draw()) for result in results], axis=1)
    Image.fromarray(row).save(path, quality=85)


if __name__ == "__main__":
    main(*sys.argv[1:])
