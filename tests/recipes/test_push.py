"""An adapter goes to the hub: a server on this machine that speaks the hub's protocol takes it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import peft
import pytest
from huggingface_hub import ModelCard

from qrun.adapters.linear import attach
from qrun.adapters.saving import read, save
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig, Side

FACTS = {
    "base_perplexity": 28.480612345678, "adapted_perplexity": 27.66341234, "gain": 0.817200005, "data": "wikitext2",
    "data_hub_id": "Salesforce/wikitext", "data_split": "test", "gain_95_low": None, "seed": 0,
}  # fmt: skip
TOKEN = "hf_" + 3 * "secret"


class Hub(BaseHTTPRequestHandler):
    """What of the hub's API an upload needs; `server.asked` and `server.files` are what came."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        self.answer({"error": "Repository not found"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/owner/name"
            return self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}"})
        return self.answer({"url": f"http://{self.headers['Host']}/owner/name", "name": "owner/name"})

    def answer(self, values, status=200):
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def served(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tiny, tmp_path):
    adapter = attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), AdapterConfig(dim=4))
    save(tmp_path / "r" / "runs" / "mine" / "adapter", adapter, {**tiny.identity, "hub_id": "owner/base"}, FACTS)
    return tmp_path / "r" / "runs" / "mine" / "adapter"


def test_a_card_has_the_hubs_header_with_rounded_results(qrun, folder, tmp_path):
    code, out, err = qrun("push", "mine", "owner/name", "--results", tmp_path / "r", "--dry-run", "--license", "mit")
    assert code == 0 and str(folder / "README.md") in out, err
    header = ModelCard.load(folder / "README.md").data
    assert (header.base_model, header.license, header.library_name) == ("owner/base", "mit", "peft")
    assert header.datasets == "Salesforce/wikitext" and header.tags == ["qrun", "cayley"]
    found = {r.metric_name: (r.dataset_type, r.dataset_split, r.metric_value) for r in header.eval_results}
    assert found == {
        "perplexity": ("Salesforce/wikitext", "test", 27.6634), "gain": ("Salesforce/wikitext", "test", 0.8172),
        "perplexity of the frozen model": ("Salesforce/wikitext", "test", 28.4806),
    }  # fmt: skip
    text = (folder / "README.md").read_text()
    assert "| gain | 0.8172 |" in text and "None |" not in text and "PeftModel.from_pretrained" in text


def test_a_card_without_hub_results_or_peft_says_so_by_leaving_them_out(tiny, tmp_path):
    config = AdapterConfig(dim=4, side=Side.output)
    save(tmp_path / "a", attach(tiny.model, select(sites(tiny.shape), ["q_proj"], ["0"]), config), tiny.identity, {})
    header = ModelCard.load(tmp_path / "a" / "README.md").data
    assert header.library_name == "qrun" and header.base_model is None and not header.eval_results
    assert "PeftModel" not in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.slow
def test_a_folder_is_pushed_and_what_arrives_is_the_adapter(start, served, folder, monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "private.txt").write_text("stays here")
    process = start("push", folder, "owner/name")
    assert process.wait(timeout=600) == 0, process.told()
    assert "pushed to http://127.0.0.1" in process.told() and TOKEN not in process.told()
    names = {"README.md", "qrun.json", "adapter_config.json", "adapter_model.safetensors"}
    assert served.files.keys() == names and "/api/repos/create" in [path for path, _ in served.asked]
    (tmp_path / "got").mkdir()
    for name, content in served.files.items():
        (tmp_path / "got" / name).write_bytes(content)
    assert read(tmp_path / "got").config == AdapterConfig(dim=4)
    assert peft.PeftConfig.from_pretrained(tmp_path / "got").base_model_name_or_path == "owner/base"


@pytest.mark.slow
def test_a_refused_token_is_one_line_without_it(start, served, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_anothertoken")
    process = start("push", folder, "owner/name")
    assert process.wait(timeout=600) == 2, process.told()
    line = process.told().splitlines()[-1]
    assert line.startswith("qrun: push: the hub refused owner/name (") and "401" in line and not served.files
    assert "hf_anothertoken" not in process.told()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "owner/name"], "nowhere: no folder of an adapter, and no run of that name"),
        (["mine", "a/b/c"], "a/b/c: no name of a repository"),
        (["mine", "owner/name"], "push: HF_HUB_OFFLINE is set"),
    ],
)
def test_a_wrong_word_of_push_is_told_in_one_line(qrun, folder, tmp_path, words, said):
    code, _, err = qrun("push", *words, "--results", tmp_path / "r")
    assert code == 2 and said in err and len(err.splitlines()) == 1
