"""The precisions that users name, and what each means for the network.

With "bfloat16" the trunk, both decoders and the mask products read bfloat16 arrays and add up in float32. Statistics of
norms, softmax, positions, sampling locations, resizing, cosine similarities, the ensemble and post-processing stay in
float32, as do the weights that `weight_dtype` names.
"""

import re
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from fcclip_jax.conventions import PRECISIONS


@runtime_checkable
class Device(Protocol):
    """What matters here of a `jax.Device`. NVIDIA's GPUs also have a `compute_capability`, such as "8.0"."""

    platform: str
    device_kind: str


class Precision(NamedTuple):
    """A way to compute the network."""

    name: str
    dtype: str
    """Dtype of the activations and of most weights."""
    products: str
    """JAX's name for the precision of products of float32 arrays."""


FLOAT32 = Precision("float32", dtype="float32", products="highest")
# TF32 is JAX's default on GPUs.
TF32 = Precision("tf32", dtype="float32", products="default")
# The few products of float32 arrays that are left, similarities above all, are small and must not lose digits.
BFLOAT16 = Precision("bfloat16", dtype="bfloat16", products="highest")

BY_NAME = {precision.name: precision for precision in (FLOAT32, TF32, BFLOAT16)}

_WIDE = re.compile(
    r".*(bias|gamma|(norm|bn)\d?\.weight|ln_\w+\.weight|running_mean|running_var|logit_scale|(void|class)_embedding)"  # vectors and scalars
)


def check_precision(name: str) -> None:
    """Checks a precision's name.

    Raises:
        ValueError: no precision has it.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")


def choose_precision(name: str | None, device: Device) -> Precision:
    """Returns the precision of that name; for None the device's default.

    Defaults are the products that JAX itself takes for float32 arrays, which are fast and good enough for pictures:
    float32 on CPUs, TF32 on GPUs that have it, bfloat16 on TPUs.

    Raises:
        ValueError: no precision has the name, or the device does not have TF32.
    """
    if name is None:
        name = "bfloat16" if device.platform == "tpu" else "tf32" if _has_tf32(device) else "float32"
    check_precision(name)
    if name == "tf32" and not _has_tf32(device):
        raise ValueError(
            "precision tf32 needs an NVIDIA GPU of compute capability 8.0 or later, but the device is"
            f" {device.device_kind}; choose float32 or bfloat16"
        )
    return BY_NAME[name]


def weight_dtype(name: str, dtype: DTypeLike) -> np.dtype:
    """Returns the dtype that a weight is held in, of a network that computes in `dtype`.

    Matrices and kernels have that dtype. Biases, scales and statistics keep at least float32: they are less than a
    hundredth of the memory, and norms and similarities use them in float32.

    name: as `models.building.named_variables` gives it.
    """
    return np.promote_types(dtype, jnp.float32) if _WIDE.fullmatch(name) else np.dtype(dtype)


def cast_state(state: nnx.State, dtype: DTypeLike) -> nnx.State:
    """Returns a network's weights in the dtypes of `weight_dtype`. They are cast on the host, which compiles nothing."""
    cast = []
    for path, variable in nnx.to_flat_state(state):
        wanted = weight_dtype(".".join(map(str, path)), dtype)
        same = variable.dtype == wanted
        cast.append((path, variable if same else variable.replace(np.asarray(variable[...]).astype(wanted))))
    return nnx.from_flat_state(cast)


def _has_tf32(device: Device) -> bool:
    """Returns whether the device is an Ampere GPU or newer."""
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return device.platform == "gpu" and capability is not None and int(capability[1]) >= 8
