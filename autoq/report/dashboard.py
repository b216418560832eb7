"""Serve a study in Optuna's dashboard, read-only, on 127.0.0.1."""

from __future__ import annotations

import contextlib
import socketserver
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autoq.errors import InputError
from autoq.study.database import connect, explained
from autoq.study.study import Study

HOST = "127.0.0.1"
DEFAULT_PORT = 8080

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(study: Study, port: int | None, ready: Callable[[str], None]) -> None:
    """Serve the dashboard until interrupted.

    A running study can be watched. A study without a database is rebuilt in memory from trials.jsonl.

    Args:
        study: The study.
        port: 0 for any free port; None for DEFAULT_PORT, or any free port if it is in use.
        ready: Called with the address of the page.

    Raises:
        InputError: The port cannot be opened.
        StudyError: The study's storage cannot be read.
    """
    from optuna_dashboard import wsgi

    storage = _storage(study)
    address = f"dashboard/studies/{_number(storage, study.name)}"
    with contextlib.suppress(KeyboardInterrupt), _listen(wsgi(storage), port) as server:
        ready(f"http://{HOST}:{server.server_port}/{address}")
        server.serve_forever()


def _listen(application: Application, port: int | None) -> WSGIServer:
    try:
        return make_server(
            HOST, DEFAULT_PORT if port is None else port, _read_only(application), server_class=_Server, handler_class=_Silent
        )
    except OSError as error:
        if port is None:
            return _listen(application, 0)
        raise InputError(f"--port {port}: {error.strerror}; type `--port 0` for a free port") from error


def _storage(study: Study) -> Any:
    """The study's database; its records in memory if there is no database, or the database lacks the study (a copied folder)."""
    if study.spec.storage is not None or study.database_path.is_file():
        storage = connect(study.storage_url)
        with explained(study.storage_url), contextlib.suppress(KeyError):
            _number(storage, study.name)
            return storage
    return study.to_storage().backend


def _number(storage: Any, name: str) -> int:
    return int(storage.get_study_id_from_name(name))


def _read_only(application: Application) -> Application:
    """Reject requests that would change the study (it may be running) and requests with a foreign Host header."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or host not in (HOST, "localhost"):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"autoq serves this dashboard read-only at 127.0.0.1\n"]
        return application(environ, start_response)

    return guarded
