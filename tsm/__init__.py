"""What the suite's scripts share: plain functions, one module per concern. It runs on Python 3.7 and newer.

One rule holds the suite together: a script, bench/ and demo/ import nothing of ours but tsm, and tsm imports no script.

Nothing phones home. Every script passes through here before it imports a library that would; so do the commands of
run_all.sh, which tsm/chain/stage.py starts with this environment.

A picture whose header claims more pixels than any frame has is refused by OpenCV before it takes the memory; that limit too
is read when its library is imported.

A script that is interrupted while it still imports libraries, or whose interpreter lacks one, ends in one line, as it does later
(tsm.cli.run).
"""

import os
import sys
from typing import Any

__version__ = "1.0.0"

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime 1.29 and newer; see Privacy.md in its package
os.environ["NNCF_CI"] = "1"  # NNCF reports nothing where this is set
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))
# OpenVINO has no such variable; it reports nothing where importing this package raises ImportError, as if it were not installed.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

SUITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _end(kind: Any, error: Any, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        said = "interrupted"
    elif issubclass(kind, ImportError) and (error.name or "").split(".")[0] != "tsm":  # a fault of ours otherwise
        from shlex import quote

        said = "%s lacks a package of the suite (%s); run %s, and use %s" % (
            sys.executable, str(error).split("\n")[0], quote(SUITE + "/setup.sh"), quote(SUITE + "/.venv/bin/python"))
    else:
        return sys.__excepthook__(kind, error, trace)
    sys.stderr.write("%s: error: %s\n" % (os.path.basename(sys.argv[0]), said))


sys.excepthook = _end
