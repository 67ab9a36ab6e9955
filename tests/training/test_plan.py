"""The plan for a pod: its abstract arguments are those of a real step, and collectives are counted."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import HeadDescription
from fcclip_jax.training import plan, sharding
from fcclip_jax.training.config import step_settings
from fcclip_jax.training.parameters import is_trainable
from fcclip_jax.training.recipe import base_config
from fcclip_jax.training.starting_model import model_description
from fcclip_jax.training.step import frozen_dtype, initial_state, skeleton


def described(tree) -> dict[str, tuple]:
    """Returns the shape, dtype and sharding of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (x.shape, x.dtype, x.sharding.mesh, x.sharding.spec) for path, x in leaves}


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("train_trunk", [False, True])
def test_the_abstract_state_is_the_initial_one(average, train_trunk):
    config = base_config("debug")
    config.update({"average": average, "train_trunk": train_trunk, "compute_dtype": "bfloat16"})
    settings = step_settings(config)
    description = model_description(config.model.clip, HeadDescription(**config.model.head))
    mesh = sharding.make_mesh(1, 1)
    arguments = plan.abstract_arguments(config, description, settings, mesh)

    shapes = {name: variable.shape for name, variable in named_variables(skeleton(description, settings)).items()}
    trainable = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if is_trainable(name, train_trunk)}
    frozen = {
        name: np.zeros(shape, frozen_dtype(name, settings)) for name, shape in shapes.items() if name not in trainable
    }
    assert described(arguments.state) == described(initial_state(trainable, settings, mesh))
    assert described(arguments.frozen) == described(sharding.place_parameters(frozen, mesh))
    specs = {spec for *_, spec in described(arguments.state).values()}
    assert PartitionSpec() in specs and len(specs) > 2  # small parameters are replicated, large ones sharded
    assert (arguments.state.average is None) == (average is None)


def test_collectives_are_counted_with_the_loops_around_them():
    text = """HloModule jit_step
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %r = f32[4,8]{1,0:T(8,128)} all-reduce(%x), to_apply=%add
  %g = (f32[2,8]{1,0}, /*index=1*/f32[4,8]{1,0}) all-gather-start(%y), dimensions={0}
}
%cond (p: (s32[], f32[4,8])) -> pred[] {
  %lt = pred[] compare(%i, %n)
}
ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %s = bf16[16]{0} all-reduce(%z), to_apply=%add
}
"""
    expected = {"all-reduce": (4, 3 * 128 + 32), "all-gather": (3, 3 * 128)}
    assert plan.collectives(text) == (expected, True)
    # XLA's text for TPUs has the count in the loop's condition alone.
    unnamed = text.replace(', backend_config={"known_trip_count":{"n":"3"}}', "").replace(
        "  %lt = pred[] compare(%i, %n)", "  %n = s32[] constant(3)\n  %lt = pred[] compare(%i, %n), direction=LT"
    )
    assert plan.collectives(unnamed) == (expected, True)
    found, counted = plan.collectives(unnamed.replace("constant(3)", "parameter(1)"))
    assert found["all-gather"] == (1, 128) and not counted
