"""What run_all.sh calls the files of a work folder, for all that make them or look for them there, and run.json, which says what a
run is; paths from that folder."""

import os
from typing import Dict, List, NamedTuple, Optional

from tsm.files import read_json, write_json

RUN = "run.json"  # what run_all.sh was told and found out
STAGES = "stages.json"  # per stage: the command, seconds, peak of memory
PROTOCOL = "protocol.json"  # how the network of a checkpoint of one's own is tested
EXPORTED = "tsm_bs1.onnx"
MODIFIED, COMPILED = "tsm_new_bs*.onnx", "tsm_bs*.om"  # one for each batch size
INT8 = "tsm_int8.xml"
PREPROCESSED = "sthv2"  # whatever the dataset, as the guide calls it; in it:
INFO, MANIFEST, BINS = "sthv2.info", "sthv2.json", "preprocess_bin"  # labels, what each tensor is, the folder of tensors
LABELS, TENSORS = PREPROCESSED + "/" + INFO, PREPROCESSED + "/" + BINS
RESULTS = "inference_result/out"  # a file for each sample
SUMMARY = RESULTS + "_summary.json"
ACCURACY, AGREEMENT = "accuracy.json", "agreement.json"
REPORT, PREDICTIONS, CONFUSION = "report.json", "predictions.csv", "confusion.csv"


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
    batch: int
    perf_batches: List[int]
    chosen: Dict[str, str]  # what was decided for the user, and why, as in {"device": "cpu, since no CANN toolkit is installed here"}


def write_run(run: Run, folder: str = "") -> None:
    write_json(os.path.join(folder, RUN), dict(run._asdict()), "run")


def read_run(folder: str = "") -> Run:
    """Raises UserError where run.json is not as this version writes it; FileNotFoundError where there is none."""
    return Run(**read_json(os.path.join(folder, RUN), "run"))
