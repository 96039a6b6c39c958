"""Apache Kafka as it is run in earnest: three nodes, everything on all of them, any one of them dispensable."""

import base64
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.real.kafka_brokers import Administered, ApacheKafka, apache_kind
from tests.real.kafka_installation import KafkaInstallation, fetch
from tests.real.kafka_node import Node
from tests.real.processes import free_ports, scratch_directory

SIZE = 3
HEAP = "-Xmx256m"
PATIENCE_SECONDS = 180.0
"""For three JVMs that start at once, on few cores."""


class ApacheKafkaCluster(Administered):
    """Three brokers with their controllers, each in one JVM; two in-sync replicas are enough to write."""

    replication_factor = SIZE

    def __init__(self, installation: KafkaInstallation, directory: Path) -> None:
        self.kind = f"{SIZE} nodes of {apache_kind(installation)}, all topics on each, min.insync.replicas 2"
        ports = iter(free_ports(2 * SIZE))
        quorum = [Node(number, next(ports), next(ports)) for number in range(1, SIZE + 1)]
        self.nodes = [_node(installation, directory / str(node.number), node, quorum) for node in quorum]
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        self.until_in_sync()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def until_in_sync(self) -> None:
        """Returns once all nodes are up, and every partition has a leader and all its replicas in sync."""
        for node in self.nodes:  # first: until a killed one has registered anew, the others may not miss it yet
            node.until_ready(PATIENCE_SECONDS)
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._admin() as admin:
            while (missing := _missing(admin)) is not None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not in sync after {PATIENCE_SECONDS:.0f} s: {missing}")
                time.sleep(0.1)


@contextmanager
def apache_kafka_cluster() -> Iterator[ApacheKafkaCluster]:
    """Three nodes of Apache Kafka; raises KafkaUnavailableError where they cannot run."""
    installation = fetch()
    with scratch_directory("mastery-kafka-cluster-") as directory:
        cluster = ApacheKafkaCluster(installation, directory)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()


def _node(installation: KafkaInstallation, directory: Path, node: Node, quorum: list[Node]) -> ApacheKafka:
    directory.mkdir()
    storage = directory / "storage"
    installation.lay_storage(storage)
    _make_own(storage / "meta.properties", node.number)
    return ApacheKafka(installation, directory, node, quorum, [HEAP])


def _make_own(meta: Path, number: int) -> None:
    """Formatted storage names its node and its directory; two brokers must not have the same of either."""
    directory_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    text = re.sub(r"(?m)^node\.id=.*$", f"node.id={number}", meta.read_text())
    meta.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={directory_id}", text))


def _missing(admin: AdminClient) -> str | None:
    """Returns what keeps the cluster from being whole, if anything does."""
    try:
        metadata = admin.list_topics(timeout=10)
    except KafkaException as error:
        return str(error)
    if len(metadata.brokers) < SIZE:
        return f"there are only the brokers {sorted(metadata.brokers)}"
    for topic in metadata.topics.values():
        for partition in topic.partitions.values():
            if partition.leader < 0 or len(partition.isrs) < SIZE:
                return f"{topic.topic}-{partition.id} has leader {partition.leader}, in sync {partition.isrs}"
    return None
