"""A headless Chromium for the tests of pages, driven over its debugging pipe: what a page logs, asks for, and looks like."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `logs` are the console's errors and warnings, `requests` the addresses that were asked for,
    less what the page's own policy refused."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.buffer, self.number = reader, writer, b"", 0
        self.logs, self.requests, self.session, self.events, self.asked = [], [], None, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def _message(self, deadline):
        while b"\0" not in self.buffer:
            if not select.select([self.reader], [], [], max(0.0, deadline - time.time()))[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self.reader, 1 << 20)
            assert piece, "the browser ended"
            self.buffer += piece
        raw, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(raw.decode())

    def _note(self, message):
        method, facts = message.get("method", ""), message.get("params", {})
        if method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.logs.append(facts["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.logs.append(json.dumps(facts["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.logs.append(json.dumps(facts["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
            self.asked[facts["requestId"]] = facts["request"]["url"]
        elif method == "Network.loadingFailed" and facts.get("blockedReason") == "csp":
            self.requests.remove(self.asked[facts["requestId"]])
        self.events.append(method)

    def call(self, method, **params):
        """Send a command of the Chrome DevTools protocol; its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        deadline = time.time() + 60
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, path):
        """Open a file; seconds until its load event."""
        self.logs[:], self.requests[:], self.events[:] = [], [], []
        start = time.time()
        self.call("Page.navigate", url=Path(str(path)).resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._note(self._message(start + 60))
        return time.time() - start

    def js(self, expression):
        """The value of a JavaScript expression in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def size(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def media(self, kind="", dark=False):
        """Show the page as printed (kind="print"), or by a colour scheme."""
        self.call("Emulation.setEmulatedMedia", media=kind,
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def scripts(self, on):
        self.call("Emulation.setScriptExecutionDisabled", value=not on)

    def picture(self, path, whole=True):
        """A PNG of the page, or of what the window shows of it."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(str(path)).write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser():
    """A Page of a Chromium that keeps nothing and reaches nothing."""
    to_child, from_parent = os.pipe()
    from_child, to_parent = os.pipe()

    def place():
        # Chromium reads from 3 and writes to 4.
        read, write = os.dup(to_child), os.dup(to_parent)
        read, write = (os.dup2(end, 10 + number, True) for number, end in enumerate((read, write)))
        os.dup2(read, 3, True)
        os.dup2(write, 4, True)

    with tempfile.TemporaryDirectory() as home:
        command = [CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--hide-scrollbars", "--user-data-dir=" + home]
        process = subprocess.Popen(command, preexec_fn=place, close_fds=False, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child), os.close(to_parent)
        try:
            page = Page(from_child, from_parent)
            yield page
            page.session = None
            with contextlib.suppress(AssertionError, OSError, TimeoutError):
                page.call("Browser.close")
        finally:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_child), os.close(from_parent)
