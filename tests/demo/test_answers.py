"""Tests the answers to visitors, without a page: with the packaged model, and with random weights for words in number."""

import numpy as np
import pytest
from PIL import Image

from fcclip_jax import caching, cli
from fcclip_jax.demo import overlay, serving
from fcclip_jax.demo.answers import Answerer, Question, read_photo
from fcclip_jax.inference import fonts
from fcclip_jax.inference.segmenter import Segmenter
from tests.demo.answers_known import PICTURES, SNOW_STUFF, SNOW_WORDS


def ask(photo=str(PICTURES / "snow.jpg"), words=SNOW_WORDS, stuff=SNOW_STUFF, alpha=0.5, beta=0.9, void_trust=0.5):
    return Question(photo, words, stuff, alpha, beta, void_trust)


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    """The packaged model, with an empty cache of embeddings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FCCLIP_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        answerer = Answerer(Segmenter.load("world", keep_words=False))
        answerer.warm_up(SNOW_WORDS, SNOW_STUFF)
        assert not (caching.cache_dir() / "text").exists()  # what visitors ask is not kept
    return answerer


@pytest.fixture
def compiled(answerer):
    """Returns the number of compiled programs."""
    return answerer.segmenter.engine._segment._cache_size


def test_the_answer_is_the_segmenters(answerer):
    answer = answerer.answer(ask())
    height, width = answer.result.image.shape[:2]
    assert answer.sentence.startswith(f"{width} x {height} pixels, ")
    assert answer.sentence.endswith(" s; 6 classes: snow (stuff), mailbox, butterfly, saw, doughnut, sunglasses.")
    segmenter = Segmenter.load("world")
    segmenter.set_classes(SNOW_WORDS.split(", "), stuff=[SNOW_STUFF])
    expected = segmenter(PICTURES / "snow.jpg")
    names = [segment.name for segment in expected.panoptic.segments]
    assert {"snow", "butterfly", "doughnut"} <= set(names)
    assert [segment.name for segment in answer.result.panoptic.segments] == names
    # The square bucket sums in another order, which may move pixels on the borders of segments.
    assert np.mean(answer.result.panoptic.id_map == expected.panoptic.id_map) > 0.999


def test_visitors_with_other_words_settings_and_sizes_share_the_program(answerer, compiled, tmp_path):
    before = compiled()
    Image.new("RGB", (90, 300)).save(tmp_path / "tall.png")
    Image.new("RGB", (1500, 700)).save(tmp_path / "wide.png")
    assert answerer.answer(ask(words="night sky, skull", stuff="")).result.vocabulary.classes[1].name == "skull"
    plain = answerer.answer(ask()).result.instances
    for question in (ask(str(tmp_path / "tall.png")), ask(str(tmp_path / "wide.png")), ask(void_trust=0.0)):
        assert answerer.answer(question).result is not None
    moved = answerer.answer(ask(alpha=0.0, beta=0.0)).result.instances
    assert max(instance.score for instance in moved) != max(instance.score for instance in plain)
    assert compiled() == before == 1


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (ask(None), "Choose a photograph first."),
        (ask(words=" , "), "Name at least one word to look for."),
        (ask(words="snow, snow"), "The class 'snow' is named 2 times; name each class once."),
        (ask(stuff="sea"), "Stuff 'sea' is not among the classes; name a class by its first synonym."),
        (
            ask(words="buterfly", stuff=""),
            "This model knows 283 words; 'buterfly' is not one of them; nearest: butterfly; the foot of the page lists them all.",
        ),
        (ask("gone.jpg"), "The file gone.jpg is no longer here, because uploads are deleted; upload it again."),
    ],
)
def test_a_question_without_an_answer_gets_one_sentence(answerer, question, sentence):
    answer = answerer.answer(question)
    assert answer.result is None
    assert answer.sentence == sentence


def test_damaged_files(answerer, tmp_path):
    text, half = tmp_path / "text.jpg", tmp_path / "half.jpg"
    text.write_text("no picture")
    half.write_bytes((PICTURES / "snow.jpg").read_bytes()[:3000])
    assert (
        answerer.answer(ask(str(text))).sentence
        == "The file text.jpg cannot be read: it is not an image in a known format."
    )
    sentence = answerer.answer(ask(str(half))).sentence
    assert sentence.startswith("The file half.jpg cannot be read: image file is truncated")


def test_a_photograph_of_40_megapixels_is_downscaled(tmp_path):
    path = tmp_path / "large.jpg"
    pixels = np.zeros((5478, 7304, 3), np.uint8)
    pixels[:, :3652, 0] = pixels[:, 3652:, 2] = 250
    Image.fromarray(pixels).save(path)
    small, note = read_photo(str(path))
    assert note == "; downscaled from 7304 x 5478 (40 megapixels)"
    assert small.shape == (1536, 2048, 3)
    # JPEG and the filter change flat colours by a few levels, near the edge by more.
    assert abs(small[:, :1000].astype(int) - (250, 0, 0)).max() <= 4
    assert abs(small[:, 1048:].astype(int) - (0, 0, 250)).max() <= 4


def test_300_words():
    answerer = Answerer(Segmenter.random(short_side=64, max_side=96))
    words = ", ".join(f"thing {number}" for number in range(300))
    answer = answerer.answer(ask(words=words, stuff="", void_trust=0.0))
    assert "; 300 classes: thing 0, thing 1, " in answer.sentence and answer.sentence.endswith(", and 288 more.")
    assert [entry.name for entry in answer.result.vocabulary.classes] == words.split(", ")
    assert set(np.unique(answer.result.semantic)) <= set(range(300))


def test_a_list_without_commas_is_answered_with_advice():
    answerer = Answerer(Segmenter.random(short_side=64, max_side=96))
    answer = answerer.answer(ask(words="cat dog person", stuff="", void_trust=0.0))
    assert answer.sentence.endswith(
        "s; 1 class: cat dog person. 'cat dog person' is one class; if these are 3 classes, separate them:"
        ' \'cat, dog, person\' as text, ["cat", "dog", "person"] as a list.'
    )
    assert [
        entry.name for entry in answerer.answer(ask(words="cat; dog|puppy\nsofa", stuff="")).result.vocabulary.classes
    ] == ["cat", "dog", "sofa"]


def test_words_that_no_font_can_draw_are_said_to_the_visitor_alone(monkeypatch, capsys):
    """The command's own filter keeps them out of the server's log."""
    monkeypatch.setattr(fonts, "_system_font", lambda text: None)  # a machine without fonts for Chinese
    segmenter = Segmenter.load("random", short_side=32, max_side=64)
    served = []

    def serve(build, **_):
        answer = answerers[0].answer(ask(words="cat, \u732b", stuff=""))
        overlay.render(answer.result, "panoptic", 0.5)
        served.append(answer.sentence)

    answerers = []
    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(Segmenter, "load", lambda *_, **__: segmenter)
    monkeypatch.setattr(Answerer, "warm_up", lambda self, *_: answerers.append(self))
    assert cli.main(["demo", "--weights", "random"]) == 0
    (sentence,) = served
    assert "no font of this system has all letters of \u732b, so labels show boxes for them." in sentence.lower()
    assert "\u732b" not in capsys.readouterr().err
