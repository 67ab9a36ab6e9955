"""Annotations in the form of results, to be drawn beside them."""

import numpy as np
from jaxtyping import Int, UInt8
from scipy import ndimage

from fcclip_jax.inference.results import Panoptic, Result, Segment
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary


def truth_result(truth: Truth, image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary) -> Result:
    """Returns the annotation in the form of a result, for drawing. Crowds are left out."""
    id_map: Int[np.ndarray, "H W"] = np.zeros(truth.id_map.shape, np.int64)
    kept = np.flatnonzero(~truth.crowds)
    for number, row in enumerate(kept, start=1):
        id_map[truth.id_map == truth.ids[row]] = number
    segments = []
    for number, box in enumerate(ndimage.find_objects(id_map, len(kept)), start=1):
        if box is not None:
            y, x = box
            index = int(truth.classes[kept[number - 1]])
            area = int(np.sum(id_map[box] == number))
            corners = (x.start, y.start, x.stop, y.stop)
            segments.append(Segment(number, index, vocabulary.classes[index], 1.0, area, corners))
    return Result(image, vocabulary, Panoptic(id_map, segments), None, None)
