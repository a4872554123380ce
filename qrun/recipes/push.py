"""`qrun push`: a saved adapter to the hub, with its card.

qrun push results/runs/<run>/adapter owner/name        or the run's name; HF_TOKEN in the environment
"""

import json
from pathlib import Path

from qrun.adapters.card import card
from qrun.adapters.saving import CONFIG, PEFT_CONFIG, WEIGHTS, read
from qrun.errors import InputError, redacted
from qrun.language.hub import hub
from qrun.report.screen import say
from qrun.tracking.store import Store

CARD = "README.md"


def push(source: str, repo: str, results: str, private: bool, licence: str | None, dry_run: bool) -> None:
    """Write the card of an adapter and upload its folder into a repository, which is created where it is missing.
    `dry_run` writes the card only. Raises InputError in one line, which never has a token."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"{repo}: no name of a repository, owner/name ({' '.join(str(error).split())[:120]})"
        ) from error
    given, run = Path(source), Store(results).folder / "runs" / source / "adapter"
    folder = given if (given / CONFIG).is_file() or (given / PEFT_CONFIG).is_file() else run
    if not folder.is_dir():
        raise InputError(f"{source}: no folder of an adapter, and no run of that name in {Store(results).folder}")
    if not (folder / CONFIG).is_file():
        how = f"`qrun export {folder} --to peft --out <new folder>` makes a folder that can be pushed"
        raise InputError(f"{folder}: no {CONFIG} there, so not of this qrun; {how}")
    saved, peft = read(folder), (folder / PEFT_CONFIG).is_file()
    (folder / CARD).write_text(redacted(card(json.loads((folder / CONFIG).read_text()), saved.config, peft, licence)))
    say(f"card written to {folder / CARD}")
    if not saved.base.get("hub_id"):
        say(f"its model {saved.base['name']} is not on the hub, so the card names no base_model")
    if dry_run:
        return
    with hub() as away:
        if away:
            raise InputError(f"push: {away}")
        try:
            HfApi().create_repo(repo, private=private, exist_ok=True)
            done = HfApi().upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=[CARD, CONFIG, PEFT_CONFIG, WEIGHTS],
                commit_message=f"Add {saved.config.method} adapter",
            )  # fmt: skip
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", "no status")
            how = "check the name, and that HF_TOKEN in the environment may write there"
            raise InputError(f"push: the hub refused {repo} ({type(error).__name__}, {status}); {how}") from error
        except OSError as error:  # no token at all is one
            raise InputError(
                f"push: {repo} not uploaded ({type(error).__name__}); set HF_TOKEN in the environment"
            ) from error
    say(f"pushed to {done.commit_url}")
