"""The depthwise convolution with layer normalisation: all implementations against a float64 evaluation."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from pallas_kernels import bench, compile_gpu, depthwise_norm
from pallas_kernels.depthwise import bench as depthwise_bench
from pallas_kernels.depthwise import convolution, gpu, reference

# JAX warns at every lowering since 0.12; deform_attn/gpu.py has the consequences.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

IMPLEMENTATIONS = {
    "reference": reference.depthwise_norm,
    "convolution": convolution.depthwise_norm,
    "gpu": functools.partial(gpu.depthwise_norm, interpret=True),
}
EPS = 1e-3
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
"""Relative to the largest value: some hundred roundings of float32, and the few roundings of bfloat16 (8 bits)."""
SHAPES = {
    "a program's columns and more": ((2, 9, 13, 24), 7, [[9, 13], [5, 6]]),
    "one cell": ((1, 1, 1, 8), 7, [[1, 1]]),
    "less than the kernel": ((1, 3, 20, 40), 7, [[2, 17]]),
    "another kernel": ((1, 6, 8, 16), 3, [[6, 8]]),
}


def arrays(shape: tuple[int, ...], size: int, valid_hw, dtype: str = "float32", seed: int = 0) -> list[np.ndarray]:
    """Draws a case's arrays; values far beyond the image show whether they are read."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for image, (h, w) in zip(x, valid_hw, strict=True):
        image[h:], image[:, w:] = 1e3, 1e3
    weight, *vectors = (rng.standard_normal((*lead, shape[-1])) for lead in ((size, size), (), (), ()))
    values = [np.asarray(values, jnp.dtype(dtype)) for values in (x, weight, *vectors)]
    return [values[0], np.asarray(valid_hw, np.int32), *values[1:]]


def truth(x, valid_hw, weight, bias, scale, offset) -> np.ndarray:
    """Evaluates the definition by scipy in float64; NaN beyond the images."""
    x, weight, bias, scale, offset = (values.astype(np.float64) for values in (x, weight, bias, scale, offset))
    result = np.full(x.shape, np.nan)
    for image, (h, w), out in zip(x, valid_hw, result, strict=True):
        planes = [signal.correlate2d(image[:h, :w, c], weight[..., c], mode="same") for c in range(x.shape[-1])]
        total = np.stack(planes, axis=-1) + bias
        centred = total - total.mean(axis=-1, keepdims=True)
        out[:h, :w] = centred / np.sqrt(total.var(axis=-1, keepdims=True) + EPS) * scale + offset
    return result


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_each_implementation_is_the_definition(implementation: str, name: str, dtype: str):
    case = arrays(*SHAPES[name], dtype=dtype)
    found = jax.jit(functools.partial(IMPLEMENTATIONS[implementation], eps=EPS))(*case)
    assert found.shape == case[0].shape and found.dtype == case[0].dtype
    expected = truth(*case)
    error = np.abs(np.asarray(found, np.float64) - expected)
    # The convolution's own result is rounded to bfloat16 before it is normalised, which multiplies the rounding.
    limit = TOLERANCES[dtype] * np.nanmax(np.abs(expected))
    assert np.nanmax(error) <= limit, np.nanmax(error)


def test_by_hand():
    """A kernel of one tap doubles both channels: (2, 6) is normalised to -1 and 1, scaled by (1, 3), moved by (0, 1)."""
    one, two = np.ones((1, 1, 2), np.float32), np.full((1, 1, 2), 2, np.float32)
    x = np.asarray([[[[1.0, 3.0]]]], np.float32)
    scale, offset = np.asarray([1, 3], np.float32), np.asarray([0, 1], np.float32)
    found = depthwise_norm(x, np.ones((1, 2), np.int32), two, 0 * one[0, 0], scale, offset, eps=0.0)
    np.testing.assert_allclose(found[0, 0, 0], [-1, 4], rtol=1e-6)  # rounding


@pytest.mark.parametrize("implementation", ["reference", "convolution"])
def test_gradients(implementation: str):
    """Compares with the definition's gradients by JAX; the cells beyond the image have none."""
    x, valid_hw, *parameters = arrays((2, 6, 9, 8), 7, [[6, 9], [4, 5]])
    inside = np.asarray(reference.valid_cells(jnp.asarray(valid_hw), (6, 9)))[..., None]
    weights = np.random.default_rng(1).standard_normal(x.shape, np.float32) * inside

    def loss(function, x, *parameters):
        return jnp.sum(function(x, jnp.asarray(valid_hw), *parameters, eps=EPS) * weights)

    function = functools.partial(depthwise_norm, implementation=implementation)
    found = jax.grad(functools.partial(loss, function), argnums=range(5))(x, *parameters)
    expected = jax.grad(functools.partial(loss, reference.depthwise_norm), argnums=range(5))(x, *parameters)
    assert not np.asarray(found[0])[~np.broadcast_to(inside, x.shape)].any()
    for one, other in zip(found, expected, strict=True):
        # Sums of some hundred products.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("capability", compile_gpu.DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_kernel_lowers_for_cuda_at_every_stage(dtype: str, capability: int):
    kernels = compile_gpu.depthwise_kernels(dtype, capability)
    assert [kernel.name for kernel in kernels] == [f"depthwise_norm_{channels}" for channels in (192, 384, 768, 1536)]
    assert [kernel.programs for kernel in kernels] == [200 * 34, 100 * 17, 50 * 9, 25 * 5]
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (Linux only)")
    for kernel in kernels:
        made = compile_gpu.build(kernel, capability)
        assert made.spills == 0, kernel.name
        # An SM has 65536: room for one program of the widest stage, and for two of the next.
        assert made.registers <= 128, kernel.name


def test_a_kernel_on_another_platform():
    with pytest.raises(ValueError, match="'gpu' runs on cuda only, but this program is for cpu"):
        depthwise_norm(*arrays(*SHAPES["one cell"]), eps=EPS, implementation="gpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, v, k, *p: (x[0], v, k, *p), r"expected x \[B,h,w,C\] and weight \[k,k,C\], got x \(1, 1, 8\)"),
        (lambda x, v, k, *p: (x, v, k[:6], *p), r"square and odd, with the channels of x: .*weight \(6, 7, 8\)"),
        (lambda x, v, k, *p: (x, v, k[:6, :6], *p), r"square and odd"),
        (lambda x, v, k, *p: (x, v[:, 0], k, *p), r"batch or channels differ: .*valid_hw \(1,\)"),
        (lambda x, v, k, b, *p: (x, v, k, b[1:], *p), r"batch or channels differ: .*bias \(7,\)"),
        (lambda x, v, k, *p: (jnp.asarray(x, jnp.bfloat16), v, k, *p), r"dtypes differ: x bfloat16, weight float32"),
        (lambda x, v, k, *p: (x, v.astype(np.float32), k, *p), r"valid_hw is float32; give whole numbers"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        depthwise_norm(*change(*arrays(*SHAPES["one cell"])), eps=EPS)


def test_names_and_arrays_that_the_kernel_cannot_run():
    case = arrays(*SHAPES["one cell"])
    with pytest.raises(ValueError, match="unknown implementation 'cudnn'; choose one of reference, convolution, gpu"):
        depthwise_norm(*case, eps=EPS, implementation="cudnn")
    x, valid_hw, *parameters = case
    half = [values.astype(np.float16) for values in (x, *parameters)]
    with pytest.raises(ValueError, match="the GPU kernel takes float32 or bfloat16, not float16; choose 'convolution'"):
        depthwise_norm(half[0], valid_hw, *half[1:], eps=EPS, implementation="gpu")
    assert "4096 channels" in gpu.unsupported(jnp.zeros((1, 1, 1, 4097)))


def test_the_benchmark(monkeypatch, capsys):
    """Compares its counts with numbers by hand, and reads its table; times are not checked."""
    assert depthwise_bench.least_bytes((2, 3, 5), 2, "bfloat16") == 2 * (2 * 2 * 2 * 3 * 5 + 52 * 5)
    monkeypatch.setattr(depthwise_bench, "STAGES", {(4, 6, 8): 2, (2, 3, 16): 5})
    assert bench.main(["depthwise_norm", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [
        ["4x6x8", "2", "reference"],
        ["4x6x8", "2", "convolution"],
        ["2x3x16", "5", "reference"],
        ["2x3x16", "5", "convolution"],
        ["all", "7", "reference"],
        ["all", "7", "convolution"],
    ]
    assert float(lines[3].split()[-1]) < 1e-5  # from the reference
    with pytest.raises(SystemExit) as stop:
        bench.main(["depthwise_norm", "--batch", "0"])
    assert stop.value.code == 2
    assert "--batch is 0; give a whole number above zero" in capsys.readouterr().err
