"""`qrun export`: a saved adapter for other programs.

qrun export results/runs/<run>/adapter --to peft --out oft      loads with PeftModel.from_pretrained
qrun export results/runs/<run>/adapter --to merged --out model  an ordinary model folder, Q folded into its weights
"""

from pathlib import Path

from qrun.adapters.linear import detach
from qrun.adapters.saving import read, replace_folder, to_peft
from qrun.config.verbs import PerplexityConfig
from qrun.errors import InputError
from qrun.language import models
from qrun.language.models import model_shape
from qrun.recipes.measuring import attach_saved
from qrun.report.screen import say


def export(config: PerplexityConfig, kind: str, out: str) -> None:
    """Write `config.adapter.path` as `kind` (peft or merged) into the new folder `out`."""
    target = Path(out).expanduser()
    if target.exists():
        raise InputError(f"--out {out}: exists already; name a new folder")
    model_shape(config.model)

    saved = read(Path(str(config.adapter.path)).expanduser())
    language = models.load(config.model)
    adapter = attach_saved(language, saved, str(config.adapter.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "peft":
        to_peft(target, adapter, {**language.identity, "path": str(models.local_folder(config.model) or "") or None})
    else:
        adapter.merge()
        folded = {
            (name, key): value.data for name, base in adapter.bases().items() for key, value in base.named_parameters()
        }
        detach(language.model, adapter)
        for (name, key), value in folded.items():
            language.model.get_submodule(f"model.{name}").get_parameter(key).data = value

        def write(folder: Path) -> None:
            language.model.save_pretrained(folder)
            language.tokenizer.save_pretrained(folder)

        replace_folder(target, write)
    say(f"{kind}: {len(adapter.modules)} sites written to {target}")
