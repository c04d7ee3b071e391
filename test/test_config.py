"""Facts from mmaction2 configs: what is understood, what is refused and how, and that nothing in a config runs."""

import time

import pytest

from tsm.checkpoint import config, pyconfig
from tsm.cli import UserError
from tsm.protocol import frame_template

MODEL = """model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNetTSM', pretrained='torchvision://resnet50', depth=50, norm_eval=False, shift_div=8),
    cls_head=dict(type='TSMHead', num_classes=400, in_channels=2048, is_shift=True),
    train_cfg=None,
    test_cfg=dict(average_clips='prob'))
"""
PIPELINE = """img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_bgr=False)
clips = 8 * 2
test_pipeline = [
    dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=clips, twice_sample=True, test_mode=True),
    dict(type='RawFrameDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='ThreeCrop', crop_size=256),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='Collect', keys=['imgs', 'label'], meta_keys=[]),
    dict(type='ToTensor', keys=['imgs']),
]
"""


def facts(text):
    return config.facts(pyconfig.parse(text, "a.py"), "a.py")


def refused(text):
    with pytest.raises(UserError) as raised:
        facts(text)
    assert "a.py" in str(raised.value) and "\n" not in str(raised.value)
    return str(raised.value)


def test_a_config_of_0_x_with_its_bases(tmp_path):
    (tmp_path / "_base_").mkdir()
    (tmp_path / "_base_" / "model.py").write_text(MODEL)
    (tmp_path / "_base_" / "runtime.py").write_text("log_level = 'INFO'\n")
    (tmp_path / "a.py").write_text("""import os
from x import y
_base_ = ['_base_/model.py', './_base_/runtime.py']
model = dict(backbone=dict(num_segments=16), cls_head=dict(num_classes=174, num_segments=16))
""" + PIPELINE + """
data = dict(workers=os.cpu_count(), train=y(3), test=dict(type='RawframeDataset', ann_file=os.path.join('a', 'b'),
            filename_tmpl='{:05}.jpg', start_index=0, pipeline=test_pipeline))
hook = lambda x: x
""")
    assert config.facts(pyconfig.read(str(tmp_path / "a.py")), "a.py") == {
        "network": "TSM ResNet-50", "classes": 174, "segments": 16, "head_segments": 16, "shift_div": 8, "average_clips": "prob",
        "sampled": 16, "sampling": "twice", "short_side": 256, "crops": "three", "size": 256, "filename_tmpl": "{:05}.jpg",
        "start_index": 0, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    }


def test_a_config_of_1_x():
    found = facts("""preprocess_cfg = dict(mean=[1, 2., 3], std=[4, 5, 6])
model = dict(backbone=dict(type='ResNetTSM', depth=101), cls_head=dict(type='TSMHead', num_classes=5, average_clips='score'),
             data_preprocessor=dict(type='ActionDataPreprocessor', **preprocess_cfg))
test_pipeline = [dict(type='DecordInit', io_backend='disk'),
                 dict(type='DenseSampleFrames', clip_len=1, frame_interval=1, num_clips=8, test_mode=True),
                 dict(type='DecordDecode'), dict(type='Resize', scale=(-1, 256)), dict(type='TenCrop', crop_size=224),
                 dict(type='FormatShape', input_format='NCHW'), dict(type='PackActionInputs')]
test_dataloader = dict(batch_size=1, dataset=dict(type='VideoDataset', pipeline=test_pipeline, test_mode=True))
""")
    assert found == {"network": "TSM ResNet-101", "classes": 5, "segments": 8, "head_segments": 8, "shift_div": 8, "average_clips": "score",
                     "sampled": 8, "sampling": "dense", "short_side": 256, "crops": "ten", "size": 224, "mean": (1.0, 2.0, 3.0),
                     "std": (4.0, 5.0, 6.0)}


@pytest.mark.parametrize("lines, segments", [
    ("n = 4\nn *= 4\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=n))", 16),
    ("model = dict(backbone=dict(type='ResNetTSM'))\nmodel['backbone']['num_segments'] = 16", 16),
    ("model = dict(backbone=dict(type='ResNetTSM'))\nmodel.backbone.num_segments = 16", 16),
    ("both = dict(num_segments=16)\nmodel = {'backbone': {'type': 'ResNetTSM', **both}}", 16),
    ("both = dict(num_segments=16)\nmodel = dict(backbone=dict(both, type='ResNet' + 'TSM'))", 16),
    ("a, b = 8, 16\nmodel: dict = dict(backbone=dict(type='ResNetTSM', num_segments=[a, b][1]))", 16),
    ("from mmaction.models import ResNetTSM\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=(9 - 1) * 2))", 16),
    ("model = dict(backbone=dict(type='ResNetTSM'))", 8),
    ("x = {}", None), ("'A docstring.'\npass\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=16))", 16),
    ("model = dict(backbone=dict(type='ResNetTSM'))\nmodel.update(dict(backbone=dict(type='ResNetTSM', num_segments=16)))", 16),
    ("model = dict(backbone=dict(type='ResNetTSM'))\nmodel['backbone'].update(num_segments=16)", 16),
    ("/a/b/base.py\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=16))\n/a/c.py\n_base_ = 'base.py'\n"
     "model = dict(backbone=dict(depth=50))", 16),
] + [("model = dict(backbone=dict(type='ResNetTSM', num_segments=%s))" % value, 16) for value in (
    "2 ** 4", "100 % 84", "[*[8], *(16, 4)][1]", "([4] * 3)[2] * 4", "(2 * (16,))[1]", "{'x1': 16}[f'x{1}']", "{'ab': 16}[f'a' + 'b']")])
def test_values_are_worked_out_without_running_them(lines, segments):
    assert facts(lines).get("segments") == segments


def test_items_of_lists_and_dicts_are_set():
    changed = "test_pipeline[3] = dict(type='TenCrop', crop_size=224)\ntest_pipeline[-8]['num_clips'] = 8\ncfg = {}\ncfg['x'] = 1\n"
    found = facts(PIPELINE + changed + "data = dict(test=dict(pipeline=test_pipeline))")
    assert (found["crops"], found["sampled"]) == ("ten", 8)
    assert "a.py, line 14: code that changes test_pipeline" in refused(PIPELINE + "\ntest_pipeline[99] = dict(type='TenCrop')")


@pytest.mark.parametrize("value", ["9 ** 9 ** 9", "10 ** 300", "[0] * 10 ** 9", "'x' * 10 ** 9", "10 ** 9 * (1,)", "(-8) ** 0.5",
                                   "2 ** -1 ** 9"])
def test_values_of_any_size_are_not_made(value):
    started = time.time()
    assert "a.py" in refused("n = %s\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=n))" % value)
    many = "a = [0] * 256\nx = [%s]\n" % ("*a, " * 9000) + "y = [%s]" % ("dict(**{1: 2}), [*a], a + a, " * 5000)
    assert "too many" in refused(many) and time.time() - started < 10


@pytest.mark.parametrize("value", ["get()", "open('canary', 'w')", "int('16')", "[n for n in (16,)][0]", "16 if n else 8", "n",
                                   "os.sep", "(lambda: 16)()", "1 / 0", "1 << 4", "3 @ 4", "f(*a, **b)", "{}['n']", "[1][5]"])
def test_code_in_a_value_that_is_needed_is_refused_with_its_place(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import os\nx = [%s]\nmodel = dict(backbone=dict(type='ResNetTSM',\n    num_segments=%s))\n"
    assert "a.py, line " in refused(text % (value, value)) and "not run" in refused(text % (value, value))
    assert facts(text % (value, 16))["segments"] == 16
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [
    "def model():\n    pass", "import model", "model += x", "model[f()] = 3", "y = f(model)", "y = [model['backbone'].popitem('depth')]",
    "@f(model)\ndef g():\n    pass", "y: dict = f(model)"])
def test_code_that_changes_a_value_that_is_needed_is_refused(change):
    assert "model" in refused("x = {}\nmodel = dict(backbone=dict(type='ResNetTSM', depth=50))\n%s\n" % change)


@pytest.mark.parametrize("change", ["model.update(f())", "model.update(x, y)", "model['backbone'].popitem()", "f(model)",
                                    "model.update([1])", "print(1)",
                                    "if 1:\n    model = 3", "del model", "for model in []:\n    pass", "while f():\n    pass",
                                    "with open('x') as model:\n    pass", "try:\n    f()\nexcept E:\n    pass", "assert f()"])
def test_statements_that_could_change_what_is_read_are_refused_with_their_line(change):
    assert "a.py, line 3: code (" in refused("x = {}\nmodel = dict(backbone=dict(type='ResNetTSM', depth=50))\n%s\n" % change)


def test_delete_replaces_what_the_base_says(tmp_path):
    (tmp_path / "base.py").write_text(MODEL.replace("depth=50", "depth=50, num_segments=16"))
    (tmp_path / "a.py").write_text("_base_ = 'base.py'\nmodel = dict(backbone=dict(_delete_=True, type='ResNetTSM', depth=101))")
    found = config.facts(pyconfig.read(str(tmp_path / "a.py")), "a.py")
    assert (found["network"], found["segments"], found["classes"]) == ("TSM ResNet-101", 8, 400)


def test_bases_of_mmengine(tmp_path):
    """`_base_.name`, mmcv's {{_base_.name}}, and `with read_base()`."""
    (tmp_path / "base.py").write_text(MODEL + "n = 16\n")
    (tmp_path / "a.py").write_text("_base_ = './base.py'\nmodel = dict(backbone=dict(num_segments=_base_.n), cls_head=dict("
                                   "num_segments={{_base_.n}}))\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.py").write_text("from mmengine.config import read_base\nwith read_base():\n    from ..base import *\n"
                                            "model['backbone']['num_segments'] = n\n")
    for path in (tmp_path / "a.py", tmp_path / "deep" / "b.py"):
        assert config.facts(pyconfig.read(str(path)), "x")["segments"] == 16


BASE = """model = dict(type='Recognizer2D', backbone=dict(type='ResNetTSM', depth=50, num_segments=16, shift_div=4),
             cls_head=dict(type='TSMHead', num_classes=400, num_segments=16, average_clips='score'))
steps = [1]
both = dict(model=model, steps=steps)
"""
LAZY = "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"


@pytest.mark.parametrize("text, segments, shift_div, classes", [
    (LAZY + "model.update(dict(backbone=dict(pretrained=None), cls_head=dict(num_classes=2)))", 16, 4, 2),
    (LAZY + "model.update(backbone=dict(shift_div=8), cls_head=dict(num_classes=2))", 16, 8, 2),
    (LAZY + "model['backbone'].update(dict(shift_div=8))", 16, 8, 400),
    (LAZY + "model.cls_head.update(num_classes=2)\nmodel.backbone.shift_div = 8", 16, 8, 2),
    (LAZY + "model.backbone = dict(type='ResNetTSM', shift_div=2)\nmodel.update(dict(backbone=dict(num_segments=16)))", 16, 2, 400),
    (LAZY + "model.merge(dict(cls_head=dict(num_classes=2)))", 16, 4, 2),
    (LAZY + "model.merge(dict(backbone=dict(_delete_=True, type='ResNetTSM'), cls_head=dict(num_classes=2)))", 8, 8, 2),
    (LAZY + "model = dict(model, cls_head=dict(type='TSMHead', num_classes=2, num_segments=16))", 16, 4, 2),
    (LAZY + "model = dict(model)\nmodel.update(dict(backbone=dict(type='ResNetTSM', num_segments=16)))", 16, 8, 400),
    (LAZY + "model = {**model}\nmodel['backbone'].update(dict(type='ResNetTSM', shift_div=8))", 16, 8, 400),
    (LAZY + "own = model.copy()\nown.update(dict(backbone=dict(shift_div=8)))", 16, 8, 400),  # a copy of one level
    (LAZY + "both.model.update(dict(backbone=dict(shift_div=8)))", 16, 4, 400),  # what a base hands on is in one place each
    (LAZY + "new = dict(shift_div=8)\nmodel.update(backbone=new)\nnew.update(shift_div=2)", 16, 8, 400),
    (LAZY + "model.backbone.pop('shift_div')\nmodel.cls_head.pop('nothing')", 16, 8, 400),
    ("model.update(cls_head=dict(num_classes=2))\n" + LAZY, 16, 4, 2),  # bases come first
    (LAZY + "    from .base import model as own\nown.update(cls_head=dict(num_classes=2))", 16, 4, 2),  # the same dict
    ("_base_ = './base.py'\nmodel = _base_.model\nmodel.update(dict(backbone=dict(pretrained=None), cls_head=dict(num_classes=2)))",
     16, 4, 2),
    ("_base_ = './base.py'\n_base_.model.update(dict(cls_head=dict(num_classes=2)))", 16, 4, 2),
    ("_base_ = './base.py'\n_base_.model.backbone.shift_div = 8\nmodel = dict(cls_head=dict(num_classes=2))", 16, 8, 2),
    ("_base_ = './base.py'\nown = dict(backbone=dict(shift_div=8))\nown.update(dict(backbone=dict(num_segments=16)))\nmodel = own",
     16, 4, 400),
])
def test_what_came_from_a_base_merges_at_every_depth(tmp_path, text, segments, shift_div, classes):
    """As mmengine 0.10.7 reads each of these; a dict of the file's own is replaced, as Python does it."""
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "a.py").write_text(text)
    found = config.facts(pyconfig.read(str(tmp_path / "a.py")), "a.py")
    assert (found["segments"], found["shift_div"], found["classes"]) == (segments, shift_div, classes)


def test_three_levels_of_lazy_configs(tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "b.py").write_text(LAZY + "model.update(dict(backbone=dict(shift_div=8)))\nown = dict(backbone=dict(depth=50))\n")
    (tmp_path / "a.py").write_text(LAZY.replace(".base", ".b") + "own.update(dict(backbone=dict(shift_div=2)))\n"
                                   "model.update(dict(backbone=own['backbone']))\n")
    read = pyconfig.read(str(tmp_path / "a.py"))
    assert read["own"] == {"backbone": {"depth": 50, "shift_div": 2}} and read["steps"] == [1]
    assert read["model"]["backbone"] == {"type": "ResNetTSM", "depth": 50, "num_segments": 16, "shift_div": 2}


def test_lists_are_changed_where_they_stand():
    """So a pipeline that a dataset holds already changes with it."""
    found = facts("test_pipeline = [%s]\ndata = dict(test=dict(pipeline=test_pipeline))\ntest_pipeline.pop(0)\n"
                  "test_pipeline.insert(0, %s)\ntest_pipeline += [%s]\ntest_pipeline.append(dict(type='ToTensor'))\n"
                  "own = test_pipeline.copy()\nown.append(dict(type='Unknown'))" % (
                      ", ".join(("dict(type='Unknown')",) + STEPS[1:3]), STEPS[0], STEPS[3]))
    assert (found["sampled"], found["mean"]) == (8, (1, 2, 3))


@pytest.mark.parametrize("text, validated, size", [
    ("data = dict(train=f(), val=dict(pipeline=%s))", "its validation", 224),
    ("train_pipeline = []\nval_pipeline = %s", "its validation", 224),
    ("test_dataloader = None\nval_dataloader = dict(dataset=dict(type='V', pipeline=%s))", "its validation", 224),
    ("data = dict(train=f(), val=dict(), test=dict(pipeline=%s))", None, 224), ("test_pipeline = %s\nval_pipeline = f()", None, 224),
    ("data = dict(train=f())\nx = %s", "Something-Something V2's test", None), ("train_dataloader = f()\nx = %s",
                                                                             "Something-Something V2's test", None),
    ("x = %s", None, None),
])
def test_a_config_that_has_no_test_is_tested_as_it_is_validated(text, validated, size):
    found = facts(text % WHOLE)
    assert (found.get("validated"), found.get("size")) == (validated, size)


def test_missing_and_circular_bases_and_other_languages_are_named(tmp_path):
    for name in ("a.json", "a.yml", "a.YAML"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match="a config in JSON or YAML, which this suite does not read; pass it in Python"):
            pyconfig.read(str(tmp_path / name))
    for text, says in (("_base_ = 'none.py'", "none.py"), ("_base_ = 'a.py'", "includes itself"),
                       ("_base_ = 'mmaction::x.py'", "mmaction::x.py, of an installed package"), ("_base_ = f()", "a call of f"),
                       ("with read_base():\n    from mmaction.x import *", "mmaction/x.py, of an installed package")):
        (tmp_path / "a.py").write_text(text)
        with pytest.raises(UserError, match=says):
            pyconfig.read(str(tmp_path / "a.py"))
    with pytest.raises(UserError, match="nothing.py: no such config"):
        pyconfig.read(str(tmp_path / "nothing.py"))


@pytest.mark.parametrize("text", [
    "model = (", "(" * 1000, "\0", "model = dict(\n" + "[" * 5000, "{" * 200 + "}" * 200, "é = \xff(", " x = 1",
    "x = " + "-" * 3000 + "1", "a = [1]\n" + "a = [a, a]\n" * 100 + "model = dict(backbone=dict(type=a))",
    "a = {}\n" + "a = {'x': a}\n" * 500 + "model = a",
    "a = 9\n" + "a = a * a\n" * 100 + "model = dict(backbone=dict(type='ResNetTSM', depth=a))",
])
def test_nonsense_ends_in_one_line_or_in_nothing(text):
    try:
        assert set(facts(text)) <= {"network"}
    except UserError as error:
        assert "a.py" in str(error) and "\n" not in str(error) and len(str(error)) < 400


STEP = "model = dict(backbone=dict(type='ResNetTSM'))\ntest_pipeline = [dict(type='Collect'), %s]"


@pytest.mark.parametrize("step, says", [
    ("dict(type='UniformSampleFrames', clip_len=8)", "UniformSampleFrames"),
    ("dict(type='RandomResizedCrop')", "RandomResizedCrop"),
    ("dict(type='SampleFrames', clip_len=32, num_clips=8)", "SampleFrames of its test pipeline has clip_len = 32"),
    ("dict(type='SampleFrames', num_clips='8')", "SampleFrames"), ("dict(type='ThreeCrop', crop_size=(256, 224))", "ThreeCrop"),
    ("dict(type='Resize', scale=(340, 256))", "Resize"), ("dict(type='Resize', scale=(-1, 256), keep_ratio=False)", "keep_ratio"),
    ("dict(type='Normalize', mean=[1, 2], std=[1, 2, 3])", "mean"),
    ("dict(type='Normalize', to_bgr=True, mean=[1, 2, 3], std=[1, 2, 3])", "to_bgr"),
    ("dict(type='FormatShape', input_format='NCTHW')", "NCTHW"), ("dict(type='Flip', flip_ratio=0.5)", "flip_ratio"),
    ("dict(type='CenterCrop', crop_size=224), dict(type='ThreeCrop', crop_size=224)", "ThreeCrop"), ("dict(type=[1])", "step"),
    ("{'type': 'OpenCVDecode', 1: 2}", "OpenCVDecode of its test pipeline has 1 = 2"),
    ("step()", "a.py, line 2"), ("dict(type='CenterCrop', crop_size=side())", "a.py, line 2"), ("3", "step 3"),
    ("dict(type='Resize', scale=-1)", "Resize"), ("dict(type='Normalize', mean=m, std=m)", "the name m"),
    ("'ThreeCrop'", "the step ThreeCrop, which is no dict"), ("dict(type='Normalize', mean=[1e999, 2, 3], std=[1, 2, 3])", "mean"),
    ("dict(type='Normalize', mean=[1%s, 2, 3], std=[1, 2, 3])" % ("0" * 400), "mean"),
    ("dict(type='Normalize', mean=[True, 2, 3], std=[1, 2, 3])", "mean"), ("dict(type='Normalize', mean=[1, 2, 3], std=[1, 0, 3])", "std"),
    ("dict(type='Flip')", "Flip of its test pipeline has flip_ratio = 0.5 (as it is left out)"),
    ("dict(type='SampleFrames', clip_len=1, num_clips=8)", "SampleFrames of its test pipeline has test_mode = False (as it is left"),
    ("dict(type='SampleFrames', num_clips=8, test_mode=True)", "SampleFrames of its test pipeline has clip_len = None (as it is left out)"),
    ("dict(type='Resize', scale=(-1, 10 * 100000000))", "Resize"), ("dict(type='TenCrop', crop_size=5000)", "from 1 to 4096"),
])
def test_steps_that_are_not_understood_are_refused_by_name(step, says):
    assert says in refused(STEP % step)


STEPS = ("dict(type='SampleFrames', clip_len=1, num_clips=8, test_mode=True)", "dict(type='Resize', scale=(-1, 256))",
         "dict(type='CenterCrop', crop_size=224)", "dict(type='Normalize', mean=[1, 2, 3], std=[1, 2, 3])")


@pytest.mark.parametrize("order, says", [
    ((1, 2), "Resize, CenterCrop"), ((0, 2), "SampleFrames, CenterCrop"), ((0, 1), "SampleFrames, Resize"), ((), ""),
    ((0, 2, 1), "SampleFrames, CenterCrop, Resize"), ((3, 0, 1, 2), "Normalize, SampleFrames, Resize, CenterCrop"),
    ((0, 3, 1, 2), "SampleFrames, Normalize, Resize, CenterCrop"),
])
def test_a_test_pipeline_that_decides_too_little_or_in_another_order_is_refused(order, says):
    text = "test_pipeline = [%s]"
    assert facts(text % ", ".join(STEPS))["size"] == 224
    said = refused(text % ", ".join(STEPS[place] for place in order))
    assert "its test pipeline has the steps %s; SampleFrames or DenseSampleFrames, Resize, and" % says in said


def test_texts_that_would_take_long_do_not(tmp_path):
    """A line that is nearly a path, bases that double from level to level, dicts in many places."""
    started = time.time()
    assert facts("#" + "a/" * 50000) == {}
    assert "not a config" in refused("a/" * 50000) and "too long" in refused("#" * (1 << 19)) and "too long" in refused("/a.py\n" * 9999)
    tree = "a = {}\n" + "a = dict(x=a, y=a, z=a)\n" * 18
    assert "too many" in refused(tree)
    for number in range(20):
        (tmp_path / ("%d.py" % number)).write_text("_base_ = ['%d.py', './%d.py']" % (number + 1, number + 1))
    (tmp_path / "20.py").write_text("")
    with pytest.raises(UserError, match="too many bases"):
        pyconfig.read(str(tmp_path / "0.py"))
    assert time.time() - started < 20


def test_options_are_those_of_the_tables():
    """What changes the answers but not the weights is refused by its name and value; what counts in training alone is not."""
    model = "model = dict(backbone=dict(type='%s'%s), cls_head=dict(type='TSMHead', num_classes=174%s))"
    for option in ("style='caffe'", "strides=(1, 2, 2, 1)", "dilations=[1, 1, 2, 4]", "num_stages=3", "out_indices=(2, 3)",
                   "in_channels=1", "shift_place='inplace'", "act_cfg=dict(type='GELU')", "act_cfg=None",
                   "conv_cfg=dict(type='ConvWS')", "other=1",
                   "norm_cfg=dict(type='BN', eps=1e-3)", "norm_cfg=dict(type='GN')", "norm_cfg=dict(type='BN', affine=False)"):
        name = option.split("=")[0]
        assert "model.backbone has %s = " % name in refused(model % ("ResNetTSM", ", depth=50, " + option, ""))
        assert name in refused("model = dict(backbone=dict(%s))" % option)
    for option in ("act_cfg=dict(type='ReLU')", "out_indices=(6, )", "style='pytorch'"):
        assert "model.backbone has " in refused(model % ("MobileNetV2TSM", ", " + option, ""))
    for option in ("spatial_type='max'", "consensus=dict(type='Max')", "other=1"):
        assert "model.cls_head has %s = " % option.split("=")[0] in refused(model % ("ResNetTSM", "", ", " + option))
    assert facts(model % ("ResNetTSM", "", ", temporal_pool=True"))["network"] == "TSM ResNet-50 with temporal pooling"
    assert "model.cls_head has type = TSNHead" in refused((model % ("ResNetTSM", "", "")).replace("TSMHead", "TSNHead"))
    assert "format_shape = NCTHW" in refused("model = dict(data_preprocessor=dict(format_shape='NCTHW'))")
    training = ("depth=50, pretrained='x', torchvision_pretrain=True, frozen_stages=2, norm_eval=True, partial_bn=True, with_cp=True, "
                "init_cfg=[f()], style='pytorch', strides=[1, 2, 2, 2], norm_cfg=dict(type='SyncBN', requires_grad=True), "
                "conv_cfg=dict(type='Conv'), non_local=(0, 0, 0, 0), zero_init_residual=True, in_channels=3")
    head = ", dropout_ratio=0.5, init_std=0.01, consensus=dict(type='AvgConsensus', dim=1), spatial_type='avg', loss_cls=f()"
    assert facts(model % ("ResNetTSM", ", " + training, head))["network"] == "TSM ResNet-50"
    mobile = ", widen_factor=1.0, act_cfg=dict(type='ReLU6', inplace=True), pretrained='mmcls://mobilenet_v2'"
    assert facts(model % ("MobileNetV2TSM", mobile, head))["network"] == "TSM MobileNetV2"


def test_segments_that_are_left_out_are_mmaction2_s_default():
    text = "model = dict(backbone=dict(type='ResNetTSM'%s), cls_head=dict(type='TSMHead'%s))"
    for given in ((8, 16), (16, 8), (None, 16), (16, None), (None, 8), (16, 16), (None, None)):
        found = facts(text % tuple("" if number is None else ", num_segments=%d" % number for number in given))
        assert (found["segments"], found["head_segments"]) == tuple(number or 8 for number in given)


@pytest.mark.parametrize("model, network", [
    ("type='BMN', temporal_dim=100", "BMN of mmaction2"), ("type='mmaction.BMN'", "BMN of mmaction2"), ("type='Recognizer2D'", None),
    ("type='Recognizer2D', backbone=dict(type='ResNetTIN', depth=50)", "ResNetTIN of mmaction2"),
    ("backbone=dict(type='ResNet', depth=50), cls_head=dict(type='TRNHead')", "TRN"),
    ("backbone=dict(type='MobileNetV2TSM', is_shift=False)", "MobileNetV2"),
    ("backbone=dict(type='ResNetTSM'), neck=dict(type='TPN')", "TSM ResNet-50 with a neck (TPN)"),
    ("backbone=dict(type='mmaction.models.backbones.resnet_tsm.ResNetTSM', depth=101)", "TSM ResNet-101"),
    ("backbone=dict(type='mmaction.ResNetTSM')", "TSM ResNet-50"),
    ("backbone=dict(type='mmpretrain.ResNet')", "mmpretrain.ResNet of mmaction2"),
    ("backbone=dict(type='ResNetTSM', depth=50)", "TSM ResNet-50"), ("backbone=dict(type='ResNet', depth=101)", "TSN ResNet-101"),
    ("backbone=dict(type='ResNetTSM', depth=50, is_shift=False)", "TSN ResNet-50"),
    ("backbone=dict(type='MobileNetV2TSM')", "TSM MobileNetV2"),
    ("backbone=dict(type='ResNetTSM', depth=50, non_local=((0, 0, 0), (1, 0)), non_local_cfg=dict(mode='gaussian'))",
     "TSM ResNet-50 with non-local blocks"),
    ("backbone=dict(type='ResNetTSM', depth=50, temporal_pool=True)", "TSM ResNet-50 with temporal pooling"),
    ("backbone=dict(type='ResNetTSM', depth=50, shift_place='block')", "TSM ResNet-50 with whole blocks shifted"),
    ("backbone=dict(type='ResNet3dSlowFast', depth=None)", "ResNet3dSlowFast of mmaction2"),
    ("backbone=dict(type='UniFormer', depth=[5, 8])", "UniFormer of mmaction2"),
])
def test_a_network_is_known_before_its_test(model, network):
    """Of another one the pipeline is not looked at."""
    text = "model = dict(%s)\n" % model
    assert config.network_in(pyconfig.parse(text, "a.py"), "a.py") == facts(text).get("network") == network
    if network and not network.startswith("TSM"):
        found = facts(text + "test_pipeline = [dict(type='LoadLocalizationFeature')]")
        assert found.get("network") == network


WHOLE = "[%s]" % ", ".join(("dict(type='mmaction.SampleFrames', clip_len=1, num_clips=8, test_mode=True)",
                            "dict(type='mmcv.transforms.Resize', scale=(-1, 256))",
                            "dict(type='mmaction.datasets.transforms.processing.CenterCrop', crop_size=224)"))


@pytest.mark.parametrize("test", [
    "data = dict(test=dict(pipeline=%s))", "data = dict(test=[dict(type='V', pipeline=%s)])",
    "data = dict(test=dict(type='ConcatDataset', datasets=[dict(pipeline=%s)]))",
    "test_dataloader = dict(batch_size=1, dataset=dict(type='RepeatDataset', times=1, dataset=dict(type='V', pipeline=%s)))",
    "test_dataloader = [dict(dataset=dict(type='Mine', inner=dict(type='V', pipeline=%s)))]",
    "p = %s\ndata = dict(test=dict(type='ConcatDataset', datasets=[dict(pipeline=p), dict(ann_file=f(), pipeline=p)]))",
    "test_pipeline = %s\ndata = dict(test=dict(type='V'))",
])
def test_the_pipeline_is_that_of_the_dataset_however_it_is_wrapped(test):
    other = "test_pipeline = [dict(type='Unknown')]\n"
    assert facts(other + test % WHOLE)["size"] == 224


@pytest.mark.parametrize("step, says", [
    ("dict(type='DecordDecode', mode='efficient')", "DecordDecode of its test pipeline has mode = efficient"),
    ("dict(type='PyAVDecode', mode='efficient')", "mode"),
    ("dict(type='RawFrameDecode', decoding_backend='tifffile')", "decoding_backend"),
    ("dict(type='OpenCVDecode', other=1)", "other = 1"), ("dict(type='DecordInit', io_backend='petrel', num_threads=4)", ""),
    ("dict(type='RawFrameDecode', io_backend='disk', decoding_backend='turbojpeg')", ""),
    ("dict(type='PyAVDecode', multi_thread=True)", ""),
])
def test_arguments_of_decoders_count(step, says):
    text = "test_pipeline = [%s, %s" % (step, WHOLE[1:])
    assert says in refused(text) if says else facts(text)["size"] == 224


def test_a_kept_text_begins_with_the_path_that_it_had():
    text = "%s\nmodel = dict(backbone=dict(type='ResNetTSM', num_segments=4))\n%s\nmodel = dict(backbone=dict(num_segments=16))"
    for place in "/a b/c.py", "/a/[x] (1)/c.py", r"C:\my configs\c.py", "C:/x/c.py", "/ä/c#1.py", r"\\host\c.py", "./a/c.py":
        assert facts(text % (place, place))["segments"] == 16, place


def test_templates_of_frames():
    for template, first in (("frame_%010d.jpg", "frame_0000000001.jpg"), ("frame_{:010}.jpg", "frame_0000000001.jpg"), ("{}.jpg", "1.jpg"),
                            ("{:012d}.png", "000000000001.png"), ("img ({0:05d}).jpg", "img (00001).jpg"), ("{0}.jpg", "1.jpg")):
        found = facts("data = dict(test=dict(filename_tmpl='%s', pipeline=%s))" % (template, WHOLE))
        assert frame_template(found["filename_tmpl"]) % 1 == first


@pytest.mark.parametrize("text, says", [
    ("model = dict(backbone=dict(type='ResNetTSM', num_segments=%s))" % ("9" * 4000), "num_segments"),
    ("model = dict(cls_head=dict(num_classes=100001))", "from 2 to 100000"),
    ("model = dict(backbone=dict(type='ResNetTSM', shift_div=1))", "from 2 to 1024"),
    ("data = dict(test=dict(start_index=10000000))", "start_index"), ("data = dict(test=dict(start_index='x'))", "start_index"),
    ("data = dict(test=dict(start_index=-1))", "start_index"), ("data = dict(test=dict(filename_tmpl=3))", "filename_tmpl"),
    ("model = dict(backbone=dict(type='ResNetTSM'), data_preprocessor=dict(mean=[1, 2, 3], std=[0, 0, 0]))", "std"),
    ("model = dict(backbone=dict(type='ResNetTSM'), data_preprocessor=dict(mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True))", "to_rgb"),
    ("model = dict(backbone=dict(type='ResNetTSM', depth='50'))", "depth"),
    ("model = dict(cls_head=dict(num_classes=-1))", "num_classes"),
    ("model = dict(backbone=dict(type='ResNetTSM', shift_div=8.0))", "shift_div"),
    ("model = dict(test_cfg=dict(average_clips='mean'))", "average_clips"),
    ("data = dict(test=dict(type='VideoDataset', ann_file='x'))", "its test dataset (VideoDataset) has no pipeline"),
    ("test_dataloader = dict(dataset=dict(type='R', dataset=dict(type='V')))", "has no pipeline"),
    ("data = dict(test=[dict(pipeline=%s), dict(pipeline=%s)])" % (WHOLE, WHOLE.replace("224", "256")), "different pipelines"),
    ("data = dict(test=[dict(pipeline=%s, start_index=0), dict(start_index=1)])" % WHOLE, "start_index = 0 and 1"),
    ("data = dict(test=dict(type='R', dataset=f()))", "a call of f"), ("data = dict(test=dict(pipeline=f()))", "a call of f"),
    ("data = dict(test=dict(modality='Flow', pipeline=f()))", "its test dataset has modality = Flow"),
    ("data = dict(test=dict(filename_tmpl='flow_{}_{:05d}.jpg', pipeline=f()))", "flow_{}_{:05d}.jpg; a file name with one number"),
] + [("test_pipeline = %s" % value, "its test pipeline ") for value in (
    "5", "True", "1.5", "dict(type='ThreeCrop')", "'ThreeCrop'", "[[]]", "[None]")
] + [("data = dict(test=dict(filename_tmpl='%s'))" % name, "filename_tmpl") for name in (
    "a\\x07%05d.jpg", "{05}.jpg", "{d}.jpg", "%%05s.jpg", "%s.jpg", "x.jpg", "{}_{:05d}.jpg", "a/%05d.jpg", "a%05d\\0.jpg")])
def test_values_of_the_wrong_kind_and_tests_that_are_not_understood_are_named(text, says):
    assert says in refused(text)
