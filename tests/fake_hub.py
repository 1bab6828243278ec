"""A small Hugging Face hub: what huggingface_hub and datasets ask of the real one, answered from folders."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """`repositories` holds a folder for each commit hash; `revisions` a commit hash for each branch and tag."""

    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path, *revisions: str) -> str:
        """Publish a folder and return its commit hash. Data sets have `datasets/` before their name."""
        content = [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]
        commit = hashlib.sha1(repr(content).encode()).hexdigest()
        self.repositories.setdefault(name, {})[commit] = folder
        self.revisions.setdefault(name, {}).update(dict.fromkeys((*revisions, commit), commit))
        return commit

    @contextmanager
    def serving(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.requests.append(f"{self.command} {self.path}")
                url = urlsplit(self.path)
                status, headers, body = hub.answer(
                    unquote(url.path).strip("/").split("/"), "recursive=true" in url.query
                )
                self.send_response(status)
                for header, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(header, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def answer(self, parts: list[str], recursive: bool) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of the answer to a path."""
        api = parts[0] == "api"
        if api:
            parts = parts[1:] if parts[1] == "datasets" else parts[2:]
        known = [name for name in self.repositories if parts[: name.count("/") + 1] == name.split("/")]
        if not known:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        name = known[0]
        kind, revision, *path = [*parts[name.count("/") + 1 :], "revision", "main"][:2] + parts[name.count("/") + 3 :]
        commit = self.revisions[name].get(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.repositories[name][commit]
        if kind == "revision":
            return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": []}).encode()
        if kind == "tree":
            directory = folder.joinpath(*path)
            if not directory.is_dir():
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            entries = [
                {"type": "file" if entry.is_file() else "directory", "path": str(entry.relative_to(folder))}
                | (_about(entry) if entry.is_file() else {"oid": "0"})
                for entry in sorted(directory.rglob("*") if recursive else directory.iterdir())
            ]
            return 200, {}, json.dumps(entries).encode()
        assert kind == "resolve", parts
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        file = folder.joinpath(*path)
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_about(file)["oid"]}"'}, file.read_bytes()


def _about(file: Path) -> dict:
    content = file.read_bytes()
    return {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
