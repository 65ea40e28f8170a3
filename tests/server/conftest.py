"""Databases of a real PostgreSQL server. Nothing is skipped: without REGRAFT_TEST_POSTGRES these tests fail."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    server = os.environ.get("REGRAFT_TEST_POSTGRES")
    if not server:
        pytest.fail(
            "Set REGRAFT_TEST_POSTGRES to the URL of a server, such as postgresql+psycopg://user@localhost/postgres."
        )
    name = f"regraft_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield sqlalchemy.make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
