"""Schemas of the two custom resources that the chart may make: what of them it may use, and nothing else."""

from typing import Any

STRING: dict[str, Any] = {"type": "string", "minLength": 1}
STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def _resource(api_version: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _object("name labels", name=STRING, labels=STRINGS)
    return _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": api_version},
        kind=STRING,
        metadata=metadata,
        spec=spec,
    )


_KAFKA_TRIGGER = _object(
    "type metadata",
    type={"const": "kafka"},
    # The scaler reads strings; a number is refused by the API server.
    metadata=_object(
        "bootstrapServers consumerGroup topic lagThreshold",
        bootstrapServers=STRING,
        consumerGroup=STRING,
        topic=STRING,
        lagThreshold={"type": "string", "pattern": "^[1-9][0-9]*$"},
    ),
    authenticationRef=_object("name", name=STRING),
)
SCHEMAS = {
    "ScaledObject": _resource(
        "keda.sh/v1alpha1",
        _object(
            "scaleTargetRef triggers",
            scaleTargetRef=_object("name", name=STRING),
            minReplicaCount={"type": "integer", "minimum": 0},
            maxReplicaCount={"type": "integer", "minimum": 1},
            triggers={"type": "array", "minItems": 1, "items": _KAFKA_TRIGGER},
        ),
    ),
    "ServiceMonitor": _resource(
        "monitoring.coreos.com/v1",
        _object(
            "selector endpoints",
            selector=_object("matchLabels", matchLabels=STRINGS),
            targetLabels={"type": "array", "items": STRING},
            endpoints={
                "type": "array",
                "minItems": 1,
                "items": _object("port", port=STRING, interval={"type": "string", "pattern": "^[0-9]+s$"}),
            },
        ),
    ),
}
