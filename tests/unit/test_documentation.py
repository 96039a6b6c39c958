"""What the pages name is there: files, links, settings, commands, keys; and their diagrams hold together."""

import inspect
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from mastery_grpc.application.callers import CallClass, Caller, Role
from mastery_grpc.application.ports import CourseKey
from mastery_grpc.commands import cli
from mastery_grpc.domain.batch import BatchKey, BatchPriority
from mastery_grpc.domain.cohorts import CohortKey
from mastery_grpc.domain.events import StudentKey
from mastery_grpc.settings import PREFIX, Settings
from mastery_grpc.storage import keys
from tests.real.redis_servers import PRODUCT_RIGHTS

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md"]
FILE = re.compile(r"`([\w./-]+\.(?:py|lua|proto|md|yaml|toml|bin))`")
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```", re.DOTALL | re.MULTILINE)
OF_THE_OPERATORS = {"model.bin", "/etc/mastery/model.bin"}
OF_THE_TESTS = {"MASTERY_TEST_KAFKA", "MASTERY_TEST_EVENTS"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, link


@each_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    folders = [
        page.parent,
        DOCS,
        REPOSITORY,
        REPOSITORY / "protos" / "mastery" / "v1",
        REPOSITORY / "mastery_grpc",
    ]
    folders += (REPOSITORY / "mastery_grpc").iterdir()
    for name in FILE.findall(page.read_text()):
        assert name in OF_THE_OPERATORS or any((folder / name).exists() for folder in folders), name


@each_page
def test_every_setting_that_is_named_is_one(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OF_THE_TESTS
    for name in re.findall(r"\bMASTERY_[A-Z_]*[A-Z]\b", page.read_text()):
        assert name in known, name


@each_page
def test_every_command_that_is_named_is_one(page: Path) -> None:
    group: Any = get_command(cli)
    for words in re.findall(r"(?<![\w/-])mastery-grpc ([a-z][a-z-]*(?: [a-z]+)?)", "\n".join(_code(page))):
        name, *rest = words.split()
        assert name in group.commands, words
        inner = getattr(group.commands[name], "commands", None)
        assert inner is None or not rest or rest[0] in inner, words
    for option in re.findall(r"(?<![\w/-])mastery-grpc ([a-z][a-z-]*)[^`\n]*?(--[a-z-]+)", "\n".join(_code(page))):
        command = group.commands[option[0]]
        options = {name for each in _commands(command) for given in each.params for name in given.opts}
        assert option[1] in options | {"--help"}, option


def _code(page: Path) -> list[str]:
    text = page.read_text()
    return re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)


def _commands(command: Any) -> list[Any]:
    return [command, *getattr(command, "commands", {}).values()]


def test_the_index_names_every_page_and_decision_by_its_title() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.rglob("*.md"):
        if page.name != "README.md":
            assert f"({page.relative_to(DOCS)})" in index, page
    for decision in (DOCS / "decisions").glob("*.md"):
        number, title = re.findall(r"^# (\d+)\. (.*)$", decision.read_text(), re.MULTILINE)[0]
        assert decision.name.startswith(f"{int(number):04d}-")
        assert f"| [{number}](decisions/{decision.name}) | {title} |" in index


def test_every_key_is_in_the_table_of_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text()
    told = [re.sub(r"\{[A-Z.a-z]+\}", "{}", name) for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)]
    unmatched = set(told)
    for key in _keys():
        shape = re.sub(r"\{[^}]*\}", "{}", key)
        names = [name for name in told if re.fullmatch(_pattern(name), shape)]
        assert len(names) == 1, (key, names)
        unmatched -= set(names)
    assert unmatched == set()


def _pattern(name: str) -> str:
    part = re.escape(name).replace(re.escape("YYYY"), r"\d{4}").replace(re.escape("Www"), r"W\d\d")
    part = re.sub(r"\\-(MM|DD)", r"-\\d\\d", part)
    return re.sub(r"[A-Z_]{4,}", "[^:]+", part)


def _keys() -> list[str]:
    """Returns one key of each kind that the service spells."""
    given: dict[str, Any] = {
        "student": StudentKey("s1", ""),
        "day": date(2026, 1, 2),
        "event_id": "an-event",
        "school_id": "",
        "course": CourseKey("c1", ""),
        "token": "a-token",
        "work": "some-work",
        "caller": Caller("someone", Role.SERVICE),
        "call_class": CallClass.READ,
        "its": CohortKey("a-cohort", ""),
        "batch": BatchKey("a-batch", ""),
        "priority": BatchPriority.HIGH,
    }
    spelled = [keys.AUDIT_SCHOOLS, keys.AUDIT_UPKEEP, keys.BATCHES_OPEN, keys.BATCH_UPKEEP]
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        parameters = inspect.signature(function).parameters
        if function.__module__ == keys.__name__ and not name.startswith("_") and parameters.keys() <= given.keys():
            key = function(**{each: given[each] for each in parameters})
            if isinstance(key, str) and name != "snapshot_prefix":
                spelled.append(key)
    assert len(spelled) > 20
    return spelled


def test_the_rights_in_redis_are_those_that_the_tests_run_with() -> None:
    assert f" {PRODUCT_RIGHTS}\n" in (DOCS / "operations" / "install.md").read_text()


DIAGRAMS = [(page.name, text) for page in PAGES for text in DIAGRAM.findall(page.read_text())]


@pytest.mark.parametrize(("page", "diagram"), DIAGRAMS, ids=[page for page, _ in DIAGRAMS])
def test_every_diagram_is_a_flowchart_whose_nodes_have_a_shape(page: str, diagram: str) -> None:
    """Roughly what Mermaid's own parser asks for, without its browser."""
    first, *lines = [line.strip() for line in diagram.splitlines() if line.strip()]
    assert re.fullmatch(r"flowchart (LR|TB|TD)", first)
    shaped, used = set(), set()
    for line in lines:
        bare = re.sub(r'"[^"]*"', "text", line)
        arrow = re.fullmatch(r"(.+?) (?:--(?:>| .+? -->)|-\. .+? \.->|<--(?:>| .+? -->)) (.+)", bare)
        assert arrow, line
        for node in arrow.groups():
            found = re.fullmatch(r"(\w+)(?:\(\[[^()\[\]]+\]\)|\[\([^()\[\]]+\)\]|\[[^()\[\]]+\])?", node)
            assert found, line
            used.add(found[1])
            shaped |= {found[1]} if node != found[1] else set()
    assert used == shaped


def test_there_are_diagrams() -> None:
    assert {"architecture.md", "threat-model.md"} <= {page for page, _ in DIAGRAMS}
