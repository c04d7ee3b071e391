"""What a checkpoint is: its network, read from its weights, and how it is to be tested, from whatever says so.

The number of segments, shift_div and the test leave no trace in the weights. They come from a flag, a config file, the
config that mmaction2 keeps in a checkpoint's meta, the file's name, and only then from the default, in this order; what two of
them say differently is an error. Names of weights: mmaction2 0.24.1, models/backbones (resnet_tsm, mobilenet_v2_tsm, …).
"""

import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from tsm import config as mmaction2_config
from tsm.cli import UserError
from tsm.protocol import SSV2, Protocol

NETWORKS = ("TSM ResNet-50", "TSM ResNet-101", "TSM ResNet-152", "TSM MobileNetV2")  # that this suite takes
_RESNETS: Dict[Tuple[int, ...], str] = {  # by the blocks of the four stages, and whether they are bottlenecks
    (3, 4, 6, 3, True): "50", (3, 4, 23, 3, True): "101", (3, 8, 36, 3, True): "152", (2, 2, 2, 2, False): "18",
    (3, 4, 6, 3, False): "34",
}
_BLOCK = re.compile(r"backbone\.layer([1-4])\.(?:net\.)?(\d+)\.(?:net\.)?(?:block\.)?conv1\.")
_DEFAULT = "default"


class Facts(NamedTuple):
    """What a checkpoint is, and how it is tested."""

    network: str  # in words: TSM ResNet-50, TSM ResNet-101, TSN ResNet-50, SlowFast, …
    width: int  # channels of the stem, 64 in ResNet-50; 0 where there is no such stem
    protocol: Protocol  # its sampling and crops may be ones that tsm.protocol does not know: see check_supported
    average_clips: str  # prob, score, or empty where nothing says
    origins: Dict[str, str]  # {fact: what said so}
    conflicts: List[str]  # what other sources say differently, in words


def facts_of(
    path: str, state: Mapping[str, Any], meta: Mapping[str, Any], config: str = "", segments: Optional[int] = None
) -> Facts:
    """What the checkpoint at `path` is.

    Args:
        state, meta: as tsm.checkpoint.load() gives them; of `state` only the shapes are looked at.
        config: path of an mmaction2 config, or empty.
        segments: frames of a view, where the user says so.
    Raises: UserError where a config is missing or not understood.
    """
    weights = weights_say(state)
    said: List[Tuple[str, Dict[str, Any]]] = [("--segments", {"segments": segments} if segments else {})]
    if config:
        said.append((config, mmaction2_config.facts(mmaction2_config.read(config), config)))
    said.append(("the config in its meta", _kept_config(meta, "%s: the config in its meta" % path)))
    if not any("segments" in facts for _, facts in said[1:]):
        found = re.search(r"(?:_segment|1x1x)(\d+)(?!\d)", os.path.basename(path))
        said.append(("its file's name", {"segments": int(found.group(1))} if found and int(found.group(1)) else {}))
    sources = [("its weights", weights)] + said + [(_DEFAULT, dict(SSV2._asdict(), average_clips="", network="", width=0))]
    chosen, origins, conflicts = {}, {}, []
    for fact in ("network", "width", "average_clips") + Protocol._fields:
        origins[fact], chosen[fact] = next((where, facts[fact]) for where, facts in sources if fact in facts)
        if fact in ("network", "classes", "segments", "shift_div"):
            conflicts += ["%s says %s" % (where, _words(fact, facts[fact])) for where, facts in sources[:-1]
                          if facts.get(fact, chosen[fact]) != chosen[fact]]
    for where, facts in said:
        for fact, words in (("sampled", "%s samples %d frames for %d segments"),
                            ("head_segments", "%s averages %d of %d segments")):
            if facts.get(fact, facts.get("segments")) != facts.get("segments"):
                conflicts.append(words % (where, facts[fact], facts["segments"]))
    protocol = Protocol(*(chosen[name] for name in Protocol._fields))
    return Facts(chosen["network"], chosen["width"], protocol, chosen["average_clips"], origins, conflicts)


def check_supported(facts: Facts, path: str) -> None:
    """Raise UserError, saying what the checkpoint at `path` is, where this suite does not take it or its sources disagree."""
    p = facts.protocol
    if facts.network not in NETWORKS:
        raise UserError("%s: is %s of %d classes; this suite takes %s and %s" % (
            path, facts.network, p.classes, ", ".join(NETWORKS[:-1]), NETWORKS[-1]))
    if facts.conflicts:
        said = ", ".join("%s by %s" % (_words(name, getattr(p, name)), facts.origins[name])
                         for name in ("classes", "segments", "shift_div"))
        raise UserError("%s: is %s, %s, but %s; leave out what is wrong, or pass the config that it was trained with"
                        % (path, facts.network, said, "; ".join(facts.conflicts)))
    if p.size > p.short_side:
        raise UserError("%s: is tested on crops of %d pixels (%s), more than the short side of %d that frames are resized to (%s)"
                        % (path, p.size, facts.origins["size"], p.short_side, facts.origins["short_side"]))


def note(facts: Facts, path: str) -> str:
    """What the user is told where nothing says how many segments a view has; empty where something does."""
    if facts.origins["segments"] != _DEFAULT:
        return ""
    return "note: nothing says how many segments %s has; taken as %d" % (path, facts.protocol.segments)


def table(facts: Facts) -> List[Tuple[str, str, str]]:
    """(what, its value in words, where it is from) for a reader."""
    p, origins = facts.protocol, facts.origins
    tested = sorted({origins[name] for name in ("sampling", "crops", "short_side", "size")})
    return [
        ("network", facts.network, origins["network"]), ("classes", str(p.classes), origins["classes"]),
        ("segments", str(p.segments), origins["segments"]), ("shift_div", str(p.shift_div), origins["shift_div"]),
        ("tested on", test_in_words(p), ", ".join(tested)),
    ]


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
    name = "ResNet-%s" % _RESNETS.get(blocks + (has(r"\.conv3\."),), "like, of %d, %d, %d and %d blocks" % blocks)
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
