import re
import subprocess
import sys
from pathlib import Path

import pytest

from qrun.cli import reproduce
from qrun.config import tree
from qrun.config.compose import compose, config_hash, plain, to_yaml
from qrun.config.schema import DataConfig, ModelConfig, QuestionsConfig
from qrun.config.tree import flatten, options
from qrun.config.words import points
from qrun.errors import InputError
from qrun.quantum.calibration import calibration
from qrun.quantum.noise import Noise
from qrun.studies import STUDIES, configure

OPTIONS = [(group, option) for group, found in options().items() for option in found if group != "experiment"]


def composed(verb, words):
    """The config of a verb or of a study."""
    if verb == "reproduce":
        return reproduce.configure(words)
    return configure(verb, words) if verb in STUDIES else compose(verb, words)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_has_a_headline(group, option):
    words = [
        f"{group}={option}",
        *{"text": ["data.path=x.txt"], "hub": ["data.hub_id=x/y"], "local": ["model.path=x"]}.get(option, []),
    ]
    verbs = {
        "compression": "compress",
        "launcher": "recover",
        "questions": "questions",
        "reproduce": "reproduce",
    } | dict.fromkeys(("adapter", "training"), "train")
    verb = verbs.get(group, "perplexity")
    words += ["device=noisy"] if group == "noise" else []
    assert to_yaml(reproduce.configure(words) if group == "reproduce" else composed(verb, words))
    assert len(options()[group][option]) > 20


def test_words_set_values_with_their_types():
    config = compose(
        "train",
        [
            "model=smollm2",
            "adapter.dim=8",
            "adapter.projections=[v_proj,q_proj]",
            "adapter.layers=[0,3-5]",
            "training.lr=1e-3",
        ],
    )
    assert config.model.hub_id == "HuggingFaceTB/SmolLM2-135M" and config.adapter.dim == 8
    assert config.adapter.projections == ["q_proj", "v_proj"] and config.adapter.layers == ["0", "3-5"]
    assert config.training.lr == 0.001


def test_hash_changes_with_the_result_and_not_with_the_place():
    first = compose("train", [])
    assert config_hash(first) == config_hash(compose("train", ["results=/elsewhere", "name=mine"]))
    assert config_hash(first) != config_hash(compose("train", ["seed=1"]))
    assert config_hash(first) != config_hash(compose("train", ["training.lr=0.021"]))


@pytest.mark.parametrize(("study", "word"), [("questions", "temperatures=[[]]"), ("dim", "study.dims=[[2]]")])
def test_a_list_in_a_list_is_told_with_its_key(study, word):
    with pytest.raises(InputError, match=rf"^{re.escape(word)}: a list in a list"):
        composed(study, [word])


def test_a_number_that_is_filled_in_for_a_list_is_told_with_its_key():
    with pytest.raises(InputError, match=r"^temperatures=\$\{seed\}: fills in a value of another type"):
        composed("questions", ["temperatures=${seed}"])


def test_a_mapping_for_a_group_that_is_null_is_told_in_one_line():
    with pytest.raises(InputError, match=r"^teacher=\{a: 1\}: takes no mapping here"):
        compose("train", ["teacher={a: 1}"])


def test_plain_values_flatten_to_dotted_keys_with_enums_as_text():
    flat = flatten(plain(compose("train", [])))
    assert flat["adapter.dim"] == 4 and flat["model.dtype"] == "float32" and flat["adapter.side"] == "input"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("adapter.dimm=3", "did you mean adapter.dim"),
        ("adapter.dim=abc", "could not be converted to Integer"),
        ("adapter.dim=1", "dimension 2 or more"),
        ("adapter.dim=0", "dimension 2 or more"),
        ("adapter.dim=-4", "dimension 2 or more"),
        ("adapter.dim=2,4", "one value per key"),
        ("adapter.dim=range(2,8)", "-m runs each"),
        ("adapter.dim=2,4", "several are a study: qrun sweep dim study.dims=[...]"),
        ("model=null", "model=null: no such option; model has llama"),
        ("model=nan", "model=nan: no such option; model has llama"),
        ("model.shape.layers=0", "model.shape.layers: model.shape is null here, and has no keys"),
        ("model={}", "model={}: no such option; model has llama"),
        ("model=[nano]", "no such option; model has llama"),
        ("experiment=null", "experiment=null: no such option; experiment has"),
        ("noise=paper", "noise: this command has no noise; these have: circuit, generate, eval perplexity"),
        ("model@foo=nano", "model@foo: this command has no model@foo"),
        ("experiment=llama_noise", "experiment=llama_noise: is for `qrun sweep noise`, not for `qrun train`"),
        ("hydra.run.dir=x", "hydra.run.dir: Hydra's own settings are not taken"),
        ("hydra/sweeper=basic", "hydra/sweeper: Hydra's own settings are not taken"),
        ("hydra.searchpath=[/tmp]", "--config-dir DIR adds own files"),
        ("model.shape.foo=1", "model.shape.foo"),
        ("adapter.dim=interval(2,8)", "one value per key"),
        ("model=glob(n*)", "one run takes one model"),
        ("model@teacher=nano,llama", "model@teacher=nano,llama: one run takes one model"),
        ("seed=1 2)", "not a value of Hydra's grammar"),
        ("name=${oc.env:HOME}", "name: only values of this config are filled in"),
        ("training.lr=${seed}", "training.lr"),
        ("teacher=${seed}", "teacher=${seed}: fills in a value of another type"),
        ("adapter.options=${seed}", "adapter.options=${seed}: fills in a value of another type"),
        ("data.path=${${name}:HOME}", "data.path: only values of this config are filled in"),
        ("name='${oc.env:HOME}'", "name: only values of this config are filled in"),
        ("model=nope", "model has llama, llama_instruct, local, nano"),
        ("modell=nano", "did you mean model"),
        ("+new.key=3", "cannot be added"),
        ("++adapter.dim=3", "cannot be added"),
        ("~adapter", "cannot be added or removed"),
        ("adapter.dim", "expected key=value"),
        ("=3", "expected key=value"),
        ("adapter.projections=[", "close brackets and quotes"),
        ("adapter.projections=[x_proj]", "q_proj"),
        ("adapter.projections=[]", "at least one"),
        ("adapter.layers=3-1", "a range such as 2-5"),
        ('adapter.layers="²"', "a range such as 2-5"),
        ("data.path=mine.txt", "data.path=mine.txt: data.source=pydoc reads no file"),
        ("model.dtype=float64", "expected one of [float32, bfloat16, float16]"),
        ("training.lr=0", "above 0"),
        ("training.lr=inf", "training.lr=inf: give a number above 0"),
        ("training.weight_decay=1e400", "training.weight_decay=inf: give 0 or more"),
        ("training.steps=0", "1 or more"),
        ("training.patience=10", "training.eval_every=20 and training.warmup=8 or more"),
        ("training.accumulation=9223372036854775807", "give 1,000,000 or fewer"),
        ("training.decay=2", "give a share from 0 to 1"),
        ("training.average=1", "from 0 to below 1"),
        ("protocol.stride=4", "use protocol=hf_strided"),
        ("protocol.ctx=1", "2 tokens or more"),
        ("data=text", "data.path"),
        ("seed=-1", "seed"),
        ("evaluation.resamples=5", "99"),
        ("data.test=0.95", "data.test"),
    ],
)
def test_a_wrong_word_ends_in_one_line_that_names_it(word, said):
    with pytest.raises(InputError) as caught:
        compose("train", [word])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_stride_beyond_the_window_is_refused():
    with pytest.raises(InputError, match=r"must not exceed protocol.ctx=128"):
        compose("perplexity", ["protocol=hf_strided", "protocol.ctx=128", "protocol.stride=129"])


def test_a_list_value_is_not_a_grid():
    assert compose("train", ["adapter.projections=[q_proj,k_proj]"]).adapter.projections == ["q_proj", "k_proj"]
    assert compose("train", ["results='a,b'"]).results == "a,b"


NAMES = [
    ("train", "name", []),
    ("dim", "name", []),
    ("questions", "name", []),
    ("train", "model.name", []),
    ("train", "teacher.name", ["model@teacher=nano"]),
    ("questions", "original.name", ["model@original=nano"]),
    ("train", "data.name", []),
    ("recover", "home.name", ["data@home=pydoc"]),
    ("questions", "questions.name", []),
]


@pytest.mark.parametrize(("verb", "key", "words"), NAMES)
def test_every_name_that_leads_out_of_its_folder_is_refused(verb, key, words):
    with pytest.raises(InputError) as caught:
        composed(verb, [*words, f"{key}=../zz"])
    group = key.replace("teacher", "model").replace("original", "model").replace("home", "data")
    possible = "use 1 to 120 letters a-z and A-Z, digits, '.', '_' or '-', but not '.' or '..'"
    assert str(caught.value) == f"{group}=../zz: {possible}"


@pytest.mark.parametrize("given", ["..", ".", "/abs", "a/b", "a\\b", "a b", "a&b", "é", "a\n", "x" * 121, ""])
def test_a_name_of_other_characters_is_refused_in_one_line(given):
    with pytest.raises(InputError, match=r"model.name=.*use 1 to 120") as caught:
        ModelConfig(name=given, embedded=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["a", "...", "-x", "nano-svd-0.5", "Llama_3.2", "x" * 120])
def test_a_plain_name_is_taken(given):
    assert compose("train", [f"name={given}"]).name == ModelConfig(name=given, embedded=True).name == given


def test_a_name_that_is_not_stated_yet_is_no_wrong_name():
    assert ModelConfig(embedded=True).name == DataConfig(source="pydoc").name == QuestionsConfig(source="mmlu").name


def test_wrong_words_are_answered_before_torch_is_imported():
    code = (
        "import sys; from qrun.config.compose import compose\n"
        "from qrun.cli.main import app\n"
        "try: app(['train', 'adapter.dim=7'], standalone_mode=False)\n"
        "except Exception as e: print(e)\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "does not divide the input width 192 of layers.0.self_attn.q_proj" in out[0]
    assert out[1] == "[]"


def test_code_and_configs_come_from_one_tree(tmp_path):
    """A second checkout first on the path runs its own code with its own configs, whatever is installed beside it."""
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    import qrun

    root = Path(qrun.__file__).parents[1]
    for name in ("qrun", "configs"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "nano"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    preset = tmp_path / "configs" / "noise" / "paper.yaml"
    preset.write_text(preset.read_text().replace("cz: 1.78e-3", "cz: 4.2e-3"))
    ask = "compose('perplexity', ['device=noisy', 'noise=paper']).noise.cz"
    code = f"from qrun.config.compose import compose; print({ask})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.0042"


PATHS = [
    "/tmp/a b(1)#é.txt", "~x/it's", "a=b", "a,b", "[x]", "{a: 1}", "C:\\data\\", 'say "so"', "range(3)", "1e3", "true",
    "it's \\'so",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_the_shell_hands_it_over(path):
    config = compose("train", ["data=text", f"data.path={path}", f"results={path}", f"model.path={path}"])
    assert (config.data.path, config.results, config.model.path) == (path, path, path)


def test_a_path_may_be_quoted_for_hydra_or_null():
    config = compose("perplexity", ["results='a b'", "adapter.path=null"])
    assert config.results == "a b" and config.adapter.path is None


def test_every_path_below_home_is_written_out_typed_or_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "chip.json").write_text(calibration("FakeTorino").to_json())
    words = [f"{key}=~/{key}" for key in ("data.path", "model.path", "adapter.path", "results")]
    found = compose("perplexity", [*words, "data=text", "device=noisy", "noise.calibration=~/chip.json"])
    assert [found.data.path, found.model.path, found.adapter.path, found.results] == [
        f"{tmp_path}/{key}" for key in ("data.path", "model.path", "adapter.path", "results")
    ]
    assert found.noise.calibration == f"{tmp_path}/chip.json"
    assert compose("tasks", ["tasks=[a]", "include_path=~/a b"]).include_path == f"{tmp_path}/a b"
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "lab.yaml").write_text("# Mine\nname: lab\ncalibration: ~/chip.json\n")
    tree.use("~")
    assert compose("perplexity", ["device=noisy", "noise=lab"]).noise.calibration == f"{tmp_path}/chip.json"
    assert tree.option("noise", "lab", Noise).calibration == f"{tmp_path}/chip.json"
    tree.use(None)


def test_an_axis_of_another_type_and_a_seed_beyond_all_generators_are_named():
    with pytest.raises(InputError, match=r"^study.rates=\[\[\]\]: a list in a list"):
        composed("wall", ["study.rates=[[]]"])
    with pytest.raises(InputError, match=r"^study.seeds=4294967296: give a number from 0 to"):
        composed("dim", ["study.seeds=[4294967296]"])


@pytest.mark.parametrize(
    ("verb", "word", "said"),
    [("train", "noise.block=1", r"^noise: this command has no noise; these have: .*sweep noise"),
     ("train", "study.dims=[2]", r"^study\.dims: no such key"),
     ("train", "seed=4294967296", r"^seed=4294967296: give a number from 0 to 2\^32 - 1"),
     ("circuit", "seed=-1", r"^seed=-1: give a number")],
)  # fmt: skip
def test_a_key_of_another_command_or_an_impossible_seed_is_named(verb, word, said):
    with pytest.raises(InputError, match=said):
        compose(verb, [word])


def test_an_experiment_is_not_blamed_for_another_wrong_word():
    with pytest.raises(InputError, match=r"^adapter.dim: .*converted to Integer"):
        compose("train", ["experiment=nano_v_proj", "adapter.dim=abc"])
    with pytest.raises(InputError, match=r"^study.dim: no such key .*study.dims"):
        configure("dim", ["experiment=smollm2_dim", "study.dim=[4]"])


def test_a_grid_is_every_combination_of_its_values_by_hydras_grammar():
    words = ["seed=range(0,2)", "model=nano", "data.path=/a,b", "adapter.dim=2,4", "adapter.projections=[q_proj],all"]
    fixed, each = points([*words, "noise.name=choice(x)"])
    assert fixed == ["model=nano"]
    assert len(each) == 2 * 2 * 2 * 2 and len({tuple(point) for point in each}) == 16
    assert each[0] == ["seed=0", "data.path=/a", "adapter.dim=2", "adapter.projections=[q_proj]", "noise.name=x"]
    assert each[-1] == ["seed=1", "data.path=b", "adapter.dim=4", "adapter.projections=all", "noise.name=x"]
    assert points(["results=/tmp/a (1)"]) == (["results='/tmp/a (1)'"], [[]])
    for word in ("training.lr=interval(0,1)", "model=glob(*)"):
        with pytest.raises(InputError, match="a grid takes values"):
            points([word])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of own files, used from an empty working folder."""
    files = {
        "noise/lab.yaml": "# The lab's chip\nname: lab\ncz: 4e-3\n",
        "model/mine.yaml": "# A model of mine\ndefaults:\n  - nano\n  - _self_\nname: mine\n",
        "questions/quiz.yaml": "# A quiz\nname: quiz\nsource: mmlu\npath: quiz.csv\n",
        "experiment/first.yaml": "# @package _global_\n# Lab\n# command   qrun eval perplexity experiment=first\n"
        "defaults:\n  - override /device: noisy\n  - override /noise: lab\nseed: 5\n",
        "experiment/broken.yaml": "# @package _global_\nfoo: 3\n",
        "paths/cluster.yaml": "scratch: /x\n",
    }
    for name, text in files.items():
        file = tmp_path / "own" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "own"
    tree.use(None)


@pytest.mark.parametrize("how", ["option", "environment", "here"])
def test_own_files_are_options_beside_the_packages(own, how, monkeypatch):
    if how == "option":
        tree.use("../own")
    elif how == "environment":
        monkeypatch.setenv("QRUN_CONFIG_DIR", str(own))
    else:
        own.rename("configs")
    assert options()["noise"]["lab"] == "The lab's chip" and "paths" not in options()
    found = compose("perplexity", ["experiment=first", "model=mine"])
    assert (found.noise.name, found.noise.cz, found.seed, found.model.name) == ("lab", 4e-3, 5, "mine")
    assert tree.used() == {"config_folders": str(Path("configs").absolute() if how == "here" else own)}
    assert configure("questions", ["questions=quiz"]).questions.path == "quiz.csv"
    assert tree.option("noise", "lab", Noise).cz == 4e-3


def test_a_config_without_own_files_names_no_folder(own):
    tree.use(str(own))
    compose("train", [])
    assert tree.used() == {}


def test_an_own_experiment_says_its_command_and_what_is_wrong_in_it(own):
    tree.use(str(own))
    with pytest.raises(InputError, match=r"experiment=first: is for `qrun eval perplexity`, not for `qrun train`"):
        compose("train", ["experiment=first"])
    with pytest.raises(InputError, match=r"experiment=broken: .*Key 'foo' not in"):
        compose("train", ["experiment=broken"])


def test_an_own_file_with_the_name_of_another_is_refused_when_it_is_used(own):
    (own / "noise" / "paper.yaml").write_text("name: paper\ncz: 0.5\n")
    tree.use(str(own))
    assert compose("perplexity", ["noise=lab", "device=noisy"]).noise.cz == 4e-3
    with pytest.raises(InputError, match=r"noise=paper: .*own/noise/paper.yaml has the name of .*; give it another"):
        compose("perplexity", ["noise=paper", "device=noisy"])


def test_an_own_file_that_is_no_mapping_is_one_line(own):
    (own / "noise" / "five.yaml").write_text("5")
    tree.use(str(own))
    with pytest.raises(InputError, match=r"^noise: Invalid loaded object type: int"):
        compose("perplexity", ["noise=five", "device=noisy"])


def test_a_missing_folder_of_own_files_is_one_line(own, monkeypatch):
    tree.use("nowhere")
    with pytest.raises(InputError, match=r"^--config-dir nowhere: no such folder"):
        compose("train", [])
    tree.use(None)
    monkeypatch.setenv("QRUN_CONFIG_DIR", "nowhere")
    with pytest.raises(InputError, match=r"^QRUN_CONFIG_DIR nowhere: no such folder"):
        compose("train", [])


@pytest.mark.parametrize("uri", ["nowhere", "http://me:secret@host:5000"])
def test_a_store_without_a_scheme_or_with_a_password_is_refused_and_the_password_not_shown(uri):
    with pytest.raises(InputError, match=r"tracking\.uri") as stop:
        compose("train", [f"tracking.uri='{uri}'"])
    assert "secret" not in str(stop.value)


def test_where_runs_go_changes_no_hash():
    assert config_hash(compose("train", [])) == config_hash(compose("train", ["tracking.uri=http://host:5000"]))
