"""The published TSM checkpoints that this suite takes: what each is, how it was tested, what was published of it; and fetching them.

Source: mmaction2's metafile and configs of configs/recognition/tsm, at 0.24.1 and 1.2.0. Not among them: those of networks
that this suite refuses (non-local blocks, MobileOne). By the publishing convention of OpenMMLab, and of PyTorch, a checkpoint's
name ends in a dash and the first 8 hex digits of its SHA-256.
"""

import contextlib
import glob
import http.client
import os
import re
import socket
import sys
import urllib.error
import urllib.parse
from typing import Any, Dict, List, NamedTuple, Optional

from tsm.cli import UserError, first_line
from tsm.files import part_name, sha256
from tsm.protocol import PIPELINES, SSV2

OFFICIAL, GUIDE = "tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth", "the Ascend guide"  # the file that it takes
AVERAGE_CLIPS = "prob"  # of all of them
VIDEOS = {  # of the set that a figure is of; Kinetics has no fixed number, as its videos vanish
    "Something-V2": 24777, "Something-V1": 11522, "Jester": 14787, "Diving48": 1970, "HMDB51": 1530, "UCF101": 3783,
}
_BY_HAND = "fetch it with a browser or on another machine and pass its path"
_TIMEOUT = 30  # seconds without a byte before a connection is given up
_HOST = "https://download.openmmlab.com/mmaction/"
_TABLE = """
tsm_r50_1x1x8_50e_kinetics400_rgb_20200607-af7fb746 ResNet-50 8 400 Kinetics-400 centre 70.24
tsm_r50_256p_1x1x8_50e_kinetics400_rgb_20200726-020785e2 ResNet-50 8 400 Kinetics-400 centre 70.59
tsm_r50_1x1x8_50e_kinetics400_rgb_20210701-68d582b4 ResNet-50 8 400 Kinetics-400 centre 70.73
tsm_r50_1x1x8_100e_kinetics400_rgb_20210701-7ff22268 ResNet-50 8 400 Kinetics-400 centre 71.90
tsm_r50_gpu_normalize_1x1x8_50e_kinetics400_rgb_20210219-bf96e6cc ResNet-50 8 400 Kinetics-400 centre 70.48
tsm_r50_video_1x1x8_100e_kinetics400_rgb_20200702-a77f4328 ResNet-50 8 400 Kinetics-400 centre 70.25
tsm_r50_dense_1x1x8_50e_kinetics400_rgb_20210701-a54ff3d3 ResNet-50 8 400 Kinetics-400 dense-ten 73.46
tsm_r50_dense_1x1x8_100e_kinetics400_rgb_20210701-e3e5e97f ResNet-50 8 400 Kinetics-400 dense-ten 74.55
tsm_r50_340x256_1x1x16_50e_kinetics400_rgb_20201011-2f27f229 ResNet-50 16 400 Kinetics-400 ten 72.09
tsm_r50_256p_1x1x16_50e_kinetics400_rgb_20201010-85645c2a ResNet-50 16 400 Kinetics-400 ten 71.89
tsm_r50_1x1x16_50e_kinetics400_rgb_20210701-7c0c5d54 ResNet-50 16 400 Kinetics-400 ten 72.80
tsm_mobilenetv2_dense_320p_1x1x8_100e_kinetics400_rgb_20210202-61135809 MobileNetV2 8 400 Kinetics-400 dense-three 68.46
tsm_mobilenetv2_dense_1x1x8_kinetics400_rgb_port_20210922-aa5cadf6 MobileNetV2 8 400 Kinetics-400 dense-three 69.89
tsm_r50_video_1x1x8_50e_diving48_rgb_20210426-aba5aa3d ResNet-50 8 48 Diving48 centre 75.99
tsm_r50_video_1x1x16_50e_diving48_rgb_20210426-aa9631c0 ResNet-50 16 48 Diving48 centre 81.62
tsm_r50_1x1x8_50e_sthv1_rgb_20210203-01dce462 ResNet-50 8 174 Something-V1 twice-three 47.70
tsm_r50_flip_1x1x8_50e_sthv1_rgb_20210203-12596f16 ResNet-50 8 174 Something-V1 twice-three 48.51
tsm_r50_randaugment_1x1x8_50e_sthv1_rgb_20210324-481268d9 ResNet-50 8 174 Something-V1 twice-three 48.90
tsm_r50_flip_randaugment_1x1x8_50e_sthv1_rgb_20210324-76937692 ResNet-50 8 174 Something-V1 twice-three 50.31
tsm_r50_mixup_1x1x8_50e_sthv1_rgb-9eca48e5 ResNet-50 8 174 Something-V1 twice-three 48.49
tsm_r50_cutmix_1x1x8_50e_sthv1_rgb-34934615 ResNet-50 8 174 Something-V1 twice-three 47.46
tsm_r50_1x1x16_50e_sthv1_rgb_20211202-b922e5d2 ResNet-50 16 174 Something-V1 twice-three 49.03
tsm_r101_1x1x8_50e_sthv1_rgb_20211202-49970a5b ResNet-101 8 174 Something-V1 twice-three 48.59
tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da ResNet-50 8 174 Something-V2 twice-three 61.82
tsm_r50_256h_1x1x16_50e_sthv2_rgb_20210331-0a45549c ResNet-50 16 174 Something-V2 twice-three 63.19
tsm_r101_256h_1x1x8_50e_sthv2_rgb_20210401-df97f3e1 ResNet-101 8 174 Something-V2 twice-three 63.84
tsm_r50_1x1x8_50e_jester_rgb-c799267e ResNet-50 8 27 Jester twice-three 97.20
tsm_k400_pretrained_r50_1x1x8_25e_hmdb51_rgb_20210630-10c74ee5 ResNet-50 8 51 HMDB51 centre 72.68
tsm_k400_pretrained_r50_1x1x16_25e_hmdb51_rgb_20210630-4785548e ResNet-50 16 51 HMDB51 centre 74.77
tsm_k400_pretrained_r50_1x1x8_25e_ucf101_rgb_20210630-1fae312b ResNet-50 8 101 UCF101 centre 94.50
tsm_k400_pretrained_r50_1x1x16_25e_ucf101_rgb_20210630-8df9c358 ResNet-50 16 101 UCF101 centre 94.58
tsm_r50_1x1x8_50e_sthv2_rgb_20200912-033c4ac6 ResNet-50 8 174 Something-V2 twice-three 61.12
tsm_r50_1x1x16_50e_sthv2_rgb_20201010-16469c6f ResNet-50 16 174 Something-V2 twice-three 62.04
tsm_r101_1x1x8_50e_sthv2_rgb_20201010-98cdedb8 ResNet-101 8 174 Something-V2 twice-three 61.51
tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb_20220831-64d69186 ResNet-50 8 400 Kinetics-400 ten 73.18
tsm_imagenet-pretrained-r50_8xb16-1x1x8-100e_kinetics400-rgb_20220831-a6db1e5d ResNet-50 8 400 Kinetics-400 ten 73.22
tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_kinetics400-rgb_20220831-042b1748 ResNet-50 16 400 Kinetics-400 ten 75.12
tsm_imagenet-pretrained-r50_8xb16-dense-1x1x8-50e_kinetics400-rgb_20220831-f55d3c2b ResNet-50 8 400 Kinetics-400 dense-ten 73.38
tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb_20230414-401127fd MobileNetV2 8 400 Kinetics-400 three 68.71
tsm_imagenet-pretrained-r101_8xb16-1x1x8-50e_sthv2-rgb_20230320-efcc0d1b ResNet-101 8 174 Something-V2 twice-three 63.70
tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb_20230317-be0fc26e ResNet-50 8 174 Something-V2 twice-three 62.72
tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_sthv2-rgb_20230317-ec6696ad ResNet-50 16 174 Something-V2 twice-three -
"""  # the last one's figure, 64.16, is of another test: 8 frames twice, which its network of 16 segments sees as one view
_FOLDERS = {  # where a file does not lie in the folder that its own name gives
    "032aa4da": "tsm_r50_1x1x8_50e_sthv2_rgb", "0a45549c": "tsm_r50_1x1x16_50e_sthv2_rgb", "df97f3e1": "tsm_r101_1x1x8_50e_sthv2_rgb",
    "2f27f229": "tsm_r50_1x1x16_50e_kinetics400_rgb", "61135809": "tsm_mobilenetv2_dense_1x1x8_100e_kinetics400_rgb", "aa5cadf6": "",
}
_WITHDRAWN = ("033c4ac6", "16469c6f", "98cdedb8")  # no longer listed by mmaction2, but in circulation


class Published(NamedTuple):
    """An accuracy that was published of a checkpoint."""

    source: str  # who published it
    data: str
    videos: Optional[int]  # of the set that it is of; None where that is not known
    top1_acc: float
    top5_acc: Optional[float]


class Row(NamedTuple):
    """A published checkpoint."""

    file: str  # its name, .pth
    network: str
    segments: int
    classes: int
    data: str
    pipeline: str  # of its test, of tsm.protocol.PIPELINES
    top1: Optional[float]  # per cent, by mmaction2 and with its fusion; None where it was measured by another test

    @property
    def digest(self) -> str:
        """The first hex digits of the file's SHA-256."""
        return str(digest_in(self.file))


def rows() -> List[Row]:
    """All of them."""
    found = []
    for line in _TABLE.split("\n")[1:-1]:
        name, network, segments, classes, data, pipeline, top1 = line.split()
        found.append(Row(name + ".pth", "TSM " + network, int(segments), int(classes), data, pipeline,
                         None if top1 == "-" else float(top1)))
    return found


def digest_in(name: str) -> Optional[str]:
    """The hex digits between the last dash and the suffix of a published checkpoint's name; None without them."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return found.group(1) if found else None


def by_name(name: str) -> Optional[Row]:
    """The row of a file's name, with or without its suffix; `official` is the Ascend guide's."""
    wanted = OFFICIAL if name == "official" else name
    return next((row for row in rows() if wanted in (row.file, row.file[: -len(".pth")])), None)


def by_sha256(digest: str) -> Optional[Row]:
    """The row of the file that has this SHA-256, in hex."""
    return next((row for row in rows() if digest.startswith(row.digest)), None)


def published(row: Row, fusion: str) -> Optional[Published]:
    """What was published of the file with its views fused by prob or score; None where nothing was."""
    data = row.data, VIDEOS.get(row.data)
    if row.file == OFFICIAL:
        return Published(GUIDE, *data, 0.6187, 0.8721) if fusion == "score" else Published("mmaction2", *data, 0.6182, 0.8680)
    return Published("mmaction2", *data, row.top1 / 100, None) if row.top1 is not None and fusion == AVERAGE_CLIPS else None


def address(row: Row) -> str:
    """Where mmaction2 publishes the file: 0.x and 1.x have a folder for each config. UserError where it does so no more."""
    if row.digest in _WITHDRAWN:
        raise UserError("%s: mmaction2 does not list it any more, so its address is not known; %s" % (row.file, _BY_HAND))
    folder = _FOLDERS.get(row.digest, re.sub(r"(_\d{8})?-[0-9a-f]{8}\.pth$", "", row.file))
    release = "v1.0/" if row.file.startswith("tsm_imagenet-pretrained-") else ""
    return "/".join(filter(None, (_HOST + release + "recognition/tsm", folder, row.file)))


def local_path(url: str, folder: str) -> str:
    """The path in `folder` of the file at `url`."""
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        name = os.path.basename(parts.path)
        if parts.scheme in ("http", "https") and name:
            return os.path.normpath(os.path.join(folder, name))
    raise UserError("%s: not the http(s) address of a file" % url)


def fetch(url: str, path: str) -> bool:
    """Have the file at `url` at `path`, whole; whether it was fetched just now.

    Raises: UserError where the host cannot be reached, answers with an error, or gives another file than its name says.
    """
    name, part = os.path.basename(path), part_name(path)
    expected = digest_in(name)
    if os.path.exists(path) and (expected is None or sha256(path).startswith(expected)):
        print("%s is already here" % path)
        return False
    from torch import hub

    for old in glob.glob(glob.escape(part) + ".*"):  # of a run that was killed
        os.remove(old)
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        hub.download_url_to_file(url, part, expected, progress=sys.stderr.isatty())
    except (urllib.error.URLError, ConnectionError, socket.timeout, http.client.HTTPException, ValueError) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise UserError("%s: cannot be fetched (%s); check the address and the proxy settings and run again, or %s"
                        % (url, first_line(reason), _BY_HAND))
    except RuntimeError:
        raise UserError("%s: its SHA-256 does not begin with %s, as its name says, so it was removed; fetch it again" % (url, expected))
    if expected is None:
        sys.stderr.write("warning: %s: its name carries no digest, so it was not checked\n" % name)
    os.replace(part, path)
    return True


def row_facts(row: Row) -> Dict[str, Any]:
    """What tsm.checkpoint.config.facts would say of it."""
    same = {name: getattr(SSV2, name) for name in ("shift_div", "shift", "short_side", "mean", "std")}
    return dict(same, **PIPELINES[row.pipeline], network=row.network, segments=row.segments, classes=row.classes,
                average_clips=AVERAGE_CLIPS)


def listing() -> str:
    """All rows for a reader: what files have in common, then of each the top-1 in per cent and its name."""
    groups: Dict[str, List[str]] = {"top-1 in %, and the file": []}
    for row in rows():
        group = "%s: %s, %d segments, %d classes, test %s" % (row.data, row.network, row.segments, row.classes, row.pipeline)
        groups.setdefault(group, []).append("  %5s  %s" % ("-" if row.top1 is None else "%.2f" % row.top1, row.file))
    return "\n".join(line for group, files in groups.items() for line in [group] + files)
