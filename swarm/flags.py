"""The command lines of both programs, whose flags may also stand in the environment or in a file.

A flag's value is the one on the command line, else that of the environment (`SWARM_PEER_JOIN_MEMORY` for `swarm-peer
join --memory`), else that of the program's file, a table for each command (`[join]`, `memory = "8GB"`), else its
default. The files, `swarm-peer.toml` and `swarm-coordinator.toml`, lie in `config_folder()`.

Both programs get from here `config`, which shows every flag's value and where it comes from, and `completion`, which
writes what a shell needs to complete them.

Exit codes: 0 done, 1 an error that the message names, 2 a wrong command line (or file, or environment), 3 the run
stopped and cannot go on, 130 interrupted.

Errors: `UsageError` for a file that is not TOML; a value that cannot be ends the program as a wrong flag does.
"""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import configargparse
import shtab

from ..errors import DeviceError, StoppedError, SwarmError, UsageError

EXIT_ERROR, EXIT_USAGE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 130
Command = Callable[[argparse.Namespace], int]

PROGRAMS = ("swarm-peer", "swarm-coordinator", "swarm-sim")
OTHER_VARIABLES = {
    "SWARM_PEER_CONFIG": "the folder of the files with settings; empty: none are read",
    "SWARM_PEER_HOME": "the folder of models, texts and caches",
    "SWARM_PEER_STATE": "the folder of keys and of the runs of this machine",
    "SWARM_PEER_CACHE_GB": "the limit of the cache of weights",
    "SWARM_PEER_KERNELS": "which kernels compute the codecs",
    "HF_ENDPOINT": "in place of https://huggingface.co",
    "HF_TOKEN": "what the Hub asks for with models that are not open to all",
}
"""What the environment may say besides flags."""


def config_folder() -> Path | None:
    """$SWARM_PEER_CONFIG, else the user's folder of settings; None if none are to be read."""
    chosen = os.environ.get("SWARM_PEER_CONFIG")
    if chosen is not None:
        return Path(chosen) if chosen else None
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "swarm-peer"


def config_file(program: str) -> Path | None:
    folder = config_folder()
    return None if folder is None else folder / f"{program}.toml"


def variable(program: str, command: str, flag: str) -> str:
    """The environment's name of a flag."""
    return f"{program}_{command}_{flag.lstrip('-')}".upper().replace("-", "_")


def without_flags(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment that sets no flag of any program: for children whose command line is complete."""
    programs = tuple(f"{program.upper().replace('-', '_')}_" for program in PROGRAMS)
    kept = {
        name: value for name, value in environment.items() if name in OTHER_VARIABLES or not name.startswith(programs)
    }
    return {**kept, "SWARM_PEER_CONFIG": ""}


class Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # the library has no types
    """A program, or with `command` one of its commands, which reads the environment and the file."""

    def __init__(self, *, program: str = "", command: str = "", **other: Any) -> None:
        self.program, self.command = program, command
        self.commands: dict[str, Parser] = {}
        if command:
            file = config_file(program)
            other |= {
                "auto_env_var_prefix": variable(program, command, ""),
                "default_config_files": [] if file is None else [str(file)],
                "config_file_parser_class": configargparse.TomlConfigParser([command]),
                "add_config_file_help": False,
                "add_env_var_help": False,
                "ignore_unknown_config_file_keys": False,
            }
        super().__init__(**other)

    def error(self, message: str) -> NoReturn:
        """Says as well what else than the command line was read."""
        sources = [source for parser in (self, *self.commands.values()) for source in parser.sources()]
        super().error(message + (f" (read as well: {', '.join(sources)})" if sources else ""))
        raise AssertionError("unreachable")

    def sources(self) -> list[str]:
        """What set flags in the last parse, besides the command line."""
        found: list[str] = []
        for source, settings in getattr(self, "_source_to_settings", {}).items():
            if source == "environment_variables":
                found += settings
            elif source.startswith("config_file|") and settings:
                found.append(f"[{self.command}] in {source.partition('|')[2]}")
        return found


class Program:
    """A program and its commands: `add_parser` as argparse has it."""

    def __init__(self, name: str, description: str) -> None:
        self.parser = Parser(
            prog=name,
            description=description,
            epilog=f"Every flag may also stand in the environment or in a file: {name} config shows them.",
        )
        self._commands = self.parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def add_parser(self, name: str, **other: Any) -> Parser:
        """One command more."""
        made: Parser = self._commands.add_parser(name, program=self.parser.prog, command=name, **other)
        self.parser.commands[name] = made
        return made

    def run(self, commands: Mapping[str, Command], arguments: Sequence[str] | None) -> int:
        """Runs the command that the command line names, or one of those that every program has; the exit code."""
        config = self.add_parser("config", help="every flag's value, and where it comes from")
        config.add_argument("name", nargs="?", metavar="COMMAND", help="of this command alone")
        config.add_argument("--json", action="store_true", help="as JSON")
        completion = self.add_parser("completion", help="write what a shell needs to complete command lines")
        completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
        own: dict[str, Command] = {
            "config": partial(run_config, self.parser),
            "completion": partial(run_completion, self.parser),
        }
        # No forked child goes on with gRPC, which would say so at every fork. It looks when it is imported.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        try:
            _said(self.parser)  # a file that is not TOML is named before any flag
            options = self.parser.parse_args(arguments)
            return {**commands, **own}[options.command](options)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except SwarmError as error:
            print(f"{self.parser.prog}: {error}", file=sys.stderr)
            if isinstance(error, UsageError):
                return EXIT_USAGE
            if isinstance(error, DeviceError):  # its thread never ends, and so the process would not
                sys.stderr.flush()
                os._exit(EXIT_ERROR)
            return EXIT_STOPPED if isinstance(error, StoppedError) else EXIT_ERROR


def run_completion(parser: Parser, options: argparse.Namespace) -> int:
    """Writes the script to standard output."""
    for command in parser.commands.values():
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
    print(shtab.complete(parser, shell=options.shell))
    return 0


# ---- what is set


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag of a command. `source`: default, file, environment; `value`: as it stands there."""

    command: str
    flag: str
    value: Any
    source: str
    variable: str


def settings(parser: Parser, only: str | None = None) -> list[Setting]:
    """Every flag of every command. Raises `UsageError`."""
    if only is not None and only not in parser.commands:
        raise UsageError(f"{only!r} is no command of {parser.prog}: {', '.join(parser.commands)}")
    said = _said(parser)
    return [
        setting
        for name, command in parser.commands.items()
        if only in (None, name) and name not in ("config", "completion")
        for setting in _settings(parser.prog, command, said.get(name, {}))
    ]


def unknown(parser: Parser) -> list[str]:
    """What stands in the environment or the file and is no flag."""
    said = _said(parser)
    known = {(setting.command, setting.flag.lstrip("-")) for setting in settings(parser)}
    variables = {setting.variable for setting in settings(parser)} | set(OTHER_VARIABLES)
    prefix = parser.prog.upper().replace("-", "_") + "_"
    found = [name for name in sorted(os.environ) if name.startswith(prefix) and name not in variables]
    for command, table in said.items():
        keys = table if isinstance(table, dict) else {"": table}
        where = f"in {config_file(parser.prog)}"
        found += [
            f"[{command}] {key} {where}" if key else f"{command} {where}" for key in keys if (command, key) not in known
        ]
    return found


def run_config(parser: Parser, options: argparse.Namespace) -> int:
    """Shows the settings. Raises `UsageError`."""
    found, strange, file = settings(parser, options.name), unknown(parser), config_file(parser.prog)
    if options.json:
        entries = [
            {"command": s.command, "flag": s.flag, "value": s.value, "source": s.source, "variable": s.variable}
            for s in found
        ]
        print(json.dumps({"file": None if file is None else str(file), "settings": entries, "unknown": strange}))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Nothing is cut where the output goes to another program.
    console = Console(width=None if sys.stdout.isatty() else 160)
    where = "none is read" if file is None else f"{file}{'' if file.is_file() else ' (not there)'}"
    console.print(Text(f"file: {where}"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("command", "flag", "value", "from", "environment"):
        table.add_column(name, header_style="dim", overflow="fold")
    last = ""
    for s in found:
        tone = "" if s.source == "default" else "bold"
        value = "" if s.value is None else str(s.value)
        cells = (s.command if s.command != last else "", s.flag, value, s.source, s.variable)
        table.add_row(*(Text(cell, tone) for cell in cells))
        last = s.command
    console.print(table)
    if options.name is None:
        others = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, what in OTHER_VARIABLES.items():
            given = os.environ.get(name)
            value = "" if given is None else "set" if name == "HF_TOKEN" else given
            others.add_row(Text(name), Text(value, "bold"), Text(what, "dim"))
        console.print(Text("\nbesides flags:"), others)
    for entry in strange:
        console.print(Text(f"not known: {entry}", "yellow"), soft_wrap=True)
    return 0


def _settings(program: str, command: Parser, said: Any) -> Iterator[Setting]:
    for action in command._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        if not long or isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        flag = long[0]
        name, key = variable(program, command.command, flag), flag.lstrip("-")
        if name in os.environ:
            value, source = os.environ[name], "environment"
        elif isinstance(said, dict) and key in said:
            value, source = said[key], "file"
        else:
            value, source = action.default, "default"
        shown = value if isinstance(value, (int, float, str, list)) or value is None else str(value)
        yield Setting(command.command, flag, shown, source, name)


def _said(parser: Parser) -> dict[str, Any]:
    """What the program's file says, by command."""
    file = config_file(parser.prog)
    if file is None or not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
