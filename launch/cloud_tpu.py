"""Cloud TPU slices and queued resources, as gcloud shows them."""

import json
import pathlib
import re
from dataclasses import dataclass

from remote import LaunchError, Local, Result, as_bash
from supervise import NoCapacity

CAPACITIES = ("on-demand", "spot", "queued", "queued-spot")
_CREATE_SECS = 3600
_SSH_KEY = ".ssh/google_compute_engine"
# Cloud TPU's states of a slice, and of a request, that nothing comes back from.
_GONE = ("PREEMPTED", "TERMINATED")
_REQUEST_GONE = ("SUSPENDED", "FAILED")
_NO_CAPACITY = re.compile(r"no more capacity|RESOURCE_EXHAUSTED|stockout", re.I)
_NOT_FOUND = re.compile(r"NOT_FOUND|was not found", re.I)


@dataclass(frozen=True)
class Specification:
    """What to ask for.

    Attributes:
      accelerator_type: such as `v5litepod-16`.
      version: the runtime, such as `v2-alpha-tpuv5-lite`.
      capacity: one of `CAPACITIES`.
      options: more options of gcloud.
    """

    accelerator_type: str
    version: str
    capacity: str
    options: tuple[str, ...] = ()


class Gcloud:
    """`gcloud compute tpus` in one zone and project."""

    def __init__(self, local: Local, zone: str, project: str, internal_ip: bool):
        self.local = local
        self.zone = zone
        self._where = [f"--zone={zone}", "--quiet"]
        self._where += [f"--project={project}"] if project else []
        self._connection = ["--internal-ip"] if internal_ip else []

    def command(self, *words: str) -> list[str]:
        """A command."""
        return ["gcloud", "compute", "tpus", *words, *self._where]

    def connection(self, *words: str) -> list[str]:
        """A command that connects to workers."""
        return [*self.command("tpu-vm", *words), *self._connection]

    def run(self, *words: str, timeout_secs: float = 120) -> Result:
        """Runs a command."""
        return self.local.run(self.command(*words), timeout_secs=timeout_secs)

    def describe(self, kind: str, name: str) -> dict | None:
        """What gcloud knows of a `tpu-vm` or of one of the `queued-resources`.

        Returns:
          None for one that does not exist; empty in a dry run.

        Raises:
          LaunchError: gcloud did not say, which is not the same as none.
        """
        result = self.run(kind, "describe", name, "--format=json")
        if result.code and _NOT_FOUND.search(result.stderr):
            return None
        if result.code:
            raise LaunchError(f"gcloud: {result.why()}")
        return json.loads(result.stdout or "{}")


class Workers:
    """The way to the workers of a slice."""

    def __init__(self, gcloud: Gcloud, name: str, count: int):
        self.names = [f"worker {index}" for index in range(count)]
        self._gcloud = gcloud
        self._name = name

    def shell(self, worker: int, script: str) -> list[str]:
        """The command that runs a bash text on a worker."""
        return self._gcloud.connection(
            "ssh", self._name, f"--worker={worker}", f"--command={as_bash(script)}"
        )

    def copy(self, worker: int, source: str, target: str) -> list[str]:
        """The command that copies a file into a worker's home directory."""
        return self._gcloud.connection(
            "scp", source, f"{self._name}:{target}", f"--worker={worker}"
        )


class Slice:
    """One slice, and the queued resource of the same name, if there is one.

    Args:
      gcloud: where it is.
      name: of both.
      specification: needed to create it.
    """

    def __init__(
        self, gcloud: Gcloud, name: str, specification: Specification | None = None
    ):
        self.title = f"slice {name} in {gcloud.zone}"
        self._gcloud = gcloud
        self._name = name
        self._specification = specification

    def create(self) -> None:
        """Creates it, or asks for it in the queue."""
        wanted = self._specification
        assert wanted is not None
        kind = f"--accelerator-type={wanted.accelerator_type}"
        spot = ["--spot"] if wanted.capacity.endswith("spot") else []
        if wanted.capacity.startswith("queued"):
            words = ["queued-resources", "create", self._name]
            words += [f"--node-id={self._name}", kind]
            words += [f"--runtime-version={wanted.version}"]
        else:
            words = ["tpu-vm", "create", self._name, kind]
            words += [f"--version={wanted.version}"]
        result = self._gcloud.run(
            *words, *spot, *wanted.options, timeout_secs=_CREATE_SECS
        )
        if result.code:
            sort = NoCapacity if _NO_CAPACITY.search(result.stderr) else LaunchError
            raise sort(f"{self.title} was not created: {result.why()}")

    def delete(self) -> None:
        """Deletes both; missing ones are skipped."""
        dry = self._gcloud.local.dry_run
        for kind, force in (("queued-resources", ["--force"]), ("tpu-vm", [])):
            if self._gcloud.describe(kind, self._name) is None and not dry:
                continue
            result = self._gcloud.run(
                kind, "delete", self._name, *force, timeout_secs=_CREATE_SECS
            )
            if result.code and not _NOT_FOUND.search(result.stderr):
                raise LaunchError(f"{self.title} was not deleted: {result.why()}")

    def recreate(self) -> None:
        """Deletes what is left and asks for the same again."""
        self.delete()
        self.create()

    def condition(self) -> str:
        """`ready`, `gone: ...`, or why to wait."""
        try:
            node = self._gcloud.describe("tpu-vm", self._name)
            state = (node or {}).get("state", "")
            if state == "READY" or self._gcloud.local.dry_run:
                return "ready"
            if state in _GONE:
                return f"gone: {state}"
            if state:
                return state
            request = self._gcloud.describe("queued-resources", self._name)
        except LaunchError as error:
            return f"unknown; {error}"
        if request is None:
            return "gone: not found"
        state = _state_of_request(request)
        return (
            f"gone: request {state}" if state in _REQUEST_GONE else f"queued: {state}"
        )

    def remains(self) -> list[str]:
        """The state of the resources, in words."""
        left = []
        node = self._gcloud.describe("tpu-vm", self._name)
        if node is not None:
            kind = node.get("acceleratorType", "TPU")
            left.append(f"{self.title} ({kind}, {node.get('state', 'state unknown')})")
        request = self._gcloud.describe("queued-resources", self._name)
        if request is not None:
            state = _state_of_request(request)
            cost = "" if state == "ACTIVE" else "; costs once it is granted"
            left.append(f"queued resource {self._name} ({state}{cost})")
        return left

    def transport(self) -> Workers:
        """The way to the workers.

        Raises:
          LaunchError: the slice is not ready.
        """
        node = self._gcloud.describe("tpu-vm", self._name)
        if self._gcloud.local.dry_run:
            print(
                "# How many workers there are is not known in a dry run: shown for "
                "worker 0, done for every worker."
            )
            return Workers(self._gcloud, self._name, 1)
        state = "not found" if node is None else node.get("state", "state unknown")
        if node is None or state != "READY":
            raise LaunchError(f"{self.title}: {state}; must be READY")
        workers = Workers(self._gcloud, self._name, len(node["networkEndpoints"]))
        if not (pathlib.Path.home() / _SSH_KEY).exists():
            # gcloud makes the key at first use; many at once would make many.
            self._gcloud.local.run(workers.shell(0, "true"))
        return workers


def _state_of_request(request: dict) -> str:
    return request.get("state", {}).get("state", "state unknown")
