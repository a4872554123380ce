"""lm-evaluation-harness as an oracle, studies in this process, and what tests of processes and of models share."""

import copy
import json
import os
import time

PATIENCE = 600  # seconds until a wait gives up: far beyond what the slowest machine needs
CLOCK = ("seconds", "memory", "run_id", "git_")  # columns that differ from one computation to the next


def study(kind, words, **more):
    """Results of a study run in this process, as `qrun` would run it."""
    from qrun.cells.study import run_study
    from qrun.studies import configure, module

    words = [*map(str, words), *(f"{key}={value}" for key, value in more.items())]
    return run_study(kind, module(kind), configure(kind, words), dry_run=False)


def columns(table):
    """A table of cells without what the clock, the machine's memory, the store and a commit put into it."""
    return table[[name for name in table if not any(word in name for word in CLOCK)]]


def saved(folder, name):
    """Results of a study as the store's folder has them."""
    from qrun.evaluation.results import read

    return read(folder / "studies" / name)


def finished(store):
    """Run ids of the finished cells by key."""
    return {key: run.run_id for key, run in store.tagged("study", "cell_key", "FINISHED").items()}


def until(condition, process):
    """Wait for a condition on what a process does; the process must not end before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {process.told()}"
        assert time.monotonic() < end, f"nothing in {PATIENCE} s: {process.told()}"
        time.sleep(0.05)


class Dies:
    """A cell whose process is lost; picklable, because this module is importable everywhere."""

    modules = ()

    def run(self, workspace, place):
        os._exit(9)


class Breaks:
    """A cell with a bug."""

    modules = ()

    def run(self, workspace, place):
        raise ZeroDivisionError("a bug")


class Says:
    """A cell that is done at once."""

    modules = ()

    def run(self, workspace, place):
        return f"run of {place.name}"


def rope_base(folder):
    """Another model with the same weights and tokenizer."""
    values = json.loads((folder / "config.json").read_text())
    values["rope_parameters"]["rope_theta"] = 20_000.0
    (folder / "config.json").write_text(json.dumps(values))


def swapped_entries(folder):
    """Another tokenizer beside the same weights."""
    values = json.loads((folder / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(values))


def lm_eval_word_perplexity(language, pages, max_length):
    """word_perplexity and bits_per_byte as the harness's task `wikitext` aggregates them.

    Its own model class, rolling windows and aggregation, on pages (original, text to score) instead of fetched ones.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    tokenizer = copy.deepcopy(language.tokenizer)  # the harness changes its padding
    model = HFLM(pretrained=language.model, tokenizer=tokenizer, max_length=max_length, batch_size=4)
    requests = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for _, text in pages]
    likelihoods = model.loglikelihood_rolling(requests, disable_tqdm=True)
    rows = [process_results({"page": page}, (value,)) for (page, _), value in zip(pages, likelihoods, strict=True)]
    return {
        "word_perplexity": weighted_perplexity([row["word_perplexity"] for row in rows]),
        "bits_per_byte": bits_per_byte([row["bits_per_byte"] for row in rows]),
    }
