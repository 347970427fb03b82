"""`swarm-peer` with one rule more: a file, the first argument, has it pause while it is there; its text says why."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from swarm_peer.peer import join
from swarm_peer.peer.cli import main
from swarm_peer.peer.owner import Pause, Rules, Seen, rules_of


class ByFile:
    """The rule."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def see(self, seen: Seen) -> Pause | None:
        return Pause(self.path.read_text(), "until that file is gone") if self.path.exists() else None


def with_file(*others: Any) -> Rules:
    return Rules([ByFile(Path(sys.argv[1])), *rules_of(*others).rules])


if __name__ == "__main__":
    with patch.object(join, "rules_of", with_file):
        sys.exit(main(sys.argv[2:]))
