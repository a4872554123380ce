"""`qrun ui`: the MLflow server on the store, one worker, nothing but 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil

from qrun.errors import InputError, RunFailed
from qrun.tracking.store import PREFIX, Store, address

START = 90  # seconds that the server may take to answer


def serve(results: str | Path, port: int) -> None:
    """Start the UI, print the link to each experiment's run table, stay until interrupted."""
    store = Store(results)
    if not store.database.exists():
        how = "`qrun train` makes one, or name another folder with --results"
        raise InputError(f"no store at {store.database} yet; {how}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port}: not free on 127.0.0.1 ({error}); choose another") from error
    experiments = [e for e in store.client.search_experiments() if e.name.startswith(PREFIX)]
    artifacts = (store.folder / "artifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--default-artifact-root", artifacts, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = store.folder / "ui.log"
    env = {**os.environ, **quiet}
    with log.open("w") as output:
        server = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    stop = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        _wait(server, port, log)
        for experiment in experiments:
            print(f"{experiment.name:28} {address(port, experiment.experiment_id)}", flush=True)
        print("Ctrl-C stops the server.", flush=True)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, stop)
        if server.poll() is None:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            server.wait(timeout=20)


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
