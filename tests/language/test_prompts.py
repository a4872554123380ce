"""Instruct models are asked in their tokenizer's own chat template, other models never."""

import json
import shutil

import pytest
import torch

from qrun.config.compose import compose
from qrun.config.schema import Chat, ModelConfig, PromptConfig, QuestionsConfig
from qrun.errors import InputError
from qrun.evaluation.questions import answer
from qrun.language import models, questions
from qrun.language.prompts import as_chat, uses_chat
from qrun.tracking.store import Store

TEMPLATE = (
    "<|endoftext|>{% for m in messages %}[{{ m['role'] }} on {{ date_string }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tiny_folder, tmp_path_factory):
    """The tiny model with a chat template that opens with a special token, as Llama's does."""
    folder = tmp_path_factory.mktemp("chatty") / "m"
    shutil.copytree(tiny_folder, folder)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, "chat_template": TEMPLATE}))
    return folder


def model(folder, **more):
    return ModelConfig(name="m", path=str(folder), device="cpu", **more)


def test_auto_is_for_instruct_models_that_have_a_template(chatty, tiny_folder):
    used = {
        (chat, instruct, folder): uses_chat(PromptConfig(Chat(chat)), model(folder, instruct=instruct))
        for chat in ("auto", "off") for instruct in (True, False) for folder in (chatty, tiny_folder)
    }  # fmt: skip
    assert {key for key, value in used.items() if value} == {("auto", True, chatty)}
    assert uses_chat(PromptConfig(Chat.on), model(chatty))
    with pytest.raises(InputError, match=r"prompt.chat=on: the tokenizer of model=m has no chat template"):
        uses_chat(PromptConfig(Chat.on), model(tiny_folder))


def test_nano_and_base_models_are_asked_as_before():
    assert not uses_chat(PromptConfig(), ModelConfig(name="nano", embedded=True))
    instruct = {name: compose("generate", [f"model={name}"]).model.instruct for name in ("nano", "smollm2", "llama")}
    assert not any(instruct.values())
    assert all(compose("generate", [f"model={name}_instruct"]).model.instruct for name in ("smollm2", "llama"))


@pytest.fixture
def mmlu(tmp_path):
    (tmp_path / "sums_test.csv").write_text("One and one?,1,2,3,4,1\nTwo and two?,1,2,3,4,3\n")
    return QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path))


def test_a_question_is_fed_as_the_template_writes_it_and_answered_without_a_space(chatty, mmlu):
    language, plain = models.load(model(chatty)), questions.load(mmlu, 0)
    asked = questions.in_chat(plain, language.tokenizer)
    assert asked.digest != plain.digest and [q.answer for q in asked.questions] == [1, 3]
    first = asked.questions[0]
    topic = "The following are multiple choice questions (with answers) about sums.\n\n"
    question = plain.questions[0].prompt.removeprefix(topic)
    day = "on 26 Jul 2024"
    assert first.prompt == f"<|endoftext|>[system {day}] {topic}\n[user {day}] {question}\n[assistant]\n"
    assert first.choices == ("A", "B", "C", "D")
    found = answer(language.model, language.tokenizer, asked.questions, 3)
    said = [{"role": "system", "content": topic}, {"role": "user", "content": question}]
    more = {"add_generation_prompt": True, "date_string": "26 Jul 2024", "return_dict": True}
    prompt = language.tokenizer.apply_chat_template(said, **more)["input_ids"]
    choice = language.tokenizer("C", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logs = language.model(input_ids=torch.tensor([[*prompt, *choice]])).logits[0].double().log_softmax(-1)
    before = len(language.tokenizer(first.prompt[:-1], add_special_tokens=False)["input_ids"])  # a line's end
    scored = [*prompt[before:], *choice]
    direct = sum(float(logs[before - 1 + k, token]) for k, token in enumerate(scored))
    assert len(scored) > len(choice) and found.likelihood[0, 2] == pytest.approx(direct, abs=1e-4)


@pytest.mark.slow
def test_generated_text_continues_the_template(qrun, chatty):
    language = models.load(model(chatty))
    said = as_chat(language.tokenizer, [("user", "Hello")])
    put = language.tokenizer(said, add_special_tokens=False, return_tensors="pt")
    made = language.model.generate(**put, max_new_tokens=5, do_sample=False)[0, put["input_ids"].shape[1] :]
    words = ["model=local", f"model.path={chatty}", "model.device=cpu", "tokens=5", "temperature=0"]
    code, out, err = qrun("generate", "Hello", *words, "model.instruct=true")
    assert code == 0 and out.startswith("Hello\n" + language.tokenizer.decode(made)), (out, err)
    code, plain, err = qrun("generate", "Hello", *words)
    assert code == 0 and plain.splitlines()[0] != "Hello" and plain != out


@pytest.mark.slow
def test_a_chat_is_part_of_what_a_questions_cell_is(qrun, chatty, mmlu, tmp_path):
    words = ["model=local", f"model.path={chatty}", "model.device=cpu", f"results={tmp_path / 'r'}", "questions=mmlu"]
    for chat in ("auto", "on", "off"):
        code, _, err = qrun("eval", "questions", *words, f"questions.path={mmlu.path}", f"prompt.chat={chat}")
        assert code == 0, err
    runs = Store(tmp_path / "r").tagged("study", "cell_key", "FINISHED").values()
    found = [(run.tags["chat"], run.tags["questions_digest"]) for run in runs]
    assert sorted(chat for chat, _ in found) == ["false", "true"]  # auto, of no instruct model, is off: one cell
    assert len({digest for _, digest in found}) == 2
