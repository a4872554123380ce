"""The ways a command can end early without being a bug, told in one line and without secrets. Everything else is a bug
and keeps its traceback.
"""

import os
import re

LONGEST = 290  # characters of a line; `qrun: ` comes before it
_SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|KEY(?!RING|BOARD)|PASSW", re.IGNORECASE)  # in names of the environment
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]+)@")  # in an address
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=[?&])((?:password|token|secret|key|api_key)=)[^&\s]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without what looks like a secret: tokens of the hub, passwords in addresses, and the values (8 characters
    or more) of what the environment calls a token, secret, key or password."""
    hidden = [value for name, value in os.environ.items() if _SECRET.search(name)]
    hidden += [password for value in os.environ.values() for _, password in _PASSWORD.findall(value)]
    for value in sorted({value.strip() for value in hidden}, key=len, reverse=True):
        if len(value) >= 8:
            text = text.replace(value, "***")
    return _TOKEN.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def one_line(text: str) -> str:
    """A text as one line of at most LONGEST characters: control characters escaped, its middle left out."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))
    half = LONGEST // 2 - 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half + 1 :]}"


class _Told(Exception):
    """What a user reads of it is one line without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(redacted(message)))


class InputError(_Told):
    """A wrong word, value, file or combination. One line that names the key, what was given and what is possible (exit
    code 2)."""


class RunFailed(_Told):
    """A run that started properly and cannot go on, such as a diverged training or a full disk (exit code 1)."""


class NotFinite(RunFailed):
    """A model gave log-likelihoods that are no numbers."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; what can be resumed has been saved (exit code 128 + signal). Like KeyboardInterrupt no
    Exception: MLflow, transformers and datasets turn those into failures of their own."""

    def __init__(self, signum: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signum = signum


def interruption(error: BaseException | None) -> BaseException | None:
    """The interruption behind an error: SQLAlchemy's clean-up after one can fail and raise its own in its place."""
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt | GeneratorExit):
        error = error.__context__
    return error
