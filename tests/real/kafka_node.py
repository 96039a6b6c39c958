"""What a node of Apache Kafka is told of itself and of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Node:
    """One member of a quorum, and where on loopback it listens."""

    number: int
    port: int
    controller_port: int

    @property
    def voter(self) -> str:
        return f"{self.number}@127.0.0.1:{self.controller_port}"


def server_properties(storage: Path, node: Node, quorum: Sequence[Node]) -> str:
    """Every node has a replica of everything, and most of them must be in sync."""
    replicas, in_sync = len(quorum), len(quorum) // 2 + 1
    properties = {
        "process.roles": "broker,controller",
        "node.id": node.number,
        "controller.quorum.voters": ",".join(voter.voter for voter in quorum),
        "listeners": f"BROKER://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": storage,
        "auto.create.topics.enable": "false",
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Few partitions: little to create.
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.num.partitions": 1,
        "log.index.size.max.bytes": 1_048_576,  # allocated whole for every partition
        "log.cleaner.dedupe.buffer.size": 8_388_608,
        # Tests do not wait: for a killed broker's registration to lapse, for a group's first assignment, for
        # the session of a killed consumer or the transaction of a killed producer to end.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 500,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        "group.consumer.min.session.timeout.ms": 500,
        "group.consumer.min.heartbeat.interval.ms": 100,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())
