"""The tokenizer against known ids, the official prompts and OpenCLIP's own tokenizer."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.text.tokenizer import END_ID, START_ID, WORD, table_rows, tokenize

# The ids of OpenCLIP's SimpleTokenizer, without the start and end tokens around them.
CASES = {
    "": [],
    "a photo of a cat.": [320, 1125, 539, 320, 2368, 269],
    "A  Photo\tof\na CAT. ": [320, 1125, 539, 320, 2368, 269],
    "traffic light's 42nd café": [3399, 1395, 568, 275, 273, 1764, 15304],
    "hiiiiiiii!!!": [677, 20133, 6572, 995],
    "日本語": [39121, 44353, 34002, 508],
    "😀👍🏽": [12832, 43722],
    "\u0130\u212a": [328, 16384, 330],
    # ftfy repairs text that was decoded wrongly, half surrogate pairs and, in text without <, entities.
    "cafÃ©": [15304],
    "\ud800": [39802],
    "Tom &amp;amp; Jerry &lt;3": [2435, 261, 9164, 283, 274],
    "<3 Tom &amp;amp; Jerry": [283, 274, 2435, 261, 9164],
    # OpenCLIP's two special tokens may be spelt out, in any case; OpenAI's names for them are ordinary text.
    "&lt;START_OF_TEXT&gt; cat<end_of_text>": [49406, 2368, 49407],
    "<|startoftext|>": [27, 347, 993, 6659, 4160, 91, 285],
    # Ignoring case, the long s equals s: the first of these is one word, but not the special token.
    "<\u017ftart_of_text>": [27, 129, 123, 16707, 62, 684, 62, 18169, 285],
    "don't DON\u2019T '\u017f": [847, 713, 847, 713, 6, 129, 379],
    # A letter since Unicode 15, so one word; engines with older tables split it in three.
    "a\U0001df2bb": [64, 6874, 120, 104, 321],
}


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    pytest.importorskip("open_clip", reason="OpenCLIP's tokenizer is the reference (extra: convert)")
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.mark.parametrize("text", CASES, ids=ascii)
def test_known_ids(text):
    expected = [START_ID, *CASES[text], END_ID]
    expected += [0] * (77 - len(expected))
    ids = tokenize([text])
    assert ids.dtype == np.int32
    assert ids.tolist() == [expected]


def test_a_text_that_is_too_long_keeps_its_start_and_ends_in_the_end_token():
    cat = CASES["a photo of a cat."][4]
    assert tokenize(["cat " * 100]).tolist() == [[START_ID, *[cat] * 75, END_ID]]
    assert tokenize(["cat cat cat", "cat"], 4).tolist() == [[START_ID, cat, cat, END_ID], [START_ID, cat, END_ID, 0]]


def test_no_texts():
    assert tokenize([]).shape == (0, 77)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [("openvocab_coco_2017_train_panoptic_with_sem_seg", 3556), ("openvocab_ade20k_panoptic_val", 5642)],
)
def test_official_prompts(shared, prompts, count):
    with np.load(shared / "golden" / "vocab_tokens.npz") as golden:
        texts, expected = golden[f"{prompts}_texts"].tolist(), golden[prompts]
    assert len(texts) == count
    np.testing.assert_array_equal(tokenize(texts), expected)


def test_rows_of_a_short_table():
    tokens = np.array([[START_ID, 320, 2368, END_ID, 0], [START_ID, 2368, END_ID, 0, 0]], np.int32)
    rows = table_rows(tokens, (0, 320, 999, 2368, START_ID, END_ID), ["a cat", "cat"])
    assert rows.tolist() == [[4, 1, 3, 5, 0], [4, 3, 5, 0, 0]] and rows.dtype == np.int32
    for ids in ((0, 2368, START_ID, END_ID), (0, 2367, 2368, START_ID, END_ID)):  # the next id is larger, or the last
        with pytest.raises(ValueError, match="the text 'a cat' has a token that this model has no embedding of"):
            table_rows(tokens[::-1], ids, ["cat", "a cat"])


def test_every_code_point_splits_as_in_open_clip(open_clip_tokenizer):
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    text = " ".join(f"a{c}b '{c}" for c in characters)
    assert WORD.findall(text) == open_clip_tokenizer.pat.findall(text)


# Random strings seldom contain an entity, a contraction or a special token, so these pieces are mixed in.
PIECES = [
    "<start_of_text>",
    "<END_OF_TEXT>",
    "&amp;",
    "&lt;",
    "'s",
    "’LL",
    "\u017f",
    "</w>",
    "Ã©",
    "â€™",
    "\x00",
    "\ud83d",
    "7️⃣",
]
strings = st.text(st.characters(), max_size=40)
texts = strings | st.lists(st.sampled_from(PIECES) | strings, max_size=8).map("".join)


@settings(max_examples=2000, deadline=None, database=None)
@given(text=texts, context_length=st.sampled_from([3, 16, 77]))
def test_any_text_as_in_open_clip(open_clip_tokenizer, text, context_length):
    expected = open_clip_tokenizer([text], context_length).numpy()
    np.testing.assert_array_equal(tokenize([text], context_length), expected)
