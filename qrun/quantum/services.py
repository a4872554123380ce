"""Where jobs go: IBM's service, or the sampler's local mode on a recorded processor.

A service takes an Order and answers with an id; it finds a job by the tag the order carried, which is how a job is
known again whose id was never written down. Its errors are of four kinds, and the caller acts on the kind alone:

    Refused       no job was made: not authorised, over quota, not in the instruction set
    JobFailed     the job ended without a result
    UnknownJob    the service does not know the job
    any other     nothing is known, such as a broken line: ask again later

Tokens come from the environment only.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qrun.errors import InputError

FAKES = ("FakeTorino", "FakeMarrakesh", "FakeFez")
SESSION_S = 28_800  # the longest that a session may be open
SETTLE_S = 30  # a job just made may be missing in the service's list for some seconds

Pub = tuple[Any, NDArray[np.floating], int]  # circuit, parameter values [rows, parameters], shots


class Refused(Exception):
    """The service made no job of an order."""


class JobFailed(Exception):
    """A job that ended without a result; `again` is False where a second one would end the same way."""

    def __init__(self, why: str, again: bool = True) -> None:
        super().__init__(why)
        self.again = again


class UnknownJob(Exception):
    """The service does not know a job. A class of its own: a KeyError of a decoder must not look like it."""


@dataclass(frozen=True)
class Order:
    """A job to send: its PUBs, the tag it is found by, the QPU seconds it may take, a seed for simulations, and the
    seconds that all work still to come may take (None: no limit)."""

    tag: str
    pubs: list[Pub]
    seconds: int
    seed: int
    left: int | None


class Service(Protocol):
    """Takes orders. A job is told by its id and, in the process that sent it, by its handle. `account` says whose jobs
    it knows."""

    account: str

    def send(self, order: Order) -> tuple[str, Any]:
        """Start a job; returns its id and a handle. Raises Refused."""
        ...

    def close(self) -> None:
        """All orders of one call were sent."""
        ...

    def find(self, tag: str, age: float) -> str | None:
        """Id of the job of an order made `age` seconds ago; None if there is none."""
        ...

    def wait(self, job_id: str, handle: Any | None) -> Any:
        """The PrimitiveResult. Raises JobFailed or UnknownJob."""
        ...

    def usage(self, job_id: str, handle: Any | None) -> float | None:
        """QPU seconds the job took, as the service bills them; None if they are not known."""
        ...


class FakeService:
    """The sampler's local mode on a recorded processor. Its jobs end with this process and cost nothing."""

    account = "local"

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def send(self, order: Order) -> tuple[str, Any]:
        options = {"simulator": {"seed_simulator": order.seed}}
        job = runtime().SamplerV2(mode=self.backend, options=options).run(order.pubs)
        return job.job_id(), job

    def close(self) -> None:
        """Nothing is open."""

    def find(self, tag: str, age: float) -> str | None:
        return None

    def wait(self, job_id: str, handle: Any | None) -> Any:
        if handle is None:
            raise UnknownJob("a local simulation that ended with its process")
        return handle.result()

    def usage(self, job_id: str, handle: Any | None) -> float | None:
        return None if handle else 0.0  # a finished simulation counts by its estimate, as a rehearsal of a budget


class IbmService:
    """An account and one of its processors, by jobs of their own, in batches or in sessions."""

    def __init__(self, service: Any, backend: Any = None, mode: str = "job", options: Mapping[str, Any] | None = None):
        self.service, self.backend, self.mode = service, backend, mode
        self.options = sampler_options(options or {})
        self.account = instance_digest()
        self._open: Any = None  # the batch or session of this call

    def send(self, order: Order) -> tuple[str, Any]:
        try:
            if self.mode != "job" and self._open is None:
                batch = self.mode == "batch"  # a session is billed while it is open, so it may not outlast the budget
                rt = runtime()
                most = SESSION_S if order.left is None else min(order.left, SESSION_S)
                self._open = rt.Batch(self.backend) if batch else rt.Session(self.backend, max_time=most)
            environment = {"job_tags": [order.tag]}
            words = {**self.options, "environment": environment, "max_execution_time": order.seconds}
            job = runtime().SamplerV2(mode=self._open or self.backend, options=words).run(order.pubs)
        except Exception as error:
            if _no_job(error):
                raise Refused(one_line(error)) from error
            raise
        return job.job_id(), job

    def close(self) -> None:
        """Close the batch or session: what was sent runs to its end, and no idle time is billed."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def find(self, tag: str, age: float) -> str | None:
        jobs = self.service.jobs(job_tags=[tag], limit=1)
        if not jobs and age < SETTLE_S:
            time.sleep(SETTLE_S - age)
            jobs = self.service.jobs(job_tags=[tag], limit=1)
        return jobs[0].job_id() if jobs else None

    def wait(self, job_id: str, handle: Any | None) -> Any:
        job = handle or self._job(job_id)
        try:
            result = job.result()
        except Exception as error:
            status = str(job.status())
            if not status.endswith(("ERROR", "CANCELLED")):
                raise
            over = type(error).__name__ == "RuntimeJobMaxTimeoutError"
            raise JobFailed(f"{status.lower()}, {one_line(error)}", again=not over) from error
        if result is None:
            raise ConnectionError("it is done, but no result came")
        return result

    def finished(self, job_id: str) -> bool:
        """Whether `wait` would return or raise JobFailed at once. Raises UnknownJob."""
        return str(self._job(job_id).status()).endswith(("DONE", "ERROR", "CANCELLED"))

    def usage(self, job_id: str, handle: Any | None) -> float | None:
        found = (handle or self._job(job_id)).metrics().get("usage", {})
        if found.get("status") == "pending":  # newer clients say so; until then the seconds are not final
            return None
        named = (found.get(word) for word in ("qpu_charge_time_seconds", "quantum_seconds", "seconds"))
        return next((float(seconds) for seconds in named if seconds is not None), None)

    def _job(self, job_id: str) -> Any:
        try:
            return self.service.job(job_id)
        except Exception as error:
            if type(error).__name__ == "RuntimeJobNotFound":
                raise UnknownJob(one_line(error)) from error
            raise


def _no_job(error: Exception) -> bool:
    """Whether an error of sending says that no job was made: refused by the client, or by an answer of class 4xx other
    than a timeout. The client hides the answer's status in the context of its own error."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(seen, "status_code", 0)
        if 400 <= status < 500 and status != 408:
            return True
        seen = seen.__context__
    return type(error).__name__ in ("ValueError", "IBMInputValueError", "IBMNotAuthorizedError")


def one_line(error: BaseException) -> str:
    """An error's words in one line of 200 characters at most; its class where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def sampler_options(words: Mapping[str, Any]) -> dict[str, Any]:
    """SamplerV2's options of `device.options` (config/schema.py)."""
    found: dict[str, Any] = {}
    if sequence := words.get("dynamical_decoupling"):
        found["dynamical_decoupling"] = {"enable": True, "sequence_type": sequence}
    twirling = {"enable_gates": words.get("gate_twirling"), "enable_measure": words.get("measure_twirling")}
    if any(twirling.values()):
        found["twirling"] = {key: bool(value) for key, value in twirling.items()}
    if delay := words.get("rep_delay_us"):
        found["execution"] = {"rep_delay": delay * 1e-6}
    return found


def runtime() -> ModuleType:
    """qiskit-ibm-runtime. Raises InputError saying how to install it."""
    try:
        import qiskit_ibm_runtime
    except ImportError as error:
        how = "pip install 'qrun-adapters[ibm]'"
        raise InputError(f"device=ibm and device=fake need qiskit-ibm-runtime: {how} ({one_line(error)})") from error
    return qiskit_ibm_runtime


def fake_backend(name: str | None) -> Any:
    """A recorded backend by class name, FakeMarrakesh without one. Raises InputError naming those there are."""
    name = name or "FakeMarrakesh"
    if name not in FAKES:
        raise InputError(f"device.backend={name}: recorded backends are {', '.join(FAKES)}")
    runtime()
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, name)()


def ibm_account() -> Any:
    """The account of the environment. Raises InputError saying what is missing; the token is never shown."""
    token = os.environ.get("QISKIT_IBM_TOKEN")
    if not token:
        how = "set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE) in the environment, or use device=fake"
        raise InputError(f"device=ibm: no account; {how}")
    instance, service = os.environ.get("QISKIT_IBM_INSTANCE"), runtime().QiskitRuntimeService
    try:
        return service(channel="ibm_quantum_platform", token=token, instance=instance)
    except Exception as error:  # the client raises a different class for each way of being refused
        why = f"IBM refused or could not be reached ({type(error).__name__})"
        check = "check QISKIT_IBM_TOKEN (it may have expired), QISKIT_IBM_INSTANCE and the network"
        raise InputError(f"device=ibm: {why}; {check}") from error


def instance_digest() -> str:
    """A short name of the instance that the environment names, which does not tell it. (The client's own word for the
    active instance changes while it looks for processors.)"""
    return hashlib.sha256(os.environ.get("QISKIT_IBM_INSTANCE", "").encode()).hexdigest()[:12]


def ibm_backend(account: Any, name: str | None) -> Any:
    """A processor of the account; None takes the least busy one now. Raises InputError."""
    try:
        return account.backend(name) if name else account.least_busy(operational=True, simulator=False)
    except Exception as error:
        shown = name or "null (the least busy one)"
        raise InputError(f"device.backend={shown}: not available to this account ({type(error).__name__})") from error


def named_backend(kind: str, name: str | None) -> Any:
    """The backend that device=fake or device=ibm takes for a name. Raises InputError."""
    return fake_backend(name) if kind == "fake" else ibm_backend(ibm_account(), name)
