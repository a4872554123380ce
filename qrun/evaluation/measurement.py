"""What a measurement leaves, and paired differences of two. Numbers alone: no model, no torch.

    difference(a, b) -> Difference      refused unless both have the same fingerprint

Perplexity = exp(sum of nats / scored tokens), or / words for lm_eval_wikitext. Nothing is averaged, skipped
or dropped.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from qrun.errors import InputError, RunFailed
from qrun.evaluation.intervals import Interval, effective_number, over_documents, paired_interval, perplexity

MOST_NATS = 700.0  # whose exponential is a number


@dataclass(frozen=True)
class Measurement:
    """Per document: nats of the scored tokens, their count, their bytes, and the document's words."""

    nats: list[float]
    tokens: list[int]
    bytes: list[int]
    words: list[int]
    statement: Mapping[str, Any] = field(repr=False)  # of the protocol; what the fingerprint is made of
    fingerprint: str = ""
    seconds: float = 0.0

    @property
    def normaliser(self) -> list[int]:
        """Tokens or words of each document, as the protocol divides."""
        return self.words if self.statement["unit"] == "word" else self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / normaliser) over all documents. Raises RunFailed where that is beyond all numbers, as by words in
        a script without spaces."""
        nats, unit = sum(self.nats) / sum(self.normaliser), self.statement["unit"]
        if nats > MOST_NATS:
            had = f"{nats:,.0f} nats a {unit}, of {sum(self.tokens):,} tokens and {sum(self.words):,} words"
            raise RunFailed(f"protocol={self.statement['protocol']}: {had}; its perplexity is no number")
        return math.exp(nats)

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes."""
        return sum(self.nats) / math.log(2) / sum(self.bytes)

    @property
    def effective_documents(self) -> float:
        """Kish's effective number of documents."""
        return effective_number(self.normaliser)

    def units(self) -> dict[str, list[float]]:
        """What an interval over documents needs."""
        return {"nats": self.nats, "weight": [float(n) for n in self.normaliser]}

    def to_json(self) -> str:
        """All of it, with the perplexity for a reader."""
        return json.dumps({**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte})

    @property
    def whole(self) -> bool:
        """Whether every document has nats, tokens, bytes and words, and it is said how they were made."""
        many = {len(values) for values in (self.nats, self.tokens, self.bytes, self.words)}
        said = {"unit", "protocol", "data", "split"} <= self.statement.keys()
        return said and len(many) == 1 and sum(self.tokens) > 0 and min(self.normaliser) > 0

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        """The inverse; raises ValueError or RecursionError for another text."""
        return TypeAdapter(cls).validate_python(json.loads(text))


@dataclass(frozen=True)
class Difference:
    """Paired difference a - b of two perplexities, with a 95 % interval over documents where there are enough."""

    value: float
    interval: Interval | None
    documents: int
    effective: float

    def words(self, form: str = ".3f") -> str:
        """`95% [0.1, 0.2]`, or why there is none."""
        if self.interval is None:
            return f"no interval: {self.effective:.1f} effective documents"
        return f"95% {self.interval.words(form)}"


def difference(a: Measurement, b: Measurement, resamples: int, seed: int) -> Difference:
    """PPL_a - PPL_b, both resampled together over documents. Raises InputError if they differ in protocol."""
    if a.fingerprint != b.fingerprint:
        ours, theirs = a.statement, b.statement
        pairs = {k: (ours.get(k), theirs.get(k)) for k in sorted({*ours, *theirs})}
        differing = "; ".join(f"{k} {one} / {other}" for k, (one, other) in pairs.items() if one != other)
        raise InputError(f"these perplexities follow different protocols and are not compared: {differing}")
    weight = np.array(a.normaliser)
    found = paired_interval(np.array(a.nats), np.array(b.nats), weight, resamples, seed)
    return Difference(a.perplexity - b.perplexity, found, len(a.nats), a.effective_documents)


def half_width(first: Measurement, last: Measurement, resamples: int, seed: int) -> float:
    """Half of the 95 % interval, as a share of the first one's perplexity: of the paired difference of the two, or of
    the perplexity where they are one. Infinite where there is no interval."""
    if first is last:
        weight = np.array(first.normaliser, float)
        found = over_documents(perplexity, (np.array(first.nats),), weight, resamples, seed)
    else:
        found = difference(first, last, resamples, seed).interval
    return math.inf if found is None else (found.high - found.low) / 2 / first.perplexity
