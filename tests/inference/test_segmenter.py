"""From images to results with a small random model."""

import io

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

from fcclip_jax import caching
from fcclip_jax.inference import engine
from fcclip_jax.inference.segmenter import Segmenter
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL, DefaultsDescription
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary
from tests.inference.photo_sizes import PHOTO_SIZES

WORDS = ["astronaut", "space shuttle, rocket", "flag", "sky"]


def make_photo(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Coloured blocks with noise."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size[::-1], Image.Resampling.BOX)
    return np.clip(np.asarray(blocks).astype(int) + rng.integers(-20, 21, (*size, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def compilations():
    """Durations of XLA's compilations from here on, the small ones too."""
    durations: list[float] = []

    def listen(event: str, duration: float, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield durations
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def segmenter(compilations) -> Segmenter:
    return Segmenter.random(short_side=96, max_side=160)


def test_forty_sizes_and_three_vocabularies(segmenter, compilations):
    """Runs first, so that every compilation is counted: at most one per bucket and one per text length."""
    assert len(segmenter.buckets) <= 5
    vocabularies = ["cityscapes", WORDS, Vocabulary.from_words(["grass", "a word of " * 20], stuff=["grass"])]
    for index, size in enumerate(PHOTO_SIZES):
        if index % 14 == 0:
            segmenter.set_classes(vocabularies[index // 14])
        result = segmenter(make_photo(size, index))
        assert result.panoptic.id_map.shape == result.semantic.shape == size
    assert 0 < len(compilations) <= 8


def test_the_parts_of_a_result_agree(segmenter):
    segmenter.set_classes(WORDS, stuff=["sky"])
    result = segmenter(make_photo((200, 300)), overlap_threshold=0.1)
    ids, segments = result.panoptic
    assert segments and [segment.id for segment in segments] == list(range(1, len(segments) + 1))
    for segment in segments:
        y, x = np.nonzero(ids == segment.id)
        assert segment.area == len(y)
        assert segment.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert segment.name == WORDS[segment.class_index].split(",")[0] and segment.is_thing == (segment.name != "sky")
    assert set(np.unique(ids)) <= {0, *(segment.id for segment in segments)}
    assert result.semantic.min() >= 0 and result.semantic.max() < len(WORDS)
    instances = result.instances
    assert instances and instances == sorted(instances, key=lambda instance: -instance.score)
    for instance in instances:
        y, x = np.nonzero(instance.mask)
        assert instance.area == len(y) and instance.name != "sky"
        assert instance.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_the_order_of_words_is_of_no_matter(segmenter):
    photo = make_photo((200, 300))
    segmenter.set_classes(WORDS)
    scores = segmenter.semantic_scores(photo)
    semantic = segmenter(photo, tasks=["semantic"]).semantic
    np.testing.assert_array_equal(semantic, scores.argmax(axis=0))
    segmenter.set_classes(WORDS[::-1])
    # The softmax adds the classes in another order.
    np.testing.assert_allclose(segmenter.semantic_scores(photo)[::-1], scores, atol=1e-5)


def test_an_image_however_given(segmenter, tmp_path):
    photo = make_photo((200, 300))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    segmenter.set_classes(WORDS)
    one = segmenter(photo)
    many = segmenter([str(tmp_path / "photo.png"), Image.fromarray(photo), tmp_path / "photo.png"])
    assert len(many) == 3
    for result in many:
        np.testing.assert_array_equal(result.panoptic.id_map, one.panoptic.id_map)
        np.testing.assert_array_equal(result.semantic, one.semantic)
    assert segmenter([]) == []


@pytest.mark.parametrize("size", [(96, 128), (200, 300)], ids=["the network's size", "larger"])
def test_the_image_of_a_result_is_the_callers(segmenter, tmp_path, size):
    """However it was given, writing to one changes neither the other nor a second result of the same image."""
    pixels = make_photo(size)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    encoded = (tmp_path / "photo.png").read_bytes()
    locked = pixels.copy()
    locked.flags.writeable = False
    mirrored = pixels[:, ::-1].copy()[:, ::-1]
    given = {
        "path": tmp_path / "photo.png",
        "text": str(tmp_path / "photo.png"),
        "bytes": encoded,
        "bytearray": bytearray(encoded),
        "memoryview": memoryview(encoded),
        "file": io.BytesIO(encoded),
        "PIL image": Image.fromarray(pixels),
        "PIL image of a file": Image.open(tmp_path / "photo.png"),
        "array": pixels.copy(),
        "array, read-only": locked,
        "array, a view": mirrored,
    }
    segmenter.set_classes(WORDS)
    results = dict(zip(given, segmenter(list(given.values()), tasks=["semantic"]), strict=True))
    for kind, result in results.items():
        assert result.image.flags.writeable, kind
        result.image[:] = 7
    assert (tmp_path / "photo.png").read_bytes() == encoded == bytes(given["bytearray"])
    for kind in ("PIL image", "PIL image of a file", "array", "array, read-only", "array, a view"):
        np.testing.assert_array_equal(np.asarray(given[kind]), pixels, err_msg=kind)

    array, picture = given["array"], given["PIL image"]
    first, second = segmenter([array, array], tasks=["semantic"])
    of_picture = segmenter(picture, tasks=["semantic"])
    array[:], first.image[:] = 3, 5
    picture.paste((3, 3, 3), (0, 0, *picture.size))
    for result in (second, of_picture):
        np.testing.assert_array_equal(result.image, pixels)


def test_batches(segmenter):
    """Five images in batches of two and a larger bucket: the same answers, in the given order."""
    batched = Segmenter.random(short_side=96, max_side=160, batch_size=2, batched=True, buckets=[(128, 160)])
    photos = [
        make_photo(size, seed) for seed, size in enumerate([(90, 120), (100, 90), (96, 128), (100, 140), (110, 100)])
    ]
    for each in (segmenter, batched):
        each.set_classes(WORDS)
    for photo, result in zip(photos, batched(photos, tasks=["semantic"]), strict=True):
        alone = segmenter(photo, tasks=["semantic"]).semantic
        # Sums run in another order in a larger batch: a pixel between two classes may change.
        assert (result.semantic == alone).mean() > 0.999


def test_expected_sizes_share_programs(segmenter, monkeypatch):
    segmenter.set_classes(WORDS)
    images = [make_photo(size, 3) for size in ((300, 400), (250, 500))]
    before = segmenter(images, overlap_threshold=0.1)
    taken = []
    stack = engine.stack
    monkeypatch.setattr(
        engine, "stack", lambda photos, bucket, size: taken.append(bucket) or stack(photos, bucket, size=size)
    )
    segmenter.engine.expect(image.shape[:2] for image in images)
    segmenter(images)
    assert len(set(taken)) == 2
    segmenter.engine.expect((image.shape[:2] for image in images), limit=1)
    after = segmenter(images, overlap_threshold=0.1)
    segmenter.engine.expect([])  # for the tests that follow
    assert taken[2:] == [max(taken)] * 2
    for one, other in zip(before, after, strict=True):
        # Sums in another order change a few pixels on the border between masks.
        assert np.mean(one.panoptic.id_map != other.panoptic.id_map) < 1e-3
        assert [s.class_index for s in one.panoptic.segments] == [s.class_index for s in other.panoptic.segments]


def test_fewer_tasks(segmenter):
    segmenter.set_classes(WORDS)
    result = segmenter(make_photo((200, 300)), tasks=["semantic"])
    assert result.tasks == ("semantic",)
    with pytest.raises(ValueError, match="this result holds semantic; segment with 'panoptic' among the tasks"):
        result.panoptic  # noqa: B018
    with pytest.raises(ValueError, match="name one or more of panoptic, semantic, instances"):
        segmenter(make_photo((200, 300)), tasks=["semantic", "masks"])
    with pytest.raises(ValueError, match="overlap_threshold is 5.0; it is a share, from 0 to 1"):
        segmenter(make_photo((200, 300)), overlap_threshold=5.0)


def test_defaults_of_the_checkpoint(monkeypatch):
    used = []
    monkeypatch.setattr(engine.Engine, "segment", lambda self, images, **options: used.append(options) or iter(()))
    defaults = DefaultsDescription(
        short_side=96,
        max_side=160,
        overlap_threshold=0.25,
        instance_threshold=0.125,
        semantic_void_trust=0.5,
        instance_scores="mask_logit",
    )
    model, words = random_model(SMALL), Vocabulary.load("coco_panoptic")

    def make(**options):
        made = Segmenter(model, words, fingerprint="", defaults=defaults, **options)
        return made, (made.engine.feeder.short_side, made.engine.feeder.max_side)

    segmenter, sides = make()
    assert sides == (96, 160)
    assert make(short_side=64)[1] == (64, 160) and make(max_side=128)[1] == (96, 128)
    list(segmenter.stream([]))
    segmenter([])
    segmenter([], overlap_threshold=0.0)
    segmenter([], void_trust=0.25)
    segmenter([], void_trust={"instances": 1.0, "semantic": 0.0})
    assert [options["overlap_threshold"] for options in used] == [0.25, 0.25, 0.0, 0.25, 0.25]
    own, chosen, other = (options["void_trust"] for options in used[2:])
    assert own == {"panoptic": 0.0, "semantic": 0.5, "instances": 0.0}
    assert chosen == {"panoptic": 0.25, "semantic": 0.5, "instances": 0.0}
    assert other == {"panoptic": 0.0, "semantic": 0.0, "instances": 1.0}
    assert {options["instance_scores"] for options in used} == {"mask_logit"}
    assert {options["instance_threshold"] for options in used} == {0.125}
    for wrong in (-0.1, {"masks": 0.5}):
        with pytest.raises(ValueError, match="choose numbers from 0 to 1 for panoptic, semantic, instances"):
            segmenter([], void_trust=wrong)


def test_void_trust_is_each_tasks_own(segmenter):
    """Void goes down in the results of the task that it is for, in no other, and compiles nothing."""
    segmenter.set_classes(WORDS)
    photo = make_photo((200, 300))
    plain = segmenter(photo, overlap_threshold=0.0)
    programs = segmenter.engine._segment._cache_size()
    found = segmenter(photo, overlap_threshold=0.0, void_trust={"panoptic": 1.0})
    more = segmenter(photo, overlap_threshold=0.0, void_trust={"instances": 1.0})
    assert segmenter.engine._segment._cache_size() == programs

    def scores(result):
        return max(s.score for s in result.panoptic.segments), max(i.score for i in result.instances)

    (segment, instance), (segment_only, same), (also_same, instance_only) = map(scores, (plain, found, more))
    assert segment_only > 1.0001 * segment and instance_only > 1.0001 * instance
    assert (same, also_same) == (instance, segment)
    np.testing.assert_array_equal(found.semantic, plain.semantic)


def test_words_that_the_model_does_not_know():
    segmenter = Segmenter(
        random_model(SMALL), Vocabulary.load("coco_panoptic"), fingerprint="", known_words=["cat", "night sky"]
    )
    assert segmenter.known_words == ("cat", "night sky")
    segmenter.set_classes(["Night  sky"])
    with pytest.raises(ValueError, match="'kitten' is not one of them; segmenter.known_words lists them all"):
        segmenter.set_classes(["cat, kitten"])
    assert [entry.name for entry in segmenter.vocabulary.classes] == ["Night sky"]


def test_the_training_words_are_the_default(segmenter):
    segmenter.set_classes()
    assert segmenter.vocabulary == segmenter.training_vocabulary == Vocabulary.load("coco_panoptic")
    with pytest.raises(ValueError, match="stuff needs a list of words"):
        segmenter.set_classes(stuff=["sky"])
    nothing = Segmenter(random_model(SMALL), Vocabulary("none", ()), fingerprint="")
    with pytest.raises(ValueError, match="this model was trained on no words; name the classes"):
        nothing.set_classes()


def test_a_class_that_is_probably_a_list_is_warned_of(segmenter):
    with pytest.warns(
        UserWarning, match=r"if these are 3 classes, separate them: .* \[\"cat\", \"dog\", \"person\"\] as"
    ):
        segmenter.set_classes(["cat, dog, person"])
    assert [entry.names for entry in segmenter.vocabulary.classes] == [("cat", "dog", "person")]


def test_the_rest_of_a_stream_is_done(segmenter, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    segmenter.set_classes(WORDS)
    photos = [make_photo((80, 100)), tmp_path / "text.jpg", Image.new("RGB", (0, 5)), make_photo((80, 100))]
    stream = segmenter.stream(photos)
    found = dict([next(stream)])
    segmenter.set_classes(["other words"])  # for the next stream, not for this one
    found |= dict(stream)
    assert [type(found[i]).__name__ for i in range(4)] == ["Result", "ValueError", "ValueError", "Result"]
    assert found[0].vocabulary == found[3].vocabulary and len(found[3].vocabulary.classes) == len(WORDS)
    with pytest.raises(ValueError, match="text.jpg: it is not an image"):
        segmenter([tmp_path / "text.jpg"])


def test_an_image_that_needs_too_much_memory_ends_nothing(segmenter, monkeypatch):
    """The program of the large canvas fails when it starts, as on a GPU, or when its results are fetched, as on a CPU."""
    images = [make_photo((50, 60)), make_photo((700, 60)), make_photo((60, 50))]
    segmenter.set_classes(WORDS)
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99999999999 bytes.")
    run, fetch = segmenter.engine._segment, jax.device_get

    def run_out(*arguments, canvas, **options):
        if canvas == (1344, 1344):
            raise error
        return run(*arguments, canvas=canvas, **options)

    def fetch_nothing(output):
        if output.semantic.shape[1] == 1344:
            raise error
        return fetch(output)

    for place, name, failing in ((segmenter.engine, "_segment", run_out), (jax, "device_get", fetch_nothing)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing)
            found = dict(segmenter.stream(images))
            assert isinstance(found[1], MemoryError)
            assert [found[place].semantic.shape for place in (0, 2)] == [(50, 60), (60, 50)]
            with pytest.raises(MemoryError):
                segmenter(images)


def test_other_faults_are_not_taken_for_too_little_memory(segmenter, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setattr(segmenter.engine, "_segment", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        segmenter(make_photo((50, 60)))


@pytest.mark.parametrize(
    ("output_size", "shapes"),
    [
        ("network", [(144, 96), (96, 128)]),
        (150, [(150, 100), (90, 120)]),
    ],
)
def test_the_size_of_results(segmenter, output_size, shapes):
    """Maps of another size are the full ones, read at other pixels, and most pixels agree."""
    photos = [make_photo((300, 200)), make_photo((90, 120))]
    small = Segmenter.random(short_side=96, max_side=160, output_size=output_size)
    for each in (segmenter, small):
        each.set_classes(WORDS)
    for result, whole, shape in zip(small(photos), segmenter(photos), shapes, strict=True):
        assert result.image.shape[:2] == result.semantic.shape == result.panoptic.id_map.shape == shape
        assert all(instance.mask.shape == shape for instance in result.instances)
        assert result.image.flags.writeable
        rows, columns = ((np.arange(n) + 0.5) * m // n for n, m in zip(shape, whole.semantic.shape, strict=True))
        places = np.ix_(rows.astype(int), columns.astype(int))
        assert (result.semantic == whole.semantic[places]).mean() > 0.9
        mask, expected = result.instances[0].mask, whole.instances[0].mask[places]
        assert (mask == expected).mean() > 0.9
        assert (mask == expected[::-1, ::-1]).mean() < 0.8, "the mask is too even to show anything"
        if whole.semantic.shape == shape:
            np.testing.assert_array_equal(result.semantic, whole.semantic)


@pytest.mark.parametrize("output_size", ["images", 0, -5, True])
def test_sizes_of_results_that_make_no_sense(output_size):
    with pytest.raises(ValueError, match='output_size is .*; choose "image", "network" or a number of pixels'):
        Segmenter.random(output_size=output_size)


def test_new_weights_compile_nothing(segmenter, compilations):
    segmenter.set_classes(WORDS)
    photo = make_photo((200, 300))
    before = segmenter(photo)
    compiled = len(compilations)
    answers = []
    for seed in (1, 0):
        weights = {name: np.asarray(value[...]) for name, value in named_variables(random_model(SMALL, seed)).items()}
        segmenter.engine.set_weights(
            {name: value for name, value in weights.items() if not name.startswith("clip.text.")}
        )
        answers.append(segmenter(photo))
    assert len(compilations) == compiled
    others, same, old = ([found.score for found in answer.instances] for answer in (*answers, before))
    assert same == old and others != old
    np.testing.assert_array_equal(answers[1].panoptic.id_map, before.panoptic.id_map)

    with pytest.raises(ValueError, match="the image model has no variable mask_decoder.nothing"):
        segmenter.engine.set_weights({"mask_decoder.nothing": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"void_embedding has shape \(.*\), but its new value has \(3,\)"):
        segmenter.engine.set_weights({"void_embedding": np.zeros(3, np.float32)})


def test_warm_up():
    """A program for each of two buckets and, at the end, one for another task."""
    segmenter = Segmenter.random(short_side=64, max_side=128, batch_size=2, batched=True)
    with pytest.raises(ValueError, match="call Segmenter.set_classes first"):
        segmenter.warm_up([(60, 80)])
    segmenter.set_classes(WORDS)
    photos = [make_photo(size) for size in ((60, 80), (66, 82), (200, 100))]
    with caching.compile_times() as times:
        segmenter.warm_up((photo.shape[:2] for photo in photos), tasks=["semantic"])
        assert len(times) == 2
        assert len(segmenter(photos, tasks=["semantic"])) == 3
        assert len(times) == 2
        segmenter(photos[0], tasks=["panoptic"])
        assert len(times) == 3


@pytest.mark.parametrize("size", [(0, 5), (5,), 480, (2.5, 3.0), "ab", (10**9, 10**9)])
def test_sizes_that_cannot_be_warmed_up(segmenter, size):
    segmenter.set_classes(WORDS)
    with pytest.raises(ValueError, match=r"sizes has .*; give the \(height, width\) of images, in pixels"):
        segmenter.engine.warm_up(iter([(480, 640), size]))


def test_ten_thousand_words(segmenter):
    """A list that begins elsewhere shifts the map's numbers and changes nothing else."""
    words = [f"thing number {i}" for i in range(10_000)]
    photo, maps = make_photo((60, 80)), []
    for first in (0, 3_000):
        segmenter.set_classes(words[first:] + words[:first])
        maps.append((segmenter(photo, tasks=["semantic"]).semantic + first) % len(words))
    assert maps[0].max() >= 3_000
    # The softmax adds the classes in another order: a pixel between two classes may change.
    assert (maps[0] == maps[1]).mean() > 0.99


def test_what_is_refused():
    with pytest.raises(ValueError, match="call Segmenter.set_classes first"):
        Segmenter.random()(make_photo((20, 20)))
    with pytest.raises(ValueError, match="short_side 900 and max_side 800 do not fit; choose 1 <= short_side"):
        Segmenter.random(short_side=900, max_side=800)
    with pytest.raises(ValueError, match="bucket 100x100 has a side that is not a multiple of 32; try 128x128"):
        Segmenter.random(buckets=[(100, 100)])
    with pytest.raises(ValueError, match="buckets is empty"):
        Segmenter.random(buckets=[])
    with pytest.raises(ValueError, match="a vocabulary defines which of its classes are stuff"):
        Segmenter.random().set_classes("cityscapes", stuff=["car"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        Segmenter.random(batch_size=0)


def test_random_weights_by_their_name(monkeypatch):
    made = []
    monkeypatch.setattr(Segmenter, "random", classmethod(lambda cls, **options: made.append(options)))
    Segmenter.load("random", short_side=64)
    assert made[0]["short_side"] == 64 and made[0]["batch_size"] == 1


def test_a_buffer_that_the_caller_reuses(segmenter):
    """Frames come through one array: each result is of its own frame, and keeps it."""
    segmenter.set_classes(WORDS)
    frames = [np.asarray(make_photo((96, 128), seed)) for seed in range(4)]
    buffer = np.empty_like(frames[0])

    def through_the_buffer():
        for frame in frames:
            buffer[:] = frame
            yield buffer

    results = dict(segmenter.stream(through_the_buffer(), tasks=["semantic"]))
    for position, frame in enumerate(frames):
        np.testing.assert_array_equal(results[position].image, frame)
        np.testing.assert_array_equal(results[position].semantic, segmenter(frame, tasks=["semantic"]).semantic)


def test_an_animation_and_an_open_file(segmenter, tmp_path):
    """Asking for the next frame changes the PIL image that held this one; a list may hold one open file several times."""
    segmenter.set_classes(WORDS)
    frames = [Image.fromarray(make_photo((96, 128), seed)).convert("P") for seed in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        expected = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
        results = dict(segmenter.stream(ImageSequence.Iterator(animation), tasks=["semantic"]))
    assert len({frame.tobytes() for frame in expected}) == 4
    for position, frame in enumerate(expected):
        np.testing.assert_array_equal(results[position].image, frame)
    with (tmp_path / "a.gif").open("rb") as file:
        for result in segmenter([file] * 8, tasks=["semantic"]):
            np.testing.assert_array_equal(result.image, expected[0])
