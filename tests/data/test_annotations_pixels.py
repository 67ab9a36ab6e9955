"""Areas, boxes and colours of segments, against pycocotools."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from fcclip_jax.data.annotations import pixels


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_areas_and_boxes(mask):
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    expected = {"area": int(coco_mask.area(code)), "bbox": coco_mask.toBbox(code).astype(int).tolist()}
    assert pixels.area_and_box(mask) == expected


@given(arrays.arrays(np.int32, (3, 4), elements=st.integers(0, (1 << 24) - 1)))
def test_ids_are_colors(ids):
    colors = pixels.ids_to_colors(ids)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors.astype(np.int64) @ [1, 256, 65536], ids)
