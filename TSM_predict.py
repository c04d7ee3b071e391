#!/usr/bin/env python3
"""Name what happens in videos, before cameras and in streams.

    python3 TSM_predict.py demo/videos/74225.webm           # one video
    python3 TSM_predict.py --top 5 --json out.json FOLDER   # every video in it
    python3 TSM_predict.py --window 4 --stride 2 long.mp4   # a long one, in parts
    python3 TSM_predict.py --camera 0                       # until Ctrl-C

INPUT is a video, a folder, a quoted pattern, @list.txt (a path per line), or
an address (rtsp://..., http://...). The network gives any video one of its
classes; the probability does not tell whether the video shows one of them.
docs/your-videos.md has the rest.
"""

import argparse
import contextlib
import itertools
import sys
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from tsm.cli import Corrupt, Stopped, camera_number, fail, parser, positive, printable, run, seconds, status_of, warn
from tsm.infer.engine import Engine, about, add_options, computing_of, open_engine, run_stream
from tsm.labels import labels_in, read_labels, top
from tsm.machine import cores
from tsm.model.offline import Offline, read_offline
from tsm.predict import answers as predict
from tsm.predict.inputs import Input, check_paths, expand, find_model
from tsm.predict.live import watched
from tsm.protocol import CENTRE_VIEW, Protocol, frame_indices
from tsm.video.clips import as_video
from tsm.video.windows import Window

LIVE_WINDOW = 3.0  # seconds


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.usage = "%(prog)s [options] [INPUT ...]"
    cli.add_argument("inputs", nargs="*", metavar="INPUT", help=argparse.SUPPRESS)
    cli.add_argument("--model", "-m", metavar="FILE", help="of modify_onnx.py, or a work folder of run_all.sh (default: work or .)")
    cli.add_argument("--camera", type=camera_number, action="append", default=[], metavar="N", help="watch camera N, 0 is the first; "
                     "or several")
    cli.add_argument("--reconnect", type=seconds, default=0.0, metavar="S", help="try a lost camera or address again for S seconds")
    cli.add_argument("--labels", metavar="FILE", help="names of the classes, if the model has none")
    cli.add_argument("--top", type=positive, default=1, metavar="K", help="classes per answer (default: %(default)s)")
    cli.add_argument("--views", type=int, choices=(1,), help="1: the centre view alone, at a fraction of the cost")
    cli.add_argument("--window", type=seconds, metavar="S", help="seconds per answer (default: all; %g of a camera)" % LIVE_WINDOW)
    cli.add_argument("--stride", type=seconds, metavar="S", help="seconds to the next one (default: half a window)")
    cli.add_argument("--json", metavar="FILE", help="write all answers, - prints them")
    cli.add_argument("--jsonl", metavar="FILE", help="add each answer as it comes, a line of JSON")
    cli.add_argument("--csv", metavar="FILE", help="write rows of " + ", ".join(predict.COLUMNS))
    cli.add_argument("--csv_bom", action="store_true", help="begin --csv with a byte order mark, for Excel")
    cli.add_argument("--html", metavar="FILE", help="write a page with film strips: frames of the videos")
    cli.add_argument("--annotate", metavar="DIR", help="write copies of the videos with their labels drawn in")
    cli.add_argument("--num_worker", type=positive, default=cores(), metavar="N", help="processes that decode (default: one per core)")
    add_options(cli)
    args = cli.parse_args()
    if not args.inputs and not args.camera:
        cli.error("give videos, or --camera N")
    return args


def label_names(args: argparse.Namespace, model: Offline, protocol: Protocol) -> Optional[List[str]]:
    """The classes' names, from --labels or from the model; None, with a note, if there are none."""
    names = read_labels(args.labels, protocol.classes) if args.labels else labels_in(model.metadata, protocol.classes)
    if names is None:
        warn("%s holds no label names, so classes are numbered; --labels FILE names them" % args.model)
    return names


def predict_files(
    args: argparse.Namespace, model: Offline, engine: Engine, names: Optional[List[str]], paths: List[str], annotated: List[str],
    tensors: predict.Parts, log: predict.Log,
) -> Iterator[Dict[str, Any]]:
    """Predict videos and folders of frames, and print each in its turn; yields the entries of --json. Ctrl-C is raised after the entry
    of a video of which something is known."""
    from tqdm import tqdm

    long = args.window is not None
    scores = tqdm(run_stream(engine, model, tensors), total=None if long else len(paths), unit="window" if long else "video", disable=None)
    results: Iterator[Tuple[int, Any]] = ((number, (window, output)) for (number, window), output, _, _ in scores)
    if not long:
        results = predict.in_order(results)
    for number, some in itertools.groupby(results, key=lambda result: result[0]):
        answers, failed = [], ""
        try:
            for _, (window, output) in some:
                if isinstance(output, Corrupt):
                    failed = str(output)
                else:
                    answers.append(predict.Answer(window, top(output[0], names, args.top)))
                    log.add(paths[number], answers[-1])
        except KeyboardInterrupt:
            cut = "interrupted" if long or annotated[number] else failed
            yield predict.show(paths[number], answers, cut, long, "", log)
            raise
        yield predict.show(paths[number], answers, failed, long, annotated[number], log)


def watch(
    args: argparse.Namespace, model: Offline, protocol: Protocol, engine: Engine, names: Optional[List[str]],
    sources: Sequence[Input], log: predict.Log,
) -> Tuple[List[Dict[str, Any]], Optional[KeyboardInterrupt]]:
    """Predict the newest window of each camera and stream, once every stride; (their entries for --json, what interrupted them)."""
    window = args.window or LIVE_WINDOW
    answers: List[List[predict.Answer]] = [[] for _ in sources]
    failed, ended = [""] * len(sources), None
    shown = ["  " + (printable(one.path) + "  " if len(sources) > 1 else "") for one in sources]
    print("\n".join(printable(one.path) for one in sources), flush=True)
    seen = watched([(one.path, one.live) for one in sources], window, args.stride or window / 2, protocol, args.reconnect)
    try:
        with contextlib.closing(seen):
            for number, recent in seen:
                name, some = sources[number].path, answers[number]
                if isinstance(recent, Corrupt):
                    failed[number] = predict.tell(name, str(recent), log)
                    continue
                if not some:
                    predict.warn_if_short(name, Window(recent.start, recent.end), window)
                video = as_video(recent.frames, frame_indices(len(recent.frames), protocol), protocol, model.dtype.name)
                for _, output, _, _ in run_stream(engine, model, (one for one in [(name, video[None])])):
                    some.append(predict.Answer(Window(recent.start, recent.end), top(output[0], names, args.top)))
                    log.add(name, some[-1])
                print("%s%s  %s" % (shown[number], predict.clock(recent.end), predict.in_words(some[-1].ranked)), flush=True)
    except KeyboardInterrupt as interrupt:
        ended = interrupt
    for name, some in zip(shown, answers):
        if len(some) > 1:
            print("\n".join(predict.lines_of(name.strip() or "in all", some, True)))
    return [predict.entry_of(one.path, some, why, True) for one, some, why in zip(sources, answers, failed)], ended


def main() -> None:
    args = get_args()
    aside = contextlib.ExitStack()
    if args.json == "-":  # then stdout holds nothing else
        aside.enter_context(contextlib.redirect_stdout(sys.stderr))
    args.model = find_model(args.model)
    lists: List[str] = []
    inputs = expand(args.inputs, lists=lists) + [Input("camera %d" % number, live=number) for number in args.camera]
    computing = computing_of(args, args.model)
    annotated = check_paths(args, inputs, lists, computing.int8_model)
    model = read_offline(args.model)
    protocol = model.tested_by
    names = label_names(args, model, protocol)
    if "tsm.about" in model.metadata:
        print("%s: %s" % (args.model, printable(model.metadata["tsm.about"])), flush=True)
    if args.views == 1:
        print("the centre view alone: 1/%d of the cost, less accurate than all views" % protocol.views, flush=True)
        protocol = Protocol(**dict(protocol._asdict(), **CENTRE_VIEW))
        model = model._replace(protocol=protocol)
    log = predict.Log(args.jsonl)
    entries = {number: predict.show(one.path, [], one.error, False, "", log) for number, one in enumerate(inputs) if one.error}
    live = [number for number, one in enumerate(inputs) if one.is_live]
    files = [number for number, one in enumerate(inputs) if one.is_file]
    paths = [inputs[number].path for number in files]
    tensors = predict.parts_of(paths, args.window, args.stride, protocol, model.dtype.name, args.num_worker)
    engine = open_engine(model, computing, listed=len(files) > 1 or bool(files and args.window))
    interrupt, written = None, True
    try:
        for number, entry in zip(files, predict_files(args, model, engine, names, paths, annotated, tensors, log)):
            entries[number] = entry
        if live:
            found, interrupt = watch(args, model, protocol, engine, names, [inputs[number] for number in live], log)
            entries.update(zip(live, found))
    except KeyboardInterrupt as stopped:
        interrupt = stopped
    finally:  # an error loses nothing that was found
        aside.close()
        if entries:
            facts = dict(about(engine, model), labels=names is not None)
            written = predict.write_files(args, facts, protocol.views, [entries[number] for number in sorted(entries)])
    if interrupt and (len(entries) < len(inputs) or isinstance(interrupt, Stopped)):
        fail("interrupted after %d of %d inputs; the same command begins with the first again" % (len(entries), len(inputs)),
             status_of(interrupt))
    if not written or log.failed or any(entry["error"] for entry in entries.values()):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
