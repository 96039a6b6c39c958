"""What the README states and the tests rely on is the same."""

from pathlib import Path

from tests.real.redis_servers import PRODUCT_RIGHTS

README = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())


def test_the_rights_in_redis_are_those_that_the_tests_grant() -> None:
    assert f"`{PRODUCT_RIGHTS}`" in README
