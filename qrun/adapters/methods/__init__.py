"""What can be trained at the sites: one module per method, named like it, with one instance METHOD of base.Method.

A new method is a module here and a file in configs/adapter/. Nothing heavy is imported before `attach`.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from qrun.errors import InputError

if TYPE_CHECKING:
    from qrun.adapters.methods.base import Method

OF_PEFT = {"OFT": "cayley", "LORA": "lora"}  # the method that reads a folder of that kind of PEFT's


def names() -> list[str]:
    """Every method, from the files of this package."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


@cache
def spec(name: str) -> "Method":
    """The method of that name."""
    if name not in names():
        raise InputError(f"adapter.method={name}: use {', '.join(names())}")
    return import_module(f"{__name__}.{name}").METHOD
