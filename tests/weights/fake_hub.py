"""A hub made up on 127.0.0.1, and a process that asks it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..waiting import HUNG

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot needs. Repositories: those of `repositories`, under org/,
    and org/gated, org/broken."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[tuple[str, str, str | None]]
    agents: set[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path, self.headers.get("authorization")))
        self.agents.add(self.headers.get("user-agent", ""))
        repository = next((name for name in self.repositories if f"/org/{name}/" in path), "")
        files = self.repositories.get(repository, {})
        if repository and path.startswith(f"/api/models/org/{repository}/revision/"):
            good = path.endswith(("/main", SHA))
            self.json({"id": f"org/{repository}", "sha": SHA}) if good else self.fail(404, "RevisionNotFound")
        elif repository and path.startswith(f"/api/models/org/{repository}/tree/"):
            self.json([self.listed(name, files[name]) for name in files])
        elif repository and path.startswith(f"/org/{repository}/resolve/{SHA}/"):
            self.file(files[path.rpartition(f"{SHA}/")[2]])
        elif path.startswith("/api/models/org/gated"):
            self.fail(403, "GatedRepo")
        elif path.startswith("/api/models/org/broken"):
            self.fail(500, "")
        else:
            self.fail(404 if "private" not in path else 401, "RepoNotFound")

    def listed(self, name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": self.etag(data)}

    def etag(self, data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def file(self, data: bytes) -> None:
        self.answer(200, data, {"ETag": f'"{self.etag(data)}"', "X-Repo-Commit": SHA})

    def json(self, data: object) -> None:
        self.answer(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """The address of a hub with these repositories: their files by name."""
    Hub.repositories = {name: dict(files) for name, files in repositories.items()}
    Hub.asked, Hub.agents = [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def ask_hub(script: str, home: Path, *sources: str, **environment: str) -> tuple[list[list[str]], str]:
    """(what the script prints of the sources, stderr) in a fresh process with this cache: huggingface_hub
    reads its environment when it is imported."""
    kept = {
        n: v
        for n, v in os.environ.items()
        if not n.startswith(("HF_", "TQDM_")) and not n.lower().endswith("_proxy")
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *sources],
        env={**kept, "HF_HOME": str(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr
