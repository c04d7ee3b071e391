"""What a checkpoint is: its network, read from its weights, and how it is to be tested, from whatever says so.

The number of segments, shift_div, the kind of shift and the test leave no trace in the weights. They come from a flag, a config file,
the config that mmaction2 keeps in a checkpoint's meta, the table of published files, the file's name, the frames that a test
pipeline samples, and only then from the default, in this order. What two of them say differently of the network is an error,
unless a config that is given overrides the one in meta; where a name, which people reuse, or what is said of the test differs
from an earlier source, a note says so. Networks that are not taken are refused before anything else is read. Names of weights:
mmaction2 0.24.1, models/backbones (resnet_tsm, mobilenet_v2_tsm, …).
"""

import contextlib
import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from tsm.checkpoint import config as mmaction2_config
from tsm.checkpoint import published, pyconfig
from tsm.cli import UserError
from tsm.files import sha256
from tsm.protocol import FUSIONS, PIPELINES, SSV2, Protocol, misfit

_GUIDE = "TSM ResNet-50"  # the network of the Ascend guide
_TAKEN = re.compile(r"TSM (ResNet-(50|101|152)|ResNet of [-\d]+ bottlenecks|MobileNetV2)")  # networks that this suite takes
_RESNETS: Dict[Tuple[int, ...], str] = {  # by the blocks of the four stages, and whether they are bottlenecks
    (3, 4, 6, 3, True): "50", (3, 4, 23, 3, True): "101", (3, 8, 36, 3, True): "152", (2, 2, 2, 2, False): "18", (3, 4, 6, 3, False): "34"}
_BLOCK = re.compile(r"backbone\.layer([1-4])\.(?:net\.)?(\d+)\.(?:net\.)?(?:block\.)?conv1\.")
_DEFAULT = "default"
_META = "the config in its meta"
_NETWORK = ("network", "classes", "segments", "shift_div", "shift")  # what the sources have to agree on
_FRAMES = ("filename_tmpl", "start_index")  # how extracted frames are called
_TEST = ("sampling", "crops", "size", "short_side", "mean", "std", "average_clips")  # of which the first source counts
_OTHERS = (  # networks of other families, by what their weights are called
    (r"fake_quant\.", "a network with fake quantisation (QAT)"),
    (r"(^|\.)(rpn|roi|bbox|mask|keypoint)_head\.", "a detector"), (r"(^|\.)decode_head\.", "a network that segments images"),
    (r"^backbone\.(slow|fast)_path\.", "SlowFast"),
    (r"(^|[._])(attn|attentions?|self_attn|self_attention|transformer)[._]", "a transformer"),
    (r"\.conv1\.conv\.net2\.", "TIN"), (r"\.tam\.", "TANet"), (r"(^|\.)consensus\.", "TRN"),
    (r"\.(st_)?gcn(_networks|s)?\.", "a network on skeletons (ST-GCN or the like)"),
    (r"^cls_head\.(activity|completeness)_fc\.", "SSN"), (r"^neck\.", "a network with a neck (TPN or the like)"),
)
_IMAGES = r"^(backbone\.)?(layer\d\.\d+\.conv\d\.weight|(features|blocks|stages)\.\d)"  # likewise, of single images
_ONLINE: Dict[str, Any] = dict(PIPELINES["centre"], segments=8, shift="past1", shift_div=8, short_side=256, mean=SSV2.mean, std=SSV2.std)
_PUBLISHED = "the table of published files"
_Source = Tuple[str, Dict[str, Any]]  # (what says something, {fact: what it says})


class Facts(NamedTuple):
    """What a checkpoint is, and how it is tested."""

    network: str  # in words: TSM ResNet-50, TSM ResNet-101, TSN ResNet-50, SlowFast, …
    protocol: Protocol
    average_clips: str  # prob, score, or empty where nothing says
    frames: Dict[str, Any]  # filename_tmpl and start_index of extracted frames, where a config gives them
    origins: Dict[str, str]  # {fact: what said so}
    conflicts: List[str]  # what other sources say differently, in words
    notes: List[str]  # what the user is to know of all that


def facts_of(
    path: str, state: Mapping[str, Any], meta: Mapping[str, Any], config: str = "", segments: Optional[int] = None, shift: str = "",
) -> Facts:
    """What the checkpoint at `path` is.

    Args:
        state, meta: as tsm.checkpoint.reader.load() gives them; of `state` only the shapes are looked at.
        config: path of an mmaction2 config, or empty.
        segments, shift: frames of a view, and the kind of shift, where the user says so.
    Raises: UserError, saying what the file is, where this suite does not take its network; where a config is missing or not
        understood, a number of segments is out of bounds, or nothing says how many a file of MIT's has.
    """
    weights = weights_say(state)
    _check_taken(path, weights, meta, config)
    _check_online(path, weights, meta, shift)
    notes: List[str] = []
    said = _said(path, meta, config, {"segments": segments, "shift": shift or None}, weights["network"], notes)
    sources = [("its weights", weights)] + said + [(_DEFAULT, dict(SSV2._asdict(), average_clips=""))]
    chosen: Dict[str, Any] = {}
    origins: Dict[str, str] = {}
    conflicts: List[str] = []
    for fact in ("network", "average_clips") + Protocol._fields + _FRAMES:
        for where, facts in sources[::-1]:  # the first one counts
            if fact in facts:
                origins[fact], chosen[fact] = where, facts[fact]
    for where, facts in sources[:-1]:
        _compare(where, facts, chosen, origins, where == _META and bool(config), conflicts, notes)
    if origins["segments"] == _DEFAULT:
        if meta.get("naming") == "MIT":
            raise UserError("%s: is %s, and nothing says of how many segments; pass --segments N, as it was trained with"
                            % (path, chosen["network"]))
        notes.append("note: nothing says how many segments %s has; taken as %d; --segments N says otherwise"
                     % (path, chosen["segments"]))
    if origins["shift"] == origins["shift_div"] == _DEFAULT:
        notes.append("note: what the weights do not tell: the kind of shift; taken as %s, mmaction2's; --shift says otherwise, "
                     "and TSM_compare.py --suspects WORK_DIR asks labelled clips" % chosen["shift"])
    if isinstance(meta.get("about"), str):
        notes.append("note: %s says of itself: %s" % (path, meta["about"]))
    notes += _of_labels(path, bool(meta.get("naming")), chosen["classes"])
    protocol = Protocol(*(chosen[name] for name in Protocol._fields))
    frames = {fact: chosen[fact] for fact in _FRAMES if fact in chosen}
    return Facts(chosen["network"], protocol, chosen["average_clips"], frames, origins, conflicts, notes)


def _of_labels(path: str, mits: bool, classes: int) -> List[str]:
    """The note of what the classes of a file of MIT's naming are, where they are others than the data set's own labels file says."""
    name = os.sep.join(os.path.abspath(path).split(os.sep)[-2:]).lower()
    version = re.search(r"something(?:-?something)?(?:[-_]?v?(\d))?|sthv(\d)|jester", name)
    number = (version.group(1) or version.group(2) or "1") if version else ""
    if mits and (classes == 27 or classes == 174 and number == "1"):
        return ["note: %s is named as MIT's code does, which numbers the classes of %s by the alphabet, not as the data set's labels file; "
                "if all answers are wrong, sort the labels" % (path, "Jester" if classes == 27 else "Something-Something V1")]
    if mits and classes == 397:
        return ["note: %s has 397 classes, as EPIC-Kitchens-100's 97 verbs and 300 nouns in one classifier; top-1 over all of them is of "
                "no meaning there" % path]
    return []


def _compare(
    where: str, facts: Mapping[str, Any], chosen: Mapping[str, Any], origins: Mapping[str, str], overridden: bool,
    conflicts: List[str], notes: List[str]
) -> None:
    """Add what a source says otherwise than the one that counts: of the network it is a conflict, unless it is overridden, of the test
    a note; and of a config that samples or averages another number of frames than its network has segments."""
    other = [fact for fact in _NETWORK + _TEST if facts.get(fact, chosen[fact]) != chosen[fact]]
    if facts.get("shift") == "bi" and str(chosen["shift"]).startswith("bi-"):  # which weights of bi may be run as
        other.remove("shift")
    against = [fact for fact in other if fact in _NETWORK and not overridden]
    conflicts += ["%s says %s" % (where, _words(fact, facts[fact])) for fact in against]
    passed = [fact for fact in other if fact not in against]
    if passed:
        notes.append("note: %s, but %s says %s; the former counts" % (
            ", ".join("%s by %s" % (_words(fact, chosen[fact]), origins[fact]) for fact in passed), where,
            ", ".join(_words(fact, facts[fact]) for fact in passed)))
    wanted = facts.get("segments", chosen["segments"])
    sampled, averaged = facts.get("sampled", wanted), facts.get("head_segments", wanted)
    if averaged != wanted and not overridden:
        conflicts.append("%s averages %s of %s segments" % (where, averaged, wanted))
    if sampled != wanted and not overridden:
        words = "%s samples %s frames for %s segments" % (where, sampled, wanted)
        if origins["segments"] == "--segments":
            notes.append("note: %s; by --segments it is tested on %s, so a published accuracy may be of another test"
                         % (words, chosen["segments"]))
        else:
            conflicts.append("%s (--segments %s tests it on %s)" % (words, wanted, wanted))


def _check_taken(path: str, weights: Mapping[str, Any], meta: Mapping[str, Any], config: str) -> None:
    """Raise UserError, saying what the checkpoint at `path` is by its weights and by its configs, where this suite does not take it."""
    if _TAKEN.fullmatch(weights["network"]):
        return
    words = weights["network"] + (" of %d classes" % weights["classes"] if "classes" in weights else "")
    for where, read in ((config, pyconfig.read), (_META, lambda where: pyconfig.parse(_kept_text(meta), where))):
        with contextlib.suppress(UserError):  # a config that is missing or broken says nothing of the network
            named = mmaction2_config.network_in(read(where), where)
            words += "; %s says %s" % (where, named) if named not in (None, weights["network"]) else ""
    raise UserError("%s: is %s; this suite takes TSM on ResNets of bottlenecks (ResNet-50, -101, -152, …) and on MobileNetV2"
                    % (path, words))


def _check_online(path: str, weights: Mapping[str, Any], meta: Mapping[str, Any], shift: str) -> None:
    """Raise UserError where nothing tells a file of the names of MIT's online demo from one of single images."""
    named = "jester_online" in os.path.basename(path) and weights.get("classes") == 27
    if meta.get("naming") == "MIT online" and not named and shift != _ONLINE["shift"]:
        raise UserError("%s: could be TSM's online file or an image network, their weights have the same names; pass --shift past1 if "
                        "it is TSM's" % path)


def _said(
    path: str, meta: Mapping[str, Any], config: str, flags: Mapping[str, Any], network: str, notes: List[str]
) -> List[_Source]:
    """All sources but the weights of `network`, the one that decides first; what the user is to know of them goes to `notes`."""
    said: List[_Source] = [("--" + fact, {fact: value}) for fact, value in flags.items() if value is not None]
    if config:
        read = mmaction2_config.facts(pyconfig.read(config), config, network)
        if not read:
            raise UserError("%s: says nothing of a network or its test; pass the config that it was trained with" % config)
        said.append((config, read))
    said.append((_META, _kept_config(meta, "%s: %s" % (path, _META), bool(config), network, notes)))
    said.append(("its meta", {"shift": meta["shift"]} if "shift" in meta else {}))
    if meta.get("passed"):
        notes.append("note: %s holds another network too (%s), which is passed over" % (path, meta["passed"]))
    notes += ["note: %s has no test; %s is followed" % (where, facts["validated"]) for where, facts in said if "validated" in facts]
    row = _row_of(path, notes)
    if row:
        said.append((_PUBLISHED, published.row_facts(row)))
    if meta.get("naming") == "MIT online":
        said.append(("MIT's online demo", _ONLINE))
    return said + _of_segments(path, said, meta.get("naming") == "MIT", notes)


def _of_segments(path: str, said: List[_Source], mits: bool, notes: List[str]) -> List[_Source]:
    """What tells the segments where `said` does not: the file's name, or that of its folder, as MIT's code calls it, then a test
    pipeline. A name that says otherwise is a note."""
    known = [(where, facts["segments"]) for where, facts in said if "segments" in facts]
    folder, name = os.path.split(os.path.abspath(path))
    found = re.search(r"(?:_segment|1x1x)(\d+)(?!\d)", name) or mits and re.match(r"TSM_.*_segment(\d+)(?!\d)", os.path.basename(folder))
    named = int(found.group(1)) if found else 0
    if known and named not in (0, known[0][1]):
        notes.append("note: the name of %s says %d segments, but %s says %d; the latter counts" % (path, named, *known[0]))
    sampled = [("the frames that %s samples" % where, {"segments": facts["sampled"]}) for where, facts in said if "sampled" in facts]
    return [] if known else [("its file's name", {"segments": named})] if named else sampled[:1]


def _row_of(path: str, notes: List[str]) -> Optional[published.Row]:
    """The row of the published file whose digest is in the name of the file at `path`, if it is that file, else a note."""
    digest = published.digest_in(os.path.basename(path))
    row = published.by_sha256(digest) if digest else None
    if row is None or not os.path.isfile(path):
        return None
    actual = sha256(path)
    if published.by_sha256(actual) == row:
        return row
    notes.append("note: %s is not the published %s: its SHA-256 begins with %s" % (path, row.file, actual[: len(row.digest)]))
    return None


def check_supported(facts: Facts, path: str) -> None:
    """Raise UserError, saying what the checkpoint at `path` is, where its sources disagree or give what no test has."""
    p, origins = facts.protocol, facts.origins
    if facts.conflicts:
        said = "".join(", %s by %s" % (_words(name, getattr(p, name)), origins[name]) for name in _NETWORK[1:] if origins[name] != _DEFAULT)
        raise UserError("%s: is %s%s, but %s; leave out what is wrong, or pass the config that it was trained with"
                        % (path, facts.network, said, "; ".join(facts.conflicts)))
    for name, value in p._asdict().items():
        if misfit(name, value):
            raise UserError("%s: %s by %s is %s" % (path, name, origins[name], misfit(name, value)))
    if p.size > p.short_side:
        raise UserError("%s: is tested on crops of %d pixels (%s), more than the short side of %d that frames are resized to (%s)"
                        % (path, p.size, origins["size"], p.short_side, origins["short_side"]))


def fusion_of(facts: Facts) -> Tuple[str, str]:
    """(how the views are fused unless the user says otherwise, why)."""
    if facts.protocol == SSV2 and facts.network == _GUIDE:
        return FUSIONS[0], "the Ascend guide"
    return (facts.average_clips, facts.origins["average_clips"]) if facts.average_clips else (FUSIONS[1], "mmaction2's default")


def table(facts: Facts) -> List[Tuple[str, str, str]]:
    """(what, its value in words, where it is from) for a reader."""
    p = facts.protocol

    def by(*names: str) -> str:
        return ", ".join(sorted({facts.origins[name] for name in names}))

    found = [("network", facts.network, by("network"))] + [(name, str(getattr(p, name)), by(name)) for name in _NETWORK[1:]]
    found += [
        ("tested on", test_in_words(p), by("sampling", "crops", "short_side", "size")),
        ("normalised", "mean %s, std %s" % tuple(" ".join(map("{:g}".format, of)) for of in (p.mean, p.std)), by("mean", "std")),
        ("fusion",) + fusion_of(facts),
    ]
    return found + ([("frames named by", ", ".join(facts.frames), by(*facts.frames))] if facts.frames else [])


def test_in_words(protocol: Protocol) -> str:
    """As in `sampling twice, crops three of 256 pixels, short side 256`."""
    words = "sampling %s, crops %s of %d pixels, short side %d"
    return words % (protocol.sampling, protocol.crops, protocol.size, protocol.short_side)


def weights_say(state: Mapping[str, Any]) -> Dict[str, Any]:
    """network, width (channels of the stem, 64 in ResNet-50) and classes, as far as the weights tell; `state` is by mmaction2's names."""
    said: Dict[str, Any] = {"network": _network(state)}
    stem, classifier = state.get("backbone.conv1.conv.weight"), state.get("cls_head.fc_cls.weight", state.get("classifier.weight"))
    if stem is not None and len(stem.shape):
        said["width"] = int(stem.shape[0])
    if classifier is not None and len(classifier.shape):
        said["classes"] = int(classifier.shape[0])
    return said


def _network(state: Mapping[str, Any]) -> str:
    def has(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state)

    stem = state.get("backbone.conv1.conv.weight")
    shifted = "TSM " if has(r"\.net\.") else ""
    for pattern, words in _OTHERS:
        if has(pattern):
            return words
    if has(r"^backbone\.stage\d+\.") and has("branch_conv_list|reparam_conv"):
        return shifted + "MobileOne"
    if has(r"^backbone\.features\.\d+\.conv\.|^backbone\.layer\d\.\d+\.conv\.\d"):
        return shifted + "MobileNetV2"
    if any(len(value.shape) == 5 and ".non_local_block." not in key for key, value in state.items()):
        return "a network of 3-dimensional convolutions (I3D, SlowOnly or the like)"
    if stem is None or len(stem.shape) != 4 or not any(_BLOCK.match(key) for key in state):
        if stem is None and has(_IMAGES):
            return "a network of single images, as torchvision's or timm's"
        return "no network that this suite knows (its first weight is %s)" % next(iter(state))[:80]
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


def _kept_text(meta: Mapping[str, Any]) -> str:
    """The text of the config in a checkpoint's meta, by mmaction2's names of it, 0.x's and 1.x's; empty where there is none."""
    text = meta.get("config") or meta.get("cfg")
    return text if isinstance(text, str) else ""


def _kept_config(meta: Mapping[str, Any], where: str, overridden: bool, network: str, notes: List[str]) -> Dict[str, Any]:
    """The facts of the config whose text a checkpoint's meta holds; none, and a note, of one that is broken.

    Raises: UserError where that config asks for what this suite does not do, unless it is overridden.
    """
    try:
        return mmaction2_config.facts(pyconfig.parse(_kept_text(meta), where), where, network)
    except UserError as error:
        if isinstance(error, pyconfig.Unsupported) and not overridden:
            raise UserError("%s; or pass a config of yours, which overrides it" % error)
        notes.append("note: %s; nothing is taken from that config" % error)
        return {}


def _words(fact: str, value: Any) -> str:
    forms = {"network": "%s", "classes": "%s classes", "segments": "%s segments", "crops": "%s crops", "sampling": "%s sampling"}
    return forms.get(fact, fact + " %s") % (value,)
