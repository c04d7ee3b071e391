#!/usr/bin/env python3
"""The closing table of a run, and report.json: accuracy, throughput, stages, protocol, versions, arguments.

    python3 TSM_report.py --result_path=inference_result/out_summary.json --info_path=sthv2/sthv2.info \\
        --batch_size 1 --perf_batches 1 4 --model tsm_new_bs1.onnx

Reads what the stages left in the working directory: the results, sthv2/sthv2.json (the manifest), perf/bs<B>.log (what
ais_bench or TSM_infer.py printed), stages.json (seconds and peak memory) and the metadata of the modified model. The
guide's published figures stand beside ours; the accuracy is compared with them only when all 24,777 videos of the
validation set were measured.
"""

import argparse
import os
import platform
import re
from typing import Any, Dict, List

from TSM_postprocess import Accuracy, accuracy_of
from tsm import __version__
from tsm.cli import UserError, parser, positive, run
from tsm.files import read_json, write_json
from tsm.samples import manifest_path

VALIDATION_VIDEOS = 24777  # of Something-Something V2
PUBLISHED = {  # by the fusion: (source, top-1, top-5)
    "score": ("the Ascend guide", 0.6187, 0.8721),
    "prob": ("mmaction2", 0.6182, 0.8680),
}
PUBLISHED_THROUGHPUT = {1: 20.77, 4: 18.41, 8: 17.67, 16: 17.12, 32: 17.36}  # videos/s, the Ascend guide, Atlas 310P3


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--result_path", required=True, metavar="FILE", help="summary of the inference")
    cli.add_argument("--info_path", required=True, metavar="FILE", help="labels; the manifest is the .json beside it")
    cli.add_argument("--model", required=True, metavar="FILE", help="the modified ONNX model, for its metadata")
    cli.add_argument("--batch_size", required=True, type=positive, help="batch size of the inference")
    cli.add_argument("--perf_batches", type=positive, nargs="*", default=[], help="batch sizes whose perf/bs<B>.log to read")
    cli.add_argument("--device", choices=("cpu", "npu"), default="cpu")
    cli.add_argument("--precision", default="fp32", help="what the CPU computed in (default: fp32)")
    cli.add_argument("--output", default="report.json", metavar="FILE", help="the report (default: report.json)")
    return cli.parse_args()


def read_throughput(batch: int) -> float:
    """Videos per second from the `[INFO] throughput …: X` line of perf/bs<batch>.log."""
    path = os.path.join("perf", "bs%d.log" % batch)
    with open(path, encoding="utf-8", errors="replace") as file:
        found = re.findall(r"\[INFO\] throughput 1000\*batchsize.*: ([0-9.]+)\s*$", file.read(), re.MULTILINE)
    if not found:
        raise UserError("%s: no throughput line of ais_bench in it; measure batch %d again" % (path, batch))
    return float(found[-1])


def read_metadata(path: str) -> Dict[str, str]:
    """What modify_onnx.py wrote into the model: fusion, target, rules, proof, source."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's errors have no common base
        raise UserError("%s: not an ONNX model (%s); make it with modify_onnx.py" % (path, type(error).__name__))
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("tsm.")}
    if metadata.get("tsm.fusion") not in PUBLISHED:
        raise UserError("%s: does not say how it fuses the views; make it with modify_onnx.py" % path)
    return metadata


def device_name(device: str) -> str:
    """What the figures were measured on: the processor's model and the number of processors, or the NPU."""
    if device == "npu":
        return "Ascend NPU"
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return "%s, %d threads" % (found.group(1).strip() if found else platform.machine(), len(os.sched_getaffinity(0)))


def verdict(accuracy: Accuracy, fusion: str) -> str:
    """One line: does the measured top-1 agree with the published one?"""
    source, top1, _ = PUBLISHED[fusion]
    if accuracy.videos + accuracy.skipped != VALIDATION_VIDEOS:
        return ("the published top-1 is of the %d videos of the validation set; these are %d videos, so the two are not "
                "compared." % (VALIDATION_VIDEOS, accuracy.videos))
    low, high = accuracy.top1_interval_95
    return "%s's top-1 %.4f lies %s the measured 95 %% interval %.4f to %.4f." % (
        source, top1, "within" if low <= top1 <= high else "OUTSIDE", low, high)


def table(rows: List[List[str]]) -> str:
    """A Markdown table whose columns line up; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| %s |" % " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    lines.insert(1, "|%s|" % "|".join("-" * (width + 2) for width in widths))
    return "\n".join(lines)


def main() -> None:
    args = get_args()
    accuracy = accuracy_of(args.result_path, args.info_path)
    metadata = read_metadata(args.model)
    fusion = metadata["tsm.fusion"]
    manifest = read_json(manifest_path(args.info_path))
    summary = read_json(args.result_path)
    throughput = {batch: read_throughput(batch) for batch in args.perf_batches}
    stages = read_json("stages.json") if os.path.exists("stages.json") else {}  # type: Dict[str, Any]

    name = "%s %s" % (device_name(args.device), args.precision) if args.device == "cpu" else device_name(args.device)
    over = "%d of %d" % (accuracy.videos, accuracy.videos + accuracy.skipped) if accuracy.skipped else str(accuracy.videos)
    source, top1, top5 = PUBLISHED[fusion]
    rows = [["device", "batch size", "dataset", "top-1 / top-5", "videos per second"]]
    for batch in sorted(set(throughput) | {args.batch_size}):
        measured = "%.4f / %.4f" % (accuracy.top1_acc, accuracy.top5_acc) if batch == args.batch_size else ""
        speed = "%.2f" % throughput[batch] if batch in throughput else ""
        rows.append([name, str(batch), "%s videos" % over, measured, speed])
    for batch in sorted(PUBLISHED_THROUGHPUT) if args.device == "npu" else [1]:
        measured = "%.4f / %.4f" % (top1, top5) if batch == 1 else ""
        speed = "%.2f" % PUBLISHED_THROUGHPUT[batch] if fusion == "score" else ""
        rows.append(["published: " + ("Atlas 310P3" if fusion == "score" else source), str(batch), "Sth-Sth V2 val",
                     measured, speed])
    print(table(rows))
    print("\nviews fused by %s; %s" % (fusion, verdict(accuracy, fusion)))
    agreement = summary.get("tsm", {}).get("top1_agreement_with_fp32")
    if agreement:
        print("top-1 in %s agrees with fp32 on %d of the %d videos that both were run on" % (
            args.precision, agreement["same"], agreement["videos"]))
    print("\n" + table([["stage", "seconds", "peak memory, MB"]] + [
        [stage, "%.1f" % entry["seconds"], "%.0f" % entry["peak_mb"]] for stage, entry in stages.items()]))

    write_json(args.output, {
        "version": __version__,
        "device": {"kind": args.device, "name": name, "machine": platform.machine(), "python": platform.python_version()},
        "arguments": vars(args),
        "fusion": fusion,
        "accuracy": accuracy._asdict(),
        "published": {"source": source, "top1_acc": top1, "top5_acc": top5, "comparison": verdict(accuracy, fusion)},
        "throughput": {str(batch): value for batch, value in throughput.items()},
        "inference": {key: value for key, value in summary.items() if key not in ("filesinfo", "npu_compute_time_list")},
        "model": metadata,
        "protocol": manifest["protocol"],
        "preprocessing_versions": manifest["versions"],
        "skipped": manifest["skipped"],
        "stages": stages,
    })
    print("\nwrote " + args.output)


if __name__ == "__main__":
    run(main)
