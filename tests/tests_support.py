"""lm-evaluation-harness as an oracle.

Its own model class, rolling windows and aggregation, on pages given here instead of fetched.
"""


def lm_eval_word_perplexity(language, pages, max_length):
    """pages.

    (original, text to score). Returns word_perplexity and bits_per_byte as the task `wikitext` aggregates them.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    model = HFLM(pretrained=language.model, tokenizer=language.tokenizer, max_length=max_length, batch_size=4)
    requests = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for _, text in pages]
    likelihoods = model.loglikelihood_rolling(requests, disable_tqdm=True)
    rows = [process_results({"page": page}, (value,)) for (page, _), value in zip(pages, likelihoods, strict=True)]
    return {
        "word_perplexity": weighted_perplexity([row["word_perplexity"] for row in rows]),
        "bits_per_byte": bits_per_byte([row["bits_per_byte"] for row in rows]),
    }
