"""Makes the Python stubs from `protos/`, and checks the protos.

    python hatch_build.py            make `stubs/` anew
    python hatch_build.py lint       judge the protos by `protos/buf.yaml`
    python hatch_build.py breaking   compare them with those of the branch main
    python hatch_build.py descriptors    make dist/mastery-v1.protoset, for callers of servers without reflection

Building a wheel makes the stubs too and packs them. No schema registry is asked: the protos of others come
with the packages that the build requires.
"""

# A build script runs programs and prints.
# ruff: noqa: S603, S607, T201

from __future__ import annotations

import importlib.resources
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from protovalidate._gen.buf.validate import validate_pb

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent
PACKAGES = ("mastery", "buf")
VALIDATE = "buf/validate/validate.proto"


class CustomBuildHook(BuildHookInterface[Any]):
    """Makes the stubs whenever the package is built or installed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        stubs = Path(self.root, "stubs")
        generate(Path(self.root, "protos"), stubs)
        if version != "editable":  # an editable install finds them by `dev-mode-dirs`
            build_data["force_include"] |= {str(stubs / package): package for package in PACKAGES}


def generate(protos: Path, out: Path) -> None:
    """Makes `out` hold the stubs of `protos` and nothing else; a file already right is left untouched."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        _protoc(
            protos,
            f"--python_out={fresh}",
            f"--mypy_out=quiet,readable_stubs:{fresh}",
            *_plugin("protoc-gen-mypy"),
            *_sources(protos),
            VALIDATE,
        )
        _protoc(
            protos,
            f"--grpc_python_out={fresh}",
            f"--mypy_grpc_out=quiet,readable_stubs:{fresh}",
            *_plugin("protoc-gen-mypy_grpc"),
            *(source for source in _sources(protos) if source.endswith("_service.proto")),
        )
        for folder in [path for path in fresh.rglob("*") if path.is_dir()]:
            (folder / "__init__.py").touch()
        for package in PACKAGES:
            (fresh / package / "py.typed").touch()
        _mirror(fresh, out)


def image(protos: Path, file: Path) -> None:
    """Writes the compiled protos, with comments and with all they import, for buf to read."""
    sources = _sources(protos)
    _protoc(protos, f"--descriptor_set_out={file}", "--include_imports", "--include_source_info", *sources)


def descriptors(protos: Path, file: Path) -> None:
    """Writes the compiled protos and health, with all they import: what `grpcurl -protoset` takes."""
    from grpc_health.v1 import health_pb2  # no build needs it: it comes with the server

    file.parent.mkdir(exist_ok=True)
    image(protos, file)
    compiled = descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())
    health_pb2.DESCRIPTOR.CopyToProto(compiled.file.add())
    file.write_bytes(compiled.SerializeToString())


def lint() -> int:
    """Judges the protos by `protos/buf.yaml`; returns the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        now = Path(scratch, "now.binpb")
        image(ROOT / "protos", now)
        return _buf("lint", str(now))


def breaking() -> int:
    """Looks for changes since main that break a client; returns the exit code."""
    if not (_git("rev-list", "--all", "--max-count=1") and _git("ls-tree", "main", "protos/mastery")):
        print("main has no protos yet: nothing can break")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        now, then = Path(scratch, "now.binpb"), Path(scratch, "then.binpb")
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "main", "protos"))) as tar:
            tar.extractall(scratch, filter="data")
        image(ROOT / "protos", now)
        image(Path(scratch, "protos"), then)
        return _buf("breaking", str(now), "--against", str(then))


def _git(*args: str) -> bytes:
    return subprocess.run(["git", *args], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def _buf(command: str, *args: str) -> int:
    config = str(ROOT / "protos" / "buf.yaml")
    ours = ["--path", "mastery"]
    return subprocess.run([_script("buf"), command, *args, "--config", config, *ours], check=False).returncode


def _protoc(protos: Path, *args: str) -> None:
    """Runs protoc where the protos find all they import."""
    with tempfile.TemporaryDirectory() as scratch:
        known = Path(scratch, "known.binpb")
        known.write_bytes(_validate_descriptors())
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={known}", f"-I{protos}"]
        command += [f"-I{importlib.resources.files('google.rpc').joinpath('../..')}"]
        subprocess.run([*command, *args], check=True)


def _validate_descriptors() -> bytes:
    """Returns `validate.proto` and its imports: the package protovalidate carries it only compiled."""
    files = []
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        files.append(descriptor_pb2.FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(files[-1])
    validate = descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    return descriptor_pb2.FileDescriptorSet(file=[*files, validate]).SerializeToString()


def _sources(protos: Path) -> list[str]:
    return sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))


def _plugin(name: str) -> Iterable[str]:
    yield f"--plugin={name}={_script(name)}"


def _script(name: str) -> str:
    """Finds a program that came with a Python package, be its environment activated or not."""
    places = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed beside {sys.executable}")
    return found


def _mirror(source: Path, target: Path) -> None:
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for path in wanted:
        content = (source / path).read_bytes()
        copy = target / path
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path.relative_to(target) not in wanted and "__pycache__" not in path.parts:
            path.unlink()


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            generate(ROOT / "protos", ROOT / "stubs")
        case ["descriptors"]:
            descriptors(ROOT / "protos", ROOT / "dist" / "mastery-v1.protoset")
        case ["lint"]:
            sys.exit(lint())
        case ["breaking"]:
            sys.exit(breaking())
        case _:
            sys.exit(__doc__)
