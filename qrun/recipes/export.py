"""`qrun export`: a saved adapter for other programs.

qrun export results/runs/<run>/adapter --to peft --out oft      loads with PeftModel.from_pretrained
qrun export results/runs/<run>/adapter --to merged --out model  an ordinary model folder, Q folded into its weights
"""

from pathlib import Path

from qrun.config.verbs import PerplexityConfig
from qrun.errors import InputError
from qrun.language.models import model_shape


def export(config: PerplexityConfig, kind: str, out: str) -> None:
    """Write `config.adapter.path` as `kind` (peft or merged) into the new folder `out`."""
    target = Path(out).expanduser()
    if target.exists():
        raise InputError(f"--out {out}: exists already; name a new folder")
    model_shape(config.model)
    from qrun.adapters.linear import detach
    from qrun.adapters.saving import read, replace_folder, to_peft
    from qrun.language import models
    from qrun.recipes.record import attach_saved
    from qrun.report.screen import say

    saved = read(Path(str(config.adapter.path)).expanduser())
    language = models.load(config.model)
    adapter = attach_saved(language, saved, str(config.adapter.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "peft":
        to_peft(target, adapter, {**language.identity, "path": str(models.local_folder(config.model) or "") or None})
    else:
        adapter.merge()
        folded = {name: module.base.weight.data for name, module in adapter.modules.items()}
        biases = {
            name: module.base.bias.data for name, module in adapter.modules.items() if module.base.bias is not None
        }
        detach(language.model, adapter)
        for name, weight in folded.items():
            language.model.get_submodule(f"model.{name}").weight.data = weight
        for name, bias in biases.items():
            language.model.get_submodule(f"model.{name}").bias.data = bias

        def write(folder: Path) -> None:
            language.model.save_pretrained(folder)
            language.tokenizer.save_pretrained(folder)

        replace_folder(target, write)
    say(f"{kind}: {len(adapter.modules)} sites written to {target}")
