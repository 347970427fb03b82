"""What is in the wheel: the package and nothing that is only for working on it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools leaves its build folder in the tree, and would put what lies there into the wheel.
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", folder, tree],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_of_the_package(names: set[str]) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [ROOT.joinpath(*package.split(".")[1:]) for package in packages]
    wanted = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.glob("*.py")}
    wanted -= {"conftest.py"}
    assert {f"swarm_peer/{path}" for path in wanted} <= names
    # A package that pyproject.toml forgets would be missing from the wheel only.
    inside = {"swarm", "peer", "compression", "kernels", "protos", "simulations"}
    for path in ROOT.glob("*/**/__init__.py"):
        if path.relative_to(ROOT).parts[0] in inside:
            assert path.parent in folders, f"pyproject.toml does not list the package of {path.relative_to(ROOT)}"


def test_wheel_is_typed_and_licensed(names: set[str]) -> None:
    assert "swarm_peer/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"swarm_peer"}
    assert not [name for name in names if name.startswith(tuple(f"swarm_peer/{part}/" for part in OUTSIDE))]


OUTSIDE = ("tests", "docker", "benchmarks", "build", ".ci", ".git", ".venv")
