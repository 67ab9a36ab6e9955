"""Post-processing against the official algorithm, written out on whole [Q, H, W] stacks in float64."""

import jax
import numpy as np
import pytest

from fcclip_jax.conventions import TASKS
from fcclip_jax.inference import resampling
from fcclip_jax.inference.postprocess import Postprocessed, panoptic_sweep, postprocess, semantic_scores, unpack_mask

compiled = jax.jit(postprocess, static_argnames=("canvas", "semantic_before_resize", "instance_scores"))
compiled_scores = jax.jit(semantic_scores, static_argnames=("canvas", "before_resize"))


def run(*args, **options) -> Postprocessed:
    """Returns NumPy arrays."""
    return jax.tree.map(np.asarray, compiled(*args, **options))


# The slow and obvious definition: one image, everything at full size.


def bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w, C] → [H, W, C] as torch.nn.functional.interpolate(mode="bilinear", align_corners=False)."""
    for axis, count in enumerate(size):
        position = np.maximum((np.arange(count) + 0.5) * x.shape[axis] / count - 0.5, 0)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        shape = [1, 1, 1]
        shape[axis] = count
        weight = (position - low).reshape(shape)
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def at_padded_size(mask_logits, image_hw):
    padded = [-(-size // 32) * 32 for size in image_hw]
    return bilinear(mask_logits[: padded[0] // 4, : padded[1] // 4], padded)[: image_hw[0], : image_hw[1]]


def at_output_size(mask_logits, image_hw, output_hw):
    return bilinear(at_padded_size(mask_logits, image_hw), output_hw)


def slow_panoptic(logits, probs, is_thing, overlap_threshold=0.8, object_mask_threshold=0.0):
    """Returns ids, (class, is thing, score, area) of each segment, and each pixel's distance from another decision."""
    scores, labels = probs.max(1), probs.argmax(1)
    kept = np.flatnonzero((labels != probs.shape[1] - 1) & (scores > object_mask_threshold))
    ids, segments, stuff = np.zeros(logits.shape[:2], int), [], {}
    if not len(kept):
        return ids, segments, np.full(logits.shape[:2], np.inf)
    masks = sigmoid(logits[..., kept])
    weighted = masks * scores[kept]
    best = weighted.argmax(-1)
    ranked = np.sort(np.concatenate([weighted, np.full((*ids.shape, 1), -1.0)], -1), axis=-1)
    sureness = np.minimum(ranked[..., -1] - ranked[..., -2], np.abs(masks - 0.5).min(-1))
    for k, query in enumerate(kept):
        inside = masks[..., k] >= 0.5
        won = best == k
        pixels = won & inside
        if not pixels.any() or won.sum() / inside.sum() < overlap_threshold:
            continue
        label, thing = int(labels[query]), bool(is_thing[labels[query]])
        if not thing and label in stuff:
            row = stuff[label]
            _, _, score, area = segments[row]
            segments[row] = (label, thing, max(score, scores[query]), area + pixels.sum())
        else:
            row = stuff[label] = len(segments)
            segments.append((label, thing, scores[query], pixels.sum()))
        ids[pixels] = row + 1
    return ids, segments, sureness


def slow_instances(logits, probs, is_thing, value=sigmoid, count=100):
    """Returns (class, query, score, mask) by falling score. value: of a logit, whose mean inside the mask is a factor."""
    flat = probs[:, :-1].reshape(-1)
    found = []
    for index in np.argsort(-flat, kind="stable")[:count]:
        query, label = divmod(int(index), probs.shape[1] - 1)
        if is_thing[label]:
            mask = logits[..., query] > 0
            inside = (value(logits[..., query]) * mask).sum() / (mask.sum() + 1e-6)
            found.append((label, query, flat[index] * inside, mask))
    return sorted(found, key=lambda instance: -instance[2])


def slow_semantic(mask_logits, probs, image_hw, output_hw, before_resize):
    if before_resize:
        return bilinear(sigmoid(at_padded_size(mask_logits, image_hw)) @ probs[:, :-1], output_hw)
    return sigmoid(at_output_size(mask_logits, image_hw, output_hw)) @ probs[:, :-1]


# Inputs that excite every path: overlapping discs, repeated classes, empty masks, void queries.

BUCKET, CANVAS, QUERIES, CLASSES, REAL_CLASSES = (24, 32), (130, 150), 12, 70, 66
IMAGES = [(96, 128), (70, 90), (33, 31)]
OUTPUTS = [(130, 150), (35, 61), (97, 129)]


def make_image(rng, image_hw, bucket=BUCKET, dtype=np.float64):
    """Returns mask logits, NaN beyond the padded image, and class probabilities."""
    height, width = (-(-size // 32) * 8 for size in image_hw)
    y, x = np.mgrid[:height, :width]
    centre, radius = rng.uniform(0, [height, width], (QUERIES, 2)), rng.uniform(1, 0.5 * height, QUERIES)
    logits = radius - np.hypot(y[..., None] - centre[:, 0], x[..., None] - centre[:, 1])
    logits += rng.normal(size=logits.shape) * 0.3
    logits[..., 3] = -5  # an empty mask
    padded = np.full((*bucket, QUERIES), np.nan)
    padded[:height, :width] = logits

    class_logits = rng.normal(size=(QUERIES, REAL_CLASSES + 1))
    favourites = rng.choice([0, 1, 2, 65], QUERIES)  # both class blocks; stuff that merges
    class_logits[np.arange(QUERIES), favourites] += rng.uniform(4, 8, QUERIES)
    class_logits[5, -1] += 20  # a void query
    real = np.exp(class_logits) / np.exp(class_logits).sum(1, keepdims=True)
    probs = np.zeros((QUERIES, CLASSES + 1))
    probs[:, :REAL_CLASSES], probs[:, -1] = real[:, :-1], real[:, -1]
    return padded.astype(dtype), probs.astype(dtype)


IS_THING = np.arange(CLASSES) % 2 == 0


def make_batch(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    logits, probs = zip(*(make_image(rng, image_hw, dtype=dtype) for image_hw in IMAGES), strict=True)
    return np.stack(logits), np.stack(probs)


def real_classes(probs):
    return np.concatenate([probs[:, :REAL_CLASSES], probs[:, -1:]], axis=1)


def check_panoptic(result: Postprocessed, b, logits, probs, is_thing, **thresholds):
    ids, segments, sureness = slow_panoptic(logits, probs, is_thing, **thresholds)
    height, width = ids.shape
    assert sureness.min() > 1e-12
    np.testing.assert_array_equal(result.panoptic[b, :height, :width], ids)
    table = result.segments
    assert table.number[b] == len(segments)
    for row, (label, thing, score, area) in enumerate(segments):
        assert (table.class_ids[b, row], table.is_thing[b, row], table.areas[b, row]) == (label, thing, area)
        np.testing.assert_allclose(table.scores[b, row], score, rtol=1e-12)
    for column in table[1:]:
        assert not np.any(column[b, len(segments) :])


def check_all(result: Postprocessed, logits, probs, before_resize=False, **thresholds):
    for b, (image_hw, output_hw) in enumerate(zip(IMAGES, OUTPUTS, strict=True)):
        resized, real = at_output_size(logits[b], image_hw, output_hw), real_classes(probs[b])
        check_panoptic(result, b, resized, real, IS_THING, **thresholds)
        check_instances(result, b, resized, real, IS_THING)
        scores = slow_semantic(logits[b], real, image_hw, output_hw, before_resize)
        np.testing.assert_array_equal(result.semantic[b, : output_hw[0], : output_hw[1]], scores.argmax(-1))


def check_instances(result: Postprocessed, b, logits, probs, is_thing, value=sigmoid):
    expected = slow_instances(logits, probs, is_thing, value)
    table = result.instances
    assert table.number[b] == len(expected)
    for row, (label, query, score, mask) in enumerate(expected):
        assert (table.class_ids[b, row], table.queries[b, row], table.areas[b, row]) == (label, query, mask.sum())
        np.testing.assert_allclose(table.scores[b, row], score, rtol=1e-9)
        np.testing.assert_array_equal(unpack_mask(result.mask_bits[b, table.mask_rows[b, row]], mask.shape), mask)
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if mask.any() else [0, 0, 0, 0]
        np.testing.assert_array_equal(table.boxes[b, row], box)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def arguments(logits, probs, images=IMAGES, outputs=OUTPUTS, is_thing=IS_THING, num_classes=REAL_CLASSES):
    return logits, dict.fromkeys(TASKS, probs), is_thing, np.int32(num_classes), np.int32(images), np.int32(outputs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("before_resize", [False, True])
def test_every_task_against_the_definition(x64, seed, before_resize):
    """Compares sizes above and below the input's, of one batch in one bucket, with NaN beyond each image's padding."""
    logits, probs = make_batch(seed)
    thresholds = {"overlap_threshold": [0.8, 0.3, 0.5][seed], "object_mask_threshold": [0.0, 0.0, 0.6][seed]}
    result = run(*arguments(logits, probs), **thresholds, canvas=CANVAS, semantic_before_resize=before_resize)
    check_all(result, logits, probs, before_resize, **thresholds)


def test_instances_by_the_mean_logit(x64):
    """OVRCOAT's scores; they may exceed 1."""
    logits, probs = make_batch(0)
    result = run(*arguments(logits, probs), canvas=CANVAS, instance_scores="mask_logit")
    for b, (image_hw, output_hw) in enumerate(zip(IMAGES, OUTPUTS, strict=True)):
        resized = at_output_size(logits[b], image_hw, output_hw)
        check_instances(result, b, resized, real_classes(probs[b]), IS_THING, lambda logit: logit)
    assert result.instances.scores.max() > 1


def test_every_task_has_class_scores_of_its_own(x64):
    logits, probs = make_batch(0)
    others = {"panoptic": probs, "semantic": probs[:, ::-1], "instances": make_batch(1)[1]}
    inputs = arguments(logits, probs)[2:]
    together = run(logits, others, *inputs, canvas=CANVAS)
    for task, fields in (
        ("panoptic", "panoptic segments"),
        ("semantic", "semantic"),
        ("instances", "instances mask_bits"),
    ):
        alone = run(logits, {task: others[task]}, *inputs, canvas=CANVAS)
        for field in fields.split():
            jax.tree.map(np.testing.assert_array_equal, getattr(together, field), getattr(alone, field))


def test_a_sweep_against_the_definition(x64):
    """Three classifications of the same masks: each gives what it gives alone."""
    logits, probs = make_batch(0)
    many = np.stack([probs, probs[:, ::-1], make_batch(1)[1]])
    sweep = jax.jit(lambda *args: panoptic_sweep(*args, canvas=CANVAS, overlap_threshold=0.3))
    panoptic, segments = jax.tree.map(np.asarray, sweep(logits, many, IS_THING, np.int32(IMAGES), np.int32(OUTPUTS)))
    for b, (image_hw, output_hw) in enumerate(zip(IMAGES, OUTPUTS, strict=True)):
        resized = at_output_size(logits[b], image_hw, output_hw)
        result = Postprocessed(panoptic[b], jax.tree.map(lambda x, b=b: x[b], segments), None, None, None)
        for s in range(len(many)):
            check_panoptic(result, s, resized, real_classes(many[s, b]), IS_THING, overlap_threshold=0.3)


# Sharp masks, of which few count in a tile: tiles of one query or one class alone, of none, and of more than a block of queries;
# outputs from a quarter of the image's size, whose tiles read more cells than a part of a strip has, to several times of it.

SHARP_IMAGE, SHARP_QUERIES = (160, 640), 40
SHARP_OUTPUTS = [(400, 1100), (130, 401), (41, 150), (9, 33)]


def make_sharp(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHARP_IMAGE[0] // 4, : SHARP_IMAGE[1] // 4]
    centre = rng.uniform(0, [y.shape[0], y.shape[1]], (SHARP_QUERIES, 2))
    radius = rng.uniform(2, 25, SHARP_QUERIES)
    centre[:14] = centre[0] + rng.normal(size=(14, 2))  # a crowd of similar masks
    radius[:14] = 12
    logits = np.clip(4 * (radius - np.hypot(y[..., None] - centre[:, 0], x[..., None] - centre[:, 1])), -7, 7)
    logits += rng.normal(size=logits.shape) * 0.05
    class_logits = rng.normal(size=(SHARP_QUERIES, REAL_CLASSES + 1))
    class_logits[np.arange(SHARP_QUERIES), rng.choice([0, 1, 2, 65], SHARP_QUERIES)] += rng.uniform(5, 9, SHARP_QUERIES)
    class_logits[:, -1] += np.where(rng.random(SHARP_QUERIES) < 0.5, 12, 0)  # half of them are void
    real = np.exp(class_logits) / np.exp(class_logits).sum(1, keepdims=True)
    probs = np.zeros((SHARP_QUERIES, CLASSES + 1))
    probs[:, :REAL_CLASSES], probs[:, -1] = real[:, :-1], real[:, -1]
    return logits, probs


@pytest.mark.parametrize("seed", range(3))
def test_sharp_masks_against_the_definition(x64, seed):
    logits, probs = make_sharp(seed)
    count = len(SHARP_OUTPUTS)
    batch = np.stack([logits] * count), np.stack([probs] * count)
    result = run(*arguments(*batch, [SHARP_IMAGE] * count, SHARP_OUTPUTS), canvas=(400, 1100), overlap_threshold=0.5)
    for b, output_hw in enumerate(SHARP_OUTPUTS):
        resized, real = at_output_size(logits, SHARP_IMAGE, output_hw), real_classes(probs)
        check_panoptic(result, b, resized, real, IS_THING, overlap_threshold=0.5)
        check_instances(result, b, resized, real, IS_THING)
        scores = slow_semantic(logits, real, SHARP_IMAGE, output_hw, False)
        np.testing.assert_array_equal(result.semantic[b, : output_hw[0], : output_hw[1]], scores.argmax(-1))


@pytest.mark.parametrize("before_resize", [False, True])
@pytest.mark.parametrize("output_hw", SHARP_OUTPUTS)
def test_each_column_has_a_class_of_its_own(x64, output_hw, before_resize):
    """A wide mask, then nine side by side: if the right part of a tile were overlooked, their classes would be left out."""
    number = 10
    logits = np.full((SHARP_IMAGE[0] // 4, SHARP_IMAGE[1] // 4, number), -7.0)
    half = logits.shape[1] // 2
    logits[:, :half, 0] = 7
    for query, columns in enumerate(np.array_split(np.arange(half, 2 * half), number - 1), start=1):
        logits[:, columns, query] = 7
    probs = np.full((number, CLASSES + 1), 0.0)
    probs[:, : number + 1] = 0.01
    probs[np.arange(number), np.arange(number)] = 0.9 - 0.01 * np.arange(number)  # no two score the same between them
    inputs = logits[None], {"semantic": probs[None]}, IS_THING, np.int32(number)
    sizes = np.int32([SHARP_IMAGE]), np.int32([output_hw])
    result = run(*inputs, *sizes, canvas=(400, 1100), semantic_before_resize=before_resize)
    expected = slow_semantic(logits, probs, SHARP_IMAGE, output_hw, before_resize)
    assert len(np.unique(expected.argmax(-1))) == number
    np.testing.assert_array_equal(result.semantic[0, : output_hw[0], : output_hw[1]], expected.argmax(-1))


def test_masks_that_are_no_numbers_have_classes_and_no_segments():
    """A diverged model is measured like any other: all classes and queries count where nothing is known."""
    logits, probs = (x.astype(np.float32)[None] for x in make_sharp(0))
    result = run(*arguments(np.full_like(logits, np.nan), probs, [SHARP_IMAGE], [(64, 200)]), canvas=(400, 1100))
    assert result.semantic[0, :64, :200].max() < REAL_CLASSES and result.semantic.min() >= 0
    assert result.segments.number[0] == 0 and not result.panoptic.any()


def test_what_is_left_out_changes_nothing(monkeypatch):
    """Compares float32 results with those of all queries and all classes, which differ by the order of sums alone."""
    logits, probs = (x.astype(np.float32)[None] for x in make_sharp(3))
    inputs = arguments(logits, probs, [SHARP_IMAGE], SHARP_OUTPUTS[:1])
    some = run(*inputs, canvas=(400, 1100))
    monkeypatch.setattr(resampling, "leaves_out", lambda: False)
    traced_anew = jax.jit(lambda *args: postprocess(*args, canvas=(400, 1100)))
    whole = jax.tree.map(np.asarray, traced_anew(*inputs))
    number = int(whole.instances.number[0])
    np.testing.assert_array_equal(some.panoptic, whole.panoptic)
    jax.tree.map(np.testing.assert_array_equal, some.segments, whole.segments)
    assert (some.semantic != whole.semantic).mean() < 1e-4  # pixels where two classes have the same score to rounding
    for name in ("class_ids", "queries", "areas", "boxes"):
        np.testing.assert_array_equal(
            getattr(some.instances, name)[0, :number], getattr(whole.instances, name)[0, :number]
        )
    np.testing.assert_allclose(some.instances.scores[0, :number], whole.instances.scores[0, :number], rtol=1e-5)
    bits = (each.mask_bits[0, each.instances.mask_rows[0, :number], :1100, :50] for each in (some, whole))
    np.testing.assert_array_equal(*bits)


def test_a_sweep_of_sharp_masks_against_the_definition(x64):
    """Two classifications, in one of which a query takes part that is void in the other."""
    logits, probs = make_sharp(4)
    many = np.stack([probs, np.roll(probs, 1, axis=0)])[:, None]
    sweep = jax.jit(lambda *args: panoptic_sweep(*args, canvas=(400, 1100), overlap_threshold=0.3))
    output_hw = SHARP_OUTPUTS[0]
    inputs = logits[None], many, IS_THING, np.int32([SHARP_IMAGE]), np.int32([output_hw])
    panoptic, segments = jax.tree.map(np.asarray, sweep(*inputs))
    result = Postprocessed(panoptic[0], jax.tree.map(lambda x: x[0], segments), None, None, None)
    for s in range(2):
        resized = at_output_size(logits, SHARP_IMAGE, output_hw)
        check_panoptic(result, s, resized, real_classes(many[s, 0]), IS_THING, overlap_threshold=0.3)


def test_a_gpus_tiles(x64, monkeypatch):
    monkeypatch.setattr(resampling, "tile_shape", resampling.gpu_tile)
    monkeypatch.setattr(resampling, "leaves_out", lambda: False)
    # A function of its own, or JAX would reuse the program that it traced with the other tiles.
    traced_anew = jax.jit(lambda *args: postprocess(*args, canvas=CANVAS))
    logits, probs = make_batch(0)
    result = jax.tree.map(np.asarray, traced_anew(*arguments(logits, probs)))
    assert result.mask_bits.shape[2:] == (CANVAS[1], 256 // 8)  # whole tiles: the canvas is lower
    check_all(result, logits, probs)


def test_stuff_merges_and_hidden_queries_go(x64):
    """Checks by hand a map of halves: two queries of one stuff class, one of a thing that another covers, one void."""
    probs = np.full((4, 4), 0.02)
    probs[[0, 1, 2, 3], [1, 1, 0, 3]] = [0.9, 0.8, 0.5, 0.94]
    logits = np.full((8, 8, 4), -9.0)
    logits[:, :4, 0], logits[:, 4:, 1], logits[:, :4, 2], logits[:, :, 3] = 9, 9, 8, 9
    is_thing = np.array([True, False, True])
    result = run(
        *arguments(logits[None], probs[None], [[32, 32]], [[32, 32]], is_thing, num_classes=3), canvas=(32, 32)
    )
    np.testing.assert_array_equal(result.panoptic[0], np.ones((32, 32)))
    assert (result.segments.number[0], result.segments.class_ids[0, 0], result.segments.areas[0, 0]) == (1, 1, 1024)
    assert result.segments.scores[0, 0] == 0.9 and not result.segments.is_thing[0, 0]
    np.testing.assert_array_equal(result.semantic[0], np.ones((32, 32)))
    # The hidden thing is still an instance: half the image, 16 columns wide.
    labels, areas = result.instances.class_ids[0], result.instances.areas[0]
    hidden = (result.instances.queries[0] == 2) & (labels == 0) & (areas > 0)
    assert result.instances.boxes[0][hidden].tolist() == [[0, 0, 16, 32]]


def test_nothing_but_void(x64):
    probs = np.zeros((1, 3, 3))
    probs[..., 2] = 1
    logits = np.full((1, 8, 8, 3), 5.0)
    result = run(*arguments(logits, probs, [[32, 32]], [[20, 10]], np.ones(2, bool), num_classes=2), canvas=(32, 32))
    assert not result.panoptic.any() and result.segments.number[0] == 0
    assert not result.instances.scores[0, : result.instances.number[0]].any()


@pytest.mark.parametrize("before_resize", [False, True])
def test_scores_of_every_class(x64, before_resize):
    logits, probs = make_batch(0)
    real = np.stack([real_classes(p) for p in probs])
    scores = np.asarray(
        compiled_scores(logits, real, np.int32(IMAGES), np.int32(OUTPUTS), canvas=CANVAS, before_resize=before_resize)
    )
    for b, (image_hw, output_hw) in enumerate(zip(IMAGES, OUTPUTS, strict=True)):
        expected = slow_semantic(logits[b], real[b], image_hw, output_hw, before_resize)
        np.testing.assert_allclose(scores[b, : output_hw[0], : output_hw[1]], expected, atol=1e-12)


def test_only_the_requested_tasks():
    logits, probs = make_batch(0, np.float32)
    logits, probs, *others = arguments(logits, probs)
    result = run(logits, {"semantic": probs["semantic"]}, *others, canvas=CANVAS)
    assert result.panoptic is result.segments is result.instances is result.mask_bits is None
    with pytest.raises(ValueError, match="name one or more of panoptic, semantic, instances"):
        run(logits, {}, *others, canvas=CANVAS)


@pytest.mark.parametrize("before_resize", [False, True])
def test_847_classes_fit_in_memory(before_resize):
    """Temporary and output memory of the compiled program at 800x1333 with 250 queries."""
    shapes = (
        jax.ShapeDtypeStruct((1, 200, 336, 250), np.float32),
        {"semantic": jax.ShapeDtypeStruct((1, 250, 2049), np.float32)},
        jax.ShapeDtypeStruct((2048,), bool),
        jax.ShapeDtypeStruct((), np.int32),
        jax.ShapeDtypeStruct((1, 2), np.int32),
        jax.ShapeDtypeStruct((1, 2), np.int32),
    )
    program = compiled.lower(*shapes, canvas=(1344, 1344), semantic_before_resize=before_resize)
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**28
