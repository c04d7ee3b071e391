"""InferSession of ais_bench, as far as the suite calls it: tensors on a chip, which only to_host() lets numpy read."""

import os
import threading

import numpy as np
import onnxruntime

KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Tensor:
    """What is on the chip: its bytes are out of reach until they are fetched."""

    def __init__(self, values):
        self.values, self.here = values, False

    def to_host(self):
        self.here = True

    def __array__(self, dtype=None, copy=None):
        if not self.here:
            raise RuntimeError("the tensor is on the device")
        return self.values


class InferSession:
    """A static om, whose outputs have other names than the model that atc was given."""

    def __init__(self, device_id, model_path, acl_json_path=None, debug=False, loop=1):
        if not os.path.isfile(model_path):
            raise RuntimeError("load model failed: %s" % model_path)
        self.thread = threading.get_ident()
        with open(model_path, "rb") as file:
            self.session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])

    def create_tensor_from_arrays_to_device(self, arrays):
        return Tensor(np.ascontiguousarray(arrays).copy())

    def run(self, feeds, out_array=False):
        if threading.get_ident() != self.thread:
            raise RuntimeError("no context of this thread on the device, error code 107002")
        inputs = self.session.get_inputs()
        if len(feeds) != len(inputs) or not all(isinstance(feed, Tensor) for feed in feeds):
            raise RuntimeError("%d tensors on the device are needed" % len(inputs))
        given = {}
        for place, feed in zip(inputs, feeds):
            values = feed.values
            if values.nbytes != np.prod(place.shape) * np.dtype(KINDS[place.type]).itemsize:
                raise RuntimeError("%s: size %d does not match" % (place.name, values.nbytes))
            given[place.name] = values.reshape(place.shape)
        outputs = [Tensor(values) for values in self.session.run(None, given)]
        if not out_array:
            return outputs
        for output in outputs:
            output.to_host()
        return [np.array(output) for output in outputs]
