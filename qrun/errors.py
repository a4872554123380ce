"""The ways a command can end early without being a bug. Everything else is a bug and keeps its traceback."""


class InputError(Exception):
    """A wrong word, value, file or combination. One line that names the key, what was given and what is possible (exit
    code 2)."""


class RunFailed(Exception):
    """A run that started properly and cannot go on, such as a diverged training or a full disk (exit code 1)."""


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
