"""Nothing of qrun needs a module that Windows lacks to be imported."""

import subprocess
import sys

import pytest

IMPORTS = """
import builtins, importlib, pkgutil
import qrun

given = builtins.__import__

def without(name, globals=None, *rest, **more):
    if name in UNIX and ((globals or {}).get("__name__") or "").startswith("qrun"):
        raise ImportError(f"{globals['__name__']} imports {name}")
    return given(name, globals, *rest, **more)

builtins.__import__ = without
names = [m.name for m in pkgutil.walk_packages(qrun.__path__, "qrun.") if m.name != "qrun.__main__"]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.mark.slow
def test_every_module_imports_without_the_modules_that_only_unix_has():
    unix = "UNIX = ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty')\n"
    done = subprocess.run([sys.executable, "-c", unix + IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
