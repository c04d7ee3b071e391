"""From weights to a proved graph: the networks, ONNX files, the surgery and its proof, the offline model that runs."""
