"""What the chart says twice is written once: `python -m tests.deploy.chart_documents`, which is `make chart`.

The README's table comes from `values.yaml` and its comments, the schema of the settings from `settings.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mastery_grpc.settings import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).parents[2] / "helm" / "mastery-engine"
VALUES, SCHEMA, README = (CHART / name for name in ("values.yaml", "values.schema.json", "README.md"))
TABLE_BEGINS, TABLE_ENDS = "<!-- values: made by `make chart` -->\n", "<!-- /values -->"

LINE_LENGTH = 110

SECRETS = {"MASTERY_JWT_SECRET", "MASTERY_AUDIT_KEY", "MASTERY_REDIS_URL", "MASTERY_KAFKA_PROPERTIES"}
"""They belong into a Secret."""
OWN = {
    "MASTERY_KAFKA_BOOTSTRAP_SERVERS",
    "MASTERY_KAFKA_PARTITIONS",
    "MASTERY_KAFKA_DLQ_PARTITIONS",
    "MASTERY_KAFKA_REPLICATION_FACTOR",
    "MASTERY_GRPC_PORT",
    "MASTERY_GRPC_WORKERS",
    "MASTERY_GRPC_HEALTH_PORT",
    "MASTERY_GRPC_DRAIN_TIMEOUT",
    "MASTERY_INGEST_HEALTH_PORT",
    "MASTERY_METRICS_PORT",
    "MASTERY_TLS_CERT",
    "MASTERY_TLS_KEY",
    "MASTERY_TLS_CLIENT_CA",
}
"""Those that the chart itself decides, by values of other names or by the ports of its pods."""


def values() -> dict[str, Any]:
    """Returns the default values."""
    written = yaml.safe_load(VALUES.read_text())
    assert isinstance(written, dict)
    return written


def schema() -> dict[str, Any]:
    """Returns the schema of the values."""
    written = json.loads(SCHEMA.read_text())
    assert isinstance(written, dict)
    return written


def setting_schemas() -> dict[str, dict[str, Any]]:
    """Returns the JSON schema of each variable."""
    known = Settings.model_json_schema()

    def of(described: dict[str, Any]) -> dict[str, Any]:
        if reference := described.get("$ref"):
            return of(known["$defs"][reference.rpartition("/")[2]])
        if options := [option for option in described.get("anyOf", ()) if option != {"type": "null"}]:
            return of(options[0])
        return {
            name: value
            for name, value in described.items()
            if name not in ("title", "description", "default", "format", "writeOnly")
        }

    return {PREFIX + name.upper(): of(described) for name, described in known["properties"].items()}


def schema_with_settings(written: str) -> str:
    """Returns the schema of the values with what it says about settings made anew."""
    document = json.loads(written)
    settings = setting_schemas()
    parts = document["properties"]
    plain = {name: each for name, each in settings.items() if name not in SECRETS | OWN}
    parts["settings"] = {"type": "object", "additionalProperties": False, "properties": plain}
    secret = {name: settings[name] for name in sorted(SECRETS)}
    parts["secret"]["properties"]["values"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": secret,
    }
    return _readable(document) + "\n"


def _readable(node: Any, indent: str = "") -> str:
    """Returns JSON with what fits a line on one line."""
    flat = json.dumps(node)
    if not isinstance(node, dict) or len(indent) + len(flat) <= LINE_LENGTH:
        return flat
    deeper = indent + "  "
    members = (f"{deeper}{json.dumps(name)}: {_readable(value, deeper)}" for name, value in node.items())
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"


def readme_with_table(written: str) -> str:
    """Returns the README with its table of values made anew."""
    before, _, rest = written.partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    rows = "".join(f"| `{name}` | `{default}` | {remark} |\n" for name, default, remark in values_table())
    return f"{before}{TABLE_BEGINS}| value | default | |\n|---|---|---|\n{rows}{TABLE_ENDS}{after}"


def values_table() -> Iterator[tuple[str, str, str]]:
    """Yields the path, the default and the comment of each value."""
    node = yaml.compose(VALUES.read_text(), yaml.SafeLoader)
    assert node is not None
    yield from _rows(node, (), VALUES.read_text().splitlines())


def _rows(node: yaml.Node, path: tuple[str, ...], lines: list[str]) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        for key, value in node.value:
            yield from _rows(value, (*path, key.value), lines)
        return
    default = json.dumps(yaml.safe_load(yaml.serialize(node)))
    yield ".".join(path), default, _comment_above(node.start_mark.line, lines)


def _comment_above(line: int, lines: list[str]) -> str:
    """Returns the comment right above a line; only its own column counts, not a heading of the block it begins."""
    column = len(lines[line]) - len(lines[line].lstrip())
    comment: list[str] = []
    while line > 0 and (found := re.fullmatch(r"( *)# (.*)", lines[line - 1])) and len(found[1]) == column:
        comment.insert(0, found[2])
        line -= 1
    return " ".join(comment)


def main() -> None:
    """Writes both documents anew."""
    SCHEMA.write_text(schema_with_settings(SCHEMA.read_text()))
    README.write_text(readme_with_table(README.read_text()))


if __name__ == "__main__":
    main()
