"""Who is at risk, watching, the audit log, profiles, and how errors are told."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mastery.v1 import access_pb2, analytics_service_pb2, prediction_service_pb2
from mastery.v1 import compliance_service_pb2 as compliance
from mastery_client import MasteryError, NotOffered, ServerFault
from mastery_client.testing import FakeServer, status_with
from masteryctl import failures, profiles
from tests.client.conftest import TOKEN
from tests.client.masteryctl.conftest import Run

# --- at risk ----------------------------------------------------------------------------------------------


def checked(
    request: prediction_service_pb2.CheckInterventionRequest,
) -> prediction_service_pb2.CheckInterventionResponse:
    """s<n> is at risk by n percent, which matters from 50 on; x is not known."""
    results = []
    for student_id in request.student_ids:
        if student_id == "x":
            error = status_with("NOT_FOUND", reason="STUDENT_NOT_FOUND", message="no event of x is known")
            results.append(prediction_service_pb2.InterventionResult(student_id="x", error=error))
            continue
        percent = int(student_id[1:])
        found = prediction_service_pb2.Intervention(
            intervention_needed=percent >= 50,
            intervention_probability=percent / 100,
            current_score=0.4,
            reasons=["he stopped", "quizzes fall"],
            days_until=3,
        )
        results.append(prediction_service_pb2.InterventionResult(student_id=student_id, intervention=found))
    return prediction_service_pb2.CheckInterventionResponse(results=results)


def test_who_is_at_risk_is_listed_most_urgent_first(fake: FakeServer, run: Run) -> None:
    fake.answer("CheckIntervention", checked)

    answer = run("at-risk", "s55", "s10", "s90", "x")

    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["s90", "s55"]
    assert "he stopped; quizzes fall" in answer.stdout
    assert "s10" not in answer.stdout
    assert "2 of 4 students need somebody to step in" in answer.stdout
    assert "x: no event of x is known (STUDENT_NOT_FOUND)" in answer.stderr


def test_all_are_listed_where_all_are_wanted(fake: FakeServer, run: Run) -> None:
    fake.answer("CheckIntervention", checked)

    listed = json.loads(run("at-risk", "s10", "s90", "--all", "-o", "json").stdout)

    assert [each["student_id"] for each in listed] == ["s90", "s10"]


def test_students_come_from_a_cohort_and_a_file_and_are_asked_about_once(
    fake: FakeServer, run: Run, tmp_path: Path
) -> None:
    fake.answer("CheckIntervention", checked)
    members = analytics_service_pb2.StudentList(student_ids=["s60", "s70"])
    cohort = analytics_service_pb2.Cohort(cohort_id="c", listed=members)
    fake.answer("GetCohort", analytics_service_pb2.GetCohortResponse(cohort=cohort))
    (tmp_path / "ids").write_text("s70\n\n s80 \n")

    run("at-risk", "--cohort", "c", "--file", "ids")
    run("at-risk", "--file", "-", stdin="s1\n")

    first, second = fake.requests("CheckIntervention")
    assert sorted(first.student_ids) == ["s60", "s70", "s80"]
    assert list(second.student_ids) == ["s1"]


def test_more_students_than_fit_a_request_are_asked_about_in_several(
    fake: FakeServer, run: Run, tmp_path: Path
) -> None:
    fake.answer("CheckIntervention", checked)
    (tmp_path / "ids").write_text("\n".join(f"s{number}" for number in range(2500)))

    assert "of 2500 students" in run("at-risk", "--file", "ids").output
    assert [len(request.student_ids) for request in fake.requests("CheckIntervention")] == [1000, 1000, 500]


def test_nobody_is_no_question(run: Run) -> None:
    answer = run("at-risk")

    assert answer.exit_code == 2
    assert "name students, a --cohort or a --file" in answer.stderr


# --- watching ---------------------------------------------------------------------------------------------


def test_watching_tells_states_and_changes(fake: FakeServer, run: Run) -> None:
    fake.set_mastery("s1", quiz=0.5)
    fake.set_mastery("s2", quiz=1)

    answer = run("watch", "s1", "s2", "--count", "2")

    assert "s1  0.150" in answer.output
    assert "s2  0.300" in answer.output
    assert "beginner  version 1" in answer.output


def test_watching_gives_a_line_of_json_for_each_change(fake: FakeServer, run: Run) -> None:
    fake.set_mastery("s1", quiz=0.5)

    [line] = run("watch", "s1", "--count", "1", "-o", "json").stdout.splitlines()

    assert json.loads(line)["mastery"]["version"] == "1"


# --- the audit log ----------------------------------------------------------------------------------------


def test_the_audit_log_is_listed_up_to_a_limit_by_its_filters(fake: FakeServer, run: Run) -> None:
    entry = compliance.AuditEntry(
        sequence=7,
        caller="ops",
        role=access_pb2.ROLE_ADMIN,
        method="mastery.v1.MasteryService/GetMastery",
        student_hash="0123456789abcdef",
        code=5,
    )
    page = compliance.ListAuditEntriesResponse(entries=[entry] * 2, next_page_token="more")
    fake.answer("ListAuditEntries", page)

    answer = run("audit", "list", "--student", "s1", "--since", "2026-01-14", "--limit", "3")

    assert answer.output.count("MasteryService/GetMastery") == 3
    assert "ops     admin  MasteryService/GetMastery  0123456789ab  NOT_FOUND" in answer.output
    request = fake.requests("ListAuditEntries")[0]
    assert (request.student_id, request.start_time.ToJsonString()) == ("s1", "2026-01-14T00:00:00Z")
    assert not request.HasField("end_time")


def test_a_log_that_was_tampered_with_ends_the_command_with_1(fake: FakeServer, run: Run) -> None:
    fault = compliance.AuditFault(sequence=12, kind=compliance.AUDIT_FAULT_KIND_TRUNCATED)
    fake.answer("VerifyAuditLog", compliance.VerifyAuditLogResponse(intact=False, fault=fault))
    answer = run("audit", "verify")
    fake.answer("VerifyAuditLog", compliance.VerifyAuditLogResponse(intact=True, entry_count=12))
    good = run("audit", "verify")

    assert (answer.exit_code, answer.output) == (1, "NOT intact: truncated at entry 12\n")
    assert (good.exit_code, good.output) == (0, "intact: 12 entries checked\n")


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("INVALID_ARGUMENT", "INVALID_FIELD", 2),
        ("NOT_FOUND", "STUDENT_NOT_FOUND", 3),
        ("UNAUTHENTICATED", "TOKEN_EXPIRED", 4),
        ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED", 4),
        ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 5),
        ("FAILED_PRECONDITION", "COHORT_TOO_SMALL", 6),
        ("INTERNAL", "INTERNAL", 7),
        ("UNIMPLEMENTED", "NOT_OFFERED", 7),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    fake: FakeServer, run: Run, code: str, reason: str, exit_code: int
) -> None:
    fake.fail("GetMastery", code, reason=reason, message="something\nis wrong")

    answer = run("student", "show", "s1")

    assert answer.exit_code == exit_code
    assert answer.stdout == ""
    [line] = answer.stderr.splitlines()
    told = "the service does not offer this" if reason == "NOT_OFFERED" else f"something is wrong ({reason})"
    assert line.startswith(f"masteryctl: {told}")


def test_an_error_says_what_helps(fake: FakeServer, run: Run) -> None:
    fake.fail("GetMastery", "UNAVAILABLE", reason="STORAGE_UNAVAILABLE", retry_delay=2, times=4)
    away = run("student", "show", "s1")
    fake.fail("GetMastery", "UNAUTHENTICATED", reason="TOKEN_EXPIRED", message="the token has expired")
    expired = run("student", "show", "s1")

    assert away.exit_code == 5
    assert "try again, in 2 s" in away.stderr
    assert expired.stderr == "masteryctl: the token has expired (TOKEN_EXPIRED); get a new token\n"


def test_a_service_that_is_not_there_is_named(run: Run) -> None:
    answer = run("--address", "127.0.0.1:1", "student", "show", "s1")

    assert answer.exit_code == 5
    assert "is it at 127.0.0.1:1, with or without TLS?" in answer.stderr


def test_every_kind_of_error_has_an_exit_code_that_the_docstring_tells() -> None:
    told = {int(code) for code in re.findall(r"^- (\d):", failures.__doc__ or "", re.MULTILINE)}

    assert set(MasteryError.__subclasses__()) - set(failures.EXIT_CODES) == {NotOffered, ServerFault}
    assert {0, failures.BAD_ANSWER, failures.SERVER_FAULT, *failures.EXIT_CODES.values()} == told


# --- profiles ---------------------------------------------------------------------------------------------


def test_options_go_before_variables_and_they_before_the_profile(
    fake: FakeServer, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.set_mastery("s1")
    other = tmp_path / "other"
    other.write_text("from-the-option")
    run("watch", "s1", "--count", "1")
    monkeypatch.setenv("MASTERYCTL_TOKEN", "from-the-variable")
    monkeypatch.setenv("MASTERYCTL_SCHOOL", "school_7")
    run("watch", "s1", "--count", "1")
    run("--token-file", str(other), "--school", "school_8", "watch", "s1", "--count", "1")

    tokens = [call.metadata["authorization"].removeprefix("Bearer ") for call in fake.calls]
    schools = [request.school_id for request in fake.requests("WatchMastery")]
    assert tokens == [TOKEN, "from-the-variable", "from-the-option"]
    assert schools == ["", "school_7", "school_8"]


@pytest.mark.parametrize(
    ("config", "arguments", "told"),
    [
        ("nonsense", [], "config.toml: "),
        ("", ["--profile", "prod"], "there is no profile 'prod'; there is: none"),
        ("[profiles.a]\n", ["--profile", "prod"], "there is no profile 'prod'; there is: a"),
        ("[profiles.a]\ntoken = 'x'\n", ["--profile", "a"], "profile 'a': 'token' is not known"),
        ("[profiles.a]\nplaintext = 'yes'\n", ["--profile", "a"], "plaintext must be true or false"),
        ("[profiles.a]\naddress = 7\n", ["--profile", "a"], "address must be text"),
        ("[profiles.a]\nca = 'c'\nplaintext = true\n", ["--profile", "a"], "either plaintext, or a CA"),
        ("[profiles.a]\nca = 'missing.pem'\n", ["--profile", "a"], "missing.pem: No such file"),
        ("[profiles.a]\ntoken_file = 'missing'\n", ["--profile", "a"], "missing: No such file"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_in_one_line(
    run: Run, tmp_path: Path, config: str, arguments: list[str], told: str
) -> None:
    (tmp_path / "config.toml").write_text(config)

    answer = run(*arguments, "student", "show", "s1")

    assert answer.exit_code in (2, 4)
    [line] = answer.stderr.splitlines()
    assert told in line


def test_the_docstring_of_the_profiles_is_a_configuration_that_works(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (profiles.__doc__ or "").partition("names:\n")[2].partition("\n\nA token")[0]
    (tmp_path / "config.toml").write_text("\n".join(line[4:] for line in example.splitlines()))

    assert profiles.read_profile("").school == "school_7"


# --- as a program -----------------------------------------------------------------------------------------


def test_it_is_a_program_that_completes_itself() -> None:
    program = str(Path(sys.executable).with_name("masteryctl"))

    shown = subprocess.run(
        [program, "--show-completion", "bash"], capture_output=True, text=True, timeout=60, check=False
    )
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60, check=False)

    assert "_MASTERYCTL_COMPLETE" in shown.stdout + shown.stderr
    assert "at-risk" in helped.stdout


def test_without_its_libraries_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['typer'] = None\nfrom masteryctl.__main__ import main\nmain()"

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 1
    assert run.stderr.strip() == "masteryctl: typer is missing; it comes with: pip install 'mastery-grpc[cli]'"
