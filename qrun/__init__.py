"""qrun: reproduce, claim by claim, language models with quantum circuits inside (arXiv:2605.05914).

`load_model`, `attach`, `train`, `evaluate` and `results` are for notebooks (api.py); they load only when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrun.api import attach, evaluate, load_model, results, train

__all__ = ["attach", "evaluate", "load_model", "results", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'qrun' has no attribute '{name}'")
    from qrun import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
