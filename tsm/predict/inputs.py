"""What a command line names: videos, folders of frames, lists and patterns of them, addresses, cameras; and where outputs go."""

import argparse
import contextlib
import glob
import os
import re
import sys
from collections import Counter
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from tsm.cli import check_outputs, describe, fail, identity, printable, seconds, warn
from tsm.files import natural
from tsm.infer.int8 import weights_file
from tsm.model.offline import Offline
from tsm.predict.captions import has_captions
from tsm.video.decode import VIDEO_SUFFIXES
from tsm.video.frames import is_picture
from tsm.workfolder import MODIFIED, read_run

ASIDE = {"$recycle.bin", "#recycle", "@eadir", "__macosx", "system volume information", "lost+found"}  # folders of systems, not of users
SIDECARS = (".txt", ".md", ".json", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".html", ".pdf", ".srt", ".vtt", ".ass", ".nfo", ".log",
            ".ini", ".db", ".py", ".sh", ".zip", ".tar", ".gz", ".wav", ".mp3", ".m4a", ".onnx", ".om", ".pth")  # nobody's videos


class Input(NamedTuple):
    """A video, folder of frames, address or camera.

    `path` is what every output shows of it, without an address's password; `live` is the address itself, or a camera's
    number; `error` says why it is none, if it is not.
    """

    path: str
    error: str = ""
    live: Optional[Union[int, str]] = None


def is_address(text: str) -> bool:
    """Whether an input is an address that FFmpeg opens by itself (rtsp://…, http://…)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def without_password(address: str) -> str:
    """An address to show: rtsp://admin:***@host/…, or ***@ where what stands before @ has no colon and may be a token.

    A password may hold /, ?, # and @ although it should be escaped; so where the text up to the first of them is no host
    with a port, all up to the last @ counts as user and password. What follows the host, as in ?token=…, is shown as it is.
    """
    scheme, rest = address.split("://", 1)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" not in rest or re.match(r"(\[[^]@]*\]|[^:@]*)(:\d*)?$", authority):
        return address
    secret, host = rest.rsplit("@", 1)
    user, colon, _ = secret.partition(":")
    return "%s://%s***@%s" % (scheme, user + colon if colon else "", host)


def expand(inputs: Sequence[str], within: Tuple[str, ...] = (), lists: Optional[List[str]] = None) -> List[Input]:
    """The videos, folders of frames and addresses that a command line's inputs stand for, in its order.

    Each input is one of: a video file; a folder, searched for videos by their suffix, recursively; a folder of frames; a
    quoted pattern (**, *, ?, []); @FILE, which has one input per line; an address. A path that does not exist is kept, so
    that it is reported beside the others; so is, with its error, a folder, a pattern or a list that gives nothing. What an
    earlier run drew labels into is no input of a folder or a pattern; a warning says so. `within` are the lists that the
    inputs are from, by their real paths; the files of lists are added to `lists`, also those within lists.
    """
    found: List[Input] = []
    for given in inputs:
        if not given:
            found.append(Input(given, "an empty name; give a video (is a variable of the command not set?)"))
        elif given.startswith("@"):
            found += _listed(given, within, lists)
        elif is_address(given):
            text = given.encode("utf-8", "replace").decode() == given
            found.append(Input(without_password(given), "" if text else "is not UTF-8 text, which FFmpeg needs", given))
        elif os.path.isdir(given):
            found += _inside(given)
        elif glob.has_magic(given) and not os.path.isfile(given):
            matches = [path for path in sorted(glob.glob(given, recursive=True), key=natural)
                       if not any(_is_aside(part) and part not in given for part in path.split(os.sep))]
            kept = _without_ours(given, matches)
            matched = [new for one in kept for new in (_inside(one) if os.path.isdir(one) else [Input(one)])]
            found += dict.fromkeys(matched)  # ** finds a folder beside what is in it
            if not kept:
                found.append(Input(given, "no other file matches this pattern" if matches else "no file matches this pattern"))
        else:
            found.append(Input(given))
    return found


def _is_aside(name: str) -> bool:
    """Whether a search passes a file or folder over by its name: hidden, or the bin, thumbnails and the like of a system."""
    return name.startswith(".") and name.strip(".") != "" or name.lower() in ASIDE


def _without_ours(given: str, paths: List[str]) -> List[str]:
    """The paths that a search of `given` found, less those that an earlier run drew labels into, of which a warning tells."""
    ours = set(filter(has_captions, paths))
    if ours:
        warn("%s: %d of its videos %s passed over, whose labels an earlier run drew in, the first %s; an input that names one is taken"
             % (given, len(ours), "is" if len(ours) == 1 else "are", next(path for path in paths if path in ours)))
    return [path for path in paths if path not in ours]


def _listed(given: str, within: Tuple[str, ...], lists: Optional[List[str]]) -> List[Input]:
    """The inputs in the list @FILE, one per line; empty lines do not count."""
    path = given[1:]
    real = os.path.realpath(path)
    if lists is not None:
        lists.append(path)
    if real in within:
        return [Input(given, "is a list that names itself, by way of others perhaps; take that line out")]
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        remedy = "; a video of that name is given as ./%s" % given if os.path.exists(given) else ""
        return [Input(given, describe(error) + remedy)]
    data = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    lines = [os.fsdecode(line.strip()) for line in data.splitlines() if line.strip()]
    if not lines or b"\0" in data:
        return [Input(given, "no videos in it; it needs one path per line, as text in UTF-8")]
    labelled = [line for line in lines if " " in line and line.split()[-1].isdigit() and not is_address(line) and not os.path.exists(line)]
    if len(labelled) == len(lines):
        return [Input(given, "is a list with labels (%s); take them out, or pass it to TSM_stream.py --ann_file" % lines[0][:80])]
    return [new for line in lines for new in expand([line], within + (real,), lists)]


def _inside(folder: str) -> List[Input]:
    """The videos under a folder, in natural order; else the folders of frames under it, itself included.

    Links to folders are followed; a folder that is met again, by a link or in a loop, is passed over, and so is all
    that _is_aside(). One warning counts, by suffix, the other files that may have been meant. A folder that cannot be
    read is an input with an error.
    """
    videos: List[str] = []
    frames: List[str] = []
    unread: List[Input] = []
    seen, others, pictures = {identity(folder)}, Counter(), Counter()  # type: Tuple[set, Counter[str], Counter[str]]

    def refuse(error: OSError) -> None:
        unread.append(Input(os.fsdecode(error.filename), (error.strerror or str(error)).lower()))

    for place, names, files in os.walk(folder, onerror=refuse, followlinks=True):
        fresh = []
        for name in sorted(names, key=natural):
            found = identity(os.path.join(place, name))
            if found not in seen and not _is_aside(name):
                fresh.append(name)
                seen.add(found)
        names[:] = fresh
        for name in sorted(files, key=natural):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES and not _is_aside(name):
                videos.append(os.path.join(place, name))
            elif is_picture(name):
                frames += [place] if frames[-1:] != [place] else []
                pictures[suffix] += 1
            elif suffix and suffix not in SIDECARS and not _is_aside(name):
                others[suffix] += 1
    kept = _without_ours(folder, videos)
    left = others + pictures if kept else others
    counts = ", ".join("%s %d" % one for one in left.most_common(8))
    if not kept and not frames and not unread:
        return [Input(folder, "no %svideos and no frames in it%s" % (
            "other " if videos else "", " (passed over, for their suffix: %s)" % counts if left else ""))]
    if left:
        warn("%s: passed over, for their suffix is no video's: %s; a file that is named itself is taken" % (folder, counts))
    return [Input(path) for path in kept or frames] + unread


def find_model(given: Optional[str]) -> str:
    """The model to run: a file that is given, or that of a work folder, which is given, or the first of: the current
    folder, work/ in it, and these beside the script."""
    if given and not os.path.isdir(given):
        return given
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    for folder in [given] if given else [os.curdir, "work", os.path.join(beside, "work"), beside]:
        found = glob.glob(os.path.join(glob.escape(folder), MODIFIED))
        with contextlib.suppress(FileNotFoundError):
            found = [os.path.join(folder, read_run(folder).modified)]
        for path in sorted(map(os.path.relpath, filter(os.path.isfile, found)), key=natural):
            print("model: " + printable(path), flush=True)
            return path
    fail("%s; ./run_all.sh 1 makes one, or name one by --model" % (
        "%s: there is no model in it" % given if given else "there is no model here or in work/"), status=2)


def annotated_names(folder: str, paths: Sequence[str], inputs: Iterable[str]) -> List[str]:
    """Where each video goes with its labels drawn in: FOLDER/<name>.mp4, no two to the same, and never onto another
    file than an earlier run's output; if that is one of the `inputs`, not onto it either."""
    read = {identity(path) for path in inputs}
    names: Dict[str, None] = {}  # in their order
    tried: Dict[str, int] = Counter()  # of each stem, so that thousands of one name take no longer than others
    for path in paths:
        stem = os.path.join(folder, os.path.splitext(os.path.basename(path))[0])
        name = ""
        while not name or name in names or os.path.lexists(name) and (identity(name) in read or not has_captions(name)):
            tried[stem] += 1
            name = stem + ("_%d" % tried[stem] if tried[stem] > 1 else "") + ".mp4"
        names[name] = None
    return list(names)


def check_paths(args: argparse.Namespace, files: Sequence[str], live: Sequence[Input], lists: List[str], int8_model: str) -> List[str]:
    """Refuse, before any work, options that do not fit the inputs, outputs that cannot be written and those that would
    overwrite what is read: inputs, `lists` of them, the model; where --annotate writes each file."""
    if args.annotate is not None and live:
        fail("--annotate is for videos, not for %s (see --help)" % live[0].path, status=2)
    weights = weights_file(int8_model) if int8_model.endswith(".xml") else ""
    read = list(filter(None, [args.model, args.labels, int8_model, weights] + lists))
    read += [path for one in files for path in ([entry.path for entry in os.scandir(one) if is_picture(entry.name)] if os.path.isdir(one)
                                                else [one])]
    annotated = annotated_names(args.annotate, files, read) if args.annotate else [""] * len(files)
    outputs = {"--json": args.json, "--jsonl": args.jsonl, "--csv": args.csv, "--html": args.html}
    check_outputs(outputs, read + list(filter(None, annotated)), args.annotate)
    return annotated


def reset_rule(text: str) -> Union[str, float]:
    """argparse type: `scene`, `never`, or seconds."""
    try:
        return text if text in ("scene", "never") else seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("%r is none of scene, never and a number of seconds" % text)


def check_options(args: argparse.Namespace, files: Sequence[str], model: Offline) -> None:
    """Refuse, as wrong usage, options that do not fit the kind of model."""
    online = model.target == "online"
    others = ("window", "views") if online else ("memory", "threshold", "reset")
    strange = [name for name in others if getattr(args, name) is not None]
    wrong = ""
    if strange:
        kind = "models of clips" if online else "online models, of modify_onnx.py --target online"
        wrong = "--%s is for %s; %s is none" % (strange[0], kind, model.path)
    elif args.every and not online and not args.window and files:
        wrong = "--every needs --window or an online model, but for a camera or an address; %s is none" % files[0]
    elif (args.threshold or 0) >= 1:
        wrong = "--threshold %g is no probability below 1" % args.threshold
    if wrong:
        fail(wrong + " (see --help)", status=2)
