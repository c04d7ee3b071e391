"""TSM_checkpoint.py: fetching from a server on this machine (whole, broken, wrong, moved, refused); what it says of a file."""

import gzip
import hashlib
import http.server
import io
import pickle
import re
import threading
import zipfile

import numpy as np
import pytest
import torch

from tsm.checkpoint import published
from tsm.checkpoint.identify import check_supported, facts_of
from tsm.checkpoint.reader import load
from tsm.cli import UserError
from tsm.model.network import RESNET101, TSM, network_of
from tsm.protocol import SSV2

CONFIG = """model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNetTSM', depth=50,%s shift_div=8),
    cls_head=dict(type='TSMHead',%s num_classes=174, in_channels=2048))
"""
EIGHT, SIXTEEN = CONFIG % ("", ""), CONFIG % (" num_segments=16,", " num_segments=16,")


@pytest.fixture(scope="module")
def body(thin):
    """A whole checkpoint's bytes."""
    made = io.BytesIO()
    torch.save({"meta": {"config": EIGHT}, "state_dict": thin}, made)
    return made.getvalue()


@pytest.fixture
def name(body):
    """A published checkpoint's name, its digest at the end."""
    return "tsm_demo-%s.pth" % hashlib.sha256(body).hexdigest()[:8]


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body` under any name that begins with tsm, to agents of our own name, and to a proxy's clients.

    /cut/ breaks off in the middle, /no/ refuses, /308/ and the like redirect to the other name of this host, /page/ is a page.
    """

    body, asked = b"", []

    def do_GET(self):
        Server.asked.append(self.path)
        part = self.path.replace("http://far.example", "").split("/")[1]
        if "Python-urllib" in self.headers["User-Agent"] or part == "no":
            return self.send_error(403)
        if part in ("301", "302", "303", "307", "308"):
            self.send_response(int(part))
            self.send_header("Location", "http://localhost:%d/%s" % (self.server.server_port, self.path.split("/")[-1]))
            return self.end_headers()
        if "/tsm" not in self.path:
            return self.send_error(404)
        body = b"<html>not found</html>" if part == "page" else Server.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2 if part == "cut" else len(body)])

    def log_message(self, *_):
        pass


@pytest.fixture
def url(body):
    Server.asked.clear()
    Server.body = body
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:%d" % server.server_port
    server.shutdown()
    server.server_close()


PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
QUIET = dict.fromkeys(PROXIES, "")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetches_once_and_says_what_it_is(works, url, body, name, tmp_path):
    said = works("TSM_checkpoint.py", url + "/" + name, cwd=tmp_path, env=QUIET)
    assert (tmp_path / name).read_bytes() == body and names(tmp_path) == [name]
    assert {"checkpoint: " + name, "sha256: " + hashlib.sha256(body).hexdigest(), "network: TSM ResNet-50 (its weights)",
            "classes: 174 (its weights)", "segments: 8 (the config in its meta)", "shift_div: 8 (the config in its meta)"
            } <= set(said.splitlines())
    assert "already here" in works("TSM_checkpoint.py", url + "/" + name, cwd=tmp_path, env=QUIET)
    assert len(Server.asked) == 1


def fails_last(fails, address, folder, **environment):
    """The error line."""
    return fails("TSM_checkpoint.py", address, cwd=folder, env=dict(QUIET, **environment))


def test_wrong_content_leaves_nothing_and_a_name_without_digest_is_taken_with_a_warning(run, works, fails, url, name, tmp_path):
    assert "SHA-256 does not begin with" in fails_last(fails, url + "/cut/" + name, tmp_path)
    assert "SHA-256 does not begin with 00000000" in fails_last(fails, url + "/tsm_demo-00000000.pth", tmp_path)
    assert names(tmp_path) == []
    done = run("TSM_checkpoint.py", url + "/tsm.pth", cwd=tmp_path, env=QUIET)
    assert done.returncode == 0 and "not checked" in done.stderr and names(tmp_path) == ["tsm.pth"]
    done = run("TSM_checkpoint.py", url + "/page/tsm_page.pth", cwd=tmp_path, env=QUIET)
    assert done.returncode == 1 and "not a PyTorch checkpoint" in done.stderr and names(tmp_path) == ["tsm.pth"]
    works("TSM_checkpoint.py", url + "/" + name, cwd=tmp_path, env=QUIET)
    assert names(tmp_path) == ["tsm.pth", name]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_another_host_are_followed(url, body, tmp_path, status):
    assert published.fetch("%s/%d/tsm.pth" % (url, status), str(tmp_path / "tsm.pth"))
    assert (tmp_path / "tsm.pth").read_bytes() == body and Server.asked == ["/%d/tsm.pth" % status, "/tsm.pth"]


def test_a_proxy_of_the_environment_is_used(works, fails, url, name, tmp_path):
    """The host exists for the proxy only; and official is the published file, which is asked of the proxy, and is not what comes."""
    works("TSM_checkpoint.py", "http://far.example/" + name, cwd=tmp_path, env=dict(QUIET, http_proxy=url))
    assert Server.asked == ["http://far.example/" + name] and names(tmp_path) == [name]
    for address, folder, path in (("http://x/y/a.pth?b#c", "folder/", "folder/a.pth"), ("http://x/a.pth", ".", "a.pth")):
        assert published.local_path(address, folder) == path
    line = fails_last(fails, "official", tmp_path, https_proxy=url)
    assert "download.openmmlab.com" in line and "tsm_r50_256h_1x1x8_50e_sthv2_rgb_20210816-032aa4da.pth" in line


@pytest.mark.parametrize("address, says", [
    ("{url}/absent.pth", "404"), ("{url}/no/tsm.pth", "403"), ("http://127.0.0.1:9/tsm.pth", "cannot be fetched"),
    ("ftp://x/tsm.pth", "http(s)"), ("http://[bad/tsm.pth", "http(s)"), ("{url}/", "http(s)"),
])
def test_what_cannot_be_fetched_is_one_line(fails, url, tmp_path, address, says):
    line = fails_last(fails, address.format(url=url), tmp_path)
    assert says in line and ("pass its path" in line or says == "http(s)")
    assert names(tmp_path) == []


# What a file is.


def resized(state, classes):
    return {key: value[:classes] if key.startswith("cls_head") else value for key, value in state.items()}


def wrapped(state, layers, old, new):
    return {key.replace(old, new) if key.startswith(layers) else key: value for key, value in state.items()}


def zeros(**shapes):
    return {key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()}


TAKEN = {
    "TSM ResNet-50 of 27 classes": lambda state: resized(state, 27),
    "TSM ResNet-50 of 2 classes": lambda state: resized(state, 2),
    "TSM ResNet-101 of 174 classes": lambda state: TSM(width=8, structure=RESNET101).state_dict(),
    "TSM ResNet of 3-4-5-3 bottlenecks of 174 classes": lambda state: {
        key: value for key, value in state.items() if not key.startswith("backbone.layer3.5.")},
    "TSM MobileNetV2 of 174 classes": lambda state: zeros(
        backbone__conv1__conv__weight=(32, 3, 3, 3), backbone__layer2__1__conv__0__net__conv__weight=(144, 24, 1, 1),
        cls_head__fc_cls__weight=(174, 1280)),
}
REFUSED = {
    "TSM ResNet of 3-4-5-3 basic blocks": lambda state: {
        key: value for key, value in state.items() if not key.startswith("backbone.layer3.5.") and ".conv3." not in key},
    "TSN ResNet-50 of 174 classes": lambda state: wrapped(state, "backbone", ".conv.net.", ".conv."),
    "TSM ResNet-50 with non-local blocks": lambda state: dict(
        wrapped(state, "backbone.layer2.0.", "layer2.0.", "layer2.0.block."), **zeros(
            backbone__layer2__0__non_local_block__g__0__conv__weight=(4, 8, 1, 1, 1))),
    "TSM ResNet-50 with non-local blocks of 174 classes": lambda state: {
        key.replace("backbone.", "base_model."): value for key, value in dict(
            wrapped(state, "backbone.layer3.", "layer3.0.", "layer3.0.block."), **zeros(
                backbone__layer3__0__nl__g__0__weight=(4, 8, 1, 1, 1))).items()},
    "a network of 3-dimensional convolutions (I3D, SlowOnly or the like)": lambda state: zeros(
        backbone__conv1__conv__weight=(64, 3, 5, 7, 7), backbone__layer2__0__conv1__conv__weight=(64, 64, 1, 1, 1),
        backbone__layer2__0__non_local_block__g__conv__weight=(4, 8, 1, 1, 1)),
    "TSM ResNet-50 with temporal pooling": lambda state: wrapped(state, "backbone.layer2.", "layer2.", "layer2.net."),
    "TSM ResNet-50 on 10 channels (optical flow)": lambda state: dict(
        state, **zeros(backbone__conv1__conv__weight=(8, 10, 7, 7))),
    "TSM MobileOne": lambda state: zeros(
        backbone__stage0__branch_conv_list__0__conv__weight=(64, 3, 3, 3),
        backbone__stage1__0__0__net__branch_conv_list__0__conv__weight=(64, 1, 3, 3)),
    "SlowFast; ": lambda state: zeros(backbone__slow_path__conv1__conv__weight=(64, 3, 1, 7, 7)),
    "a network of 3-dimensional convolutions": lambda state: zeros(
        backbone__conv1__conv__weight=(64, 3, 1, 7, 7), backbone__layer1__0__conv1__conv__weight=(64, 64, 1, 1, 1)),
    "a network of 3-dimensional convolutions (I3D": lambda state: zeros(conv1__weight=(64, 3, 1, 7, 7)),
    "a network of single images, as": lambda state: zeros(conv1__weight=(8, 3, 7, 7), layer1__0__conv1__weight=(8, 8, 1, 1)),
    "a network of single images": lambda state: zeros(features__0__0__weight=(32, 3, 3, 3)),
    "a detector": lambda state: zeros(
        backbone__conv1__weight=(64, 3, 7, 7), neck__lateral__weight=(1, 1, 1, 1), rpn_head__conv__weight=(1, 1, 1, 1),
        roi_head__bbox_head__fc_cls__weight=(81, 1024)),
    "a transformer": lambda state: zeros(patch_embed__proj__weight=(8, 3, 16, 16), blocks__0__attn__qkv__weight=(24, 8)),
    "a network with fake quantisation (QAT)": lambda state: dict(
        state, **zeros(backbone__conv1__conv__weight_fake_quant__scale=(1,))),
    "TIN": lambda state: {key.replace(".conv1.conv.net.", ".conv1.conv.net2."): value for key, value in state.items()},
    "TANet": lambda state: dict(state, **zeros(backbone__layer1__0__tam__G__0__weight=(16, 8))),
    "TRN": lambda state: dict(state, **zeros(cls_head__consensus__classifier__1__weight=(8, 8))),
    "SSN": lambda state: dict(state, **zeros(cls_head__activity_fc__weight=(8, 8))),
    "a network with a neck": lambda state: dict(state, **zeros(neck__lateral_convs__0__weight=(8, 8))),
    "a network on skeletons": lambda state: zeros(backbone__st_gcn_networks__0__gcn__conv__weight=(4, 3, 1, 1)),
    "no network that this suite knows (its first weight is a.weight)": lambda state: zeros(a__weight=(64, 64, 1, 1)),
    "no network that this suite knows (its first weight is backbone.conv1.conv.weight)": lambda state: zeros(
        backbone__conv1__conv__weight=(), backbone__layer1__0__conv1__conv__weight=(8, 8, 1, 1), cls_head__fc_cls__weight=()),
}


def facts_in(tmp_path, state, text):
    """What a file with these weights and this config is."""
    torch.save({"state_dict": state, "meta": {"config": text}}, str(tmp_path / "a.pth"))
    return facts_of("a.pth", *load(str(tmp_path / "a.pth")))


def refusal(function, *args, **options):
    """The one line with which a function refuses what it is given."""
    with pytest.raises(UserError) as raised:
        function(*args, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("words", sorted(TAKEN))
def test_every_network_of_the_family_is_taken(thin, tmp_path, words):
    found = facts_in(tmp_path, TAKEN[words](thin), "")
    check_supported(found, "a.pth")
    assert "%s of %d classes" % (found.network, found.protocol.classes) == words


@pytest.mark.parametrize("words", sorted(REFUSED))
def test_another_network_is_named_and_refused(thin, tmp_path, words):
    line = refusal(facts_in, tmp_path, REFUSED[words](thin), EIGHT)
    assert line.startswith("a.pth: is " + words) and "this suite takes TSM on ResNets of bottlenecks" in line


@pytest.mark.parametrize("kept, says", [
    ("model = dict(type='BMN')\ntest_pipeline = [dict(type='LoadLocalizationFeature')]", "the config in its meta says BMN of mmaction2"),
    ("model = dict(type='SkeletonGCN', backbone=dict(type='STGCN'))", "the config in its meta says STGCN of mmaction2"), ("model = (", ""),
    (EIGHT.replace("depth=50", "depth=f()"), ""),
])
def test_what_weights_do_not_tell_a_config_may(tmp_path, kept, says):
    expected = "a.pth: is no network that this suite knows (its first weight is x.weight); " + (says + "; " if says else "")
    assert refusal(facts_in, tmp_path, zeros(x__weight=(4, 4)), kept).startswith(expected + "this suite takes TSM")


def test_of_a_refused_network_no_facts_are_told(run, tmp_path):
    torch.save(zeros(encoder__layer__0__attention__self__query__weight=(4, 4)), str(tmp_path / "bert.pth"))
    done = run("TSM_checkpoint.py", "bert.pth", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "bert.pth: is a transformer; this suite takes" in done.stderr


def test_types_and_shapes_of_weights_are_named(thin):
    wrong = dict(thin, **{"backbone.conv1.bn.weight": torch.zeros(8, dtype=torch.int64), "backbone.conv1.bn.bias": torch.tensor(1.0)})
    with pytest.raises(UserError, match=r"bn.weight is int64 \[8\] here, float32 \[8\] in this network; .*bn.bias is float32 \[\] here"):
        network_of(wrong, "a.pth", SSV2)
    with pytest.raises(UserError, match="a shift_div of 9 shifts none of the 8 channels"):
        network_of(thin, "a.pth", SSV2._replace(shift_div=9))


@pytest.fixture
def facts(thin, tmp_path, monkeypatch):
    """facts(path, meta, config: what stands in c.py) -> what a file is, of a thin network unless `state` is another's."""
    monkeypatch.chdir(tmp_path)

    def facts(path="a.pth", meta=None, config="", state=thin, **options):
        if config:
            (tmp_path / "c.py").write_text(config)
        return facts_of(path, state, meta or {}, "c.py" if config else "", **options)

    return facts


@pytest.mark.parametrize("path, meta, segments, expected, origin", [
    ("a.pth", {}, None, 8, "default"), ("a.pth", {"config": EIGHT}, None, 8, "the config in its meta"),
    ("a.pth", {"config": SIXTEEN}, None, 16, "the config in its meta"),
    ("a.pth", {"cfg": SIXTEEN}, None, 16, "the config in its meta"),
    ("x/TSM_somethingv2_RGB_resnet50_shift8_blockres_avg_segment16_e45.pth", {}, None, 16, "its file's name"),
    ("TSM_somethingv2_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth", {}, None, 8, "its file's name"),
    ("tsm_r50_256h_1x1x16_50e_sthv2_rgb_20210331-0a45549c.pth", {}, None, 16, "its file's name"),
    ("tsm_r50_1x1x16.pth", {"config": EIGHT}, None, 8, "the config in its meta"), ("segment16/a.pth", {}, None, 8, "default"),
    ("a.pth", {}, 16, 16, "--segments"), ("a.pth", {"config": EIGHT}, 8, 8, "--segments"),
    ("a.pth", {"config": "no config ("}, None, 8, "default"), ("a.pth", {"config": 3}, None, 8, "default"),
])
def test_where_the_segments_are_from(facts, path, meta, segments, expected, origin):
    found = facts(path, meta, segments=segments)
    assert (found.protocol.segments, found.origins["segments"], found.conflicts) == (expected, origin, [])
    check_supported(found, path)


PAST = EIGHT.replace("shift_div=8", "shift_div=8, shift='past1'")


@pytest.mark.parametrize("meta, shift, expected, origin", [
    ({}, "", "bi", "default"), ({"config": EIGHT}, "", "bi", "default"), ({"config": EIGHT}, "past2", "past2", "--shift"),
    ({"config": PAST}, "", "past1", "the config in its meta"), ({"shift": "past1"}, "", "past1", "its meta"),
    ({"config": PAST}, "past1", "past1", "--shift"),
])
def test_where_the_kind_of_shift_is_from(facts, meta, shift, expected, origin):
    """Weights do not tell it; where not even shift_div is known, a note says what to do about that."""
    found = facts(meta=meta, shift=shift)
    check_supported(found, "a.pth")
    assert (found.protocol.shift, found.origins["shift"]) == (expected, origin)
    assert any("the kind of shift; taken as bi, " in note for note in found.notes) == (not meta)


def test_a_kind_of_shift_against_another_is_one_line(thin, facts, works, fails, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="shift past2 by --shift, but the config in its meta says shift past1; leave out"):
        check_supported(facts(meta={"config": PAST}, shift="past2"), "a.pth")
    with pytest.raises(UserError, match="a.pth: shift by its meta is sideways; one of bi, past1, "):
        check_supported(facts(meta={"shift": "sideways"}), "a.pth")
    row = published.by_name("official")
    monkeypatch.setattr("tsm.checkpoint.identify._row_of", lambda path, notes: row)
    with pytest.raises(UserError, match="shift past1 by --shift, but the table of published files says shift bi"):
        check_supported(facts(shift="past1"), "a.pth")
    check_supported(facts(shift="bi-still"), "a.pth")  # its weights, run from the past alone
    monkeypatch.undo()
    torch.save(thin, str(tmp_path / "a.pth"))
    said = works("TSM_checkpoint.py", "a.pth", "--shift", "past1", "--output", "protocol.json", cwd=tmp_path).splitlines()
    assert "shift: past1 (--shift)" in said
    works("pytorch2onnx.py", "a.pth", "--protocol", "protocol.json", "--output-file", "a.onnx", cwd=tmp_path)
    line = fails("pytorch2onnx.py", "a.pth", "--protocol", "protocol.json", "--shift", "bi", "--output-file", "b.onnx", cwd=tmp_path)
    assert line.endswith("protocol.json: has shift past1, not the bi of --shift")


@pytest.mark.parametrize("meta, config, segments, says", [
    ({"config": SIXTEEN}, None, 8, ["8 segments", "--segments", "meta says 16 segments"]),
    ({}, SIXTEEN, 8, ["8 segments", "--segments", "c.py says 16 segments"]),
    ({}, EIGHT.replace("174", "400"), None, ["174 classes", "c.py says 400 classes"]),
    ({}, EIGHT.replace("depth=50", "depth=101"), None, ["TSM ResNet-50", "c.py says TSM ResNet-101"]),
    ({}, CONFIG % (" num_segments=8,", " num_segments=16,"), None, ["c.py averages 16 of 8 segments"]),
    ({}, CONFIG % ("", " num_segments=16,"), None, ["c.py averages 16 of 8 segments"]),
    ({}, CONFIG % (" num_segments=16,", ""), None, ["c.py averages 8 of 16 segments"]),
    ({}, EIGHT.replace("depth=50", "is_shift=False, depth=50"), None, ["TSM ResNet-50", "c.py says TSN ResNet-50"]),
    ({}, "model = dict(type='BMN')\ntest_pipeline = [dict(type='X')]", None, ["TSM ResNet-50", "c.py says BMN of mmaction2"]),
    ({}, EIGHT.replace("50", "101") + "test_pipeline = [dict(type='X')]", None, ["TSM ResNet-50", "c.py says TSM ResNet-101"]),
])
def test_what_contradicts_itself_names_both(facts, meta, config, segments, says):
    line = refusal(lambda: check_supported(facts(meta=meta, config=config, segments=segments), "a.pth"))
    assert all(words in line for words in says), line


def test_the_test_is_that_of_the_config(facts):
    pipeline = ("test_pipeline = [dict(type='DenseSampleFrames', clip_len=1, num_clips=8, test_mode=True), "
                "dict(type='Resize', scale=(-1, 256)), dict(type='TenCrop', crop_size=224)]")
    found = facts(meta={"config": EIGHT + pipeline})
    check_supported(found, "a.pth")
    assert found.protocol[1:5] == ("dense", "ten", 256, 224) and found.protocol.views == 100
    with pytest.raises(UserError, match="a.pth: the config in its meta: its test pipeline has the step Unknown"):
        facts(meta={"config": EIGHT + "test_pipeline = [dict(type='Unknown')]"})
    found = facts(meta={"config": EIGHT + pipeline.replace("224", "288")})
    with pytest.raises(UserError, match="crops of 288 pixels .*, more than the short side of 256"):
        check_supported(found, "a.pth")


PIPELINE = ("test_pipeline = [dict(type='SampleFrames', clip_len=1, num_clips=8, test_mode=True), dict(type='Resize', scale=(-1, 256)), "
            "dict(type='CenterCrop', crop_size=224), dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6])]\n")


@pytest.mark.parametrize("path, meta, segments, expected, origin", [
    ("a.pth", {}, None, 12, "the frames that c.py samples"), ("a.pth", {}, 12, 12, "--segments"),
    ("tsm_1x1x12.pth", {}, None, 12, "its file's name"), ("tsm_1x1x8.pth", {}, None, "c.py samples 12 frames for 8 segments", ""),
    ("a.pth", {"config": EIGHT}, None, "c.py samples 12 frames for 8 segments", ""),
])
def test_a_config_that_holds_only_a_test_pipeline(facts, path, meta, segments, expected, origin):
    found = facts(path, meta, PIPELINE.replace("num_clips=8", "num_clips=12"), segments=segments, shift="bi")
    if origin:
        check_supported(found, path)
        assert (found.protocol.segments, found.origins["segments"], found.notes) == (expected, origin, [])
    else:
        with pytest.raises(UserError, match=expected):
            check_supported(found, path)


@pytest.mark.parametrize("text, says", [
    (PIPELINE.replace("test_pipeline", "val_pipeline"), "its validation"), ("", ""), (PIPELINE, ""),
    ("train_pipeline = []", "Something-Something V2's test"),
])
def test_a_config_without_a_test_is_a_note(facts, text, says):
    found = facts(config=EIGHT + text)
    assert found.notes == (["note: c.py has no test; %s is followed" % says] if says else [])
    assert found.protocol.mean == ((1, 2, 3) if "_pipeline = [d" in text else SSV2.mean)


@pytest.mark.parametrize("meta, segments, says", [
    ({"config": EIGHT}, None, "the config in its meta says 8"), ({}, 8, "--segments says 8"), ({"config": SIXTEEN}, None, ""),
    ({}, 16, "")])
def test_a_name_that_says_other_segments_is_a_note(facts, meta, segments, says):
    found = facts("tsm_r50_1x1x16.pth", meta, segments=segments, shift="bi")
    check_supported(found, "tsm_r50_1x1x16.pth")
    notes = ["note: the name of tsm_r50_1x1x16.pth says 16 segments, but %s; the latter counts" % says] if says else []
    assert found.notes == notes


@pytest.mark.parametrize("kept, note", [
    (SIXTEEN, "8 segments by c.py, but the config in its meta says 16 segments; the former counts"),
    (EIGHT.replace("174", "400"), "174 classes by its weights, but the config in its meta says 400 classes; the former counts"),
    (EIGHT + "test_pipeline = [dict(type='Unknown')]", "has the step Unknown, which this suite does not know; nothing is taken from"),
    (EIGHT.replace("174", "f()"), "a call of f is not run"), ("f()\n" + EIGHT, "line 1: code (Call)"),
])
def test_a_config_overrides_the_one_in_meta(facts, kept, note):
    """Which without it is an error, but for a number of segments that nothing contradicts."""
    found = facts(meta={"config": kept}, config=EIGHT)
    check_supported(found, "a.pth")
    assert len(found.notes) == 1 and note in found.notes[0] and found.protocol.segments == 8
    if kept != SIXTEEN:
        with pytest.raises(UserError, match="pass (the|a) config"):
            check_supported(facts(meta={"config": kept}), "a.pth")


@pytest.mark.parametrize("kept", [
    "test_pipeline = ['ThreeCrop']", "test_pipeline = 5", "test_pipeline = dict(type='ThreeCrop')", "no config (", "a/" * 50000,
    PIPELINE.replace("[1, 2, 3]", "[1e999, 2, 3]"), PIPELINE.replace("[4, 5, 6]", "[0, 0, 0]"),
    PIPELINE.replace("[1, 2, 3]", "[1%s, 2, 3]" % ("0" * 400)), "data = dict(test=dict(filename_tmpl='%s.jpg'))",
    "model = dict(backbone=dict(type='ResNetTSM', num_segments=%s))" % ("9" * 4000)
])
def test_a_broken_config_in_meta_is_a_note(facts, kept):
    found = facts(meta={"config": kept})
    check_supported(found, "a.pth")
    assert "nothing is taken from that config" in found.notes[0] and "\n" not in found.notes[0] and found.protocol == SSV2


def test_what_sources_say_otherwise_of_the_test_is_a_note_that_names_both(facts):
    kept = EIGHT + PIPELINE.replace("CenterCrop", "TenCrop").replace("[1, 2, 3]", "[3, 2, 1]")
    found = facts(meta={"config": kept}, config=EIGHT + PIPELINE)
    assert found.protocol[1:5] == ("uniform", "centre", 256, 224) and found.protocol.mean == (1, 2, 3)
    assert len(found.notes) == 1 and all(words in found.notes[0] for words in (
        "centre crops by c.py", "but the config in its meta says ten crops", "mean (3.0, 2.0, 1.0)"))


def test_bounds_of_numbers_hold_for_every_source(thin, facts, fails, tmp_path):
    for classes in (0, 1):
        with pytest.raises(UserError, match="a.pth: classes by its weights is %d; a whole number from 2 to 100000" % classes):
            check_supported(facts(state=resized(thin, classes)), "a.pth")
    with pytest.raises(UserError, match="x_1x1x999999.pth: segments by its file's name is 999999; a whole number from 1 to 1024"):
        check_supported(facts("x_1x1x999999.pth"), "x_1x1x999999.pth")
    assert facts("x_1x1x99999999999999.pth", segments=4).protocol.segments == 4
    torch.save(thin, str(tmp_path / "own.pth"))
    for script in ("TSM_checkpoint.py", "pytorch2onnx.py"):
        assert ">= 1 and <= 1024" in fails(script, "own.pth", "--segments", 10 ** 20, cwd=tmp_path, status=2)


def test_files_of_mit_s_have_to_say_their_segments(thin, fails, works, tmp_path):
    own = {key.replace("backbone.", "module.base_model.").replace("cls_head.fc_cls", "module.new_fc"): value for key, value in thin.items()}
    own = {key.replace(".conv.net.", ".net.").replace(".conv.weight", ".weight"): value for key, value in own.items()}
    own = {re.sub(r"conv(\d)\.bn", r"bn\1", key): value for key, value in own.items()}
    own = {key.replace("downsample.bn", "downsample.1").replace("downsample.weight", "downsample.0.weight"): value
           for key, value in own.items()}
    torch.save({"state_dict": own, "best_prec1": torch.tensor(1.0)}, str(tmp_path / "mit.pth.tar"))
    line = fails("TSM_checkpoint.py", "mit.pth.tar", cwd=tmp_path)
    assert "mit.pth.tar: is TSM ResNet-50, and nothing says of how many segments; pass --segments N" in line
    said = works("TSM_checkpoint.py", "mit.pth.tar", "--segments", 8, cwd=tmp_path)
    assert "segments: 8 (--segments)" in said and "normalised: mean 123.675 116.28 103.53, std 58.395 57.12 57.375 (default)" in said


@pytest.mark.parametrize("path, naming, classes, says", [
    ("TSM_something_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth", "MIT", 174, "Something-Something V1 by the alphabet"),
    ("x/TSM_something_RGB_resnet50_shift8_blockres_avg_segment8_e45/ckpt.best.pth.tar", "MIT", 174, "Something-Something V1 by"),
    ("TSM_somethingv1_RGB_resnet50_segment8.pth", "MIT", 174, "Something-Something V1 by"),
    ("TSM_somethingv2_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth", "MIT", 174, ""), ("a_segment8.pth", "MIT", 174, ""),
    ("TSM_jester_RGB_resnet50_shift8_blockres_avg_segment8_e30.pth", "MIT", 27, "Jester by the alphabet"),
    ("a_segment8.pth", "MIT", 27, "Jester by the alphabet"), ("a_segment8.pth", "MIT", 101, ""),
    ("TSM_something_RGB_segment8.pth", "", 174, ""), ("tsm_jester_segment8.pth", "", 27, ""),
    ("epic_segment8.ckpt", "MIT", 397, "97 verbs"),
])
def test_classes_of_mit_s_that_are_numbered_otherwise_are_a_note(facts, path, naming, classes, says):
    state = zeros(backbone__conv1__conv__weight=(8, 3, 7, 7), backbone__layer1__0__conv1__conv__net__weight=(8, 8, 1, 1),
                  backbone__layer1__0__conv3__conv__weight=(8, 8, 1, 1), cls_head__fc_cls__weight=(classes, 8))
    found = facts(path, {"naming": naming}, state=state, shift="bi")
    assert found.protocol.segments == 8 and len(found.notes) == (1 if says else 0) and says in "".join(found.notes)


def zipped(name):
    """A zip archive with that one file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, b"x")
    return made.getvalue()


OTHER_FILES = {  # what a file is: its bytes
    "an empty file; fetch it again": b"", "a web page; fetch the file itself": b"\n<!doctype html>\n<html>",
    "a pointer of Git LFS; fetch": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "a safetensors file; load it with": (2).to_bytes(8, "little") + b"{}", "a compressed file; unpack it": gzip.compress(b"x" * 99),
    "a tar archive; unpack it": b"a.pth".ljust(257, b"\0") + b"ustar".ljust(400, b"\0"),
    "an ONNX model; pass the checkpoint": b"\x08\x07\x12\x07pytorch",
    "a pickle that torch.save() did not write": pickle.dumps({"a.weight": np.zeros(3)}, 4),
    "a pickle that torch.save() did not write (of": pickle.dumps({"a.weight": np.zeros(3)}, 0),
    "weights of PaddlePaddle (.pdparams), as PaddleVideo's TSM, which shifts the other way round": pickle.dumps(
        {"conv1._batch_norm._mean": np.zeros(3)}, 2),
    "weights of PaddlePaddle": pickle.dumps({"fc.weight": np.zeros(3), "StructuredToParameterName@@": {"a": "b"}}, 4),
    "a text file; pass the checkpoint": b"model = dict(type='Recognizer2D')\n", "a NumPy array; make": b"\x93NUMPY\x01\x00",
    "an archive of other files (zip, NumPy's .npz, …); unpack it": zipped("a.npy"), "an archive of other files": zipped("a.pth"),
}


@pytest.mark.parametrize("what", sorted(OTHER_FILES))
def test_files_that_are_no_checkpoint_are_told_what_they_are(tmp_path, what):
    (tmp_path / "a.pth").write_bytes(OTHER_FILES[what])
    assert "a.pth: not a PyTorch checkpoint, but " + what in refusal(load, str(tmp_path / "a.pth"))


def test_config_labels_and_the_folder_are_looked_at_first(works, fails, thin, tmp_path):
    torch.save({"meta": {"cfg": SIXTEEN}, "state_dict": thin}, str(tmp_path / "own.pth"))
    for name, text in (("names", "".join("name %d\n" % number for number in range(174))), ("few", "one\ntwo\n"), ("a.py", "model = 3")):
        (tmp_path / name).write_text(text)
    said = works("TSM_checkpoint.py", "own.pth", "--labels", "names", "--output", "new.json", cwd=tmp_path)
    assert "wrote new.json" in said and (tmp_path / "new.json").exists()
    for says, path, *words in (("few: names 2 classes, the model has 174", "own.pth", "--labels", "few"), ("nothing.pth", "nothing.pth"),
                               ("none: No such file", "own.pth", "--labels", "none"), ("names", "own.pth", "--output_dir", "names"),
                               ("none.py: no such config", "own.pth", "--config", "none.py"), (".", "."),
                               ("a.py: says nothing of a network", "own.pth", "--config", "a.py")):
        assert says in fails("TSM_checkpoint.py", path, *words, cwd=tmp_path)
    assert "would overwrite" in fails("TSM_checkpoint.py", "own.pth", "--output", "own.pth", cwd=tmp_path, status=2)
    assert names(tmp_path) == ["a.py", "few", "names", "new.json", "own.pth"]


def test_values_and_their_origins_can_be_told_apart(works, thin, tmp_path):
    """Whatever brackets are in a config's path or in the names of frames."""
    torch.save(thin, str(tmp_path / "own.pth"))
    (tmp_path / "my (old) (a)").mkdir()
    (tmp_path / "my (old) (a)" / "c (1).py").write_text(
        EIGHT + PIPELINE + "data = dict(test=dict(pipeline=test_pipeline, filename_tmpl='frame ({:010}) (b).jpg', start_index=0))")
    said = works("TSM_checkpoint.py", "own.pth", "--config", "my (old) (a)/c (1).py", cwd=tmp_path).splitlines()
    found = {line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in said if not line.startswith("note: ")}
    values = {name: value.split(" (")[0] for name, value in found.items()}
    assert found["filename_tmpl"] == "frame ({:010}) (b).jpg" and found["start_index"] == "0"
    assert (values["network"], values["fusion"], values["segments"]) == ("TSM ResNet-50", "prob", "8")
    assert values["frames named by"] == "filename_tmpl, start_index" and "my (old) (a)/c (1).py" in found["segments"]
