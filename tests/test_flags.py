"""Flags of the command line, of the environment and of the file, what shows them, and what completes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from swarm_peer.swarm import flags
from swarm_peer.swarm.flags import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE, Program

from tests.processes import MODULES


def program() -> Program:
    made = Program("swarm-peer", "Test.")
    join = made.add_parser("join")
    join.add_argument("--memory")
    join.add_argument("--stages", type=int, default=7)
    join.add_argument("--initial-peers", nargs="+")
    join.add_argument("--json", action="store_true")
    made.add_parser("probe").add_argument("--memory")
    return made


def values(*arguments: str) -> tuple[int, dict[str, object]]:
    found: dict[str, object] = {}
    code = program().run({"join": lambda options: found.update(vars(options)) or 0}, ["join", *arguments])
    return code, found


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_PEER_CONFIG", str(tmp_path))
    return tmp_path / "swarm-peer.toml"


def test_the_command_line_comes_first_then_the_environment_then_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert values()[1]["stages"] == 7
    file.write_text(
        '[join]\nstages = 1\nmemory = "1GB"\ninitial-peers = ["/a", "/b"]\njson = true\n[probe]\nmemory = "9GB"\n'
    )
    code, found = values()
    assert code == 0
    assert (found["stages"], found["memory"], found["initial_peers"], found["json"]) == (1, "1GB", ["/a", "/b"], True)
    monkeypatch.setenv("SWARM_PEER_JOIN_STAGES", "2")
    monkeypatch.setenv("SWARM_PEER_JOIN_INITIAL_PEERS", '["/c"]')
    code, found = values()
    assert (found["stages"], found["memory"], found["initial_peers"]) == (2, "1GB", ["/c"])
    assert values("--stages", "3")[1]["stages"] == 3


def test_what_cannot_be_is_said_with_where_it_may_stand(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("[join]\nstages = 'many'\n")
    with pytest.raises(SystemExit) as ended:
        values()
    assert ended.value.code == EXIT_USAGE
    assert f"invalid int value: 'many' (read as well: [join] in {file})" in capsys.readouterr().err
    file.write_text("[join]\nstagse = 1\n")
    with pytest.raises(SystemExit):
        values()
    assert "--stagse" in capsys.readouterr().err
    file.write_text("[join\n")
    assert values()[0] == EXIT_USAGE
    assert f"{file} cannot be read" in capsys.readouterr().err
    file.unlink()
    monkeypatch.setenv("SWARM_PEER_JOIN_STAGES", "few")
    with pytest.raises(SystemExit):
        values()
    assert "SWARM_PEER_JOIN_STAGES" in capsys.readouterr().err


def test_config_says_where_each_value_comes_from(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('[join]\nmemory = "1GB"\nstagse = 1\n[jion]\nmemory = "1GB"\n')
    monkeypatch.setenv("SWARM_PEER_JOIN_STAGES", "2")
    monkeypatch.setenv("SWARM_PEER_JOIN_MEMROY", "2")
    assert program().run({}, ["config", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["file"] == str(file)
    by_flag = {(entry["command"], entry["flag"]): (entry["value"], entry["source"]) for entry in shown["settings"]}
    assert by_flag == {
        ("join", "--memory"): ("1GB", "file"),
        ("join", "--stages"): ("2", "environment"),
        ("join", "--initial-peers"): (None, "default"),
        ("join", "--json"): (False, "default"),
        ("probe", "--memory"): (None, "default"),
    }
    assert shown["unknown"] == ["SWARM_PEER_JOIN_MEMROY", f"[join] stagse in {file}", f"[jion] memory in {file}"]
    assert program().run({}, ["config", "join"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"file: {file}"
    assert "--memory         1GB    file         SWARM_PEER_JOIN_MEMORY" in lines[2]
    assert not any("probe" in line for line in lines)
    assert program().run({}, ["config", "jion"]) == EXIT_USAGE


def test_children_with_a_whole_command_line_take_nothing_from_the_environment() -> None:
    given = {
        "SWARM_PEER_JOIN_MEMORY": "1",
        "SWARM_COORDINATOR_START_HTTP": "2",
        "SWARM_PEER_HOME": "/h",
        "PATH": "/bin",
    }
    assert flags.without_flags(given) == {"SWARM_PEER_HOME": "/h", "PATH": "/bin", "SWARM_PEER_CONFIG": ""}


def test_errors_end_the_program_with_their_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def stops(error: BaseException) -> int:
        def command(_: object) -> int:
            raise error

        return program().run({"join": command}, ["join"])

    assert stops(flags.StoppedError("no more")) == EXIT_STOPPED
    assert stops(flags.UsageError("not so")) == EXIT_USAGE
    assert stops(flags.SwarmError("no")) == 1
    assert stops(KeyboardInterrupt()) == EXIT_INTERRUPTED
    assert capsys.readouterr().err.splitlines() == ["swarm-peer: no more", "swarm-peer: not so", "swarm-peer: no"]


@pytest.mark.parametrize(
    ("name", "words", "offered"),
    [
        ("swarm-peer", ["jo"], ["join"]),
        ("swarm-peer", ["join", "--mem"], ["--memory"]),
        ("swarm-peer", ["demo", "--base", "n"], ["nf4"]),
        ("swarm-coordinator", ["re"], ["replay", "resume"]),
    ],
)
def test_bash_completes(name: str, words: list[str], offered: list[str], tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    with script.open("wb") as file:
        subprocess.run([sys.executable, "-m", MODULES[name], "completion", "bash"], stdout=file, check=True)
    asking = (
        f"source {script}; COMP_WORDS=({' '.join([name, *words])}); COMP_CWORD={len(words)}; "
        "_shtab_" + name.replace("-", "_") + '; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert sorted(done.stdout.split()) == offered
