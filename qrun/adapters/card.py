"""The model card of a saved adapter: the hub's header with its results, what it is, and how to load it."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from qrun.adapters.methods import spec
from qrun.config.schema import AdapterConfig

RESULTS = {"adapted_perplexity": "perplexity", "base_perplexity": "perplexity of the frozen model", "gain": "gain"}
DECIMALS = 4


def card(values: Mapping[str, Any], config: AdapterConfig, peft: bool, licence: str | None = None) -> str:
    """Markdown of qrun.json's `values`; `peft` says whether PEFT loads the folder. Facts that are not there are left
    out."""
    base, facts, method = values["base_model"], values["facts"], spec(config.method)
    title = f"Adapter ({config.method}) for {base['name']}"
    data = facts.get("data_hub_id") or facts.get("data")
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=data, dataset_name=facts.get("data") or data,
            dataset_split=facts.get("data_split"), metric_type="perplexity", metric_name=name,
            metric_value=round(facts[key], DECIMALS),
        )
        for key, name in RESULTS.items() if data and isinstance(facts.get(key), float)
    ]  # fmt: skip
    header = ModelCardData(
        base_model=base.get("hub_id"), library_name="peft" if peft else "qrun", license=licence, model_name=title,
        datasets=facts.get("data_hub_id"), tags=["qrun", config.method], eval_results=results or None,
    )  # fmt: skip
    shown = {k: round(v, DECIMALS) if isinstance(v, float) else v for k, v in facts.items()}
    told = {k: v for k, v in shown.items() if v is not None and not isinstance(v, dict | list)}
    rows = "\n".join(f"| {_cell(k)} | {_cell(v)} |" for k, v in told.items())
    load = "`qrun eval perplexity adapter.path=<this folder>`"
    load += "; or with PEFT, `PeftModel.from_pretrained(model, <this folder>)`" if peft else ""
    return (
        f"---\n{header.to_yaml()}\n---\n# {title}\n\n"
        f"{method.title}, {method.label(config)}: {config.side.value} side, {len(values['sites'])} sites, "
        f"{values['parameters']:,} parameters, on the frozen model {base['name']} (revision {base.get('revision')}, "
        f"weights {base.get('weights')}).\n\n| fact | value |\n| --- | --- |\n{rows}\n\nLoad: {load}.\n"
    )


def _cell(value: object) -> str:
    """One cell of a table, whatever stands in the fact."""
    return " ".join(str(value).split()).replace("|", r"\|")
