"""The words of the miniature world, and which of them training sees."""

import itertools
from importlib import resources

from fcclip_jax.world import words


def test_counts():
    assert (len(words.THINGS), len(words.STUFF), len(words.SEEN)) == (275, 8, 224)
    assert words.WORDS == words.THINGS + words.STUFF
    assert len({word.lower() for word in words.WORDS}) == 283


def test_a_fifth_is_unseen_in_every_kind():
    unseen = [word for word in words.WORDS if word not in words.SEEN]
    assert [word for word in unseen if word in words.STUFF] == ["sea", "wooden floor"]
    assert {"koala", "cactus", "lemon", "ambulance", "church", "saxophone", "axe", "jeans", "bed", "robot"} < {*unseen}
    assert 0.18 < len(unseen) / len(words.WORDS) < 0.22


def test_unseen_words_share_no_word_with_seen_ones():
    seen_parts = {part for word in words.SEEN for part in word.split()}
    for word in set(words.WORDS) - words.SEEN:
        assert seen_parts.isdisjoint(word.split()), word


def test_no_thing_is_part_of_another():
    """A caption that names a fried egg must not also name an egg."""
    for short, long in itertools.permutations(words.THINGS, 2):
        assert f" {short} " not in f" {long} "


def test_code_points_differ():
    assert list(words.CODE_POINTS) == list(words.THINGS)
    assert len({*words.CODE_POINTS.values()}) == len(words.THINGS)
    assert chr(int(words.CODE_POINTS["cat"], 16)) == "\N{CAT}"
    assert chr(int(words.CODE_POINTS["dinosaur"], 16)) == "\N{T-REX}"
    assert words.CODE_POINTS["polar bear"] == "1f43b-200d-2744"


def test_vocabulary_of_all_words():
    vocabulary = words.vocabulary(seen_only=False)
    assert tuple(entry.name for entry in vocabulary.classes) == words.WORDS
    assert [entry.id for entry in vocabulary.classes] == list(range(1, 284))
    assert vocabulary.thing_mask == (True,) * 275 + (False,) * 8
    assert vocabulary.ignore_label is None
    assert type(vocabulary).from_json(vocabulary.to_json()) == vocabulary


def test_the_shipped_vocabulary_lists_these_words():
    shipped = resources.files("fcclip_jax.text") / "vocabularies" / "world.json"
    assert shipped.read_text("utf-8") == words.vocabulary(seen_only=False).to_json()


def test_vocabulary_of_seen_words():
    vocabulary = words.vocabulary(seen_only=True)
    names = [entry.name for entry in vocabulary.classes]
    assert names == [word for word in words.WORDS if word in words.SEEN]
    assert [entry.id for entry in vocabulary.classes] == list(range(1, 225))
    assert vocabulary.thing_mask == (True,) * 218 + (False,) * 6
    assert names[-6:] == ["grass", "sand", "sky", "brick wall", "snow", "night sky"]
    everything = words.vocabulary(seen_only=False)
    assert {
        entry.name for entry, seen in zip(everything.classes, everything.seen_by(vocabulary), strict=True) if seen
    } == words.SEEN
