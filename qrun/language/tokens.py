"""Documents as one token stream that remembers, for every token, its document, its bytes and nothing else.

    stream(tokenizer, documents, ...) -> TokenStream

Bits per byte need the bytes behind each scored token, an interval over documents needs the document behind it. Both
come from the tokenizer's character offsets: a token owns the characters from the end of the token before it to its own
end, so that the bytes of all tokens add up to the bytes of the text exactly, also where a character is spread over
several tokens. Tokens of a long text are kept in ~/.cache/qrun/tokens.
"""

import hashlib
import io
import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from qrun.errors import InputError
from qrun.files import cache_folder, make_room, replaced

JOIN = "\n\n"
LONG = 2**19  # characters of a text whose tokens are kept: its tokenising takes half a second
MOST = 2**30  # bytes of all that is kept
BROKEN = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)  # of a kept file that is absent or torn
Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenStream:
    """ids, document and bytes [T]; `documents` is the count of documents, words [documents] counts their words."""

    ids: Array
    document: Array
    bytes: Array
    words: Array

    @property
    def documents(self) -> int:
        return len(self.words)

    def head(self, tokens: int | None) -> "TokenStream":
        """The first `tokens` tokens; words are those of the documents that remain whole or begun."""
        if tokens is None or tokens >= len(self.ids):
            return self
        kept = int(self.document[tokens - 1]) + 1
        return TokenStream(self.ids[:tokens], self.document[:tokens], self.bytes[:tokens], self.words[:kept])


def join_documents(documents: list[str], wikitext: bool) -> list[str]:
    """Pieces whose concatenation is the joined text: documents separated by a blank line. WikiText pages become the
    hub's rows (lines with their newline, blank lines empty) joined by a blank line, the convention of the transformers
    guide and of GPTQ, wanda and SliceGPT; published WikiText-2 perplexities depend on it."""
    pieces = []
    for index, document in enumerate(documents):
        if wikitext:
            document = JOIN.join(row if row.strip() else "" for row in io.StringIO(document, newline="\n"))
        pieces.append(document if index == 0 else JOIN + document)
    return pieces


def stream(tokenizer: Any, documents: list[str], wikitext: bool = False) -> TokenStream:
    """One text, tokenised as a whole: what windows slide over."""
    pieces = join_documents(documents, wikitext)
    ids, size, ends = _encode(tokenizer, "".join(pieces))
    borders = np.cumsum([len(p) for p in pieces])
    document = np.minimum(np.searchsorted(borders, ends, side="left"), len(pieces) - 1)
    return TokenStream(ids, document, size, np.array([len(d.split()) for d in documents]))


def page_streams(tokenizer: Any, pages: list[str], words: list[int]) -> list[TokenStream]:
    """Each document alone, with the special tokens that the tokenizer adds by itself (Llama's BOS), as the harness
    scores them."""
    streams = []
    for index, (page, count) in enumerate(zip(pages, words, strict=True)):
        ids, size, _ = _encode(tokenizer, page, special=True)
        streams.append(TokenStream(ids, np.full(len(ids), index), size, np.array([count])))
    return streams


def _encode(tokenizer: Any, text: str, special: bool = False) -> tuple[Array, Array, Array]:
    """ids, bytes and end offsets (in characters) of a text's tokens; special tokens own no bytes."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("the model's tokenizer has no fast version; character offsets are needed to count bytes")
    ids, ends = (_tokens if len(text) < LONG else _kept)(tokenizer, text, special)
    if text.isascii():
        prefix = np.arange(len(text) + 1)
    else:
        prefix = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text])])
    return ids, np.diff(prefix[ends], prepend=0), ends


def _tokens(tokenizer: Any, text: str, special: bool) -> tuple[Array, Array]:
    """ids and end offsets."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    if not encoded["input_ids"]:
        where = f"model.path={tokenizer.name_or_path}"
        raise InputError(f"{where}: its tokenizer makes no token of {len(text):,} characters of text")
    ends = np.maximum.accumulate(np.array([end for _, end in encoded["offset_mapping"]]))
    ends[-1] = len(text)
    return np.array(encoded["input_ids"]), ends


def _kept(tokenizer: Any, text: str, special: bool) -> tuple[Array, Array]:
    """`_tokens` of a text that was tokenised before, read from its file, whose checksums must be right; else computed,
    and kept where there is room."""
    parts = [tokenizer_digest(tokenizer), special, version("tokenizers"), version("transformers")]
    key = hashlib.sha256(json.dumps(parts).encode() + text.encode()).hexdigest()[:24]
    path = cache_folder() / "tokens" / f"{key}.npz"
    with suppress(*BROKEN):
        with np.load(path) as kept:
            found = kept["ids"].astype(np.int64), kept["ends"].astype(np.int64)
        os.utime(path)  # what was not used for longest makes room
        return found
    ids, ends = _tokens(tokenizer, text, special)
    with suppress(OSError), replaced(path) as new:
        if make_room(path.parent, path, MOST, 8 * len(ids)) >= 8 * len(ids):
            with new.open("wb") as file:
                np.savez(file, ids=ids.astype(np.int32), ends=ends.astype(np.int32))
    return ids, ends


def tokenizer_digest(tokenizer: Any) -> str:
    """Fingerprint of how a tokenizer turns text into ids, 8 hex digits: everything but padding and truncation."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in values.items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
