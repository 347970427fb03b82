"""Regenerates the code of `swarm.proto` and `api.proto`; with `--check`, says whether that would change any of it.

The compiler is pinned and lives in a throwaway folder: code that it generates carries the oldest protobuf runtime that
may read it, and ours is 5.29, while the newest tools want a newer one.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = "grpcio-tools==1.71.2"
"""Bundles protoc 29, whose code runs on protobuf 5.29 to 7.x."""

SOURCES = ("swarm", "api")
OUTPUTS = tuple(f"{source}_pb2{suffix}" for source in SOURCES for suffix in (".py", ".pyi"))


def generate(target: Path) -> None:
    """Writes the generated files to `target`."""
    with tempfile.TemporaryDirectory() as tools:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", tools, COMPILER], check=True)
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--python_out={target}"]
        subprocess.run(
            [*protoc, f"--pyi_out={target}", *(str(HERE / f"{source}.proto") for source in SOURCES)],
            check=True,
            env={**os.environ, "PYTHONPATH": tools},
        )


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        changed = [name for name in OUTPUTS if _differs(Path(folder) / name, HERE / name)]
        if "--check" in sys.argv[1:]:
            for name in changed:
                print(f"protos/{name} is not what its .proto generates; run `python protos/generate.py`")
            return 1 if changed else 0
        for name in changed:
            (HERE / name).write_bytes((Path(folder) / name).read_bytes())
    return 0


def _differs(fresh: Path, kept: Path) -> bool:
    return not kept.exists() or fresh.read_bytes() != kept.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
