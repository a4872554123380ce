"""Prompts in the chat template of an instruct model, through the tokenizer's own apply_chat_template.

uses_chat(PromptConfig, ModelConfig)   whether prompts go into the template, before any weight is loaded
as_chat(tokenizer, turns)              what system, user and assistant said, and what opens the answer
"""

from collections.abc import Sequence
from typing import Any

from qrun.config.schema import Chat, ModelConfig, PromptConfig
from qrun.errors import InputError
from qrun.language.identity import tokenizer_settings
from qrun.language.models import model_folder

DATE = "26 Jul 2024"  # Llama's templates name a day; today's would give every day other numbers


def uses_chat(prompt: PromptConfig, model: ModelConfig) -> bool:
    """`auto`: an instruct model whose tokenizer has a template. Raises InputError for `on` without a template."""
    if prompt.chat is Chat.off or (prompt.chat is Chat.auto and not model.instruct):
        return False
    template = bool(tokenizer_settings(model_folder(model))["chat_template"])
    if prompt.chat is Chat.on and not template:
        raise InputError(f"prompt.chat=on: the tokenizer of model={model.name} has no chat template; use auto or off")
    return template


def as_chat(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """Roles and texts as the tokenizer's template writes them, its special tokens too. A template that refuses a system
    message gets none, as in lm-evaluation-harness. `tokenizer` is transformers'."""
    from jinja2 import TemplateError

    said = [{"role": role, "content": text} for role, text in turns]
    try:
        return _written(tokenizer, said)
    except TemplateError:
        if said[0]["role"] != "system":
            raise
        return _written(tokenizer, said[1:])


def _written(tokenizer: Any, said: Sequence[dict[str, str]]) -> str:
    found: str = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, date_string=DATE)
    return found
