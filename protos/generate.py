"""Turn the narrated protocol under `protos/` into Python under `dimat/proto/`; `--check` fails when they differ.

The path of a .proto file mirrors the Python package it becomes, so the generated imports are right as they come. Only
messages are generated: services are read off their descriptors at run time, because tensor frames bypass protobuf.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parent


def generate(target: Path) -> list[Path]:
    """Write the Python of every .proto file below `target`; returns the files, relative to it, sorted."""
    protos = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{SOURCES}", f"-I{well_known}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main([*arguments, *(str(path) for path in protos)]) != 0:
        raise SystemExit("protoc refused the sources; its message stands above")
    return sorted(path.with_name(f"{path.stem}_pb2{suffix}") for path in protos for suffix in (".py", ".pyi"))


def differences(fresh: Path, committed: Path, files: list[Path]) -> list[str]:
    """Unified diff lines between the generated files of two trees; empty when they are equal."""
    lines: list[str] = []
    stale = {path.relative_to(committed) for path in (committed / "dimat/proto").rglob("*_pb2.py*")} - set(files)
    lines += [f"{path} has no source any more\n" for path in sorted(stale)]
    for path in files:
        old = (committed / path).read_text(encoding="utf-8") if (committed / path).exists() else ""
        new = (fresh / path).read_text(encoding="utf-8")
        lines += difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"committed/{path}", f"generated/{path}"
        )
    return lines


def main() -> int:
    """Regenerate in place, or compare only; the exit code is 1 when the committed code is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed code is stale")
    if not parser.parse_args().check:
        for path in generate(TARGET):
            print(path)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        lines = differences(Path(folder), TARGET, generate(Path(folder)))
    sys.stdout.writelines(lines)
    if lines:
        print("the committed protobuf code is stale: run `make proto` and commit", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
