"""A small server that speaks as much of the Hub's protocol as pushing and loading a model needs."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories of models, in memory.

    Attributes:
        repositories: For each name its branches; a branch is a list of commits, and a commit the contents of all files
            by their paths.
        messages: For each commit, by its id, the header that it was sent with.
        uploads: Contents of large files, by their SHA-256.
        tokens: The access tokens of all requests that write.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.messages, self.uploads, self.tokens = {}, {}, {}, set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name, revision="main"):
        """Return the contents of all files by their paths, in a branch or a commit; None if there is none."""
        branches = self.repositories.get(name, {})
        if revision in branches:
            return branches[revision][-1]
        commits = (files for branch in branches.values() for files in branch)
        return next((files for files in commits if commit_id(files) == revision), None)


def commit_id(files):
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


def blob_id(content):
    """Git's name of a file, which the client compares with its own to leave out what has not changed."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.send_info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            self.send_tree(*match.groups())
        else:
            self.send_error_code("EntryNotFound")

    def do_PUT(self):
        content = self.read()
        self.server.uploads[hashlib.sha256(content).hexdigest()] = content
        self.send_json({})

    def do_POST(self):
        self.server.tokens.add(self.headers.get("Authorization"))
        path, content = unquote(urlsplit(self.path).path), self.read()
        if path == "/api/repos/create":
            sent = json.loads(content)
            name = f"{sent.get('organization') or 'me'}/{sent['name']}"
            is_new = name not in self.server.repositories
            self.server.repositories.setdefault(name, {"main": [{}]})
            self.send_json({"url": f"{self.server.url}/{name}"}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.server.repositories[match[1]]
            is_new = match[2] not in branches
            branches.setdefault(match[2], [branches["main"][-1]])
            self.send_json({}, 200 if is_new else 409)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            known = self.server.files(*match.groups())
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": blob_id(known[file["path"]]) if file["path"] in known else None,
                }
                for file in json.loads(content)["files"]
            ]
            self.send_json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.send_json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self.commit(match[1], match[2], [json.loads(line) for line in content.splitlines()])
        else:
            self.send_error_code("EntryNotFound")

    def commit(self, name, revision, lines):
        branch = self.server.repositories[name][revision]
        files = dict(branch[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        branch.append(files)
        oid = commit_id(files)
        self.server.messages[oid] = next(line["value"] for line in lines if line["key"] == "header")
        self.send_json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def send_file(self, name, revision, path):
        files = self.server.files(name, revision)
        if files is None or path not in files:
            is_there = name in self.server.repositories
            self.send_error_code("EntryNotFound" if files else "RevisionNotFound" if is_there else "RepoNotFound")
        else:
            etag = {"ETag": f'"{blob_id(files[path])}"', "X-Repo-Commit": commit_id(files)}
            self.answer(files[path], 200, {"Content-Type": "application/octet-stream", **etag})

    def send_info(self, name, revision):
        files = self.server.files(name, revision)
        if files is None:
            self.send_error_code("RepoNotFound")
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.send_json({"id": name, "sha": commit_id(files), "siblings": siblings, "tags": []})

    def send_tree(self, name, revision, folder):
        files = self.server.files(name, revision) or {}
        rows = [
            {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            for path, content in sorted(files.items())
            if path.startswith(folder or "")
        ]
        if rows:
            self.send_json(rows)
        else:
            self.send_error_code("EntryNotFound")

    def read(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send_error_code(self, code):
        self.send_json({"error": code}, 404, {"X-Error-Code": code})

    def send_json(self, content, status=200, headers=None):
        self.answer(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def answer(self, content, status, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serve():
    """Run a hub in a thread."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
