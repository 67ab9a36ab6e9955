"""Both formulations of the depthwise convolution against its definition, on any platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from fcclip_jax.models import depthwise


def inputs(h: int, w: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, h, w, 3), np.float32), rng.standard_normal((size, size, 3), np.float32)


def by_definition(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    planes = [
        [signal.correlate2d(image[..., c], weight[..., c], mode="same") for c in range(x.shape[-1])]
        for image in x.astype(np.float64)
    ]
    return np.moveaxis(np.asarray(planes), 1, -1)


# Less than the kernel in one direction and in both, and one cell.
@pytest.mark.parametrize(("h", "w", "size"), [(16, 12, 7), (13, 9, 7), (3, 20, 7), (5, 4, 3), (1, 1, 7)])
@pytest.mark.parametrize("formulation", ["_convolution", "_shifted_sum"])
def test_each_formulation_is_the_definition(formulation: str, h: int, w: int, size: int) -> None:
    x, weight = inputs(h, w, size)
    result = jax.jit(getattr(depthwise, formulation))(x, weight)
    assert result.shape == x.shape
    # 49 products of order one, each rounded to float32.
    np.testing.assert_allclose(result, by_definition(x, weight), atol=2e-5)


# Fewer rows than one expression adds, as many, one more, and two groups and a half; less than the kernel; one cell.
@pytest.mark.parametrize(
    ("batch", "h", "w", "size"),
    [
        (2, 9, 10, 7),
        (1, 16, 3, 7),
        (2, 17, 5, 5),
        (1, 40, 4, 3),
        (3, 2, 2, 7),
        (4, 1, 1, 7),
        (3, 4, 5, 1),
        (1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_agree(dtype: type, batch: int, h: int, w: int, size: int) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype is np.float64):
        x, cotangent = rng.standard_normal((2, batch, h, w, 3)).astype(dtype)
        weight = rng.standard_normal((size, size, 3)).astype(dtype)

        def gradients(formulation):
            return jax.jit(lambda x, w: jax.vjp(formulation, x, w)[1](jnp.asarray(cotangent)))(x, weight)

        for ours, plain in zip(gradients(depthwise._shifted_sum), gradients(depthwise._convolution), strict=True):
            assert ours.dtype == dtype
            # Sums of up to 180 products of order one.
            np.testing.assert_allclose(ours, plain, atol=1000 * np.finfo(dtype).eps)


def test_a_bfloat16_gradient_is_summed_in_float32() -> None:
    x = jnp.ones((3, 20, 10, 2), jnp.bfloat16)
    weight = jnp.ones((1, 1, 2), jnp.bfloat16)
    of_weight = jax.jit(lambda x, w: jax.vjp(depthwise._shifted_sum, x, w)[1](x)[1])(x, weight)
    np.testing.assert_array_equal(of_weight.astype(np.float32), 600.0)  # a sum in bfloat16 would stop at 256


def test_a_cpu_gets_the_shifted_sum_and_accelerators_their_convolution() -> None:
    x, weight = inputs(8, 8, 7)
    traced = jax.jit(depthwise.depthwise_conv).trace(x, weight)
    on_cpu, on_gpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert "stablehlo.convolution" not in on_cpu
    assert "stablehlo.convolution" in on_gpu
