"""Checks on all workers before each start: what would keep a run from starting."""

import itertools
import secrets

import checkout
import worker
from remote import Fleet, LaunchError, Result, Settings

STORES = ("gs://", "s3://")


def run(fleet: Fleet, workdir: str | None) -> None:
    """Checks everything that could keep a run from starting.

    Removes a lock file of libtpu that no process holds.

    Args:
      fleet: the workers.
      workdir: must be one directory, seen by all workers; None leaves that out.

    Raises:
      LaunchError: lists all problems.
    """
    results = fleet.run(worker.INSPECT, {"versions": worker.VERSIONS})
    if fleet.local.dry_run:
        _sharing(fleet, workdir)
        return
    report = fleet.report(results, "was not reached, or is not ready")
    problems = report.splitlines()
    if not problems:
        for index, result in results.items():
            problems += _on_one(fleet.name(index), result)
        problems += _differences(fleet, results)
        problems += _sharing(fleet, workdir)
    if problems:
        raise LaunchError("\n".join(["check failed:", *problems]))
    code = results[0].value("code")
    print(f"Checked {fleet.count()}: nothing in the way (code {code}).")
    if code != checkout.digest():
        print("Note: the code of the workers is not that of this checkout; `push`.")


def _on_one(name: str, result: Result) -> list[str]:
    problems = []
    if not result.values("version"):
        problems.append(f"{name}: no .venv; `install` first")
    if result.values("running"):
        problems.append(f"{name}: the run is already active; `stop` it first")
    for process in result.values("leftover"):
        problems.append(f"{name}: left over, `stop` ends it: process {process}")
    for process in result.values("holder"):
        problems.append(f"{name}: the chips are held by process {process}")
    lock = result.value("lock")
    if lock == "removed":
        print(f"{name}: removed {worker.LIBTPU_LOCK}; no process held the chips")
    elif lock:
        problems.append(
            f"{name}: {worker.LIBTPU_LOCK} exists and cannot be removed "
            "without sudo, which also tells who holds the chips"
        )
    return problems


def _differences(fleet: Fleet, results: dict[int, Result]) -> list[str]:
    problems = []
    facts = {
        i: {"code": r.value("code")}
        | dict(line.split(" ", 1) for line in r.values("version"))
        for i, r in results.items()
        if r.values("version")
    }
    for key in sorted(set(itertools.chain.from_iterable(facts.values()))):
        having: dict[str, list[str]] = {}
        for index, known in facts.items():
            value = known.get(key, "missing")
            having.setdefault(value, []).append(fleet.name(index))
        if len(having) > 1:
            groups = "; ".join(f"{v} on {', '.join(w)}" for v, w in having.items())
            remedy = "push" if key == "code" else "install"
            problems.append(f"{key} differs (`{remedy}` again): {groups}")
    return problems


def is_store(workdir: str) -> bool:
    """Whether a run directory is in a bucket; see `simclr_jax.paths`.

    Raises:
      LaunchError: it is no known store.
    """
    if "://" not in workdir:
        return False
    if not workdir.startswith(STORES):
        raise LaunchError(
            f"--workdir={workdir}: must be a path that all workers share, or start "
            f"with {' or '.join(STORES)}"
        )
    return True


def _reaching(fleet: Fleet, workdir: str, names: Settings) -> list[str]:
    """That all workers write to a bucket, and see what worker 0 wrote."""

    def act(what: str, workers: list[int] | None = None) -> dict[int, Result]:
        settings = {**names, "program": worker.STORE_PROGRAM, "act": what}
        return fleet.run(worker.STORE, settings, workers=workers)

    written = act("write", [0])[0]
    if written.code:
        return [fleet.report({0: written}, f"cannot write to {workdir}")]
    seen = act("see")
    act("remove", [0])
    if fleet.local.dry_run:
        return []
    problems = [
        fleet.report({i: result}, f"cannot write to {workdir}")
        for i, result in seen.items()
        if result.code
    ]
    return problems or [
        f"{fleet.name(i)} does not see what {fleet.name(0)} wrote in {workdir}: is it "
        "another bucket there?"
        for i, result in seen.items()
        if result.value("seen") != "yes"
    ]


def _sharing(fleet: Fleet, workdir: str | None) -> list[str]:
    if workdir is None:
        print("Without --workdir after `--`, that it is shared is not checked.")
        return []
    names: Settings = {"workdir": workdir, "nonce": f".shared_{secrets.token_hex(8)}"}
    if is_store(workdir):
        return _reaching(fleet, workdir, names)
    written = fleet.run(worker.SHARED_WRITE, names, workers=[0])[0]
    if written.code:
        return [fleet.report({0: written}, f"cannot write to {workdir}")]
    tries = int(2 * worker.SHARED_WAIT_SECS)
    seen = fleet.run(worker.SHARED_SEE, {**names, "tries": tries})
    fleet.run(worker.SHARED_REMOVE, names, workers=[0])
    if fleet.local.dry_run:
        return []
    problems = {"readonly": "cannot write to", "no": "does not see"}
    return [
        f"{fleet.name(i)} {problems.get(r.value('seen'), 'did not look for')} "
        f"what {fleet.name(0)} wrote in {workdir}: --workdir must be a path "
        "that all workers share (a bucket, gs://...; NFS; Filestore)"
        for i, r in seen.items()
        if r.value("seen") != "yes"
    ]
