"""`qrun export`: a saved adapter for other programs.

qrun export results/runs/<run>/adapter --to peft --out oft      an older folder, for PeftModel.from_pretrained
qrun export results/runs/<run>/adapter --to merged --out model  an ordinary model folder, Q folded into its weights
qrun export results/runs/<run>/adapter --to circuit --czs 6 --out cut      blocks as the nearest circuits of 6 CZ
"""

from pathlib import Path

import torch

from qrun.adapters.cut import cut
from qrun.adapters.linear import detach
from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.peft_folder import peft_config
from qrun.adapters.saving import read, replace_folder, save
from qrun.adapters.sites import sites
from qrun.config.verbs import PerplexityConfig
from qrun.errors import InputError
from qrun.language import models
from qrun.recipes.measuring import attach_saved
from qrun.report.screen import say


def export(config: PerplexityConfig, kind: str, out: str, czs: int = 6) -> None:
    """Write `config.adapter.path` as `kind` (peft, merged, or circuit with so many CZ) into the new folder `out`."""
    target = Path(out)
    saved = read(Path(str(config.adapter.path)))
    language = models.load(config.model)
    adapter = attach_saved(language, saved, str(config.adapter.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    base = {**language.identity, "path": str(models.local_folder(config.model) or "") or None}
    if kind == "peft":
        if peft_config(adapter, base) is None:
            has = "blocks on the input without sign constraint (method cayley), and PEFT's own methods"
            raise InputError(
                f"adapter.path={config.adapter.path}: method {saved.config.method} is none of PEFT's; it has {has}"
            )
        save(target, adapter, base, saved.facts)
    elif kind == "circuit":
        method = spec(saved.config.method)
        if not isinstance(method, BlockMethod):
            raise InputError(f"adapter.path={config.adapter.path}: method {method.name} has no blocks to cut")
        blocks = {name: module.blocks().detach() for name, module in adapter.modules.items()}
        adapter = cut(language.model, [s for s in sites(language.shape) if s.name in blocks], adapter, czs)
        facts = {**saved.facts, "cut to CZ a block": czs, "from": f"a trained {saved.config.method} adapter"}
        save(target, adapter, base, facts)
        one = torch.eye(saved.config.dim, device=next(iter(blocks.values())).device)
        wrong = sum(float((adapter.modules[name].blocks() - q).detach().square().sum()) for name, q in blocks.items())
        turned = sum(float((q - one).square().sum()) for q in blocks.values())
        share = (wrong / max(turned, 1e-300)) ** 0.5
        say(f"circuits miss the blocks by {share:.1%} of their rotation, |C - Q| / |Q - 1|")
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
