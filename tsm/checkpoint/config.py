"""Facts from an mmaction2 config: the network, and how it is to be tested.

What is read is held against tables of the options that this suite knows; an option that is not in them, or has another value,
could change the answers and is refused by its name. Sources: mmaction2 0.24.1 and 1.2.0, configs/recognition/tsm,
models/backbones, models/heads, datasets/pipelines and datasets/transforms.
"""

import argparse
import re
from typing import Any, Dict, List, Optional, Tuple

from tsm.checkpoint.pyconfig import Unsupported, get, refuse_code, sequence
from tsm.cli import UserError, printable
from tsm.protocol import frame_template, misfit, shown

_SILENT = 8  # num_segments and shift_div of ResNetTSM, MobileNetV2TSM and TSMHead where a config gives none
_ANY = object()
_CROPS = {"CenterCrop": "centre", "ThreeCrop": "three", "TenCrop": "ten"}
_FREE: Dict[str, Any] = {"**": _ANY}
_STEPS: Dict[str, Dict[str, Any]] = {  # of a test pipeline, and what each takes: see _fits()
    "SampleFrames": dict(clip_len=(1,), frame_interval=(1,), num_clips=_ANY, twice_sample=_ANY, test_mode=(True,),
                         temporal_jitter=(False,), out_of_bound_opt=("loop",), keep_tail_frames=(False,), frame_uniform=(False,),
                         target_fps=(None,), start_index=_ANY),
    "DenseSampleFrames": dict(clip_len=(1,), frame_interval=(1,), num_clips=_ANY, sample_range=(64,), num_sample_positions=(10,),
                              test_mode=(True,), temporal_jitter=(False,), out_of_bound_opt=("loop",), start_index=_ANY),
    "Resize": dict(scale=_ANY, keep_ratio=(True,), interpolation=("bilinear",), lazy=(False,)),
    "Flip": dict(flip_ratio=(0,), direction=_ANY, flip_label_map=_ANY, lazy=(False,)),
    "Normalize": dict(mean=_ANY, std=_ANY, to_bgr=(False,), adjust_magnitude=(False,)),
    "FormatShape": dict(input_format=("NCHW",), collapse=(False,)),
    **{name: dict(crop_size=_ANY, lazy=(False,)) for name in _CROPS},
    "DecordDecode": dict(mode=("accurate",)), "PyAVDecode": dict(mode=("accurate",), multi_thread=_ANY), "OpenCVDecode": {},
    "RawFrameDecode": dict(_FREE, decoding_backend=("cv2", "turbojpeg", "pillow")),
    **dict.fromkeys(("DecordInit", "OpenCVInit", "PyAVInit", "Collect", "ToTensor", "PackActionInputs"), _FREE),
}
_LEFT_OUT = {name: value + " (as it is left out)" for name, value in (  # what mmaction2 takes, which is none of those above
    ("clip_len", "None"), ("test_mode", "False"), ("flip_ratio", "0.5"), ("input_format", "None"))}
_BACKBONE: Dict[str, Any] = dict(  # what both backbones take; _ANY also where the weights or the network's name tell
    dict.fromkeys(("type", "_scope_", "pretrained", "frozen_stages", "norm_eval", "with_cp", "init_cfg", "num_segments", "shift_div",
                   "shift", "is_shift"), _ANY),
    conv_cfg=(None, dict(type=("Conv", "Conv2d", None))),
    norm_cfg=(dict(type=("BN", "BN2d", "SyncBN", "MMSyncBN"), requires_grad=_ANY, momentum=_ANY, eps=(1e-5,), affine=(True,),
                   track_running_stats=(True,)),),
)
_BACKBONES: Dict[Any, Dict[str, Any]] = {
    "ResNetTSM": dict(
        _BACKBONE,
        **dict.fromkeys(("depth", "torchvision_pretrain", "pretrained2d", "partial_bn", "zero_init_residual", "non_local",
                         "non_local_cfg", "temporal_pool"), _ANY),
        in_channels=(3,), num_stages=(4,), out_indices=((3,),), strides=((1, 2, 2, 2),), dilations=((1, 1, 1, 1),), style=("pytorch",),
        act_cfg=(dict(type=("ReLU",), inplace=_ANY),), shift_place=("blockres", "block")),
    "MobileNetV2TSM": dict(_BACKBONE, widen_factor=_ANY, out_indices=((7,),), act_cfg=(dict(type=("ReLU6",), inplace=_ANY),)),
}
_BACKBONES[None] = dict(_BACKBONES["ResNetTSM"], widen_factor=_ANY)  # of a config that leaves it to another what its backbone is
_OPTIONS: Dict[Tuple[str, ...], Dict[str, Any]] = {
    ("model", "cls_head"): dict(
        dict.fromkeys(("_scope_", "num_classes", "in_channels", "num_segments", "loss_cls", "dropout_ratio", "init_std", "init_cfg",
                       "is_shift", "multi_class", "label_smooth_eps", "topk", "average_clips", "temporal_pool"), _ANY),
        type=("TSMHead",), spatial_type=("avg",), consensus=(dict(type=("AvgConsensus",), dim=(1,)),)),
    ("model", "data_preprocessor"): dict(
        _FREE, to_rgb=(False, None), to_float32=(True,), format_shape=("NCHW",)),
}
_OWN = re.compile("TSM (ResNet|MobileNetV2)")  # what network_in() says of the backbones in _BACKBONES
_SHELLS = (None, "Recognizer2D")  # types of a model that do not say what its network is
_RANKS = {  # of the steps that have an order
    "SampleFrames": 0, "DenseSampleFrames": 0, "Resize": 1, **dict.fromkeys(_CROPS, 2), "Normalize": 3, "FormatShape": 4}


def facts(config: Dict[str, Any], where: str, network: str = "") -> Dict[str, Any]:
    """What a config says of a network and its test; facts that it is silent about are left out.

    Args:
        network: what the weights are of, where that is known; of a config of another network nothing else is read.
    Returns: network (in words, as identify.py names it), classes, segments, head_segments (those that the head averages),
        shift_div, shift, average_clips; of the test: sampling, sampled (frames of a sample), crops, short_side, size, mean, std,
        filename_tmpl, start_index; validated, what is tested instead in words, where a config has no test but trains.
    Raises: UserError that names `where` and the value that is none; Unsupported for code in place of a value, an option or a step
        of the test pipeline that is not known.
    """
    found: Dict[str, Any] = {"network": network_in(config, where)}
    if found["network"] and (not _OWN.match(found["network"]) or network not in ("", found["network"])):
        return {"network": found["network"]}
    kind = _type_at(config, "model", "backbone")
    _check_options(get(config, "model", "backbone"), _BACKBONES[kind], where, "model.backbone")
    for place, known in _OPTIONS.items():
        _check_options(get(config, *place), known, where, ".".join(place))
    silent = _SILENT if kind else None
    head = silent if isinstance(get(config, "model", "cls_head"), dict) else None
    found["classes"] = _number("classes", config, where, "model", "cls_head", "num_classes")
    found["head_segments"] = _number("segments", config, where, "model", "cls_head", "num_segments") or head
    own = _number("segments", config, where, "model", "backbone", "num_segments")
    found["segments"] = own or silent or found["head_segments"]
    found["shift_div"] = _number("shift_div", config, where, "model", "backbone", "shift_div") or silent
    found["shift"] = get(config, "model", "backbone", "shift")  # no option of mmaction2's, whose shift is bi: for networks of one's own
    places = ("model", "cls_head"), ("model", "test_cfg"), ("test_cfg",)
    said = [get(config, *place, "average_clips") for place in places]
    found["average_clips"] = next((value for value in said if value is not None), None)
    _check_options(dict(average_clips=found["average_clips"]), dict(average_clips=(None, "prob", "score")), where, "its test")
    found.update(_test(config, where))
    return {name: value for name, value in found.items() if value is not None}


def network_in(config: Dict[str, Any], where: str) -> Optional[str]:
    """The network that a config says, in words; None where it says none."""
    kind = _type_at(config, "model", "backbone")
    whole, head, neck = (_type_at(config, "model", *part) for part in ((), ("cls_head",), ("neck",)))
    if kind is None:
        return None if whole in _SHELLS or get(config, "model", "backbone") else "%s of mmaction2" % shown(whole)
    if kind not in ("ResNet", "ResNetTSM", "MobileNetV2TSM"):
        return "%s of mmaction2" % shown(kind)
    names = ("is_shift", "non_local", "non_local_cfg", "temporal_pool", "shift_place")
    is_shift, non_local, non_local_cfg, temporal_pool, place = (get(config, "model", "backbone", name) for name in names)
    shifted = kind != "ResNet" and is_shift is not False
    extras = [" with non-local blocks"] if non_local_cfg and _any(non_local) else []
    extras += [" with temporal pooling"] if temporal_pool or get(config, "model", "cls_head", "temporal_pool") else []
    extras += [" with whole blocks shifted"] if shifted and place == "block" else []
    extras += [" with a neck (%s)" % shown(neck)] if neck is not None else []
    if kind == "MobileNetV2TSM":
        return "%sMobileNetV2%s" % ("TSM " if shifted else "", "".join(extras))
    if head == "TRNHead":
        return "TRN"
    depth = _number("depth", config, where, "model", "backbone", "depth")
    return "%s ResNet-%s%s" % ("TSM" if shifted else "TSN", depth or 50, "".join(extras))


def _any(value: Any) -> bool:
    """Is any number in a list, or in lists in it, not 0?"""
    return any(any(sequence(item)) if sequence(item) else item for item in sequence(value))


def _kind(value: Any) -> Any:
    """The name of a type without the scope and the modules before it, as mmengine's registry and its dumps of lazy configs write
    them: mmaction.models.backbones.resnet_tsm.ResNetTSM is ResNetTSM."""
    scoped = isinstance(value, str) and re.match(r"(?:mmaction2?|mmcv|mmengine)\.(?:\w+\.)*(\w+)$", value)
    return scoped.group(1) if scoped else value


def _type_at(config: Any, *keys: str) -> Any:
    """The type at model.backbone and the like; None where there is none."""
    kind = _kind(get(config, *(keys + ("type",))))
    return kind if kind is None or isinstance(kind, str) else shown(kind)


def _fits(value: Any, name: str, known: Dict[str, Any]) -> bool:
    """Is a value one of those that a table has for the option `name`? `**` stands for the names that it does not hold;
    lists are as tuples; a table among the values stands for the dicts that fit it."""
    wanted = known.get(name, known.get("**", ()))
    if wanted is _ANY:
        return True
    refuse_code(value)
    value = tuple(value) if isinstance(value, list) else _kind(value)
    return any(isinstance(value, dict) and all(_fits(item, key, one) for key, item in value.items())
               if isinstance(one, dict) else value == one for one in wanted)


def _check_options(options: Any, known: Dict[str, Any], where: str, what: str) -> None:
    """Raise Unsupported for the first of the options that does not fit."""
    for name, value in options.items() if isinstance(options, dict) else ():
        if not _fits(value, name, known):
            raise Unsupported("%s: %s has %s = %s, which this suite does not know" % (where, what, shown(name), shown(value)))


def _tested(config: Dict[str, Any]) -> Tuple[Optional[str], List[Dict[str, Any]], Any]:
    """(what stands for the test in a config that trains and has none, the test's datasets, its `test_pipeline`)."""
    for phase, validated in (("test", None), ("val", "its validation")):
        datasets, pipeline = _datasets(config, phase), get(config, phase + "_pipeline")
        if datasets or pipeline is not None:
            return validated, datasets, pipeline
    data = config.get("data")
    trains = {"train_pipeline", "train_dataloader"} & set(config) or isinstance(data, dict) and "train" in data
    return "Something-Something V2's test" if trains else None, [], None


def _datasets(config: Dict[str, Any], phase: str) -> List[Dict[str, Any]]:
    """The dataset of a phase and all dicts in it, as wrappers and lists of datasets hold them; empty where there is none."""
    loaders = get(config, phase + "_dataloader")
    waiting = [get(config, "data", phase)]
    waiting += [get(loader, "dataset") for loader in sequence(loaders) or [loaders]]
    found: List[Dict[str, Any]] = []
    seen = set()
    for given in waiting:  # which grows
        if id(given) in seen:
            continue
        seen.add(id(given))
        waiting += sequence(given)
        if isinstance(given, dict):
            found.append(given)
            for name in ("dataset", "datasets"):
                refuse_code(given.get(name))
            waiting += [value for name, value in given.items() if name != "pipeline"]
    return found


def _frames(datasets: List[Dict[str, Any]], where: str) -> Dict[str, Any]:
    """filename_tmpl and start_index of a test's datasets, where they are given.

    Raises: Unsupported where they are not of colours, or differ; UserError where they are none.
    """
    found: Dict[str, Any] = {}
    for dataset in datasets:
        _check_options(dataset, dict(_FREE, modality=(None, "RGB")), where, "its test dataset")
        for name in ("filename_tmpl", "start_index"):
            value = get(dataset, name)
            if value is not None and found.setdefault(name, _checked(value, name, where, name)) != value:
                raise Unsupported("%s: its test datasets have %s = %s and %s; this suite takes one"
                                  % (where, name, shown(found[name]), shown(value)))
    return found


def _checked(value: Any, name: str, where: str, what: str) -> Any:
    """A value, which is at `what`; UserError where it is not of the kind that is called `name`."""
    wrong = _no_template(value) if name == "filename_tmpl" else misfit(name, value)
    if wrong:
        raise UserError("%s: %s = %s" % (where, what, wrong))
    return value


def _no_template(value: Any) -> str:
    """What is wrong with a filename_tmpl; empty where nothing is."""
    try:
        frame_template(value if isinstance(value, str) and printable(value) == value else "")
        return ""
    except argparse.ArgumentTypeError:
        return "%s; a file name with one number in it is needed, as img_{:05}.jpg" % shown(value)


def _test(config: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What the test shows the network: by the pipeline of its dataset, else by the one that stands alone, and by what normalises
    beside it; how its frames are called; `validated`."""
    validated, datasets, alone = _tested(config)
    found = dict(_frames(datasets, where), validated=validated)
    pipelines = {id(dataset["pipeline"]): dataset["pipeline"] for dataset in datasets if dataset.get("pipeline") is not None}
    if not pipelines and alone is None and datasets:
        raise Unsupported("%s: its test dataset (%s) has no pipeline that this suite finds; write pipeline=[…] in it"
                          % (where, shown(datasets[0].get("type"))))
    read = [_pipeline(steps, where) for steps in pipelines.values() or ([] if alone is None else [alone])]
    if any(one != read[0] for one in read):
        raise Unsupported("%s: its test datasets have different pipelines; this suite takes one" % where)
    found.update(read[0] if read else {})
    for place in (("model", "data_preprocessor"), ("module_hooks",)):
        given = get(config, *place)
        for item in given if isinstance(given, list) else [given]:
            _check_options(item, dict(_FREE, to_rgb=(False, None)), where, ".".join(place))
            if isinstance(item, dict) and item.get("mean") is not None and item.get("std") is not None:
                if "mean" in found:
                    raise Unsupported("%s: normalises twice, in its test pipeline and by %s; this suite does it once"
                                      % (where, ".".join(place)))
                found.update(_colours(item, where))
    return found


def _pipeline(steps: Any, where: str) -> Dict[str, Any]:
    """What a test pipeline decides."""
    found: Dict[str, Any] = {}
    refuse_code(steps)
    if not isinstance(steps, (list, tuple)):
        raise UserError("%s: its test pipeline is %s; a list of steps is needed" % (where, shown(steps)))
    kinds: List[str] = []
    for step in steps:
        found.update(_step(step, found, where))
        kinds += {_kind(step["type"])}.intersection(_RANKS)
    ranks = [_RANKS[kind] for kind in kinds]
    if ranks != sorted(ranks) or not {0, 1, 2} <= set(ranks):
        raise Unsupported("%s: its test pipeline has the steps %s; SampleFrames or DenseSampleFrames, Resize, and CenterCrop, "
                          "ThreeCrop or TenCrop are needed, in this order" % (where, ", ".join(kinds)))
    return found


def _step(step: Any, before: Dict[str, Any], where: str) -> Dict[str, Any]:
    """What one step of a test pipeline decides."""
    kind = _kind(get(step, "type"))
    if not isinstance(step, dict):
        raise UserError("%s: its test pipeline has the step %s, which is no dict(type=…)" % (where, shown(step)))
    if not isinstance(kind, str) or kind not in _STEPS:
        raise Unsupported("%s: its test pipeline has the step %s, which this suite does not know" % (where, shown(kind)))
    known, what = dict(_STEPS[kind], type=_ANY), "the step %s of its test pipeline" % kind
    _check_options({**{name: value for name, value in _LEFT_OUT.items() if name in known}, **step}, known, where, what)
    decides = _decided(kind, step, where)
    for name, value in decides.items():
        wrong = misfit("segments" if name == "sampled" else name, value)
        if wrong or name in before:
            raise Unsupported("%s: %s (%s) is not understood%s" % (where, what, shown(step), wrong and ": " + wrong))
    return decides


def _decided(kind: str, step: Dict[str, Any], where: str) -> Dict[str, Any]:
    """The facts that a step of a known kind gives; None for one that is not understood."""
    if kind in ("SampleFrames", "DenseSampleFrames"):
        sampling = "dense" if kind == "DenseSampleFrames" else "twice" if get(step, "twice_sample") else "uniform"
        return {"sampled": get(dict({"num_clips": 1}, **step), "num_clips"), "sampling": sampling}
    if kind == "Resize":
        sides = [side for side in sequence(get(step, "scale")) if side != -1]
        return {"short_side": sides[0] if len(sides) == 1 else None}
    if kind in _CROPS:
        size = get(step, "crop_size")
        sides = list(sequence(size)) or [size]
        return {"crops": _CROPS[kind], "size": sides[0] if sides.count(sides[0]) == len(sides) else None}
    return _colours(step, where) if kind == "Normalize" else {}


def _colours(given: Dict[str, Any], where: str) -> Dict[str, Tuple[float, ...]]:
    """The mean and the std of what normalises."""
    return {name: tuple(map(float, _checked(get(given, name), name, where, name))) for name in ("mean", "std")}


def _number(name: str, config: Any, where: str, *keys: str) -> Optional[int]:
    """The value at model.backbone.depth and the like, within the bounds of `name`; None where there is none."""
    value = get(config, *keys)
    return value if value is None else _checked(value, name, where, ".".join(keys))
