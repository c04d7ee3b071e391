#!/usr/bin/env python3
"""Name what happens in videos, before cameras and in streams.

    python3 TSM_predict.py demo/videos/74225.webm           # one video
    python3 TSM_predict.py --top 5 --json out.json FOLDER   # every video in it
    python3 TSM_predict.py --window 4 --every 2 long.mp4    # a long one, cut
    python3 TSM_predict.py --camera 0                       # until Ctrl-C
    python3 TSM_predict.py -m work/online --camera 0        # frame by frame

INPUT is a video, a folder, a quoted pattern, @list.txt (a path per line), or an
address (rtsp://..., http://...). A network gives any video one of its classes,
also one that shows none. More: docs/your-videos.md
"""

import argparse
import contextlib
import itertools
import sys
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from tsm.cli import Corrupt, Stopped, above_zero, camera_number, fail, non_negative, parser, positive, printable, run, seconds, status_of
from tsm.infer.engine import add_options, computing_of
from tsm.machine import cores
from tsm.model.offline import read_offline
from tsm.predict import answers as predict
from tsm.predict.by_clip import ByClip
from tsm.predict.by_frame import ByFrame
from tsm.predict.inputs import Input, check_options, check_paths, expand, find_model, reset_rule
from tsm.predict.live import LIVE_WINDOW, watched
from tsm.protocol import CENTRE_VIEW


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "%(prog)s [options] [INPUT ...]"
    cli.add_argument("inputs", nargs="*", metavar="INPUT", help=argparse.SUPPRESS)
    cli.add_argument("-m", "--model", metavar="M", help="a model, or a work folder (default: work/ or .)")
    cli.add_argument("--camera", type=camera_number, action="append", default=[], metavar="N",
                     help="watch a camera, 0 is the first; or several")
    cli.add_argument("--reconnect", type=seconds, default=0.0, metavar="S", help="try a lost camera or address again for S seconds")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes, if the model has none")
    cli.add_argument("--top", type=positive, default=1, metavar="K", help="classes per answer (default: %(default)s)")
    cli.add_argument("--views", type=int, choices=(1,), help="1: the centre view alone, at a fraction of the cost")
    cli.add_argument("--window", type=seconds, metavar="S", help="seconds per answer (default: all; %g of a camera)" % LIVE_WINDOW)
    cli.add_argument("--every", type=seconds, metavar="S", help="seconds to the next answer (default: half a window)")
    cli.add_argument("--memory", type=non_negative, metavar="N", help="online: mean of N frames, 0 of all (cameras: a clip's)")
    cli.add_argument("--threshold", type=above_zero, metavar="P", help="online: events, from above P to below P/2")
    cli.add_argument("--reset", type=reset_rule, metavar="WHEN", help="online: forget at a new scene, or each S seconds")
    cli.add_argument("--json", metavar="FILE", help="write all answers, - prints them")
    cli.add_argument("--jsonl", metavar="FILE", help="add each answer as it comes, a line of JSON")
    cli.add_argument("--csv", metavar="FILE", help="write rows of " + ", ".join(predict.COLUMNS))
    cli.add_argument("--csv_bom", action="store_true", help="begin --csv with a byte order mark, for Excel")
    cli.add_argument("--html", metavar="FILE", help="write a page with film strips: frames of the videos")
    cli.add_argument("--annotate", metavar="DIR", help="write copies of the videos with their labels drawn in")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes that decode (default: one a core)")
    add_options(cli)
    args = cli.parse_args()
    if not args.inputs and not args.camera:
        cli.error("give videos, or --camera N")
    return args


def predict_files(way: Union[ByClip, ByFrame], paths: List[str], annotated: List[str], log: predict.Log) -> Iterator[Dict[str, Any]]:
    """Predict videos and folders of frames, and print each in its turn; yields the entries of --json. Ctrl-C is raised after the entry
    of a video of which something is known."""
    for number, some in itertools.groupby(way.results, key=lambda result: result[0]):
        viewer, failed, copy = way.viewer(paths[number], log), "", annotated[number]
        interrupt = None
        try:
            for _, result in some:
                if isinstance(result, Corrupt):
                    failed = str(result)
                else:
                    viewer.take(result)
        except KeyboardInterrupt as stopped:
            interrupt, failed, copy = stopped, "interrupted" if way.long or copy else failed, ""
        yield predict.finished(viewer, failed, copy)
        if interrupt:
            raise interrupt


def watch(
    way: Union[ByClip, ByFrame], sources: Sequence[Input], reconnect: float, log: predict.Log
) -> Tuple[List[Dict[str, Any]], Optional[KeyboardInterrupt]]:
    """Predict what is new of each camera and stream, again and again; (their entries for --json, what interrupted them)."""
    print("\n".join(printable(one.path) for one in sources), flush=True)
    viewers = [way.viewer(one.path, log, "  " + (printable(one.path) + "  " if len(sources) > 1 else "")) for one in sources]
    failed, ended = [""] * len(sources), None
    seen = watched([(one.path, one.live) for one in sources], way.seconds, way.every, way.model.tested_by, reconnect)
    try:
        with contextlib.closing(seen):
            for number, recent in seen:
                if isinstance(recent, Corrupt):
                    failed[number] = predict.say_failed(sources[number].path, str(recent), log)
                else:
                    viewers[number].see(recent)
    except KeyboardInterrupt as interrupt:
        ended = interrupt
    return [predict.entry_of(viewer, viewer.close(), why) for viewer, why in zip(viewers, failed)], ended


def main() -> None:
    args = get_args()
    if args.json == "-":  # then stdout holds nothing else
        sys.stdout = sys.stderr
    args.model = find_model(args.model)
    lists: List[str] = []
    inputs = expand(args.inputs, lists=lists) + [Input("camera %d" % number, live=number) for number in args.camera]
    computing = computing_of(args, args.model)
    files = [number for number, one in enumerate(inputs) if not one.error and one.live is None]
    live = [number for number, one in enumerate(inputs) if not one.error and one.live is not None]
    paths, sources = [inputs[number].path for number in files], [inputs[number] for number in live]
    annotated = check_paths(args, paths, sources, lists, computing.int8_model)
    model = read_offline(args.model)
    check_options(args, paths, model)
    names = predict.label_names(args, model)
    if args.views == 1:
        print("the centre view alone: 1/%d of the cost, less accurate than all views" % model.tested_by.views, flush=True)
        model = model._replace(protocol=model.tested_by._replace(**CENTRE_VIEW))
    approximates = model.metadata.get("tsm.approximates")
    log = predict.Log(args.jsonl, {"approximates": approximates} if approximates else {})
    entries = {number: {"input": one.path, "error": predict.say_failed(one.path, one.error, log), "windows": []}
               for number, one in enumerate(inputs) if one.error}
    way = (ByFrame if model.target == "online" else ByClip)(args, model, computing, names, paths, len(live))
    interrupt, written = None, True
    try:
        for number, entry in zip(files, predict_files(way, paths, annotated, log)):
            entries[number] = entry
        if live:
            found, interrupt = watch(way, sources, args.reconnect, log)
            entries.update(zip(live, found))
    except KeyboardInterrupt as stopped:
        interrupt = stopped
    finally:  # an error loses nothing that was found
        if way.in_all():
            print(way.in_all(), flush=True)
        if entries:
            facts = dict(way.about(), model=model.metadata, labels=names is not None)
            written = predict.write_files(args, facts, [entries[number] for number in sorted(entries)])
    if interrupt and (len(entries) < len(inputs) or isinstance(interrupt, Stopped)):
        fail("interrupted after %d of %d inputs; the same command begins with the first again" % (len(entries), len(inputs)),
             status_of(interrupt))
    if not written or log.failed or any(entry["error"] for entry in entries.values()):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
