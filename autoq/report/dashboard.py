"""A study in Optuna's dashboard, to be looked at: on 127.0.0.1, for reading only."""

from __future__ import annotations

import contextlib
import socketserver
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autoq.errors import InputError
from autoq.study.storage import connect, explained
from autoq.study.study import Study

HOST = "127.0.0.1"
USUAL_PORT = 8080

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(study: Study, port: int | None, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is called with the page's address.

    port: 0 takes a free one; None takes USUAL_PORT, or a free one where that is taken.

    Reads the study's storage, so a running study shows what it has so far; a study that came without its database
    is built from trials.jsonl in memory. Raises InputError when the port cannot be had, StudyError for a storage that
    cannot be read.
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
            HOST, USUAL_PORT if port is None else port, _reading(application), server_class=_Server, handler_class=_Silent
        )
    except OSError as error:
        if port is None:
            return _listen(application, 0)
        raise InputError(f"--port '{port}': {error.strerror}; type --port 0 for a free one") from error


def _storage(study: Study) -> Any:
    """The study's database; where it has none, or that one does not know the study (it was copied), what its records say."""
    if study.spec.storage is not None or study.database_path.is_file():
        storage = connect(study.storage_url)
        with explained(study.storage_url), contextlib.suppress(KeyError):
            _number(storage, study.name)
            return storage
    return study.to_storage().backend


def _number(storage: Any, name: str) -> int:
    return int(storage.get_study_id_from_name(name))


def _reading(application: Application) -> Application:
    """Refuse whatever would change the study (it may be running), and pages that name this host otherwise."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or host not in (HOST, "localhost"):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"autoq's dashboard is for reading, at 127.0.0.1\n"]
        return application(environ, start_response)

    return guarded
