"""Apache Kafka's jars: fetched once by Maven, kept beside the checkout."""

import hashlib
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.real.processes import ending_with_us, scratch_directory

POM = Path(__file__).with_name("kafka") / "pom.xml"
CACHE = Path(__file__).parents[2] / ".cache" / "kafka"
OLDEST_JAVA = 17
FETCH_PATIENCE_SECONDS = 900.0

# Compiling less and collecting simply makes for a quick start, on few cores most of all.
JVM = (
    "java",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xmx512m",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

# Formatted storage holds the node's id and the feature levels, but no port: one copy serves all brokers.
NODE_ID = 1
FORMAT_PROPERTIES = f"""\
process.roles=broker,controller
node.id={NODE_ID}
controller.quorum.voters={NODE_ID}@127.0.0.1:9093
listeners=BROKER://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
"""


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot run here; the message says why."""


@dataclass(frozen=True)
class KafkaInstallation:
    """A directory of jars and formatted storage, complete as soon as it exists."""

    version: str
    directory: Path

    @property
    def present(self) -> bool:
        return self.directory.is_dir()

    def command(self, main_class: str, *arguments: str) -> list[str]:
        return [*JVM, "-cp", f"{self.directory}/jars/*", main_class, *arguments]

    def lay_storage(self, directory: Path) -> None:
        """Give a new broker its formatted, empty storage."""
        shutil.copytree(self.directory / "storage", directory)


def planned_installation() -> KafkaInstallation:
    """What `fetch` would provide; looks at the machine, but not at the network."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise KafkaUnavailableError(f"no {program} on PATH")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    java = re.search(r'version "(\d+)', told)
    if java is None or int(java[1]) < OLDEST_JAVA:
        raise KafkaUnavailableError(f"it needs Java {OLDEST_JAVA} or later")
    pom = POM.read_text()
    version = re.search(r"<kafka.version>(.+?)</kafka.version>", pom)
    if version is None:
        raise RuntimeError(f"{POM} names no kafka.version")
    digest = hashlib.sha256(pom.encode() + FORMAT_PROPERTIES.encode()).hexdigest()
    return KafkaInstallation(version[1], CACHE / f"{version[1]}-{digest[:8]}")


def fetch() -> KafkaInstallation:
    """The jars, fetched now if they are not here yet."""
    installation = planned_installation()
    if installation.present:
        return installation
    CACHE.mkdir(parents=True, exist_ok=True)
    _tell(f"Fetching Apache Kafka {installation.version} with Maven, once (about 45 MB):")
    with scratch_directory("fetching-", within=CACHE) as scratch:
        unfinished = KafkaInstallation(installation.version, scratch / "installation")
        _copy_dependencies(unfinished.directory / "jars")
        _format_storage(unfinished)
        try:
            unfinished.directory.rename(installation.directory)  # last, so that none is ever half a one
        except OSError:
            if not installation.present:  # else another test run was faster
                raise
    return installation


def _copy_dependencies(directory: Path) -> None:
    command = [
        *("mvn", "--batch-mode", "--file", str(POM)),
        "--update-snapshots",  # which also asks again for what once could not be found
        *("-Dmaven.wagon.rto=60000", "-Daether.connector.requestTimeout=60000"),
        *("dependency:copy-dependencies", f"-DoutputDirectory={directory}"),
    ]
    errors: list[str] = []
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as maven,
        ending_with_us(maven),
    ):
        assert maven.stdout is not None
        impatience = threading.Timer(FETCH_PATIENCE_SECONDS, maven.kill)
        impatience.start()
        try:
            for line in maven.stdout:
                if jar := re.search(r"Downloaded from .*/([^/]+\.jar) \((.+?)( at .*)?\)", line):
                    _tell(f"  {jar[1]} ({jar[2]})")
                elif line.startswith("[ERROR]"):
                    errors.append(line.removeprefix("[ERROR]").strip())
            maven.wait()
        finally:
            impatience.cancel()
    if maven.returncode != 0:
        raise KafkaUnavailableError(f"Maven could not fetch it: {errors[0] if errors else maven.returncode}")


def _format_storage(installation: KafkaInstallation) -> None:
    properties = installation.directory / "format.properties"
    properties.write_text(f"{FORMAT_PROPERTIES}log.dirs={installation.directory / 'storage'}\n")
    command = installation.command(
        "kafka.tools.StorageTool",
        *("format", "--cluster-id", "MkU3OEVBNTcwNTJENDM2Qg", "--config", str(properties)),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KafkaUnavailableError(f"its storage could not be formatted: {done.stderr[-500:]}")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
