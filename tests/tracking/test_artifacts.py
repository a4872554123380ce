"""Files of runs that lie on a server."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from qrun.tracking.artifacts import artifact
from qrun.tracking.runs import Recorded


@dataclass
class Server:
    """A tracking client of one run; counts its downloads."""

    folder: Path
    sent: int = 0

    def list_artifacts(self, run_id, path=None):
        return [SimpleNamespace(path=file.name) for file in (self.folder / (path or "")).iterdir()]

    def download_artifacts(self, run_id, name, target):
        self.sent += 1
        place = Path(target) / name
        for file in (self.folder / name).rglob("*") if (self.folder / name).is_dir() else [self.folder / name]:
            to = place / file.relative_to(self.folder / name) if file != self.folder / name else place
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())


def test_a_file_of_a_folder_does_not_stand_in_for_the_folder(tmp_path):
    there = tmp_path / "there"
    (there / "adapter").mkdir(parents=True)
    (there / "adapter" / "qrun.json").write_text("{}")
    (there / "adapter" / "adapter_model.safetensors").write_text("weights")
    (there / "config.yaml").write_text("a: 1")
    server = Server(there)
    run = Recorded("r1", "r", "FINISHED", 1.0, 2.0, {}, {}, {}, "mlflow-artifacts:/1/r1", None)
    one = artifact(server, tmp_path, run, "adapter/adapter_model.safetensors")
    assert one.read_text() == "weights"
    folder = artifact(server, tmp_path, run, "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_model.safetensors", "qrun.json"]
    assert server.sent == 1 and artifact(server, tmp_path, run, "adapter/none.json") is None
    assert artifact(server, tmp_path, run, "config.yaml").read_text() == "a: 1" and server.sent == 2
    assert artifact(server, tmp_path, run, "absent") is None
