import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest


def test_help_is_light_and_fast():
    code = (
        "import sys; from qrun.cli.main import app; import typer; typer.main.get_command(app)\n"
        "print(sorted({'torch', 'transformers', 'pennylane', 'mlflow', 'qiskit', 'numpy', "
        "'hydra', 'omegaconf', 'scipy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(
            [sys.executable, "-m", "qrun", "--help"], capture_output=True, check=True, text=True
        ).stdout
        assert "Train a Cayley adapter" in shown
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.5  # the goal is 0.3 s of CPU; the margin is for slow machines


def test_cfg_prints_the_resolved_config_and_runs_nothing(qrun):
    code, out, _ = qrun("train", "adapter.dim=8", "--cfg", "job")
    assert code == 0 and "dim: 8" in out and "name: nano" in out
    code, out, _ = qrun("train", "adapter.dim=8", "--cfg", "hash")
    assert code == 0 and len(out.strip()) == 8


def test_config_lists_groups_options_and_files(qrun):
    code, out, _ = qrun("config")
    assert "qrun-adapters[ray]" in out and code == 0 and "smollm2_instruct" in out and "hf_strided" in out
    code, out, _ = qrun("config", "protocol")
    assert code == 0 and "kind: lm_eval_wikitext" in out
    code, _, err = qrun("config", "nope")
    assert code == 2 and "groups are" in err


@pytest.mark.parametrize(
    ("command", "typed", "offered", "other"),
    [
        ("train", "mod", "model=", "noise="), ("train", "model=sm", "model=smollm2", "model=nano"),
        ("train", "adapter.d", "adapter.dim=", "study.dims="), ("train", "protocol.", "protocol.ctx=", "noise.cz="),
        ("noise", "study.", "study.rates=", "adapter.dim="), ("noise", "launcher.", "launcher.workers=", "noise.cz="),
        ("perplexity", "noise.", "noise.cz=", "launcher.kind="),
        ("recover", "data@home=py", "data@home=pydoc", "data="),
    ],
)  # fmt: skip
def test_completion_offers_the_commands_groups_options_and_keys(command, typed, offered, other):
    from qrun.cli.main import complete

    found = complete(SimpleNamespace(info_name=command, params={}), typed)
    assert offered in found and other not in found
    if command == "train":
        assert not {"noise=", "study.dims=", "device="} & set(
            complete(SimpleNamespace(info_name=command, params={}), "")
        )


@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [
        ("qrun train model = sm", 4, ["smollm2", "smollm2_instruct"]),
        ("qrun train protocol =", 3, ["fixed_window", "hf_strided", "lm_eval_wikitext", "study"]),
    ],
)
def test_completion_answers_bash_which_breaks_words_at_the_equals_sign(words, at, offered):
    environment = {**os.environ, "_QRUN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    out = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "qrun")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert out.split() == offered


def test_completion_answers_a_shell():
    environment = {**os.environ, "_QRUN_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "qrun train model=ll"}
    out = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "qrun")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "model=llama_instruct" in out


def test_a_plan_needs_no_torch():
    code = (
        "import sys; from qrun.cli.main import app\n"
        "app(['plan', 'model=llama'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "1,328" in out and out.splitlines()[-1] == "False"


def test_own_files_are_listed_completed_and_shown(qrun, tmp_path):
    from qrun.cli.main import complete

    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "lab.yaml").write_text("# The lab's chip\nname: lab\ncz: 4e-3\n")
    context = SimpleNamespace(info_name="perplexity", params={"config_dir": str(tmp_path)})
    assert complete(context, "noise=la") == ["noise=lab"]
    code, out, _ = qrun("config", "--config-dir", tmp_path)
    assert code == 0 and "The lab's chip" in out and f"Own folders:\n{tmp_path}" in out
    code, out, _ = qrun("config", "noise", "--config-dir", tmp_path)
    assert code == 0 and f"--- noise=lab ({tmp_path}/noise/lab.yaml)\n# The lab's chip" in out
    code, out, _ = qrun("eval", "perplexity", "device=noisy", "noise=lab", "--cfg", "job", "--config-dir", tmp_path)
    assert code == 0 and "cz: 0.004" in out
    code, out, err = qrun("eval", "perplexity", "device=noisy", "noise=lab", "--cfg", "job")
    assert code == 2 and "no such option" in err, out
    code, _, err = qrun("train", "--config-dir", tmp_path / "nowhere")
    assert code == 2 and f"--config-dir {tmp_path}/nowhere: no such folder" in err and err.count("\n") == 1


def test_a_preset_from_a_calibration_is_an_option_at_once(qrun, tmp_path, monkeypatch):
    pytest.importorskip("qiskit_ibm_runtime", reason="the optional extra ibm is not installed")
    monkeypatch.chdir(tmp_path)
    code, out, err = qrun("qpu", "noise", "FakeFez", "--out", "configs/noise/mine.yaml")
    assert code == 0 and "runs take it with noise=mine\n" in out, err
    code, out, err = qrun("eval", "perplexity", "device=noisy", "noise=mine", "--cfg", "job")
    assert code == 0 and "source: medians of fake_fez" in out, err
    code, out, _ = qrun("qpu", "noise", "FakeFez", "--out", "chips/noise/other.yaml")
    assert code == 0 and f"runs take it with noise=other --config-dir {tmp_path}/chips\n" in out


@pytest.mark.parametrize("command", [["plan"], ["sweep", "dim"], ["recover"], ["compress", "--out", "x"]])
def test_a_grid_of_another_command_is_one_line_of_advice(qrun, command):
    code, _, err = qrun(*command, "-m", "adapter.dim=2,4")
    assert (
        code == 2 and err.startswith("qrun: -m: only `qrun train` and `qrun eval perplexity`") and err.count("\n") == 1
    )


def test_completion_of_a_grid_offers_its_launcher():
    from qrun.cli.main import complete

    assert "launcher.workers=" in complete(SimpleNamespace(info_name="train", params={"multirun": True}), "launcher.")
    assert complete(SimpleNamespace(info_name="train", params={}), "launcher.") == []


def test_an_unknown_command_and_option_end_with_code_2(qrun):
    assert qrun("trian")[0] == 2
    assert qrun("train", "--nope")[0] == 2


def test_doctor_says_what_works_and_what_is_missing(qrun, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    code, out, _ = qrun("doctor", "--results", tmp_path / "results")
    assert (
        code == 0
        and "set QISKIT_IBM_TOKEN" in out
        and "HF_TOKEN is set" in out
        and "hf_secret" not in out
        and "torch 2." in out
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("says", "said"),
    [("exec sleep 600", "does not answer in 0.2 s"), ("exit 3", "none;"), ("echo 'H100, 80 GiB'", "H100")],
)
def test_doctor_goes_on_where_the_driver_of_a_gpu_hangs_or_fails(qrun, monkeypatch, tmp_path, says, said):
    from qrun.cli import doctor

    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "ANSWER_S", 0.2 if "sleep" in says else 600)
    code, out, err = qrun("doctor", "--results", tmp_path / "r")
    assert code == 0 and said in next(line for line in out.splitlines() if "GPU" in line), out + err


def test_doctor_needs_no_torch(tmp_path):
    code = f"import sys; from qrun.cli.doctor import doctor; doctor({str(tmp_path)!r}); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


@pytest.fixture
def quick(monkeypatch):
    """A machine of one GFLOP a second with 20 GiB free."""
    from qrun.cli import doctor

    monkeypatch.setattr(doctor, "speed", lambda *_: 1e9)
    monkeypatch.setattr(doctor, "free", lambda _: ("of the processor", 20 * 2**30))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=llama", "adapter=paper"], ["8,030,261,248 parameters", "14.96 GiB", "It fits", "6,144 parameters"]),
        (
            ["model=llama", "adapter=paper", "model.dtype=float32"],
            ["29.92 GiB", "It does not fit: model.dtype=bfloat16"],
        ),
        (["model=llama", "adapter=paper", "model.quantization=nf4"], ["5.6", "projections in nf4"]),
        (["model=llama"], ["It does not fit: training.gradient_checkpointing=true"]),
        (["model=llama", "training.gradient_checkpointing=true"], ["It fits"]),
        (["model=smollm2", "adapter.dim=8"], ["134,515,008 parameters", "HuggingFaceTB/SmolLM2-135M at first use"]),
        (["experiment=llama_v_proj"], ["llama_instruct", "4.00 GiB on disk", "accepted licence"]),
    ],
)
def test_doctor_says_what_a_training_takes_before_it_loads(qrun, quick, monkeypatch, words, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, out, err = qrun("doctor", *words)
    assert code == 0, err
    assert [part for part in said if part not in out] == []


def test_doctor_names_what_a_folder_lacks(qrun, quick, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    local = ("doctor", "model=local", f"model.path={folder}", "adapter=paper")
    assert qrun(*local)[0] == 0
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 8])
    assert "model.safetensors: not a complete safetensors file" in qrun(*local)[2]
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").rename(folder / "kept")
    assert "no tokenizer there" in qrun(*local)[2]
    (folder / "kept").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    code, _, err = qrun(*local)
    assert code == 2 and "no *.safetensors" in err and err.count("\n") == 1


@pytest.mark.slow
def test_models_out_of_reach_say_what_to_do(qrun, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, _, err = qrun("eval", "perplexity", "model=llama", f"results={tmp_path}/r")
    assert code == 2 and "gated" not in err and "HF_HUB_OFFLINE is set" in err and "model.path" in err
    code, _, err = qrun("eval", "perplexity", "model=smollm2", f"results={tmp_path}/r")
    assert code == 2 and "model.path=<local copy" in err and err.count("\n") == 1
    code, _, err = qrun("eval", "perplexity", "data=wikitext2", f"results={tmp_path}/r")
    assert code == 2 and "data.path=" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("circuit", "--draw", "a" * 300 + "/b.png"),
        ("push", "a" * 300, "owner/name"),
        ("eval", "compare", "a" * 300, "b"),
    ],
    ids=lambda command: command[0],
)
def test_a_name_that_is_too_long_is_one_line(qrun, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = qrun(*command)
    assert code in (1, 2) and err.count("\n") == 1 and "aaa" in err and "bug" not in err, err


def test_a_home_that_the_shell_left_in_an_option_is_written_out(qrun, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = qrun("doctor", "--results=~/r")
    assert code == 0 and f"{tmp_path}/r will be created" in out
