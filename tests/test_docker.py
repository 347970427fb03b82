"""The images' files: what can be said of them without a container engine, and their scripts, run in a clean prefix."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import Home, home

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_is_as_it_should_be(path: Path) -> None:
    lint = subprocess.run(
        [Path(sys.executable).parent / "hadolint", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (lint.returncode, lint.stdout) == (0, ""), lint.stdout
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"^RUN (.*)$", text, re.M):
        script = re.search(r"(\w[\w-]*\.sh)", line)
        assert script, f"{line!r} calls no script"
        assert os.access(DOCKER / script[1], os.X_OK)
    assert re.findall(r"^USER (.*)$", text, re.M) == ["10001"]
    assert "HEALTHCHECK" in text
    assert "swarm_peer.swarm.api.health" in text
    for source in re.findall(r"^COPY (docker/\S+)", text, re.M):
        assert (ROOT / source).exists()


def test_there_are_images_for_peers_on_cpus_and_gpus_and_for_a_coordinator() -> None:
    assert {path.name for path in DOCKERFILES} == {
        "coordinator.Dockerfile",
        "peer.Dockerfile",
        "peer-cuda.Dockerfile",
    }


def test_compose_names_only_what_is_there() -> None:
    compose: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert {"coordinator", "peer-1", "peer-2", "peer-3", "peer-4", "prometheus", "grafana"} <= services.keys()
    for service in services.values():
        if "build" in service:
            assert (DOCKER / service["build"]["context"]).resolve() == ROOT.resolve()
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d[\w.]*", service["image"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", {})) <= services.keys()
    scrape = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == ["coordinator:8080"]
    for path in (DOCKER / "grafana").rglob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["apiVersion"] == 1


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def run_scripts(place: Home, binaries: str) -> None:
    """The entry points, with programs of `binaries`: a coordinator and two peers, each well by its health service."""
    manifest = (DOCKER / "run.toml").read_text(encoding="utf-8").replace('mode = "full"', 'mode = "lora"')
    (place.folder / "run.toml").write_text(manifest + "[pipeline]\nmin_replicas = 1\n", encoding="utf-8")
    environment = {
        **place.environment,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "SWARM_SHARED": str(place.folder / "shared"),
        "SWARM_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "SWARM_HTTP": "127.0.0.1:0",
        "SWARM_API": "127.0.0.1:0",
    }
    started = []

    def start(*command: str, **more: str) -> "subprocess.Popen[str]":
        made = subprocess.Popen(
            command,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(made)
        return made

    def is_well(target: str) -> bool:
        asked = subprocess.run(
            [f"{binaries}/python", "-m", "swarm_peer.swarm.api.health", target],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return (asked.returncode, asked.stdout.strip()) == (0, "SERVING")

    try:
        # A peer that comes first waits for the coordinator.
        early = start(str(DOCKER / "peer.sh"), "--stages", "1")
        coordinator = start(str(DOCKER / "coordinator.sh"), str(place.folder / "run.toml"))
        late = start(str(DOCKER / "peer.sh"), "--stages", "1", SWARM_PEER_STATE=str(place.folder / "s2"))
        assert coordinator.stdout is not None
        api = ""
        for line in coordinator.stdout:
            event = json.loads(line)
            api = api or event.get("api", "")
            if event["event"] == "stepped":
                break
        else:
            raise AssertionError(f"no step was finished: {early.poll()} {late.poll()}")
        assert is_well(api)
        for state in ("s", "s2"):
            assert is_well(f"unix:{place.folder / state / 'control'}/")
        assert not is_well("127.0.0.1:1")
    finally:
        for process in started:
            os.killpg(process.pid, 9)
            process.communicate()


def test_the_entry_points_start_a_run_and_say_that_they_are_well(place: Home) -> None:
    run_scripts(place, str(Path(sys.executable).parent))


@pytest.mark.slow
def test_what_the_images_run_works_in_a_clean_prefix(place: Home, tmp_path: Path) -> None:
    for command in (
        ["build-wheel.sh", str(tmp_path / "wheels")],
        ["install.sh", str(tmp_path / "prefix"), str(tmp_path / "wheels")],
        ["folders.sh", str(tmp_path / "root")],
    ):
        environment = {**os.environ, "PYTHON": sys.executable, "TORCH_INDEX": ""}
        done = subprocess.run(
            [DOCKER / command[0], *command[1:]], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "root" / "data").is_dir()
    run_scripts(place, str(tmp_path / "prefix" / "bin"))
