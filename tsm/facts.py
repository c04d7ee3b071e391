"""What a checkpoint is: its network, read from its weights, and how it is to be tested, from whatever says so.

The number of segments, shift_div and the test leave no trace in the weights. They come from a flag, a config file, the
config that mmaction2 keeps in a checkpoint's meta, the table of published files, the file's name, and only then from the
default, in this order; what two of them say differently is an error. Names of weights: mmaction2 0.24.1, models/backbones
(resnet_tsm, mobilenet_v2_tsm, …).
"""

import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from tsm import config as mmaction2_config
from tsm import zoo
from tsm.cli import UserError
from tsm.files import read_json, sha256
from tsm.protocol import FUSIONS, SSV2, Protocol, read_protocol

_GUIDE = "TSM ResNet-50"  # the network of the Ascend guide
_TAKEN = re.compile(r"TSM (ResNet-(50|101|152)|ResNet of [-\d]+ bottlenecks|MobileNetV2)")  # networks that this suite takes
_RESNETS: Dict[Tuple[int, ...], str] = {  # by the blocks of the four stages, and whether they are bottlenecks
    (3, 4, 6, 3, True): "50", (3, 4, 23, 3, True): "101", (3, 8, 36, 3, True): "152", (2, 2, 2, 2, False): "18",
    (3, 4, 6, 3, False): "34",
}
_BLOCK = re.compile(r"backbone\.layer([1-4])\.(?:net\.)?(\d+)\.(?:net\.)?(?:block\.)?conv1\.")
_DEFAULT = "default"
_PUBLISHED = "the table of published files"


class Facts(NamedTuple):
    """What a checkpoint is, and how it is tested."""

    network: str  # in words: TSM ResNet-50, TSM ResNet-101, TSN ResNet-50, SlowFast, …
    width: int  # channels of the stem, 64 in ResNet-50; 0 where there is no such stem
    protocol: Protocol
    average_clips: str  # prob, score, or empty where nothing says
    frames: Dict[str, Any]  # filename_tmpl and start_index of extracted frames, where a config gives them
    origins: Dict[str, str]  # {fact: what said so}
    conflicts: List[str]  # what other sources say differently, in words
    notes: List[str]  # what the user is to know of all that


def facts_of(
    path: str, state: Mapping[str, Any], meta: Mapping[str, Any], config: str = "", segments: Optional[int] = None,
    stated: str = "",
) -> Facts:
    """What the checkpoint at `path` is.

    Args:
        state, meta: as tsm.checkpoint.load() gives them; of `state` only the shapes are looked at.
        config: path of an mmaction2 config, or empty.
        segments: frames of a view, where the user says so.
        stated: path of what TSM_checkpoint.py found out before, protocol.json, or empty.
    Raises: UserError where a config or that file is missing or not understood.
    """
    weights = weights_say(state)
    said, notes = _said(path, meta, config, segments, stated)
    default = dict(SSV2._asdict(), average_clips="", network="", width=0)
    sources = [("its weights", weights)] + said + [(_DEFAULT, default)]
    chosen: Dict[str, Any] = {}
    origins: Dict[str, str] = {}
    conflicts: List[str] = []
    for fact in ("network", "width", "average_clips") + Protocol._fields:
        origins[fact], chosen[fact] = next((where, facts[fact]) for where, facts in sources if fact in facts)
        if fact in ("network", "classes", "segments", "shift_div"):
            conflicts += ["%s says %s" % (where, _words(fact, facts[fact])) for where, facts in sources[:-1]
                          if facts.get(fact, chosen[fact]) != chosen[fact]]
    frames = {}
    for fact in ("filename_tmpl", "start_index"):
        for where, facts in said[::-1]:
            if fact in facts:
                origins[fact], frames[fact] = where, facts[fact]
    for where, facts in said:
        wanted: Any = facts.get("segments")
        sampled, averaged = facts.get("sampled", wanted), facts.get("head_segments", wanted)
        if averaged != wanted:
            conflicts.append("%s averages %s of %s segments" % (where, averaged, wanted))
        if sampled != wanted and origins["segments"] not in ("--segments", stated):
            conflicts.append("%s samples %s frames for %s segments (--segments %s tests it on %s)"
                             % (where, sampled, wanted, wanted, wanted))
        elif sampled != wanted:
            notes.append("note: %s samples %s frames for %s segments; by %s it is tested on %s, so a published accuracy may be of "
                         "another test" % (where, sampled, wanted, origins["segments"], chosen["segments"]))
    if origins["segments"] == _DEFAULT:
        notes.append("note: nothing says how many segments %s has; taken as %d; --segments N says otherwise"
                     % (path, chosen["segments"]))
    protocol = Protocol(*(chosen[name] for name in Protocol._fields))
    return Facts(chosen["network"], chosen["width"], protocol, chosen["average_clips"], frames, origins, conflicts, notes)


def _said(
    path: str, meta: Mapping[str, Any], config: str, segments: Optional[int], stated: str
) -> Tuple[List[Tuple[str, Dict[str, Any]]], List[str]]:
    """([(source, what it says)], notes) of all sources but the weights, the one that decides first."""
    said: List[Tuple[str, Dict[str, Any]]] = [("--segments", {"segments": segments} if segments else {})]
    if stated:
        said.append((stated, dict(read_protocol(stated)._asdict(), **_others_in(stated))))
    if config:
        said.append((config, mmaction2_config.facts(mmaction2_config.read(config), config)))
    said.append(("the config in its meta", _kept_config(meta, "%s: the config in its meta" % path)))
    row, notes = _row_of(path)
    if row:
        said.append((_PUBLISHED, zoo.facts(row)))
    if not any("segments" in facts for _, facts in said[1:]):
        found = re.search(r"(?:_segment|1x1x)(\d+)(?!\d)", os.path.basename(path))
        said.append(("its file's name", {"segments": int(found.group(1))} if found and int(found.group(1)) else {}))
    return said, notes


def _row_of(path: str) -> Tuple[Optional[zoo.Row], List[str]]:
    """(the row of the published file whose digest is in the name of the file at `path`, if it is that file, notes)."""
    digest = zoo.digest_in(os.path.basename(path))
    row = zoo.by_sha256(digest) if digest else None
    if row is None or not os.path.isfile(path):
        return None, []
    actual = sha256(path)
    if zoo.by_sha256(actual) == row:
        return row, []
    return None, ["note: %s is not the published %s: its SHA-256 begins with %s" % (path, row.file, actual[: len(row.digest)])]


def _others_in(stated: str) -> Dict[str, Any]:
    """The network and average_clips that a protocol.json holds beside the protocol."""
    given = read_json(stated)
    return {name: given[name] for name in ("network", "average_clips") if isinstance(given.get(name), str) and given[name]}


def check_supported(facts: Facts, path: str) -> None:
    """Raise UserError, saying what the checkpoint at `path` is, where this suite does not take it or its sources disagree."""
    p = facts.protocol
    if not _TAKEN.fullmatch(facts.network):
        raise UserError("%s: is %s of %d classes; this suite takes TSM on ResNets of bottlenecks (ResNet-50, -101, -152, …) and on "
                        "MobileNetV2" % (path, facts.network, p.classes))
    if facts.conflicts:
        said = ", ".join("%s by %s" % (_words(name, getattr(p, name)), facts.origins[name])
                         for name in ("classes", "segments", "shift_div"))
        raise UserError("%s: is %s, %s, but %s; leave out what is wrong, or pass the config that it was trained with"
                        % (path, facts.network, said, "; ".join(facts.conflicts)))
    if p.shift_div < 2:
        raise UserError("%s: shift_div %d by %s would shift every channel both ways; 2 is the least"
                        % (path, p.shift_div, facts.origins["shift_div"]))
    if p.size > p.short_side:
        raise UserError("%s: is tested on crops of %d pixels (%s), more than the short side of %d that frames are resized to (%s)"
                        % (path, p.size, facts.origins["size"], p.short_side, facts.origins["short_side"]))


def fusion_of(facts: Facts) -> Tuple[str, str]:
    """(how the views are fused unless the user says otherwise, why)."""
    if facts.protocol == SSV2 and facts.network == _GUIDE:
        return FUSIONS[0], "the Ascend guide"
    return (facts.average_clips, facts.origins["average_clips"]) if facts.average_clips else (FUSIONS[1], "mmaction2's default")


def as_json(facts: Facts) -> Dict[str, Any]:
    """What protocol.json holds: the protocol, and beside it the network, average_clips, and the names of frames if known."""
    return dict(facts.protocol._asdict(), network=facts.network, average_clips=facts.average_clips, **facts.frames)


def table(facts: Facts) -> List[Tuple[str, str, str]]:
    """(what, its value in words, where it is from) for a reader."""
    p, origins = facts.protocol, facts.origins
    tested = sorted({origins[name] for name in ("sampling", "crops", "short_side", "size")})
    found = [
        ("network", facts.network, origins["network"]), ("classes", str(p.classes), origins["classes"]),
        ("segments", str(p.segments), origins["segments"]), ("shift_div", str(p.shift_div), origins["shift_div"]),
        ("tested on", test_in_words(p), ", ".join(tested)), ("fusion",) + fusion_of(facts),
    ]
    return found + [(name, str(value), origins[name]) for name, value in facts.frames.items()]


def test_in_words(protocol: Protocol) -> str:
    """As in `sampling twice, crops three of 256 pixels, short side 256`."""
    words = "sampling %s, crops %s of %d pixels, short side %d"
    return words % (protocol.sampling, protocol.crops, protocol.size, protocol.short_side)


def weights_say(state: Mapping[str, Any]) -> Dict[str, Any]:
    """network, width and classes, as far as the weights tell; `state` is by mmaction2's names."""
    said: Dict[str, Any] = {"network": _network(state)}
    stem, classifier = state.get("backbone.conv1.conv.weight"), state.get("cls_head.fc_cls.weight")
    if stem is not None:
        said["width"] = int(stem.shape[0])
    if classifier is not None:
        said["classes"] = int(classifier.shape[0])
    return said


def _network(state: Mapping[str, Any]) -> str:
    def has(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state)

    stem = state.get("backbone.conv1.conv.weight")
    shifted = "TSM " if has(r"\.net\.") else ""
    if has(r"^backbone\.(slow|fast)_path\."):
        return "SlowFast"
    if has(r"^backbone\.stage\d+\.") and has("branch_conv_list|reparam_conv"):
        return shifted + "MobileOne"
    if has(r"^backbone\.features\.\d+\.conv\.|^backbone\.layer\d\.\d+\.conv\.\d"):
        return shifted + "MobileNetV2"
    if stem is None or not any(_BLOCK.match(key) for key in state):
        return "no network that this suite knows (its first weight is %s)" % next(iter(state))[:80]
    if len(stem.shape) != 4:
        return "a network of %d-dimensional convolutions" % (len(stem.shape) - 2)
    found = {match.groups() for match in map(_BLOCK.match, state) if match}
    blocks = tuple(len([stage for stage, _ in found if stage == str(number)]) for number in (1, 2, 3, 4))
    bottlenecks = has(r"\.conv3\.")
    known = _RESNETS.get(blocks + (bottlenecks,))
    kind = "bottlenecks" if bottlenecks else "basic blocks"
    name = "ResNet-" + known if known else "ResNet of %s %s" % ("-".join(map(str, blocks)), kind)
    extras = [" with non-local blocks"] if has(r"\.non_local_block\.") else []
    extras += [" with temporal pooling"] if has(r"^backbone\.layer\d\.net\.") else []
    extras += [" with whole blocks shifted"] if has(r"^backbone\.layer\d\.\d+\.net\.") else []
    extras += [" on %d channels (optical flow)" % stem.shape[1]] if stem.shape[1] != 3 else []
    return ("TSM " if has(r"\.net\.(?!\d+\.)") else "TSN ") + name + "".join(extras)


def _kept_config(meta: Mapping[str, Any], where: str) -> Dict[str, Any]:
    """The facts of the config whose text a checkpoint's meta holds; none where that is no config."""
    text = meta.get("config") or meta.get("cfg")
    try:
        parsed = mmaction2_config.parse(text, where) if isinstance(text, str) else {}
    except UserError:  # nothing beside the weights stops a checkpoint
        return {}
    return mmaction2_config.facts(parsed, where)


def _words(fact: str, value: Any) -> str:
    forms = {"network": "%s", "classes": "%s classes", "segments": "%s segments", "crops": "%s crops", "sampling": "%s sampling"}
    return forms.get(fact, fact + " %s") % (value,)
