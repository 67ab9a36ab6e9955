"""PyTorch's pure `grid_sample` formulation of deformable attention: the benchmark's baseline."""

import importlib.util
from typing import Any

import jax
import numpy as np

from pallas_kernels.deform_attn.problems import Problem
from pallas_kernels.measuring import BOTH, FORWARD, TORCH, Case, measure_peak


def torch_cases(problem: Problem, arrays: tuple[np.ndarray, ...], threads: int) -> dict[tuple[str, str], Case]:
    """Prepares PyTorch's formulation on the given arrays, on the CUDA device if JAX uses one."""
    import torch

    torch.set_num_threads(threads)
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    dtype = getattr(torch, problem.dtype)
    *inputs, grad = (torch.from_numpy(array).to(device, dtype) for array in arrays)
    trainable = [array.clone().requires_grad_() for array in inputs]

    def forward() -> Any:
        with torch.inference_mode():
            return torch_ms_deform_attn(*inputs, problem.shapes)

    def both() -> Any:
        for array in trainable:
            array.grad = None
        out = torch_ms_deform_attn(*trainable, problem.shapes)
        out.backward(grad)
        return out

    def wait(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    cases = {}
    for which, call in ((FORWARD, forward), (BOTH, both)):
        if device == "cpu":
            _, peak = measure_peak(call)
        else:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            wait(call())
            peak = torch.cuda.max_memory_allocated() - before
        cases[which, TORCH] = Case(call, wait, None, peak)
    return cases


def torch_ms_deform_attn(value, locations, weights, shapes):
    """Computes the definition by `grid_sample`, level by level, as PyTorch code without a compiled operator does."""
    import torch
    from torch.nn.functional import grid_sample

    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    # [B, N, M, D] to planes [B M, D, h, w]; [B, Q, M, L, P, 2] to grids [B M, L, Q, P, 2], from -1 to 1.
    planes = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=-1)
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
    samples = [
        grid_sample(plane.unflatten(-1, shape), grids[:, level], padding_mode="zeros", align_corners=False)
        for level, (plane, shape) in enumerate(zip(planes, shapes, strict=True))
    ]
    samples = torch.stack(samples, dim=-2)  # [B M, D, Q, L, P]
    weights = weights.permute(0, 2, 1, 3, 4).flatten(0, 1)[:, None]
    out = (samples * weights).sum(dim=(-1, -2))
    return out.reshape(batch, heads, channels, queries).permute(0, 3, 1, 2).contiguous()


def torch_has(backend: str) -> bool:
    """Returns whether PyTorch is installed and runs on JAX's backend, "cpu" or "gpu"."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return backend == "cpu" or (backend == "gpu" and torch.cuda.is_available())
