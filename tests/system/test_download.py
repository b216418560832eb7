"""Downloads from a server on this machine, as wrong as servers can be."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autoq.api.metrics import fetch_metrics
from autoq.errors import AutoqError, InputError
from autoq.metrics import model_files
from autoq.metrics.model_files import ModelFile
from autoq.metrics.quality import why_unavailable
from autoq.system.download import CHECKSUM, download
from tests.cli.test_cli import run

CONTENT = bytes(range(256)) * 9000
DIGITS = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Sends CONTENT. `behaviour` is the first part of the path: whole, ranges, cut, elsewhere, or a status."""

    asked: list[str | None]

    def do_GET(self) -> None:
        behaviour, start = self.path.split("/")[1], 0
        self.asked.append(self.headers.get("Range"))
        if behaviour == "elsewhere":
            self.send_response(302)
            self.send_header("Location", self.path.replace("elsewhere", "whole"))
            self.send_header(CHECKSUM, f'"{DIGITS}"')
            self.end_headers()
            return
        if behaviour.isdecimal():
            self.send_error(int(behaviour))
            return
        if behaviour in ("ranges", "cut") and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + 10**6 if behaviour == "cut" else None])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("behaviour", ["whole", "ranges", "elsewhere"])
@pytest.mark.parametrize("before", [b"", CONTENT[:70_000], CONTENT])
def test_what_is_here_is_continued(server: str, tmp_path: Path, behaviour: str, before: bytes) -> None:
    file, seen = tmp_path / "new" / "model.mat", list[tuple[int, int]]()
    if before:
        file.parent.mkdir()
        file.with_name("model.mat.partial").write_bytes(before)
    download(f"{server}/{behaviour}/model.mat", file, DIGITS[:8], lambda done, total: seen.append((done, total)))
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["model.mat"]
    assert seen[-1:] == ([] if (behaviour, before) == ("ranges", CONTENT) else [(len(CONTENT), len(CONTENT))])
    assert Server.asked[0] == (f"bytes={len(before)}-" if before else None)


def test_a_connection_that_ends_is_continued(server: str, tmp_path: Path) -> None:
    file = tmp_path / "model.mat"
    for _ in range(2):
        with pytest.raises(AutoqError, match=r"cannot download .*/cut/model.mat \(.*\); try again, or save the file as"):
            download(f"{server}/cut/model.mat", file)
        assert not file.exists()
    download(f"{server}/cut/model.mat", file)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(("behaviour", "checksum"), [("whole", "0" * 64), ("elsewhere", None)])
def test_damaged_content_gets_no_name(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, checksum: str | None
) -> None:
    if checksum is None:
        monkeypatch.setattr(f"{__name__}.CONTENT", CONTENT[:-1] + b"x")
    with pytest.raises(AutoqError, match=r"its content is damaged \(SHA-256 [0-9a-f]{8}, expected [0-9a-f]{8}\); try again"):
        download(f"{server}/{behaviour}/model.mat", tmp_path / "model.mat", checksum)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/404/model.mat", "Not Found"),
        ("/503/model.mat", "Service Unavailable"),
        ("file:///etc/hostname", "expected an address of http or https"),
        ("http://127.0.0.1:9/model.mat", "Connection refused"),
    ],
)
def test_what_cannot_be_had(server: str, tmp_path: Path, address: str, reason: str) -> None:
    with pytest.raises(AutoqError, match=reason):
        download(f"{server}{address}" if address.startswith("/") else address, tmp_path / "model.mat")


def test_models_of_metrics(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(model_files, "ADDRESS", f"{server}/whole")
    monkeypatch.setitem(model_files.MODEL_FILES, "niqe", ModelFile("niqe_modelparameters.mat", DIGITS))
    reason = why_unavailable("niqe")
    assert reason == f"niqe needs niqe_modelparameters.mat in {tmp_path}/hub/pyiqa; to download, type autoq fetch-metrics niqe"
    code, out, _ = run(capsys, monkeypatch, "fetch-metrics", "niqe")
    assert (code, out) == (0, f"{tmp_path}/hub/pyiqa/niqe_modelparameters.mat\n")
    assert why_unavailable("niqe") is None
    assert sorted(fetch_metrics()) == ["NRQM_model.mat", "niqe_modelparameters.mat"]
    assert len(Server.asked) == 2, "what is there is not downloaded again"
    with pytest.raises(InputError, match="unknown metric with a model file 'psnr'; type one of niqe, pi"):
        fetch_metrics("psnr")


def test_the_addresses_are_pyiqas() -> None:
    from autoq.metrics.quality import import_pyiqa

    import_pyiqa()
    from pyiqa.archs.arch_util import get_url_from_name

    for file in model_files.MODEL_FILES.values():
        assert f"{model_files.ADDRESS}/{file.name}" == get_url_from_name(file.name)
