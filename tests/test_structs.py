"""Compares the fields of structs with their annotations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float, Int

from fcclip_jax.inference.postprocess import Postprocessed, Segments
from fcclip_jax.inference.programs import Inputs, Words
from fcclip_jax.structs import AnyArray, TextClassifier, checked
from fcclip_jax.training.losses.criterion import LossSums, mean_losses


def segments(*batch: int, queries: int = 5) -> Segments:
    ints, floats = np.zeros((*batch, queries), np.int32), np.zeros((*batch, queries), np.float32)
    return Segments(np.zeros(batch, np.int32), ints, ints > 0, floats, ints)


def words(rows: int = 7, classes: int = 4) -> Words:
    text = TextClassifier(
        np.zeros((rows, 3), np.float32), np.zeros(rows, np.int32), np.zeros(classes, bool), np.int32(2)
    )
    return Words(text, np.zeros(classes, bool))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_batch_axes_may_be_absent(batch):
    found = segments(*batch)
    assert checked(found) is found
    output = Postprocessed(np.zeros((*batch, 8, 9), np.int32), found, None, None, None)
    assert checked(output) is output


def test_a_batch_axis_of_one_field_alone():
    with pytest.raises(
        TypeError,
        match=r"^Segments\.class_ids is int32\[5\], not Int\[\*B Q\]; the other fields are Segments\.number int32\[2\], ",
    ):
        checked(segments(2)._replace(class_ids=np.zeros(5, np.int32)))


@pytest.mark.parametrize(
    ("field", "value", "described"),
    [
        ("scores", np.zeros((2, 5), np.int32), r"int32\[2, 5\], not Float\[\*B Q\]"),
        ("is_thing", np.zeros((2, 5), np.int32), r"int32\[2, 5\], not Bool\[\*B Q\]"),
        ("areas", np.zeros((2, 6), np.int32), r"int32\[2, 6\], not Int\[\*B Q\]"),
        ("areas", np.zeros((3, 5), np.int32), r"int32\[3, 5\], not Int\[\*B Q\]"),
        ("areas", None, r"None, not Int\[\*B Q\]"),
        ("number", 2, r"int, not Int\[\*B\]"),
    ],
)
def test_the_field_that_does_not_fit_is_named(field, value, described):
    with pytest.raises(TypeError, match=rf"^Segments\.{field} is {described}"):
        checked(segments(2)._replace(**{field: value}))


def test_fixed_ranks_and_sizes():
    inputs = Inputs(np.zeros((2, 32, 64, 3), np.uint8), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.int32))
    assert checked(inputs) is inputs
    for field, value in [
        ("images", np.zeros((2, 32, 64, 4), np.uint8)),
        ("images", np.zeros((32, 64, 3), np.uint8)),
        ("images", np.zeros((2, 32, 64, 3), np.float32)),
        ("image_hw", np.zeros((3, 2), np.int32)),
        ("output_hw", np.zeros(2, np.int32)),
    ]:
        with pytest.raises(TypeError, match=r"Inputs\."):
            checked(inputs._replace(**{field: value}))


def test_dimensions_are_shared_with_nested_structs():
    assert checked(words()).is_thing.shape == (4,)
    with pytest.raises(TypeError, match=r"^Words\.is_thing is bool\[5\], not Bool\[K\]"):
        checked(words()._replace(is_thing=np.zeros(5, bool)))
    broken = words().text._replace(groups=np.zeros(6, np.int32))
    with pytest.raises(TypeError, match=r"^Words\.text\.groups is int32\[6\], not Int\[T\]"):
        checked(words()._replace(text=broken))
    with pytest.raises(TypeError, match=r"^Words\.text is Segments, not TextClassifier"):
        checked(words()._replace(text=segments()))


class Optional(NamedTuple):
    values: Float[AnyArray, "B h"] | None
    levels: tuple[Int[AnyArray, " B"], Int[AnyArray, " h"]]


def test_none_and_tuples():
    levels = (np.zeros(2, np.int32), np.zeros(3, np.int32))
    checked(Optional(None, levels))
    checked(Optional(np.zeros((2, 3), np.float32), levels))
    with pytest.raises(TypeError, match=r"^Optional\.values is float32\[2\], not Float\[B h\] or None"):
        checked(Optional(np.zeros(2, np.float32), levels))
    with pytest.raises(TypeError, match=r"^Optional\.levels is tuple, not tuple"):
        checked(Optional(np.zeros((2, 4), np.float32), levels))


def test_arrays_on_devices_and_traced_ones():
    placed = jax.tree.map(jnp.asarray, segments(2))
    assert checked(placed) is placed
    broken = placed._replace(areas=jnp.zeros((2, 6), jnp.int32))

    def traced(found: Segments) -> jax.Array:
        return checked(found).areas

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    spread = jax.shard_map(traced, mesh=mesh, in_specs=(batch,), out_specs=batch, check_vma=False)
    for program in (jax.jit(traced), spread, jax.vmap(traced), jax.eval_shape):
        arguments = (traced,) if program is jax.eval_shape else ()
        program(*arguments, placed)
        with pytest.raises(TypeError, match=r"Segments\.areas is int32\[(2, )?6\]"):
            program(*arguments, broken)


def test_losses_of_several_outputs_fit_together():
    """Counts that all outputs share have an axis of 1; sums of different numbers of outputs are refused."""
    sums = LossSums(*(jnp.ones(shape) for shape in (3, 1, 3, 3, 1)))
    assert mean_losses(sums).mask.shape == (3,)
    with pytest.raises(TypeError, match=r"^LossSums\.dice is float32\[2\], not Float\["):
        mean_losses(sums._replace(dice=jnp.ones(2)))
