"""A run's folder of sockets, keys and logs on one machine: whoever leaves it last removes it."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

LOCK_NAME = "in-use"


class SharedFolder:
    """A folder that several processes use, each holding a shared lock; the last one out removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    @classmethod
    def temporary(cls) -> "SharedFolder":
        return cls(Path(tempfile.mkdtemp(prefix="swarm-")))

    def leave(self) -> None:
        """Gives up the lock and removes the folder if nobody else holds it. Idempotent."""
        if self._lock < 0:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(self._lock)
            self._lock = -1
