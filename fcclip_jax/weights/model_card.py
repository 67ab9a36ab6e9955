"""The page that describes a checkpoint on the Hugging Face hub: its README.md."""

import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from fcclip_jax.checkpoint import Checkpoint, Origin
from fcclip_jax.models.descriptions import CLIP_MODELS, ModelDescription
from fcclip_jax.weights import table

SCORES = {"pq": "PQ", "ap": "AP", "miou": "mIoU"}


class Figures(NamedTuple):
    """The scores of an evaluation, in percent."""

    benchmark: str
    images: int
    scores: dict[str, float | None]
    """By the names in SCORES; None for a score that the evaluation does not compute."""


def read_report(path: pathlib.Path) -> Figures:
    """Reads the report.json of an evaluation.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such report.
    """
    try:
        report = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        report = None
    match report:
        case {"benchmark": str(benchmark), "evaluated": int(images), "scores": dict(scores)}:
            found = {name: scores.get(name) for name in SCORES}
            if all(value is None or isinstance(value, (int, float)) for value in found.values()):
                return Figures(benchmark, images, found)
    raise ValueError(f"{path} has no scores; give the report.json that an evaluation writes into its workdir")


def check_licence(licence: str) -> str:
    """Returns a licence's identifier as the hub writes it, such as apache-2.0.

    Raises:
        ValueError: the text is no identifier.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence.lower()):
        raise ValueError(f"the licence {licence!r} is no identifier; give one such as apache-2.0, mit or cc-by-nc-4.0")
    return licence.lower()


def model_card(
    checkpoint: Checkpoint,
    repository: str,
    size: int,
    *,
    verified: bool,
    licence: str,
    figures: Sequence[Figures] = (),
) -> str:
    """Writes the page.

    repository: OWNER/NAME.
    size: bytes of the checkpoint's files.
    verified: whether the checkpoint records checksums; those of earlier versions do not.
    licence: of the weights; see `check_licence`.
    """
    description, vocabulary = checkpoint.description, checkpoint.training_vocabulary
    assert isinstance(description, ModelDescription) and vocabulary is not None
    numbers = sum(array.size for array in checkpoint.parameters.values())
    things = sum(entry.is_thing for entry in vocabulary.classes)
    words = (
        "any"
        if checkpoint.known_words is None
        else f"only the {len(checkpoint.known_words)} that CLIP was trained with"
    )
    facts = [
        ("CLIP", _clip_name(description)),
        ("parameters", f"{numbers / 1e6:.0f} million" if numbers >= 1e7 else f"{numbers:,}"),
        ("size", f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"),
        ("trained to segment", f"{vocabulary.name}: {len(vocabulary.classes)} classes, {things} of them things"),
        ("words", words),
        ("converted from", _source(checkpoint.source)),
    ]
    if checkpoint.clip_source is not None:
        facts.append(("CLIP's weights from", _source(checkpoint.clip_source)))
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts)
    return f"""\
---
license: {json.dumps(check_licence(licence))}
library_name: fcclip-jax
pipeline_tag: image-segmentation
tags:
- jax
- fc-clip
- open-vocabulary-segmentation
- panoptic-segmentation
---

# {repository.partition("/")[2]}

A checkpoint of FC-CLIP ([Yu et al., NeurIPS 2023](https://arxiv.org/abs/2308.02487)) for fcclip_jax. It segments photographs
in classes that you name: panoptic, semantic and instance segmentation.

| | |
|---|---|
{rows}

`fcclip.json` describes the model{", with a sha256 of each array, which is verified when the checkpoint is loaded" * verified}.

## Figures

{_figures(figures)}

## Use

With the package fcclip_jax and its extra `weights`:

```python
from fcclip_jax import Segmenter

segmenter = Segmenter.load("{"hf://" + repository}")
segmenter.set_classes({json.dumps([entry.name for entry in vocabulary.classes[:3]])})
segmenter("photo.jpg").draw().save("out.png")
```

## Rights

The weights' licence is {check_licence(licence)}, as stated by whoever uploaded them. {table.method_note()}
"""


def _clip_name(description: ModelDescription) -> str:
    clip = description.clip
    known = [name for name, sizes in CLIP_MODELS.items() if sizes == clip]
    return " or ".join(known) if known else f"a {clip.image.family} of its own sizes; see fcclip.json"


def _source(origin: Origin) -> str:
    return f"`{origin.name}`" + (f", sha256 `{origin.sha256}`" if origin.sha256 else "")


def _figures(figures: Sequence[Figures]) -> str:
    if not figures:
        return "No figures were given."
    rows = [
        f"| {found.benchmark} | {found.images} | {' | '.join(map(_percent, found.scores.values()))} |"
        for found in figures
    ]
    return "\n".join(
        [
            "Measured by the evaluation of fcclip_jax, in percent:",
            "",
            f"| benchmark | images | {' | '.join(SCORES.values())} |",
            f"|---|{'---:|' * (1 + len(SCORES))}",
            *rows,
        ]
    )


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"
