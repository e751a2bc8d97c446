"""A hub on this machine: what huggingface_hub asks over HTTP for a snapshot, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories by (kind, name): commit -> path -> content; `main` is the newest commit."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.broken: str | None = None
        """A file that is refused, as where a network fails midway."""

    def add(self, kind: str, name: str, files: dict[str, str]) -> str:
        """Add a commit, and return its id."""
        commits = self.repositories.setdefault((kind, name), {})
        commit = hashlib.sha1(f"{kind}/{name}/{len(commits)}".encode()).hexdigest()
        commits[commit] = {path: text.encode() for path, text in files.items()}
        return commit

    def find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit that a revision means, and its files."""
        commits = self.repositories.get((kind, name), {})
        commit = list(commits)[-1] if revision == "main" and commits else revision
        return (commit, commits[commit]) if commit in commits else None

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve while the context is open; yields the address for HF_ENDPOINT."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._describe(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:])
        else:
            kind = "dataset" if parts[0] == "datasets" else "model"
            self._send_file(kind, parts[1:] if kind == "dataset" else parts)

    def _describe(self, kind: str, name: str, rest: list[str]) -> None:
        found = self.hub.find(kind, name, rest[1] if len(rest) > 1 else "main")
        if found is None or (rest and rest[0] not in ("revision", "tree")):
            self._refuse()
            return
        commit, files = found
        if rest and rest[0] == "tree":
            tree = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for path, content in files.items()
            ]
            self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        siblings = [{"rfilename": path} for path in files]
        told = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        content = json.dumps({**told, "downloads": 0, "likes": 0}).encode()
        self._send(content, {"Content-Type": "application/json"})

    def _send_file(self, kind: str, parts: list[str]) -> None:
        name, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        found = self.hub.find(kind, name, revision)
        if found is None or path not in found[1] or path == self.hub.broken:
            self._refuse()
            return
        etag = hashlib.sha1(found[1][path]).hexdigest()
        self._send(found[1][path], {"ETag": f'"{etag}"', "X-Repo-Commit": found[0]})

    def _refuse(self) -> None:
        self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
