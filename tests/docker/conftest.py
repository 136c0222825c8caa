"""Fixtures of the docker tests: the image, three etcd servers for each test, and nodes on them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from tests.integration.support import eventually, kit_threads

from .images import base_image, build_members_image, make_context
from .servers import Servers, build_image, docker, engine_problem
from .support import Nodes

_FOLDER = Path(__file__).parent
_TEST_SECONDS = 180.0
_engine_problem = cache(engine_problem)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test time for a busy machine, and an end that still removes its containers."""
    for item in items:
        if item.path.is_relative_to(_FOLDER):
            item.add_marker(pytest.mark.timeout(_TEST_SECONDS, method="signal"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # Not in a fixture: there each test would have a line of its own about it.
    problem = _engine_problem()
    if problem is None:
        return
    why = (
        f"tests/docker are not run: {problem}. Start Docker, or let tools/docker_engine.sh "
        "install and start it (as root, on Debian)"
    )
    if os.environ.get("CI"):
        pytest.exit(why, returncode=1)
    pytest.skip(why)


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    tag = f"clusterkit-test-etcd:{secrets.token_hex(4)}"
    build_image(tag)
    yield tag
    docker("rmi", tag)


@pytest.fixture
def servers(image: str) -> Iterator[Servers]:
    """Three etcd servers that serve."""
    with Servers(image) as servers:
        yield servers


@pytest.fixture
def nodes(servers: Servers) -> Iterator[Nodes]:
    """A cluster without nodes."""
    with closing(Nodes(servers)) as nodes:
        yield nodes
    eventually(lambda: not kit_threads())


# For the tests of deploy/.


@pytest.fixture(scope="session")
def base() -> str:
    return base_image()


@pytest.fixture(scope="session")
def context(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    make_context(base, folder)
    return folder


@pytest.fixture(scope="session")
def members_image() -> Iterator[str]:
    tag = f"clusterkit-test-members:{secrets.token_hex(4)}"
    build_members_image(tag)
    yield tag
    docker("rmi", tag)
