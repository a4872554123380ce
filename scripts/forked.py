"""A command of qrun in a forked process, so that the heavy imports are paid once: what fuzz.py and faults.py share."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BUG = 97  # the exit code where something else came out of a command than an exit


def forked(command: list[str], folder: Path, log: Path, change: Callable[[], object] = lambda: None) -> int:
    """The id of the process, a session of its own in `folder`: stderr goes to `log`, stdout beside it. `change` is
    called there before the command."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = BUG
    try:
        os.setsid()
        os.chdir(folder)
        for stream, path in ((1, log.with_name("stdout")), (2, log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv = ["qrun", *command]
        change()
        if torch := sys.modules.get("torch"):  # two threads at once would break its pool, which a fork has to make anew
            torch.set_num_threads(torch.get_num_threads())
        from qrun.cli.main import main

        code = 0
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:  # before or behind the command
        code = 130
    except BaseException:
        code = BUG
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)
