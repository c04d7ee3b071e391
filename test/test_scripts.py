"""Every script, started as a user starts it: a Python of its own, in a folder that run_all.sh left."""

import pytest
from clips import copy_of
from test_structure import SCRIPTS

RUN = ("--result_path=inference_result/out_summary.json", "--info_path=sthv2/sthv2.info")
DEMO = "{repo}/demo/annotations/something-something-v2-"
LIST = ("--data_root", "{repo}/demo/videos", "--ann_file", "two.txt")
STARTED = {  # script: (arguments, what it prints, a file that it makes)
    "TSM_checkpoint": (["{repo}/demo/tsm_thin.pth"], "network: TSM ResNet-50", ""),
    "TSM_dataset": (["--annotations", DEMO + "validation.json", "--labels", DEMO + "labels.json", "--videos", "{repo}/demo/videos"],
                    "40 videos, 0 left out", "sthv2_val_list_videos.txt"),
    "TSM_preprocess": ([*LIST, "--output_dir", "two"], "2 made, 0 already right, 0 skipped", "two/preprocess_bin/1.bin"),
    "pytorch2onnx": (["{repo}/demo/tsm_thin.pth", "--output-file", "new.onnx"], "wrote new.onnx", "new.onnx"),
    "modify_onnx": (["-m1", "tsm_bs1.onnx", "-m2", "new.onnx", "-bs", "4"], "proof: ", "new.onnx"),
    "TSM_infer": (["--model", "tsm_new_bs1.onnx", "--input", "sthv2/preprocess_bin/0.bin", "--output", "one", "--output_dirname", "out",
                   "--outfmt", "TXT"], "throughput: ", "one/out/0_0.txt"),
    "TSM_stream": (["--model", "tsm_new_bs1.onnx", *LIST, "--output", "two", "--output_dirname", "out", "--output_dir", "two"],
                   "throughput: ", "two/out_summary.json"),
    "TSM_quantise": (["--model", "tsm_new_bs1.onnx", "--input", "sthv2/preprocess_bin/0.bin"], "calibrated on 1 clip", "tsm_int8.xml"),
    "TSM_postprocess": ([*RUN, "--json", "new.json"], "accuracy over 12 videos", "new.json"),
    "TSM_report": ([*RUN, "--model", "tsm_new_bs1.onnx", "--batch_size", "1", "--output", "new.json"], "top-1 / top-5", "new.json"),
    "TSM_compare": ([".", ".", "--json", "new.json"], "12 videos in both", "new.json"),
    "TSM_predict": (["--model", "tsm_new_bs1.onnx", "--json", "new.json", "{repo}/demo/videos/{clip}"], "{clip}", "new.json"),
}


@pytest.fixture(scope="module")
def work(chain, tmp_path_factory):
    """A copy of the folder with a list of two clips."""
    folder = copy_of(chain, tmp_path_factory.mktemp("scripts") / "run")
    (folder / "two.txt").write_text("".join((chain.parent / "list.txt").read_text().splitlines(True)[:2]))
    return folder


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_every_script_starts_and_does_its_work(works, repo, work, script):
    clip = (work / "two.txt").read_text().split()[0]
    arguments, says, made = STARTED[script]
    said = works(script + ".py", *(word.format(repo=repo, clip=clip) for word in arguments), cwd=work, process=True)
    assert says.format(clip=clip) in said and (work / made).exists()
