"""Stands in for Ascend's ais_bench (`python3 -m ais_bench`) where there is no NPU: ONNX Runtime executes the model."""
