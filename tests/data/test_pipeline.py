"""The stream of batches: the same for any number of processes and from any start; bad images are replaced."""

import numpy as np
import pytest

from fcclip_jax.data import decoding, pipeline, transforms
from fcclip_jax.data.folder import FolderDataset
from tests.data import tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return FolderDataset(*tiny.write(tmp_path_factory.mktemp("tiny"), 7))


def take(dataset, count, **options):
    settings = {"crop": 32, "batch_size": 4, "process_index": 0, "process_count": 1, "seed": 5, "max_segments": 6}
    batches = pipeline.train_batches(dataset, **(settings | options))
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def rows_of(example):
    batch = example.batch
    return (batch.images, batch.targets.segment_map, batch.targets.labels, batch.positions)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(rows_of(one), rows_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_batch(dataset):
    example = take(dataset, 1)[0]
    images, segment_map, labels, positions = rows_of(example)
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.uint8
    assert segment_map.shape == (4, 32, 32) and segment_map.dtype == np.uint8
    assert labels.dtype == np.int32 and positions.dtype == np.int32
    # Category ids 7, 3, 9 are classes 1, 0, 2; the crowd is left out.
    assert labels.tolist() == [[1, 0, 2, -1, -1, -1]] * 4
    assert positions.tolist() == [0, 1, 2, 3]
    assert example.skipped == () and example.over_budget == 0


def test_each_row_is_its_image_jittered_by_its_position(dataset):
    """An epoch has every image once; the draws are those of (seed, position)."""
    decoded = [decoding.decode(dataset[index]) for index in range(len(dataset))]
    seen = []
    for example in take(dataset, 3, batch_size=7):
        images, maps, _, positions = rows_of(example)
        epoch = []
        for image, segment_map, position in zip(images, maps, positions.tolist(), strict=True):
            jitter = transforms.draw_jitter(np.random.default_rng([5, position]))
            same = [
                index
                for index, (pixels, segments) in enumerate(decoded)
                if np.array_equal(transforms.jitter_image(pixels, jitter, 32), image)
                and np.array_equal(transforms.jitter_map(segments.segment_map, jitter, 32), segment_map)
            ]
            epoch += same
        assert sorted(epoch) == list(range(7))
        seen.append(tuple(epoch))
    assert len(set(seen)) == 3  # shuffled differently each time
    assert not np.array_equal(rows_of(take(dataset, 1, seed=6)[0])[0], images[:4])


def test_the_same_from_any_start(dataset):
    whole = take(dataset, 5)
    assert_same(take(dataset, 2, start=3), whole[3:])


def test_the_same_on_two_processes(dataset):
    halves = [take(dataset, 3, process_index=index, process_count=2) for index in range(2)]
    for example, *parts in zip(take(dataset, 3), *halves, strict=True):
        for one, *others in zip(rows_of(example), *map(rows_of, parts), strict=True):
            np.testing.assert_array_equal(one, np.concatenate(others))


def test_the_same_with_workers_and_a_bad_image_in_them(tmp_path):
    paths = tiny.write(tmp_path, 101)
    dataset = FolderDataset(*paths)
    bad = paths.images / "050.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    options = {"batch_size": 32, "start": 1}
    plain = take(dataset, 6, **options)
    assert_same(take(dataset, 6, workers=2, **options), plain)
    reasons = [reason for example in plain for reason in example.skipped]
    # It comes once in each epoch, and is one image of 101: less than 1 %.
    assert len(reasons) >= 1 and len(set(reasons)) == 1 and "050.jpg" in reasons[0] and "\n" not in reasons[0]


def test_a_bad_image_is_replaced_by_the_next(tmp_path):
    paths = tiny.write(tmp_path, 100)
    dataset = FolderDataset(*paths)
    good = take(dataset, 1, batch_size=100)[0]
    position = 41
    file = dataset[int(pipeline.order(5, 0, 100)[position])].file_name
    (paths.images / file).write_bytes(b"")
    example = take(dataset, 1, batch_size=100)[0]
    assert [reason.split(":")[0] for reason in example.skipped] == [file]
    others = np.arange(100) != position
    np.testing.assert_array_equal(example.batch.images[others], good.batch.images[others])
    # The next image with the draws of this place.
    pixels, _ = decoding.decode(dataset[int(pipeline.order(5, 0, 100)[position + 1])])
    jitter = transforms.draw_jitter(np.random.default_rng([5, position]))
    np.testing.assert_array_equal(example.batch.images[position], transforms.jitter_image(pixels, jitter, 32))
    # Two unreadable images of 100 are more than 1 %.
    (paths.pngs / "099.png").unlink()
    (paths.images / "098.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"\d of 100 images cannot be read, which is more than 1%; repair the dataset. The first: "
    ):
        take(dataset, 2, batch_size=100)


@pytest.mark.parametrize("workers", [0, 1])
def test_few_images_must_all_be_good(tmp_path, workers):
    paths = tiny.write(tmp_path, 3)
    dataset = FolderDataset(*paths)
    (paths.images / "001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 3 images cannot be read.*001.jpg"):
        take(dataset, 3, workers=workers)


def test_segments_over_the_budget_are_counted(dataset):
    example = take(dataset, 1, max_segments=2)[0]
    assert example.over_budget == 4  # the one without pixels, of each
    assert example.batch.targets.labels.tolist() == [[1, 0]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "process_count": 2}, "batch_size is 3; it must be a positive multiple of the 2 processes"),
        ({"max_segments": 256}, "max_segments is 256; it must be from 1 to 255"),
        ({"workers": -1}, r"workers \(-1\), start \(0\) and seed \(5\) must be at least 0"),
    ],
)
def test_what_is_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        take(dataset, 1, **options)
