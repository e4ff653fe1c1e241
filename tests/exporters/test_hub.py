"""Checkpoints on the hub: a local server with the routes and file layout of a published repository."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xlstm_edge_exporters.hub import fetch, is_on_hub
from xlstm_edge_runtime import InputError

from ..command import assert_nothing_written
from ..conftest import BY_NAME
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
REPOSITORY, COMMIT = "someone/xlstm-tiny", "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub asks of an endpoint: the files of a revision, and each of them."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name} for name in self.files]
            document = {
                "id": REPOSITORY,
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            if "/tree/" in path:
                entries = [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in self.files.items()]
                return self.send(json.dumps(entries).encode(), body, {"Content-Type": "application/json"})
            if path.partition("/revision/")[2] not in ("", "main", COMMIT):
                return self.send(b"", body, {"X-Error-Code": "RevisionNotFound"}, 404)
            return self.send(json.dumps(document).encode(), body, {"Content-Type": "application/json"})
        name = path.rpartition(f"/{REPOSITORY}/resolve/{COMMIT}/")[2] or path.rpartition("/main/")[2]
        if path.startswith(f"/{REPOSITORY}/resolve/") and name in self.files:
            if body:
                self.asked.append(name)
            data = self.files[name]
            return self.send(data, body, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})
        return self.send(b"", body, {"X-Error-Code": "RepoNotFound"}, 404)

    def send(self, data: bytes, body: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def endpoint(checkpoint_of: CheckpointOf) -> Iterator[tuple[str, list[str]]]:
    folder = checkpoint_of(BY_NAME["hf-one-head"])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    extra = {
        "README.md": b"a model card",
        "LICENSE": b"a licence",
        "training.py": b"raise SystemExit",
        "x/model.safetensors": b"no",
    }
    asked: list[str] = []
    handler = type("Served", (Handler,), {"files": files | extra, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def run(tmp_path: Path, endpoint: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process: the hub's library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", **environment}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "xlstm_edge", *map(str, words)]
    return subprocess.run(command, env=plain | settings, capture_output=True, text=True, check=False, timeout=300)


def test_a_repository_becomes_the_bundle_of_its_folder(
    endpoint: tuple[str, list[str]], export_of: Callable[..., Path], tmp_path: Path
) -> None:
    url, asked = endpoint
    done = run(tmp_path, url, "plan", f"hf:{REPOSITORY}", "--device", "pi5", "--json")
    assert done.returncode == 0, done.stderr
    assert {name for name in asked if not name.startswith("config")} == set()  # the weights are not needed for that
    out = tmp_path / "out"
    out.mkdir()
    for name, source in (("hub", f"hf:{REPOSITORY}"), ("revision", f"hf:{REPOSITORY}@{COMMIT}")):
        done = run(tmp_path, url, "export", source, "-o", out / name)
        assert done.returncode == 0, done.stderr
    assert set(asked) & {"training.py", "x/model.safetensors"} == set()
    bundles = (out / "hub", out / "revision", export_of("hf-one-head"))
    manifests = [json.loads((bundle / "manifest.json").read_text()) for bundle in bundles]
    own: list[dict[str, Any]] = [{**m["files"]} for m in manifests]
    assert own[0].pop("LICENSE")["bytes"] == len(b"a licence")
    assert (out / "hub" / "MODEL_CARD.md").read_bytes() == b"a model card"
    for files in own:
        for name in ("LICENSE", "MODEL_CARD.md"):
            files.pop(name, None)
    assert own[0] == own[1] == own[2]
    before = len(asked)
    offline = run(tmp_path, url, "export", f"hf:{REPOSITORY}", "-o", out / "offline", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert len(asked) == before
    verified = run(tmp_path, url, "verify", out / "offline", "--against", f"hf:{REPOSITORY}", HF_HUB_OFFLINE="1")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    "source", ["hf:someone/nothing", f"hf:{REPOSITORY}@nowhere", "hf:someone", "hf:a/b/c", "hf:../x@y"]
)
def test_what_cannot_be_had_is_one_sentence(source: str, endpoint: tuple[str, list[str]], tmp_path: Path) -> None:
    done = run(tmp_path, endpoint[0], "export", source, "-o", tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected ")
    assert done.stderr.count("\n") == 1
    assert_nothing_written(tmp_path, {"cache"} & {path.name for path in tmp_path.iterdir()})


def test_names_on_the_hub() -> None:
    assert is_on_hub("hf:a/b")
    assert not is_on_hub("a/b")
    for bad in ("hf:", "hf:a", "hf:a/b@", "hf:a/b c", "hf:a/../b", "hf:/a/b", "hf:a/b@../x"):
        with pytest.raises(InputError, match="expected hf:OWNER/NAME"):
            fetch(bad)
