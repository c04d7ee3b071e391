"""What run_all.sh calls the files of a work folder, for all that make them or look for them there, and run.json, which
says what a run is; paths from that folder."""

import contextlib
import datetime
import glob
import os
import re
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

from tsm.cli import UserError
from tsm.files import LOCK, locked, read_json, write_json

RUN = "run.json"  # what run_all.sh was told and found out
STAGES, LOG = "stages.json", "run.log"  # per stage: the command, seconds, peak of memory; all that the stages print
PROTOCOL = "protocol.json"  # how the network of a checkpoint of one's own is tested
EXPORTED = "tsm_bs1.onnx"
MODIFIED, COMPILED = "tsm_new_bs*.onnx", "tsm_bs*.om"  # one for each batch size
TUNE, TUNING = "tune.json", "tune"  # which form is the fastest on this chip; the folder of what is tried
ONLINE_MODEL, INT8 = "tsm_online.onnx", "tsm_int8.xml"
PREPROCESSED = "sthv2"  # of the guide's dataset; another's is called as its list is (folder_of); in it:
INFO, MANIFEST, BINS = "sthv2.info", "sthv2.json", "preprocess_bin"  # labels, what each tensor is, the folder of tensors
LABELS = PREPROCESSED + "/" + INFO
RESULTS = "inference_result/out"  # a file for each sample
SUMMARY = RESULTS + "_summary.json"
ACCURACY, AGREEMENT = "accuracy.json", "agreement.json"
REPORT, PAGE, PREDICTIONS, CONFUSION = "report.json", "report.html", "predictions.csv", "confusion.csv"
MADE = (RUN, STAGES, LOG, PROTOCOL, "tsm_demo*.pth", "sthv2_val_list_videos.txt", EXPORTED, MODIFIED, COMPILED, "tsm_int8.*",
        "tsm_online.*", TUNE, TUNING,
        os.path.dirname(RESULTS), "perf", ACCURACY, AGREEMENT, REPORT, PAGE, PREDICTIONS, CONFUSION)  # all that run_all.sh makes


class Run(NamedTuple):
    """What a run is. Paths are absolute or from the work folder; one that is empty was not given, or is not needed."""

    data_root: str
    ann_file: str
    checkpoint: str
    config: str
    labels: str  # names of the classes
    protocol: str  # PROTOCOL where it is not Something-Something V2's
    filename_tmpl: str  # of extracted frames; empty: img_%05d.jpg
    start_index: Optional[int]  # likewise; None: 1
    exported: str
    modified: str  # the offline model that was proved against the exported one
    model: str  # what computed the results: `modified`, or what ATC made of it
    device: str  # cpu or npu
    precision: str  # fp32, bf16 or int8; what ATC decides is fp32 here
    backend: str  # openvino, onnxruntime, or empty where the script chose
    fusion: str  # score or prob
    dtype: str  # of the tensors
    tensors: str  # their folder
    batch: int
    perf_batches: List[int]
    chosen: Dict[str, str]  # what was decided for the user, and why, as in {"device": "cpu, since no CANN toolkit is installed here"}


def write_run(run: Run, folder: str = "") -> None:
    write_json(os.path.join(folder, RUN), dict(run._asdict()), "run")


def read_run(folder: str = "") -> Run:
    """Raises UserError where run.json is not as this version writes it; FileNotFoundError where there is none."""
    return Run(**read_json(os.path.join(folder, RUN), "run"))


def folder_of(ann_file: str) -> str:
    """The folder for a list's tensors, labels and manifest: called as the list, in letters that every tool takes."""
    stem = re.sub(r"(_list)?(_videos|_rawframes)?(\.[^.]*)?$", "", os.path.basename(ann_file))
    name = re.sub("[^A-Za-z0-9_-]+", "_", stem)
    return PREPROCESSED if name.startswith(PREPROCESSED) or not name.strip("_") else name


def clean(folder: str, everything: bool) -> List[str]:
    """Delete the tensors in a work folder, or all that run_all.sh made there; what was deleted. Other files stay, and
    so does a checkpoint that was fetched."""
    if not os.path.isdir(folder):
        return []
    with locked(folder):
        folders = [os.path.dirname(path) for path in glob.glob(os.path.join(glob.escape(folder), "*", MANIFEST))]
        names = (BINS, INFO, MANIFEST, ".journal", LOCK) if everything else (BINS,)
        found = [os.path.join(place, name) for place in folders for name in names]
        if everything:
            found += [path for name in MADE for path in glob.glob(os.path.join(glob.escape(folder), name))]
        found = list(filter(os.path.exists, found))
        for path in found:
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
        for place in folders if everything else []:
            with contextlib.suppress(OSError):  # something else is in it
                os.rmdir(place)
    return [os.path.relpath(path, folder) for path in found]


def now() -> str:
    """As in 2026-11-28T10:05:59.123+00:00."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def read_stages(folder: str = "") -> Dict[str, Any]:
    """{stage: its entry} of stages.json; nothing if it is missing or damaged."""
    try:
        return dict(read_json(os.path.join(folder, STAGES), "stages"))
    except (UserError, FileNotFoundError):
        return {}
