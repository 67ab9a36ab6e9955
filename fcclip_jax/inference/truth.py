"""Reads a record's annotation in the form that results are compared with.

Training and evaluation import this module; the segmenter does not, since it decodes no records.
"""

import numpy as np

from fcclip_jax.data.decoding import decode_ids
from fcclip_jax.data.records import Record
from fcclip_jax.metrics.panoptic import Truth
from fcclip_jax.text.vocabulary import Vocabulary


def read_truth(record: Record, vocabulary: Vocabulary) -> Truth:
    """Reads a record's annotation; areas are counted in its map.

    Raises:
        ValueError: the PNG is damaged.
    """
    class_of = {entry.id: index for index, entry in enumerate(vocabulary.classes)}
    ids, categories, crowds = record.segments.T
    classes = np.asarray([class_of[category] for category in categories.tolist()], np.int64)
    return Truth(decode_ids(record.panoptic), ids, classes, crowds.astype(bool))
