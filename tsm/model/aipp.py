"""AIPP, the step that ATC can put before a network: uint8 RGB to what the network takes, on the chip, in half precision.

`pixel_out = (pixel_in - min_chn) * var_reci_chn`, whose constants are floats within +-65504. Source: Huawei's atlasatc_16_0022 and
atlasatc_16_0025 (CANN 8.0 to 9.1). The input of the compiled model is then uint8 [frames, size, size, 3] (RGB888_U8, static).
"""

import numpy as np

from tsm.cli import UserError
from tsm.protocol import Protocol

LARGEST = 65504  # of half precision
CONFIG = """aipp_op {
  aipp_mode: static
  input_format: RGB888_U8
  src_image_size_w: %d
  src_image_size_h: %d
  csc_switch: false
  rbuv_swap_switch: false
%s}
"""


def constants(protocol: Protocol) -> np.ndarray:
    """min_chn and var_reci_chn of the three channels, float64 [2, 3]; UserError where AIPP does not take them."""
    found = np.array([protocol.mean, 1 / np.array(protocol.std, np.float32).astype(np.float64)])
    if np.abs(found).max() > LARGEST:
        raise UserError("AIPP takes no mean and no 1 / std beyond %d, and the protocol's go to %.0f; let the graph normalise, by "
                        "--input_dtype uint8" % (LARGEST, np.abs(found).max()))
    return found


def config(protocol: Protocol) -> str:
    """The text of the file for atc's --insert_op_conf."""
    lines = ["  %s_%d: %.16g\n" % (name, channel, value) for name, values in zip(("min_chn", "var_reci_chn"), constants(protocol))
             for channel, value in enumerate(values)]
    return CONFIG % (protocol.size, protocol.size, "".join(lines))


def tables(protocol: Protocol) -> np.ndarray:
    """What AIPP makes of each pixel of each channel, float32 [2, 3, 256]: rounded to half precision at every step, constants included,
    and at the end alone, since the documents do not say where it rounds."""
    pixels, (least, factor) = np.arange(256.0), constants(protocol)[:, :, None]
    half = np.float16
    by_step = (pixels.astype(half) - least.astype(half)) * factor.astype(half)
    return np.stack([by_step, ((pixels - least) * factor).astype(half)]).astype(np.float32)
