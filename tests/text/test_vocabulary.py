"""Shipped vocabularies, vocabularies of your own words, and their JSON."""

import dataclasses
import json

import pytest

from fcclip_jax.text.prompts import PROMPT_TEMPLATES
from fcclip_jax.text.vocabulary import Vocabulary, VocabularyClass, color_of, shipped

# name: classes, things, synonyms, ignore_label, seen by COCO, first and last class, sha256 of the official prompts.
# fmt: off
SHIPPED = {
    "ade20k_150": (150, 100, 403, 255, 64, "wall", "flag",
                   "f32e151d8ddcfa5465b60228d316a85478e066b178ac650e7bd19e45c70c3bd4"),
    "ade20k_847": (847, 0, 1342, 65535, 101, "wall", "adding machine",
                   "d8810fbc7b3d9bdf4406b0df50b9af87b848c5a8293088776e8040c98c1e3bea"),
    "cityscapes": (19, 8, 60, 255, 17, "road", "bicycle",
                   "cd15538cc264c32c35015ae20fb611de1671bedf1cfea236cac52a16cb8d9290"),
    "coco_panoptic": (133, 80, 254, 255, 133, "person", "rug",
                      "509a4c5eae3ed37e8127336317fa29dc31b665eb471098cd311055b9db425d05"),
    "lvis_1203": (1203, 1203, 1825, None, 80, "aerosol can", "zucchini",
                  "a314e4d8fabd75edb3c0f9460745ff020b1e54022f98c113f8bffe6fcb3135a0"),
    "mapillary_vistas": (65, 37, 153, 65, 26, "bird", "ego vehicle",
                         "508841439559c96991a6d1bd54acca3f7cecbffb86fcdf4535875e54a74abfff"),
    "pascal_context_459": (459, 0, 559, 65535, 85, "accordion", "wool",
                           "d1c7b68f72059e8498de7824c56c000a6f671893398f522bc191e94d0a3b5e8a"),
    "pascal_context_59": (59, 0, 160, 255, 51, "aeroplane", "wood piece",
                          "e41158346747daeba428450c5cac06b744d7fcb1b5f2023c7441dd4524dba741"),
    "pascal_voc_20": (20, 0, 79, 255, 20, "aeroplane", "tvmonitor",
                      "09ca83a78dce8a458e3eea730dbe6663a220c647898ea50fdc227fb0c3a6994f"),
    "pascal_voc_21": (21, 0, 153, 255, 21, "background", "tvmonitor",
                      "95300df82eb000377942c1bcdf3e4c2b27096ebc50c1c46ea9ff2c4c4b682d35"),
}
# fmt: on


def test_the_ten_are_shipped_and_the_world():
    assert shipped() == (*SHIPPED, "world")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(name):
    classes, things, synonyms, ignore_label, seen, first, last, sha256 = SHIPPED[name]
    vocabulary = Vocabulary.load(name)
    assert vocabulary.name == name
    assert len(vocabulary.classes) == classes
    assert sum(vocabulary.thing_mask) == things
    assert vocabulary.ignore_label == ignore_label
    assert (vocabulary.classes[0].name, vocabulary.classes[-1].name) == (first, last)
    assert len(vocabulary.groups) == synonyms
    assert len(vocabulary.prompts()) == 14 * synonyms
    assert vocabulary.prompts_sha256 == sha256
    assert sum(vocabulary.seen_by(Vocabulary.load("coco_panoptic"))) == seen


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_equals_the_official_records(shared, name):
    official = json.loads((shared / "vocabularies" / f"{name}.json").read_text())
    vocabulary = Vocabulary.load(name)
    assert vocabulary.ignore_label == official.get("ignore_label")
    for ours, theirs in zip(vocabulary.classes, official["classes"], strict=True):
        color = tuple(theirs.get("color", color_of(theirs["names"][0])))
        assert ours == VocabularyClass(tuple(theirs["names"]), theirs["thing"], color, theirs["id"])
    if "seen_given_coco" in official:
        seen = vocabulary.seen_by(Vocabulary.load("coco_panoptic"))
        assert seen == tuple(map(bool, official["seen_given_coco"]))


def test_an_unknown_name_lists_all_and_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"'coco'.* did you mean coco_panoptic\? choose from ade20k_150, .*, world; or give .* list$",
    ):
        Vocabulary.load("coco")
    with pytest.raises(ValueError, match=r"'\.\./x': choose from ade20k_150"):
        Vocabulary.load("../x")


def test_your_own_words():
    vocabulary = Vocabulary.from_words(["cat, kitten", " sky ,,clouds", "traffic light"], stuff=["sky"])
    assert vocabulary.classes == (
        VocabularyClass(("cat", "kitten"), True, color_of("cat"), 1),
        VocabularyClass(("sky", "clouds"), False, color_of("sky"), 2),
        VocabularyClass(("traffic light",), True, color_of("traffic light"), 3),
    )
    assert vocabulary.thing_mask == (True, False, True)
    assert vocabulary.groups == (0, 0, 1, 1, 2)
    assert vocabulary.prompts()[:2] == ["a photo of a cat.", "This is a photo of a cat"]
    assert vocabulary.prompts()[14 * 3] == "a photo of a clouds."
    assert vocabulary.prompts()[-1] == "There is a large traffic light in the scene."


def test_white_space_in_names_is_one_space():
    """As the tokenizer reads it; a line break could not be drawn. The checksum is of the names as they were written."""
    odd = "fire\n hydrant\u2028"
    assert Vocabulary.from_words([odd], stuff=["fire hydrant"]).classes[0].names == ("fire hydrant",)
    written = dataclasses.replace(
        Vocabulary.from_words(["cat"]), classes=(VocabularyClass((odd,), True, (0, 0, 0), 1),)
    )
    assert Vocabulary.from_json(written.to_json()).classes[0].names == ("fire hydrant",)


def test_stuff_may_be_written_as_in_the_words():
    words = ["cat", "sky, clouds"]
    assert Vocabulary.from_words(words, stuff=words[1:]).thing_mask == (True, False)


@pytest.mark.parametrize(
    ("words", "stuff", "message"),
    [
        ([], [], "the list of classes is empty"),
        ("cat", [], "the classes must be a list of words.*got .cat"),
        (["sky"], "sky", "stuff must be a list of words.*got .sky"),
        (["cat", " ,"], [], "class name ' ,' is empty"),
        (["cat", "dog", "Cat,kitten"], [], "class 'cat' is named 2 times"),
        (["cat", "sky,clouds"], ["clouds"], "stuff .clouds. is not among the classes"),
    ],
)
def test_mistakes_in_your_own_words(words, stuff, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_words(words, stuff)


def test_seen_means_a_synonym_in_common_letter_for_letter():
    training = Vocabulary.from_words(["cat,kitten", "sky"])
    vocabulary = Vocabulary.from_words(["kitten", "Sky", "cats", "heaven,sky"])
    assert vocabulary.seen_by(training) == (True, False, False, True)


def test_a_color_belongs_to_the_name():
    assert color_of("cat") == (31, 201, 167)
    colors = {color_of(entry.name) for entry in Vocabulary.load("lvis_1203").classes}
    assert len(colors) > 1195  # of 1,203
    assert all(max(color) >= 150 and min(color) <= 130 for color in colors)  # neither dark nor pale


def test_fourteen_templates():
    assert len(PROMPT_TEMPLATES) == 14
    assert all(template.count("{}") == 1 for template in PROMPT_TEMPLATES)


@pytest.mark.parametrize("words", [["cat"], ["naïve, 日本", "{}", 'a "b"', "\ud800"]])
def test_json_round_trip(words):
    vocabulary = Vocabulary.from_words(words, stuff=words[:1])
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert len(vocabulary.to_json().splitlines()) == len(words) + 2


GOOD = {"id": 1, "names": ["cat"], "thing": True, "color": [255, 0, 0]}


def stranger(*classes, **head):
    return json.dumps({"name": "x", "ignore_label": None, "classes": classes} | head)


def test_a_strangers_json():
    assert Vocabulary.from_json(stranger(GOOD)).classes == (VocabularyClass(("cat",), True, (255, 0, 0), 1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", 'needs a "name"'),
        (stranger(), 'list of "classes"'),
        (stranger(GOOD, name=3), 'needs a "name"'),
        (stranger(GOOD, ignore_label="255"), "ignore_label"),
        (stranger(GOOD, ignore_label=True), "ignore_label"),
        (stranger(GOOD, classes="cat"), 'list of "classes"'),
        (stranger("cat"), "'cat' .* is not of the form"),
        *((stranger(GOOD | {"id": id}), "not of the form") for id in ("1", 1.0, True, None, -1)),
        *((stranger(GOOD | {"names": names}), "not of the form") for names in ("cat", [], [""], ["cat", 1], [" "])),
        *((stranger(GOOD | {"thing": thing}), "not of the form") for thing in (1, "yes", None)),
        *(
            (stranger(GOOD | {"color": c}), "not of the form")
            for c in ("red", [1, 2], [0, 0, 256], [0, 0, -1], [0.0] * 3)
        ),
        (stranger({"id": 1}), "not of the form"),
        (stranger(GOOD, GOOD), "the id 1 to 2 classes"),
        (stranger(GOOD, prompts_sha256="0"), "prompts_sha256"),
    ],
)
def test_a_strangers_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_json(text)
