"""What run_all.sh calls the files of a work folder, for all that make them or look for them there; paths from that folder."""

STAGES = "stages.json"  # per stage: the command, seconds, peak of memory
PROTOCOL = "protocol.json"  # where it is not Something-Something V2's
EXPORTED = "tsm_bs1.onnx"
MODIFIED, COMPILED = "tsm_new_bs*.onnx", "tsm_bs*.om"  # one for each batch size
PREPROCESSED = "sthv2"  # whatever the dataset, as the guide calls it; in it:
INFO, MANIFEST, BINS = "sthv2.info", "sthv2.json", "preprocess_bin"  # labels, what each tensor is, the folder of tensors
LABELS, TENSORS = PREPROCESSED + "/" + INFO, PREPROCESSED + "/" + BINS
RESULTS = "inference_result/out"  # a file for each sample
SUMMARY = RESULTS + "_summary.json"
REPORT, PREDICTIONS, CONFUSION = "report.json", "predictions.csv", "confusion.csv"
