"""CLIP's tokenizer: the same ids as OpenCLIP's SimpleTokenizer, without importing torch."""

import functools
import gzip
import html
from collections.abc import Sequence
from importlib import resources

import ftfy
import numpy as np
import regex
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers

from fcclip_jax.conventions import END_ID, START_ID

CONTEXT_LENGTH = 77
START, END = "<start_of_text>", "<end_of_text>"
# CLIP's ids are 256 bytes, 256 final bytes, merges, START, END. The file has more merges.
NUM_MERGES = END_ID + 1 - 2 * 256 - 2

# `regex`, which OpenCLIP uses too, splits the words. `tokenizers` would treat some 17,000 letters and digits as
# punctuation: its regex engine follows an older Unicode.
WORD = regex.compile(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE)


def tokenize(texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Int[np.ndarray, "N L"]:
    """Encodes each text as start, words, end and zeros. A text that is too long is cut, and ends in the end token."""
    bpe = _load_bpe()
    ids = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = WORD.findall(_clean(text))
        tokens = [START_ID, *bpe.encode(words, is_pretokenized=True).ids, END_ID][:context_length]
        row[: len(tokens)] = tokens
        row[len(tokens) - 1] = END_ID
    return ids


def table_rows(
    tokens: Int[np.ndarray, "N L"], token_ids: Sequence[int], texts: Sequence[str]
) -> Int[np.ndarray, "N L"]:
    """Returns the rows of tokens in an embedding table that has only these `token_ids`, sorted.

    texts: the tokens' sources, for the error.

    Raises:
        ValueError: a text has a token that the table lacks.
    """
    ids = np.asarray(token_ids)
    rows = np.searchsorted(ids, tokens)
    missing = (ids[np.minimum(rows, len(ids) - 1)] != tokens).any(axis=1)
    if missing.any():
        raise ValueError(
            f"the text {texts[np.argmax(missing)]!r} has a token that this model has no embedding of; use the words that it"
            " was trained with"
        )
    return rows.astype(np.int32)


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _load_bpe() -> Tokenizer:
    """Builds the byte-pair encoding of a word: its UTF-8 bytes, the last marked </w>, merged in the file's order."""
    file = resources.files(__package__) / "bpe" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + NUM_MERGES]]  # line 0 is a version
    # CLIP numbers the bytes as GPT-2 does: printable ones first, in order, then the others.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    ids = {token: i for i, token in enumerate(vocabulary)}
    bpe = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.add_special_tokens([START, END])
    return bpe
