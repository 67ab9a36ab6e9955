"""The classes that users write, as text, as a list, and in files."""

import json
import warnings

import pytest

from fcclip_jax.text.class_lists import read_classes, read_numbered_classes, warn_of_lists
from fcclip_jax.text.vocabulary import Vocabulary, split_words

THREE = [("cat", "kitten"), ("dog",), ("sofa",)]


def names(vocabulary):
    return [entry.names for entry in vocabulary.classes]


@pytest.mark.parametrize(
    "text",
    [
        "cat|kitten, dog, sofa",
        "cat | kitten; dog ;sofa",
        "cat|kitten\ndog\r\nsofa\n",
        "cat|kitten\rdog\u2028sofa",
        "cat|kitten, dog; sofa,\n,",
        "cat｜kitten、dog，sofa",
        '["cat|kitten", "dog", "sofa"]',
        '["cat, kitten", "dog", "sofa"]',
    ],
)
def test_text(text):
    assert names(read_classes(text)) == THREE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "\ufeffcat|kitten\r\n\r\ndog\r\nsofa"),
        ("classes.TXT", "cat|kitten, dog, sofa"),
        ("my, classes.txt", "cat|kitten; dog\nsofa"),
        ("classes.json", '["cat|kitten", "dog", "sofa"]'),
        ("classes.json", Vocabulary.from_words(["cat|kitten", "dog", "sofa"]).to_json()),
        ("classes.yaml", "- cat|kitten\n- dog\n- sofa\n"),
        ("classes.yml", "[cat|kitten, dog, 'sofa']"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is read as 2 classes")
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    assert names(read_classes(str(tmp_path / name))) == THREE


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "classes.txt").write_text("cat|kitten, dog, sofa", "utf-8")
    (tmp_path / "stuff.txt").write_text("sofa\n", "utf-8")
    made = read_classes("~/classes.txt", "~/stuff.txt")
    assert names(made) == THREE and made.thing_mask == (True, True, False)


def test_a_line_with_commas_is_said_to_be_several_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat, kitten\ndog\nsofa, couch\n", "utf-8")
    with pytest.warns(
        UserWarning, match=r"the line 'cat, kitten' is read as 2 classes \(1 more lines have several\); sep"
    ):
        made = read_classes(str(path))
    assert names(made) == [("cat",), ("kitten",), ("dog",), ("sofa",), ("couch",)]


def test_a_list_in_python():
    words = ["cat, kitten", "dog|puppy", "sofa"]
    assert names(Vocabulary.from_words(words)) == [("cat", "kitten"), ("dog", "puppy"), ("sofa",)]
    with pytest.raises(ValueError, match="'cat; dog' has a semicolon, which separates classes"):
        Vocabulary.from_words(["cat; dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes.yaml", "--classes names the file classes.yaml, which does not exist"),
        ("classes.csv", "'classes.csv', which looks like a file that does not exist; for a class of that name, write"),
        ("lists/classes.csv", "the word 'lists/classes.csv', which looks like a file that does not exist$"),
        ("./classes", "the word './classes', which looks like a file"),
        ("~/classes", "the word '~/classes', which looks like a file"),
        (r"C:\classes", "which looks like a file"),
        ("cat, classes.txt", "'classes.txt', which looks like a file that does not exist"),
        ("cat, here.txt", "--classes names the file here.txt among words; give it alone"),
        ("here.csv", "here.csv, which is no list of classes; one ends in .txt, .json, .yaml"),
        ("coco_panoptic, dragon", "names the vocabulary coco_panoptic among words"),
        ("[cat, dog]", "cannot be parsed .* write a list such as"),
        ('["cat", 3]', "has the item 3, which is not a text"),
        ("here.txt", "'here.txt' names no classes"),
        ("empty.json", "empty.json names no classes"),
        ("number.yaml", "number.yaml has the item False, which is not a text; write each class in quotes"),
        ("mapping.yaml", "mapping.yaml holds {'nc': 80}, which is not a list of classes; write one such as"),
        ("broken.json", "broken.json cannot be parsed"),
        ("broken.yaml", "broken.yaml cannot be parsed"),
        ("tag.yaml", "tag.yaml cannot be parsed"),
        ("system.yaml", "system.yaml cannot be parsed .could not determine a constructor"),
        ("laughs.yaml", r"laughs.yaml has the item \['x', 'x', 'x', 'x', 'x', 'x', ...\], which is not a text"),
        ("wrong.json", "wrong.json: the vocabulary needs"),
        ("latin.txt", "latin.txt is not a text file in UTF-8"),
    ],
)
def test_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    files = {"here.txt": "", "here.csv": "cat", "empty.json": "[]", "number.yaml": "- no", "mapping.yaml": "nc: 80"}
    files |= {"broken.json": "[", "broken.yaml": "[", "wrong.json": '{"classes": []}'}
    files |= {"tag.yaml": "- !!bool maybe", "system.yaml": "- !!python/object/apply:os.system [touch ran]"}
    anchors = [f"- &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]  # 9 ** 13 items when written out
    files["laughs.yaml"] = "\n".join([f"- &a0 [{', '.join('x' * 9)}]", *anchors])
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises((ValueError, OSError), match=message):
        read_classes(text)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["Mr. Bean", "and/or", "U.S.A", "3.5 inch disk", "vitamin B.12", "~nobody", "cat.dogfish"]
)
def test_names_with_marks_are_words(name):
    assert names(read_classes(f"{name}, cat")) == [(name,), ("cat",)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cat dog person", ["cat", "dog", "person"]),
        ("Cat. dog . person.", ["cat", "dog", "person"]),
        ("cat.dog", ["cat", "dog"]),
        ("cat and dog", ["cat", "dog"]),
        ("traffic light teddy bear", ["traffic light", "teddy bear"]),
        ("cat|dog|person", ["cat", "dog", "person"]),
        ("unicorn, cat dog person", ["cat", "dog", "person"]),
    ],
)
def test_a_list_without_commas_is_warned_of(text, parts):
    with pytest.warns(UserWarning) as warned:
        read_classes(text)
    assert f"if these are {len(parts)} classes, separate them: {', '.join(parts)!r} as text" in str(warned[0].message)
    assert str(warned[0].message).endswith(f"{json.dumps(parts)} as a list")


@pytest.mark.parametrize(
    "text", ["teddy bear", "cat, dog", "dog house, cat", "cat|kitten", "sofa|couch", "red dog cat"]
)
def test_other_classes_are_not(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_classes(text)


def test_shipped_vocabularies_would_not_be_warned_of():
    """Their names are the field's own: what they trigger would be false alarms."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("ade20k_847", "pascal_context_459", "mapillary_vistas", "cityscapes", "world"):
            warn_of_lists(Vocabulary.load(name))


def test_numbered_classes_never_shift_silently():
    assert names(read_numbered_classes("cat|kitten; dog; sofa", option="words")) == THREE
    assert names(read_numbered_classes("cat|kitten, dog, sofa", option="words")) == THREE
    with pytest.raises(ValueError, match="words has commas and semicolons, which both separate classes"):
        read_numbered_classes("cat, kitten; dog", option="words")
    with pytest.raises(ValueError, match="words has commas and semicolons, which both separate classes"):
        read_numbered_classes("cat\uff0ckitten\u061b dog", option="words")
    with pytest.raises(ValueError, match="the class name '' is empty"):
        read_numbered_classes("cat;; dog", option="words")
    with pytest.raises(ValueError, match="the class name '' is empty"):
        read_numbered_classes("cat\u3001\uff0cdog", option="words")


def test_split_words_drops_empty_parts():
    assert split_words(" cat ,, | ;dog|puppy\n") == ["cat", "dog|puppy"]


def test_summary():
    made = Vocabulary.from_words(["cat|kitten", "dog", "sofa", "sky|heaven"], stuff=["sofa", "sky"])
    assert made.summary() == "4 classes: cat (kitten), dog, sofa (stuff), sky (heaven; stuff)"
    assert Vocabulary.from_words(["cat"]).summary() == "1 class: cat"
    coco = Vocabulary.load("coco_panoptic").summary()
    assert coco.startswith("133 classes: person (child, girl, boy, ...), bicycle (bicycles, bike, bikes), car")
    assert coco.endswith(", and 121 more") and coco.count("(") == 9
