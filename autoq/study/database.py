"""The database of a study: its address, how it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autoq.errors import StudyError, unknown
from autoq.study.folder import DATABASE

SQLITE_PATIENCE = 60
"""Seconds to wait for a reader, such as a dashboard, to release the database file."""

DATABASES = ("mysql", "postgresql", "sqlite")
PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Python module of a database -> name for pip, where they differ."""

PASSWORDS = ("password", "passwd")
"""Keys of a URL's query that hold a password."""


def check_url(url: str) -> None:
    """Raise StudyError for text that is not a database URL, or has a password in it, which would be written to files."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StudyError(
            f"--storage '{url}': not a database URL; type --storage sqlite:////absolute/path.db or postgresql://user@host/database"
        ) from error
    if re.search("[{}]", url):
        quoted = url.replace("{", "%7B").replace("}", "%7D")
        raise StudyError(f"--storage '{url}': Optuna replaces text in braces; type --storage {quoted}")
    if parsed.drivername.startswith("sqlite") and not Path(parsed.database or "").is_absolute():
        absolute = file_url(Path.cwd() / (parsed.database or "x.db"))
        raise StudyError(f"--storage '{url}': expected an absolute path; type --storage {absolute}")
    if parsed.password is not None or any(key in parsed.query for key in PASSWORDS):
        shown = parsed.difference_update_query(PASSWORDS).render_as_string(hide_password=True)
        raise StudyError(f"--storage '{shown}': contains a password, which the study would store; leave it out and set PGPASSWORD")


def file_url(path: Path) -> str:
    """The URL of a SQLite file, quoted."""
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()


def cause_of(error: Exception) -> str:
    """The message of the database, without those of Optuna and SQLAlchemy around it."""
    origins = (getattr(each, "orig", None) for each in (error, error.__cause__))
    return str(next(filter(None, origins), error)).splitlines()[0].split(". ")[0]


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors from opening a database into StudyError with advice."""
    try:
        yield
    except NoSuchModuleError as error:
        raise StudyError(f"--storage '{url}': {unknown('database', make_url(url).drivername, DATABASES)}") from error
    except ImportError as error:
        module = str(getattr(error.__cause__, "name", None) or error.name)
        raise StudyError(
            f"--storage '{url}': needs the Python module '{module}'; type pip install {PACKAGES.get(module, module)}"
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise StudyError(f"--storage '{url}': {cause_of(error)}; {_way_out(url)}") from error


def _way_out(url: str) -> str:
    if is_own_file(url):
        return f"remove {DATABASE}: it is made again from trials.jsonl"
    return "make it reachable, or give another --storage, for example sqlite:////absolute/path.db"


def is_own_file(url: str) -> bool:
    """Whether a database is the file in a study's folder."""
    return Path(make_url(url).database or "").name == DATABASE


def check_free(url: str, name: str) -> None:
    """Raise StudyError if a database cannot be used, or already has a study of that name."""
    storage = connect(url)
    with explained(url):
        if name in [study.study_name for study in storage.get_all_studies()]:
            raise StudyError(f"--storage '{url}': already has a study '{name}'; give another --study or --storage")


def in_memory() -> optuna.storages.BaseStorage:
    """A storage in the memory of this process."""
    return optuna.storages.InMemoryStorage()


def connect(url: str) -> optuna.storages.BaseStorage:
    """Open a database. Raises StudyError with its reason."""
    patience = {"connect_args": {"timeout": SQLITE_PATIENCE}} if url.startswith("sqlite") else None
    with explained(url):
        return optuna.storages.RDBStorage(url, engine_kwargs=patience)
