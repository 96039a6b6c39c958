"""The image, built from the Dockerfile by buildah, and run without an engine: chroot, on a read-only root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.deploy.chart import tool
from tests.real.processes import ending_with_us, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# What a container runtime gives every container: /dev, /proc, and here an empty /tmp. All else is read-only.
ENTER = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" &&
mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && cd / && root="$1" user="$2" && shift 2 &&
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True)
class Image:
    """A built image: its files, and how it says that it is to be run."""

    root: Path
    config: dict[str, Any]
    size: int
    """Bytes of its layers, uncompressed."""

    def files(self) -> Iterator[Path]:
        """Yields everything in it that is neither a directory nor a link."""
        yield from (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())

    @contextmanager
    def running(self, command: Sequence[str], log: Path, **given: str) -> Iterator[subprocess.Popen[str]]:
        """Runs a command of it with the variables of the image and those given, and no others."""
        variables = dict(each.split("=", 1) for each in self.config["Env"]) | given
        enter = ["unshare", "--mount", "sh", "-ec", ENTER, "sh", str(self.root), self.config["User"]]
        with log.open("w") as output:
            process = subprocess.Popen(
                [*enter, *self.config["Entrypoint"], *command],
                env=variables | {"PATH": os.environ["PATH"]},  # for the programs that lead into the image
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        with ending_with_us(process):
            yield process


class _Buildah:
    """buildah with a storage of its own."""

    def __init__(self, storage: Path) -> None:
        self._command = [tool("buildah"), "--root", str(storage / "root"), "--runroot", str(storage / "run")]
        self._command += ["--storage-driver", "vfs"]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"buildah {arguments[0]}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()


def base_image() -> str:
    """Returns the one image that the Dockerfile begins with."""
    [base] = [name for name in re.findall(r"(?m)^FROM (\S+)", DOCKERFILE.read_text()) if name != "scratch"]
    assert isinstance(base, str)
    return base


@contextmanager
def built_image() -> Iterator[Image]:
    """Builds the image. What it begins with is made here, of Debian's packages, as that is made too."""
    with scratch_directory("mastery-image-") as directory:
        buildah = _Buildah(directory)
        _make_base(buildah, directory)
        buildah("build", "--isolation", "chroot", "--pull-never", "--tag", "mastery-grpc", str(REPOSITORY))
        built = json.loads(buildah("inspect", "--type", "image", "mastery-grpc"))
        container = buildah("from", "--pull-never", "mastery-grpc")
        yield Image(
            root=Path(buildah("mount", container)),
            config=built["OCIv1"]["config"],
            size=sum(layer["size"] for layer in json.loads(built["Manifest"])["layers"]),
        )


def _make_base(buildah: _Buildah, directory: Path) -> None:
    """Makes a minimal Debian, from where this machine has its packages, and trusting whom this machine trusts."""
    suite = base_image().partition(":")[2].partition("-")[0]
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=True
    )
    [mirror, *_] = sorted(uri for uri in set(told.stdout.split()) if "security" not in uri)
    root = directory / "base"
    done = subprocess.run(
        [tool("debootstrap"), "--variant=minbase", suite, str(root), mirror],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    if CERTIFICATES.is_dir():
        shutil.copytree(CERTIFICATES, root / CERTIFICATES.relative_to("/"), dirs_exist_ok=True)
    (root / "etc" / "pip.conf").write_text(f"[global]\ncert = {AUTHORITIES}\n")
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", container, base_image())
    buildah("rm", container)
    shutil.rmtree(root)
