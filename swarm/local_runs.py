"""The runs that coordinators on this machine lead: one small file each, so that `join` finds them without an address.

A file whose process is gone is removed by whoever sees it; what cannot be read is not there. Errors: `UsageError` if
the flags of a command line mean no run.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UsageError
from .keys import state_folder


@dataclass(frozen=True, slots=True)
class LocalRun:
    """`addresses`: the coordinator's multiaddrs; `api`: the HOST:PORT of its API, "" for none; `api_certificate`: the
    file of its certificate if it uses TLS; `invite`: the text of an invite, "" for none."""

    run_id: str
    model: str
    addresses: tuple[str, ...]
    pid: int
    api: str = ""
    api_certificate: str = ""
    invite: str = ""


def _folder() -> Path:
    return state_folder() / "runs"


@contextmanager
def advertised(run: LocalRun) -> Iterator[None]:
    """Keeps a run findable on this machine while the block lasts."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{run.run_id}.{run.pid}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(run)), encoding="utf-8")
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def local_runs(model: str) -> list[LocalRun]:
    """The runs of a model (or of any, for an empty name), newest first."""
    found: list[tuple[float, LocalRun]] = []
    for path in _folder().glob("*.json") if _folder().is_dir() else ():
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            run = LocalRun(
                fields["run_id"],
                fields["model"],
                tuple(fields["addresses"]),
                int(fields["pid"]),
                str(fields.get("api", "")),
                str(fields.get("api_certificate", "")),
                str(fields.get("invite", "")),
            )
            age = path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not is_alive(run.pid):
            path.unlink(missing_ok=True)
        elif not model or Path(run.model).name == Path(model).name:
            found.append((age, run))
    return [run for _, run in sorted(found, key=lambda entry: -entry[0])]


def meet(run_id: str | None, initial_peers: Sequence[str], model: str = "") -> LocalRun:
    """The run that these flags of a command line mean; without addresses one on this machine, of the model if one is
    named. Raises `UsageError`."""
    if initial_peers and run_id:
        return LocalRun(run_id, model, tuple(initial_peers), 0)
    if initial_peers:
        raise UsageError("--initial-peers needs --run: `swarm-coordinator start` prints both as one command")
    found = [run for run in local_runs(model) if run_id in (None, run.run_id)]
    if not found:
        raise UsageError(
            f"no run{f' of {model!r}' if model else ''} leads from this machine: pass --run and --initial-peers, "
            "which `swarm-coordinator start` prints as one command (`join` takes its invite as well, before all flags)"
        )
    return found[0]


def check_meeting(invite: str | None, run_id: str | None, initial_peers: Sequence[str] | None) -> None:
    """Raises `UsageError` if an invite and flags say both where to go."""
    if invite and (run_id or initial_peers):
        raise UsageError(
            "an invite names the run and its addresses: leave out --run and --initial-peers, also in the environment "
            "and the file of settings (`swarm-peer config join` shows what is set where)"
        )


def is_alive(pid: int) -> bool:
    """Whether a process is there, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
