"""Text as numbers without a vocabulary that clients would have to share: hashed character n-grams of words.

A word is the set of its n-grams, ``<word>`` itself and all runs of 3, 4 and 5 characters in it, of which a
network learns one vector each (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information",
arXiv 1607.04606; theirs are 3 to 6 characters and another hash). Words of one stem share most of them.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.inputs import GRAMS

_WORD = re.compile(r"\w+")
_LENGTHS = (3, 4, 5)


def words_of(text: str) -> list[str]:
    """Return a text's words: runs of letters, digits and underscores, without regard to case."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams_of(word: str) -> list[str]:
    """Return a word's different n-grams, ``GRAMS`` at most: ``<word>``, then the shorter ones first."""
    whole = f"<{word}>"
    runs = (whole[at : at + n] for n in _LENGTHS for at in range(len(whole) - n + 1))
    return list(dict.fromkeys([whole, *runs]))[:GRAMS]


def bucket(gram: str, buckets: int) -> int:
    """Return the number of an n-gram's vector, from 0: its CRC-32 in UTF-8, the same on every machine."""
    return zlib.crc32(gram.encode(errors="surrogatepass")) % buckets


def encode_texts(texts: Sequence[str], words: int, buckets: int) -> NDArray[np.float32]:
    """Return texts as the buckets of their words' n-grams.

    Args:
        texts: N texts.
        words: How many words of each are read, the first ones.
        buckets: Vectors that there are.

    Returns:
        float32 [N, words * GRAMS], NaN where there is no word, or no further n-gram of a word.
    """
    rows = np.full((len(texts), words, GRAMS), np.nan, np.float32)
    known: dict[str, list[int]] = {}
    for row, text in zip(rows, texts, strict=True):
        for place, word in enumerate(words_of(text)[:words]):
            if word not in known:
                known[word] = [bucket(gram, buckets) for gram in grams_of(word)]
            row[place, : len(known[word])] = known[word]
    return rows.reshape(len(texts), words * GRAMS)
