"""Text that was seen elsewhere: 13-grams of words that two texts share, and what is left of a text without them.

The rule is GPT-3's (Brown et al., arXiv:2005.14165, appendix C): words are lower-case runs of letters and digits; where
13 in a row also stand in the other text they are cut out, with 200 characters on either side, and a piece shorter than
200 characters goes too. Of nano's pretraining text one 13-gram in eight, chosen by its hash, is kept in nano/grams.xz,
as 32 bits of the hash: a 13-gram that is not there is taken for one that is with probability (kept grams) / 2^32, 1.6
in 10,000; a shared run of 40 words is missed with probability (7/8)^28, 2 %. `scripts/pretrain_nano.py --grams` makes
the file.
"""

import hashlib
import lzma
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LENGTH = 13  # words of a gram
SAMPLED = 8  # one gram in so many is kept of a pretraining text
MARGIN = 200  # characters that go with a shared gram, and the least that stays
NANO = Path(__file__).parent / "nano" / "grams.xz"
_WORD = re.compile(r"\w+")
_MULTIPLIERS = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64

Hashes = NDArray[np.uint64]
Sample = NDArray[np.uint32]


@cache
def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def grams(text: str) -> tuple[Hashes, NDArray[np.int64]]:
    """64-bit hashes [n] of the 13-grams of a text, and where they begin and end, [n, 2] in characters."""
    words = [(_word(match.group().lower()), *match.span()) for match in _WORD.finditer(text)]
    count = max(len(words) - LENGTH + 1, 0)
    values = np.array([word for word, _, _ in words], np.uint64)
    found = np.zeros(count, np.uint64)
    first, second, third = (np.uint64(value) for value in _MULTIPLIERS)
    for k in range(LENGTH if count else 0):  # a polynomial modulo 2^64 ...
        found = found * first + values[k : k + count]
    found = (found ^ (found >> np.uint64(30))) * second  # ... whose bits are then mixed
    found = (found ^ (found >> np.uint64(27))) * third
    places = [(words[i][1], words[i + LENGTH - 1][2]) for i in range(count)]
    return found ^ (found >> np.uint64(31)), np.array(places, np.int64).reshape(-1, 2)


def all_grams(documents: Iterable[str]) -> Hashes:
    """Different 13-grams of a text, sorted."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(grams(document)[0] for document in documents)]))


def sampled(hashes: Hashes) -> NDArray[np.bool_]:
    """Which grams a sample would hold, [n]."""
    return hashes % np.uint64(SAMPLED) == 0


def _short(hashes: Hashes) -> Sample:
    return (hashes >> np.uint64(8)).astype(np.uint32)


def _stand(values: NDArray[np.unsignedinteger], table: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Which of the values [n] a sorted table has: np.isin would sort it again for each document."""
    if not len(table):
        return np.zeros(len(values), bool)
    return table[np.minimum(np.searchsorted(table, values), len(table) - 1)] == values


def write_sample(path: Path, hashes: Hashes) -> int:
    """Keep the sample of a text's grams; returns how many. The file has the differences of the sorted 32-bit values,
    byte plane by byte plane, compressed."""
    kept = np.unique(_short(hashes[sampled(hashes)]))
    steps = np.diff(kept, prepend=np.uint32(0)).astype("<u4")
    path.write_bytes(lzma.compress(steps.view(np.uint8).reshape(-1, 4).T.tobytes(), preset=9))
    return len(kept)


@cache
def read_sample(path: Path) -> Sample:
    """What `write_sample` kept, sorted."""
    planes = np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8).reshape(4, -1)
    return np.cumsum(np.ascontiguousarray(planes.T).view("<u4").ravel(), dtype=np.uint32)


def share(documents: Iterable[str], other: Hashes) -> float:
    """Share of a text's 13-grams that another text has."""
    found = np.concatenate([np.zeros(0, bool), *(_stand(grams(document)[0], other) for document in documents)])
    return float(found.mean()) if len(found) else 0.0


def pretraining_share(documents: Iterable[str], sample: Sample) -> float:
    """Share of a text's 13-grams that stand in the sampled one, counted on those that the sample would hold."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(grams(document)[0] for document in documents)])
    judged = hashes[sampled(hashes)]
    return float(_stand(_short(judged), sample).mean()) if len(judged) else 0.0


def without(document: str, sample: Sample, others: Sequence[Hashes]) -> str:
    """A document without what a sampled text or one of `others` has too: its pieces, separated by a blank line; empty
    where nothing is left."""
    hashes, places = grams(document)
    seen = sampled(hashes) & _stand(_short(hashes), sample)
    for other in others:
        seen |= _stand(hashes, other)
    if not seen.any():
        return document
    pieces, start = [], 0
    for low, high in places[seen].tolist():
        pieces.append(document[start : max(low - MARGIN, start)])
        start = max(high + MARGIN, start)
    # a piece begins and ends between words; the document's own ends are whole
    pieces = [p.rpartition(" ")[0] if i == 0 else p.partition(" ")[2].rpartition(" ")[0] for i, p in enumerate(pieces)]
    pieces.append(document[start:].partition(" ")[2])
    return "\n\n".join(piece.strip() for piece in pieces if len(piece.strip()) >= MARGIN)
