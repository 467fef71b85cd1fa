"""A small hub on this machine: repositories, commits, branches, private ones, in the words of the real one's API.

What it knows is what huggingface_hub asks for when it creates, pushes, lists and downloads. It keeps every request, so
that tests can look at what was sent.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


OWNER = "me"
TOKEN = "hf_of_the_owner"


def blob_id(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def mistakes_in(metadata: object) -> list[str]:
    """What the Hub's documentation of model cards does not allow in their metadata."""
    if not isinstance(metadata, dict):
        return ["there is no metadata"]
    patterns = {
        "license": r"[a-z0-9][a-z0-9.\-]*",
        "license_name": r"[A-Za-z0-9][\w.\-]*",
        "base_model": r"[\w.\-]+/[\w.\-]+",
        "base_model_relation": "adapter|merge|quantized|finetune",
        "pipeline_tag": r"[a-z0-9]+(-[a-z0-9]+)*",
        "library_name": r"[\w.\-]+",
    }
    mistakes = [
        f"{name}: {metadata[name]!r}"
        for name, pattern in patterns.items()
        if name in metadata and not (isinstance(metadata[name], str) and re.fullmatch(pattern, metadata[name]))
    ]
    tags = metadata.get("tags", [])
    if not (isinstance(tags, list) and all(isinstance(tag, str) and len(tag) < 100 for tag in tags)):
        mistakes.append(f"tags: {tags!r}")
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        mistakes.append("license 'other' needs a license_name")
    return mistakes


@dataclass
class Commit:
    """The files of a repository at one time."""

    title: str
    files: dict[str, bytes]

    @property
    def id(self) -> str:
        listing = sorted((path, blob_id(content)) for path, content in self.files.items())
        return hashlib.sha1(json.dumps([self.title, listing]).encode()).hexdigest()


@dataclass
class Repository:
    """Commits, oldest first, and the branches that point to them."""

    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {})])
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.branches.setdefault("main", self.commits[0].id)

    def at(self, revision: str) -> Commit | None:
        commit_id = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.id == commit_id), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.at("main").files


class Hub:
    """A hub that runs while it is used as a context."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.validated_cards: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: str, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables of a client of this hub."""
        of_client = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": cache,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "*",
        }
        return of_client if token is None else of_client | {"HF_TOKEN": token}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: object = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content_Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str, **headers: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": OWNER, "type": "user"}) if is_owner else self._error(401, "Unauthorized")
        if path == "/api/repos/create":
            return self._create(json.loads(body)) if is_owner else self._error(401, "Unauthorized")
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if not match:
                continue
            repo_id, *arguments = match.groups()
            repository = self.hub.repositories.get(repo_id)
            writes = method in (self._preupload, self._commit, self._branch)
            if repository is None or ((repository.private or writes) and not is_owner):
                return self._error(404 if is_owner else 401, "RepoNotFound")
            return method(repo_id, repository, body, *arguments)
        return self._error(404, "NotFound")

    do_GET = do_HEAD = do_POST = _handle  # noqa: N815 - http.server's names

    def _validate(self, content: str) -> None:
        self.hub.validated_cards.append(content)
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(match.group(1)) if match else None
        errors = [{"message": message} for message in mistakes_in(metadata)]
        self._answer(200 if not errors else 400, {"errors": errors, "warnings": []})

    def _create(self, request: dict) -> None:
        repo_id = f"{request.get('organization') or OWNER}/{request['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", **answer})
        private = request.get("private", request.get("visibility") == "private")
        self.hub.repositories[repo_id] = Repository(private=bool(private))
        return self._answer(200, answer)

    def _info(self, repo_id: str, repository: Repository, _: bytes, revision: str | None) -> None:
        commit = repository.at(revision or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound")
        files = [{"rfilename": path, "blobId": blob_id(commit.files[path])} for path in sorted(commit.files)]
        info = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit.id, "private": repository.private}
        return self._answer(200, {**info, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def _preupload(self, repo_id: str, repository: Repository, body: bytes, revision: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _commit(self, repo_id: str, repository: Repository, body: bytes, revision: str) -> None:
        parent = repository.at(revision)
        if parent is None:
            return self._error(404, "RevisionNotFound")
        files, title = dict(parent.files), ""
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                title = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._error(400, f"Unknown operation {operation['key']}")
        commit = Commit(title, files)
        repository.commits.append(commit)
        repository.branches[revision] = commit.id
        url = f"{self.hub.url}/{repo_id}/commit/{commit.id}"
        return self._answer(200, {"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})

    def _branch(self, repo_id: str, repository: Repository, body: bytes, branch: str) -> None:
        if branch in repository.branches:
            return self._error(409, "BranchExists")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.at(start).id
        return self._answer(200, {})

    def _tree(self, repo_id: str, repository: Repository, _: bytes, revision: str, folder: str) -> None:
        commit = repository.at(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            for path, content in sorted(commit.files.items())
            if not folder or path.startswith(f"{folder}/")
        ]
        return self._answer(200, files) if files or not folder else self._error(404, "EntryNotFound")

    def _resolve(self, repo_id: str, repository: Repository, _: bytes, revision: str, path: str) -> None:
        commit = repository.at(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if path not in commit.files:
            return self._error(404, "EntryNotFound", X_Repo_Commit=commit.id)
        content = commit.files[path]
        return self._answer(
            200,
            content,
            ETag=f'"{blob_id(content)}"',
            X_Repo_Commit=commit.id,
            Content_Type="application/octet-stream",
            Accept_Ranges="none",
        )
