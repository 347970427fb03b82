"""What the libraries and the deeper parts of a program log, told as the program tells everything else.

Everything of our own from the chosen level on, others' warnings; hivemind logs as warnings what a swarm of volunteers
does all day, so that only its errors come through.
"""

import argparse
import logging
from collections.abc import Callable

LEVELS = ("debug", "info", "warning", "error")
Tell = Callable[[str, int], None]
"""A line and its level."""


def add_log_level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="the least that is told (default: info)")


def level_of(name: str) -> int:
    """The number of one of `LEVELS`."""
    return int(getattr(logging, name.upper()))


def heed_logs(level: str, tell: Tell) -> None:
    """Has all logs of this process told from here on."""
    # Imported here: hivemind takes a second that a wrong command line need not wait for.
    from hivemind.utils.logging import use_hivemind_log_handler

    use_hivemind_log_handler("nowhere")
    number = level_of(level)
    root = logging.getLogger()
    root.handlers = [_Telling(tell)]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("swarm_peer").setLevel(number)
    logging.getLogger("hivemind").setLevel(number if number == logging.DEBUG else logging.ERROR)


class _Telling(logging.Handler):
    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(self.format(record), record.levelno)
