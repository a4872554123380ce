"""`qrun ui`: the MLflow server on the store, one worker, nothing but 127.0.0.1; of a remote server its links."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from qrun.errors import InputError, RunFailed
from qrun.tracking.store import PORT, Store, page
from qrun.tracking.views import named, shown

START = 90  # seconds that the server may take to answer
# Between this process and the server: it ends the server and all its processes when this process ends, however it does,
# and when the server ends.
KEEPER = """
import os, psutil, signal, subprocess, sys, threading
def end():
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(0)
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (sys.stdin.read(), end()), daemon=True).start()
server.wait()
end()
"""


def serve(results: str | Path, uri: str | None, port: int) -> None:
    """Start the UI, print the links, stay until interrupted. A store that is a server needs none started."""
    store = Store(results, uri)
    if store.server:
        _links(store, str(store.address()))
        print(f"{store.where} serves them; nothing was started.", flush=True)
        return
    if store.empty:
        how = "`qrun train` makes one, or name another folder with --results"
        raise InputError(f"no store at {store.database} yet; {how}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: not free on 127.0.0.1 ({error}); choose another") from error
    _ = store.client  # a broken database is told here
    artifacts = (store.folder / "artifacts").as_uri()
    command = [sys.executable, "-c", KEEPER, sys.executable, "-m", "mlflow", "server"]
    command += ["--default-artifact-root", artifacts, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet["MLFLOW_BACKEND_STORE_URI"] = store.uri  # a list of processes would show its password
    store.folder.mkdir(parents=True, exist_ok=True)
    log, told = store.folder / "ui.log", store.folder / PORT
    env = {**os.environ, **quiet}
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    stop = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        _wait(server, port, log)
        told.write_text(str(port))
        _links(store, f"http://127.0.0.1:{port}")
        print("Ctrl-C stops the server.", flush=True)
        server.wait()
        raise RunFailed(f"the MLflow server ended; its log is {log}")
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, stop)
        told.unlink(missing_ok=True)
        if server.stdin:
            server.stdin.close()
        server.wait(timeout=20)


def _links(store: Store, address: str) -> None:
    """The run table of each experiment, its saved views, and the models where there are some."""
    for experiment in store.experiments():
        place = experiment.experiment_id
        print(f"{experiment.name:28} {address}{page(place)}", flush=True)
        for key, view in named(experiment.tags):
            print(f"    {view['name']:24} {address}{page(place, more=shown(key, view['charts']))}", flush=True)
        if store.client.search_logged_models([place], max_results=1):
            print(f"    {'adapters':24} {address}{page(place, tab='models')}", flush=True)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(START * 4):
        if server.poll() is not None:
            raise RunFailed(f"the MLflow server ended at once; its log is {log}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    raise RunFailed(f"the MLflow server did not answer within {START} s; its log is {log}")
