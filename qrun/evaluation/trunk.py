"""The frozen part of the forward pass, computed once: hidden states entering the first adapted layer, kept on disk.

    trunk = open_trunk(model, layer, name, (windows, tokens), gib, say)
    trunk.hidden(model, ids, rows)        the model's last hidden states, from the first adapted layer on

Layers below the first adapted one give the same states in every step, evaluation and cell. A window's states are a
record of a file in ~/.cache/qrun/trunks with a checksum in front: a record that is absent, torn or of a full disk is
computed again, so processes share a file without locks. The states are those of the model bit for bit; a first batch is
compared with the whole forward pass, and where one bit differs nothing is kept.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from qrun.files import cache_folder, make_room, taken

VERSION, GIB = 1, 2**30
RECOUNT = 16  # records between two looks at what all files take
HEAD = 8  # bytes before a record: its checksum, and 1 behind it, which an empty record does not have


class Trunk:
    """States [tokens, width] of numbered windows below `layer`: records of so many bytes in `file`. `room` says how
    many bytes all files may take more; others write as well, so it is asked again after each RECOUNT records."""

    def __init__(self, layer: int, file: int, record: int, room: Callable[[], int], say: Callable[[str], None]) -> None:
        self.layer, self.record, self.room, self.say = layer, record, room, say
        self.left, self.asked = 0, 0  # bytes; records until `room` is asked
        self.file: int | None = file  # None: the disk was full

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if self.file is not None:
            close(self.file)

    def hidden(self, model: Any, ids: Tensor, rows: Sequence[int]) -> Tensor:
        """Last hidden states [batch, T, d] for ids [batch, T] of the windows `rows`."""
        if self.file is None:
            return last_hidden(model, ids)
        states = self._states(model, ids, rows)
        with passing(model.model.layers[: self.layer]):
            return model.model(inputs_embeds=states, use_cache=False).last_hidden_state

    @torch.no_grad()
    def _states(self, model: Any, ids: Tensor, rows: Sequence[int]) -> Tensor:
        kept = torch.empty(*ids.shape, model.config.hidden_size, dtype=model.dtype)
        if all(self._read(row, states) for row, states in zip(rows, kept, strict=True)):
            return kept.to(ids.device)
        with passing([*model.model.layers[self.layer :], model.model.norm]):
            states = last_hidden(model, ids)
        for row, own in zip(rows, states.cpu(), strict=True):
            self._write(row, own)
        return states

    def _read(self, row: int, states: Tensor) -> bool:
        if self.file is None:
            return False
        head, body = bytearray(HEAD), _bytes(states)
        count = os.preadv(self.file, [head, body], row * self.record)
        return count == HEAD + len(body) and head == _head(body)

    def _write(self, row: int, states: Tensor) -> None:
        if self.file is None:
            return
        if self.asked == 0:
            self.left, self.asked = self.room(), RECOUNT
        self.left, self.asked = self.left - self.record, self.asked - 1
        if self.left < 0:
            return
        body = _bytes(states)
        try:
            if os.pwritev(self.file, [_head(body), body], row * self.record) < HEAD + len(body):
                raise OSError("the disk is full")
        except OSError as error:
            os.close(self.file)
            self.file = None
            self.say(f"hidden states are no longer kept ({error.strerror or error}): go on without")

    @torch.no_grad()
    def agrees(self, model: Any, ids: Tensor, rows: Sequence[int]) -> bool:
        """Whether computed and kept states lead to the whole forward pass's result, which runs in another order of the
        windows, bit for bit."""
        whole = last_hidden(model, ids.flip(0)).flip(0)
        return all(torch.equal(self.hidden(model, ids, rows), whole) for _ in range(2))


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    """Last hidden states [batch, T, d] of a *ForCausalLM for ids [batch, T]."""
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


@contextmanager
def passing(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules that hand their input on. The model's own forward pass goes on making masks and positions."""
    for module in modules:
        module.forward = _same
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _same(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden


def _bytes(states: Tensor) -> Any:
    return states.contiguous().view(-1).view(torch.uint8).numpy()


def _head(body: Any) -> bytes:
    return (zlib.crc32(body) | 1 << 32).to_bytes(HEAD, "little")


def digest(model: Any, layer: int, words: Sequence[object], fed: Sequence[Tensor]) -> str:
    """24 hex digits over all that can change a bit: the model, its types and kernels, versions, and the batches fed.
    `words` identify the weights."""
    parts = [
        VERSION, layer, *words, str(model.dtype), model.device.type, model.config._attn_implementation,
        torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(),
    ]  # fmt: skip
    found = hashlib.sha256(json.dumps(parts).encode())
    for ids in fed:
        found.update(str(tuple(ids.shape)).encode() + ids.contiguous().numpy().tobytes())
    return found.hexdigest()[:24]


def open_trunk(
    model: Any, layer: int, name: str, windows: tuple[int, int], gib: float, say: Callable[[str], None]
) -> Trunk | None:
    """A file for so many windows of so many tokens at most, under a name that is a `digest`. What was not used for
    longest makes room. None, and a line that says why, where there is none."""
    record = HEAD + windows[1] * model.config.hidden_size * model.dtype.itemsize
    size, folder = windows[0] * record, cache_folder() / "trunks"
    what = f"hidden states below layer {layer}: {size / GIB:.2f} GiB"
    if size > gib * GIB:
        say(f"{what} are more than cache.gib={gib:g}, so they are computed each time")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.utime(path)
        make_room(folder, path, int(gib * GIB), size)
    except OSError as error:
        say(f"{what} cannot be kept in {folder} ({error.strerror}), so they are computed each time")
        return None
    say(f"{what} at most are kept in {folder}")
    return Trunk(layer, file, record, lambda: int(gib * GIB) - sum(taken(folder).values()), say)
