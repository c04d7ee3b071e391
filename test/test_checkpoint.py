"""TSM_checkpoint.py against a server on this machine: whole, resumed, wrong, broken off, absent."""

import hashlib
import http.server
import threading

import pytest

BODY = bytes(range(256)) * 4096
NAME = "tsm_demo-%s.pth" % hashlib.sha256(BODY).hexdigest()[:8]


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY under any name that begins with tsm; honours Range; /cut/ breaks off in the middle."""

    asked = []

    def do_GET(self):
        Server.asked.append((self.path, self.headers.get("Range")))
        if "/tsm" not in self.path:
            return self.send_error(404)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start >= len(BODY):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        end = len(BODY) // 2 if "/cut/" in self.path else len(BODY)
        self.wfile.write(BODY[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Server.asked.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:%d" % server.server_port
    server.shutdown()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetches_once(works, url, tmp_path):
    works("TSM_checkpoint.py", url + "/" + NAME, cwd=tmp_path)
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]
    assert "already here" in works("TSM_checkpoint.py", url + "/" + NAME, cwd=tmp_path)
    assert len(Server.asked) == 1


def test_a_broken_download_goes_on_where_it_stopped(works, fails, url, tmp_path):
    assert "run again" in fails_last(fails, url + "/cut/" + NAME, tmp_path)
    assert names(tmp_path) == [".%s.part" % NAME]
    works("TSM_checkpoint.py", url + "/" + NAME, cwd=tmp_path)
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]
    assert Server.asked[-1][1] == "bytes=%d-" % (len(BODY) // 2)


def fails_last(fails, address, folder):
    """The error line; a progress bar may stand before it on stderr."""
    return fails("TSM_checkpoint.py", address, cwd=folder, env={"TQDM_DISABLE": "1"})


def test_wrong_content_is_removed_and_said(fails, url, tmp_path):
    assert "SHA-256 begins with" in fails_last(fails, url + "/tsm_demo-00000000.pth", tmp_path)
    assert names(tmp_path) == []


def test_a_name_without_digest_is_taken_with_a_warning(run, url, tmp_path):
    done = run("TSM_checkpoint.py", url + "/tsm.pth", cwd=tmp_path, env={"TQDM_DISABLE": "1"})
    assert done.returncode == 0 and "not checked" in done.stderr and names(tmp_path) == ["tsm.pth"]


@pytest.mark.parametrize("address, says", [
    ("{url}/absent.pth", "404"), ("http://127.0.0.1:9/tsm.pth", "cannot be reached"), ("ftp://x/tsm.pth", "http(s)"),
    ("http://[bad/tsm.pth", "cannot be reached"), ("{url}/", "http(s)"),
])
def test_what_cannot_be_fetched_is_one_line(fails, url, tmp_path, address, says):
    assert says in fails_last(fails, address.format(url=url), tmp_path)
    assert names(tmp_path) == []
