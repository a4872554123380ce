"""The hub's clients without their half-minute of retries: where the hub does not answer they read its cache only.

with hub() as away:                  # "" or why the hub is out of reach, known after SECONDS at most
    snapshot_download(...)           # from the cache, or an error at once, where `away` says why
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

SECONDS = 5.0  # that an answer may take


def out_of_reach() -> str:
    """Why the hub cannot be asked, in words; empty where it answers, with whatever status."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):  # each generation of the client has classes of its own
            answers.append(get_session().head(constants.ENDPOINT, timeout=SECONDS))

    asking = Thread(target=ask, daemon=True)  # looking a name up has no time limit of its own
    asking.start()
    asking.join(SECONDS)
    return "" if answers else f"no network: {constants.ENDPOINT} does not answer"


@contextmanager
def hub() -> Iterator[str]:
    """Around calls of huggingface_hub and datasets (imported before); gives `out_of_reach`, and if it is said, they
    ask nobody until the end. They do not tell of each of their tries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    away = out_of_reach()
    modules = [m for m in (constants, sys.modules.get("datasets.config")) if m is not None]
    before, told = [module.HF_HUB_OFFLINE for module in modules], logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        for module in modules if away else ():
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield away
    finally:
        logging.set_verbosity(told)
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]
