"""Compares the model on the device with the official code's numbers, and lower precisions with float32."""

import re
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx

from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.fcclip import normalize_images
from fcclip_jax.text.vocabulary import Vocabulary
from tests.device import models
from tests.device.running import ROOT, Row

GOLDEN = ROOT / "tests" / "golden"


def parity(small: bool) -> Iterator[Row]:
    """Yields the counts and the largest errors of `python -m tests.parity tests/golden`."""
    from tests.parity.__main__ import main

    lines: list[str] = []
    code = main([str(GOLDEN)], lines.append)
    print("\n".join(lines))
    counts = re.fullmatch(r"(\d+) compared, (\d+) fall short, (\d+) .*", lines[-1])
    yield dict(zip(("compared", "fall short", "not compared"), map(int, counts.groups()), strict=True))
    for line in lines:
        if line.startswith("largest errors of "):
            title, errors = line.removeprefix("largest errors of ").split(": ", 1)
            yield {"file": title, "largest errors": errors}
    for line in lines:
        if line.endswith("FALLS SHORT") or "FAILED" in line:
            yield {"array": " ".join(line.split())[:160]}
    if code:
        raise SystemExit(lines[-1])


def errors_by_stage(small: bool) -> Iterator[Row]:
    """Yields each lower precision's largest difference from float32 after each stage, relative to the largest value."""
    model = models.random(small)
    rng = np.random.default_rng(0)
    size = (96, 128) if small else (512, 512)
    images = rng.integers(0, 256, (1, size[0] // 16, size[1] // 16, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    image_hw = np.asarray([size], np.int32)
    found = {}
    for name in sorted(models.precisions(), reverse=True):
        # An engine holds the weights in the dtypes of its precision.
        engine = Segmenter(model, Vocabulary.load(models.CLASSES), fingerprint="", precision=name).engine
        image_model = nnx.clone(model, variables=False)
        del image_model.clip.text
        graphdef, _ = nnx.split(image_model)

        @jax.jit
        def stages(state, precision=engine.precision, graphdef=graphdef):
            model = nnx.merge(graphdef, state)
            with jax.default_matmul_precision(precision.products):
                pixels, valid_hw = normalize_images(images, image_hw, precision.dtype)
                features = model.clip.image(pixels, valid_hw)
                decoded = model.pixel_decoder(features, valid_hw)
                queries = model.mask_decoder(decoded, valid_hw)[-1]
            return {"trunk": features.res5, "pixel decoder": decoded.mask_features, "mask decoder": queries}

        arrays = jax.device_get(stages(engine._states[0]))
        found[name] = {stage: np.asarray(array, np.float64) for stage, array in arrays.items()}
    exact = found.pop("float32")
    for name, arrays in found.items():
        errors = {
            stage: np.abs(array - exact[stage]).max() / np.abs(exact[stage]).max() for stage, array in arrays.items()
        }
        yield {"precision": name} | errors
