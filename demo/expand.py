#!/usr/bin/env python3
"""Expand the demo's thin TSM into a checkpoint of the full ResNet-50, in mmaction2's form.

    python3 demo/expand.py --output tsm_demo.pth

The thin network (one eighth of the channels) sits inside the full one: each of its channels takes a place in the same
shift group (shifted ahead, shifted back, still), every other channel is zero throughout, so the two networks give the
same class scores up to float error. What runs is the full network with the full cost.

    python3 demo/expand.py --output tsm_uni.pth --thin demo/tsm_thin_uni.pth     # shifted from the past alone, for online models
    python3 demo/expand.py --output tsm_still.pth --still     # the same weights as if nothing were shifted

puts all of them among the channels that stay: what the thin network computes without its shift, and so a run with real
failures, to compare with the demo's.
"""

import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from tsm.cli import parser, run  # noqa: E402

# isort: split
import numpy as np  # noqa: E402

from tsm.protocol import SSV2  # noqa: E402

ABOUT = "demo model: knows ten actions on rendered shapes"  # what a checkpoint says of itself follows it into its models
CONFIG = """model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNetTSM', depth=50, num_segments=%d, shift_div=%d),
    cls_head=dict(type='TSMHead', num_segments=%d, num_classes=%d))
""" % (SSV2.segments, SSV2.shift_div, SSV2.segments, SSV2.classes)  # as mmaction2 keeps a config in a checkpoint


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write, e.g. tsm_demo.pth")
    cli.add_argument("--thin", default=os.path.join(HERE, "tsm_thin.pth"), metavar="FILE", help="the thin weights "
                     "(default: those of the demo)")
    cli.add_argument("--still", action="store_true", help="without the effect of the shift")
    return cli.parse_args()


def places(thin: int, full: int, still: bool) -> np.ndarray:
    """Where `thin` channels go among `full` ones: int64 [thin], the order kept; each into its own shift group, or, if `still`,
    all of them among the channels that stay."""
    here, there, channel = thin // SSV2.shift_div, full // SSV2.shift_div, np.arange(thin)
    if thin == full:
        return channel  # kernels, classes, colours
    if still:
        return channel + 2 * there
    group = np.minimum(channel // here, 2)  # 0: takes the next frame's value, 1: the previous one's, 2: stays
    return channel + group * (there - here)


def expand(thin, still=False):
    """State dict of a thin TSM -> that of the full TSM with the same function, or with that of the thin one without its shift."""
    from tsm.model.network import TSM

    full = TSM(SSV2).state_dict()
    for key, value in full.items():
        value.fill_(1 if key.endswith("running_var") else 0)  # an unused channel: (0 - 0) / 1 * 0 + 0
        index = [places(have, want, still) for have, want in zip(thin[key].shape, value.shape)]
        value.numpy()[np.ix_(*index) if index else ...] = thin[key].numpy()
    return full


def main() -> None:
    args = get_args()
    from tsm.checkpoint import reader

    thin, said = reader.load(args.thin)
    shift = {"shift": said["shift"]} if "shift" in said else {}
    meta = {"source": "the demo's thin TSM, expanded", "config": CONFIG, "about": ABOUT}
    reader.save(args.output, expand(thin, args.still), dict(meta, **shift))


if __name__ == "__main__":
    run(main)
