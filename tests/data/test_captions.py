"""The stream of images with captions, and a folder of your own: the same on any number of processes; bad input is named."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.conventions import END_ID
from fcclip_jax.data.caption_folder import CaptionFolder
from fcclip_jax.data.captions import MOST_NAMES, NO_NAME, Caption, CaptionExample, Size, caption_batches
from fcclip_jax.models.descriptions import TextDescription
from fcclip_jax.text.tokenizer import tokenize

TEXT = TextDescription(width=8, heads=1, layers=1, embed_dim=8, quick_gelu=False, context_length=32)
SIZES = (Size(8, 4, 1), Size(16, 2, 3))


class Numbered:
    """Images whose pixels are their index, of two or three captions; those in `bad` cannot be read."""

    name = "numbered"

    def __init__(self, length: int = 200, bad: tuple[int, ...] = ()):
        self._length, self._bad = length, bad

    def __len__(self) -> int:
        return self._length

    def example(self, index: int, rng: np.random.Generator, side: int) -> CaptionExample:
        if index in self._bad:
            raise ValueError(f"cannot read image {index}")
        image = np.full((side, side, 3), index, np.uint8)
        image[0, 0] = rng.integers(256)
        captions = (Caption(f"a photo of number {index}.", (str(index),)), Caption(f"the number {index}"))
        return CaptionExample(image, (str(index), "number"), captions)


def take(count: int, source=None, **options):
    settings = {"sizes": SIZES, "process_index": 0, "process_count": 1, "seed": 5, **options}
    batches = caption_batches(Numbered() if source is None else source, TEXT, settings.pop("sizes"), **settings)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def indices(step) -> list[int]:
    return step.batch.images[:, 1, 1, 0].tolist()


def test_sizes_by_turns_after_the_first_steps():
    found = [step.batch for step in take(6, first_steps=3)]
    assert [batch.images.shape for batch in found] == [(4, 8, 8, 3)] * 4 + [(2, 16, 16, 3), (4, 8, 8, 3)]
    # Every caption has a row, also an image's repeated one.
    assert [len(batch.tokens) for batch in found] == [4, 4, 4, 4, 6, 4]
    assert [len(batch.text_names) for batch in found] == [4, 4, 4, 4, 6, 4]


def test_an_epoch_has_every_image_once():
    seen = [index for step in take(8, Numbered(12)) for index in indices(step)]
    assert sorted(seen[:12]) == sorted(seen[12:24]) == list(range(12))
    assert seen[:12] != seen[12:24]


def test_a_step_depends_on_its_number_alone():
    whole = take(5, first_steps=2)
    for resumed, step in zip(take(2, first_steps=2, start=3), whole[3:], strict=True):
        for found, expected in zip(resumed.batch, step.batch, strict=True):
            np.testing.assert_array_equal(found, expected)
    halves = [take(5, first_steps=2, process_index=index, process_count=2) for index in range(2)]
    for step, *parts in zip(whole, *halves, strict=True):
        first, second = (part.batch for part in parts)
        # Processes cannot know the longest text of the others, so they keep the padding.
        assert first.tokens.shape[1] == second.tokens.shape[1] == TEXT.context_length
        padding = ((0, 0), (0, TEXT.context_length - step.batch.tokens.shape[1]))
        expected = step.batch._replace(tokens=np.pad(step.batch.tokens, padding))
        for ours, *halves_of_it in zip(expected, first, second, strict=True):
            np.testing.assert_array_equal(np.concatenate(halves_of_it), ours)
    assert not np.array_equal(take(1, seed=6)[0].batch.images, take(1)[0].batch.images)


def test_rows_belong_together():
    """Captions follow their image, and the first ones are taken, again if there are not enough."""
    one, several = (step.batch for step in take(2))
    for row, index in enumerate(one.images[:, 1, 1, 0].tolist()):
        texts = [f"a photo of number {index}."]
        np.testing.assert_array_equal(one.tokens[row], tokenize(texts, TEXT.context_length)[0, : one.tokens.shape[1]])
        assert one.text_names[row, 0] == one.image_names[row, 0]
    for row, index in enumerate(several.images[:, 1, 1, 0].tolist()):
        texts = [f"a photo of number {index}.", f"the number {index}", f"a photo of number {index}."]
        own = slice(3 * row, 3 * row + 3)
        expected = tokenize(texts, TEXT.context_length)[:, : several.tokens.shape[1]]
        np.testing.assert_array_equal(several.tokens[own], expected)
        # A caption without names is true of the images that have it.
        assert np.isin(several.text_names[own, 0], several.image_names[row]).all()


def test_tokens_are_cut_after_the_longest_text():
    (step,) = take(1)
    tokens = step.batch.tokens
    # Start, end, "a photo of number ." and up to three digits are 8 to 10 tokens.
    assert tokens.shape == (4, 16) and (tokens == END_ID).any(axis=1).all()
    assert step.batch.image_names.shape == (4, MOST_NAMES)
    assert (step.batch.text_names[:, 1:] == NO_NAME).all()


def test_an_images_own_captions_are_always_true_of_it():
    """More names than are counted do not displace those of the captions."""

    class Crowded(Numbered):
        def example(self, index, rng, side):
            example = super().example(index, rng, side)
            names = tuple(f"name {i}" for i in range(2 * MOST_NAMES))
            more = tuple(Caption(f"text {i} of {index}") for i in range(2 * MOST_NAMES))
            return example._replace(names=names, captions=(*more, Caption("the last", (names[-1],)))[-3:])

    (step,) = take(1, Crowded(), sizes=(Size(8, 4, 3),))
    batch = step.batch
    for row in range(4):
        assert np.isin(batch.text_names[3 * row : 3 * row + 3, 0], batch.image_names[row]).all()


def test_unreadable_images_are_replaced_and_reported():
    good = take(30)
    lost = indices(good[2])[1]
    bad = take(30, Numbered(bad=(lost,)))
    assert bad[2].skipped == (f"cannot read image {lost}",)
    # The stream's next image takes the place; all other rows stay.
    expected = indices(good[2])
    expected[1] = expected[2]
    assert indices(bad[2]) == expected
    assert all(indices(a) == indices(b) for a, b in zip(good[:2] + good[3:10], bad[:2] + bad[3:10], strict=True))


def test_data_that_cannot_be_used():
    with pytest.raises(ValueError, match="numbered has no images"):
        take(1, Numbered(0))
    with pytest.raises(ValueError, match="2 images of 16 pixels do not divide over 4 processes"):
        take(1, process_count=4)
    with pytest.raises(
        ValueError, match=r"100 images in a row cannot be read, the last: cannot read image \d+; repair"
    ):
        take(1, Numbered(bad=tuple(range(200))))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Returns a file that describes three photographs of one colour."""
    rows = []
    for i, colour in enumerate(("red", "green", "blue")):
        pixels = np.zeros((40 + 8 * i, 64, 3), np.uint8)
        pixels[..., i] = 200
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{colour}.jpg", quality=95)
        rows.append({"image": f"photos/{colour}.jpg", "captions": [f"something {colour}", "Paint"]})
    rows[0]["names"] = ["paint", "red"]
    rows[1]["names"] = ["paint"]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return file


def test_a_folder_of_your_own(folder):
    source = CaptionFolder(str(folder))
    assert len(source) == 3 and source.name == str(folder)
    for index in range(3):
        example = source.example(index, np.random.default_rng(index), 32)
        assert example.image.shape == (32, 32, 3)
        # JPEG keeps a plain colour to a few levels.
        assert np.abs(example.image.mean(axis=(0, 1)) - 200 * np.eye(3)[index]).max() < 5
        assert {caption.text for caption in example.captions} == {
            f"something {('red', 'green', 'blue')[index]}",
            "Paint",
        }
    # "Paint" names something in the first two; in the last it is a caption like any other.
    named = [dict(source.example(index, np.random.default_rng(0), 32).captions)["Paint"] for index in range(3)]
    assert named == [("Paint",), ("Paint",), ()]
    orders = {source.example(0, np.random.default_rng(seed), 32).captions for seed in range(20)}
    assert len(orders) == 2


def test_a_name_as_caption_is_true_of_every_image_that_has_it(folder):
    rows = [json.loads(line) for line in folder.read_text().splitlines() if line]
    rows[0] |= {"captions": ["paint"]}
    rows[1] |= {"captions": ["something green"]}
    folder.write_text("\n".join(map(json.dumps, rows[:2])))
    (step,) = take(1, CaptionFolder(folder), sizes=(Size(32, 2, 1),))
    paint = int(np.argmax(step.batch.images.mean(axis=(1, 2))[:, 0]))
    found = [
        step.batch.text_names[row, 0] in step.batch.image_names[other] for row in (paint, 1 - paint) for other in (0, 1)
    ]
    assert found == [True, True, paint == 1, paint == 0]


def test_crops_are_parts_of_the_image(tmp_path):
    """A gradient tells where a crop is from: at least half of the area, undistorted but for its shape."""
    rows, columns = np.mgrid[:60, :80]
    pixels = np.stack([rows * 4, columns * 3, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "captions": ["a"]}')
    source = CaptionFolder(tmp_path / "a.jsonl")
    areas = []
    for seed in range(40):
        image = source.example(0, np.random.default_rng(seed), 64).image.astype(float)
        height = (image[-1, 0, 0] - image[0, 0, 0]) / 4 + 1
        width = (image[0, -1, 1] - image[0, 0, 1]) / 3 + 1
        areas.append(height * width / 4800)
    # The pixels at the borders are blurred by the resizing: sides are exact to about a pixel.
    assert 0.42 < min(areas) < 0.7 and 0.8 < max(areas) < 1.05


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("{", "it is not JSON (Expecting property name"),
        ('{"image": "a.jpg"}', 'expected {"image": PATH, "captions": [TEXT, ...]}'),
        ('{"image": "a.jpg", "captions": []}', 'got {"image": "a.jpg", "captions": []}'),
        ('{"image": "a.jpg", "captions": "a cat"}', "expected"),
        ('{"image": "a.jpg", "captions": [" "]}', "expected"),
        ('{"image": "a.jpg", "captions": ["a cat", 3]}', "expected"),
        ('{"image": 3, "captions": ["a cat"]}', "expected"),
        ('{"image": "a.jpg", "captions": ["a cat"], "names": "cat"}', 'optionally with "names": [NAME, ...]'),
        ('{"image": "a.jpg", "captions": ["a cat"], "names": [3]}', "expected"),
        ('["a.jpg", "a cat"]', "expected"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, complaint):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"image": "a.jpg", "captions": ["a cat"]}\n' + line)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}, line 2: .*{re.escape(complaint)}"):
        CaptionFolder(file)


def test_files_that_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"the captions .*nowhere.jsonl do not exist; give a file of json lines"
    ):
        CaptionFolder(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"image": "a.jpg", "captions": ["café"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl is not UTF-8"):
        CaptionFolder(tmp_path / "latin.jsonl")
    (tmp_path / "lost.jsonl").write_text('{"image": "lost.jpg", "captions": ["a cat"]}')
    with pytest.raises(FileNotFoundError, match=r"the image .*lost.jpg does not exist"):
        CaptionFolder(tmp_path / "lost.jsonl").example(0, np.random.default_rng(0), 32)
