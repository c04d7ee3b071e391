#!/usr/bin/env python3
"""What a PyTorch user runs today, on the suite's own PyTorch: one way of computing a video, for bench/inference.py.

    python3 bench/pytorch.py WAY CHECKPOINT      # WAY: eager, compile or compile_bf16

eager is channels_last; compile is torch.compile of that, and compile_bf16 also runs under autocast to bfloat16. Says what it
runs on, then reads numbers of videos from stdin and answers each with the seconds per video.
"""

import argparse
import contextlib
import sys

from turns import answer, random_video  # sets up the path to the suite

from tsm.cli import parser, run


def get_args() -> argparse.Namespace:
    cli = parser(__doc__)
    cli.add_argument("way", choices=("eager", "compile", "compile_bf16"))
    cli.add_argument("checkpoint")
    return cli.parse_args()


def main() -> None:
    args = get_args()
    import torch

    from tsm.model.network import load_network

    net, _ = load_network(args.checkpoint)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    video = torch.from_numpy(random_video())
    forward = net if args.way == "eager" else torch.compile(net)
    lowered = torch.autocast("cpu", torch.bfloat16) if args.way == "compile_bf16" else contextlib.nullcontext()

    def compute(videos: int) -> None:
        with torch.inference_mode(), lowered:
            for _ in range(videos):
                forward(video)

    answer("PyTorch %s, Python %s" % (torch.__version__, sys.version.split()[0]), compute)


if __name__ == "__main__":
    run(main)
