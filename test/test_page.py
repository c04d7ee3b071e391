"""The page: drawn from report.json alone, safe with any name, and looked at in a real browser."""

import functools
import hashlib
import json
import random
import re

import numpy as np
import pytest
from browser import CHROMIUM, browser
from fuzz import FUZZ, damaged
from made_up import report, scores_of

from tsm.chain import tune
from tsm.cli import UserError
from tsm.files import read_json, sealed, unsealed, write_json
from tsm.labels import name_of, read_labels
from tsm.report.collect import closing_rows
from tsm.report.compare import Measured, compare
from tsm.report.findings import STRIP, columns_of, confidence, reverses
from tsm.report.page import compare_page, matrix, report_page

NASTY = ['<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', "'; alert(3) //", "</script><b>", "{{ 7 * 7 }}",
         "\u202eright to left", "\u05e9\u05dc\u05d5\u05dd", "\U0001f600 emoji", "a\u2028line", "a & b", "<!--", "\0nul"]
PIXEL = STRIP + "/9j/4AAQSkZJRg=="


@pytest.fixture(scope="module")
def page():
    """A page of a headless Chromium; CI installs it (see .ci/run), and a machine without one says so."""
    if CHROMIUM is None:
        pytest.skip("NOT RUN: no chromium or chrome on the PATH")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def names(repo):
    return read_labels(str(repo / "demo/annotations/something-something-v2-labels.json"), 174)


@pytest.fixture(scope="module")
def large(names, tmp_path_factory):
    """The page of 24,777 videos and 174 classes."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "large.html").write_text(report_page(report(24777, 174, names)), encoding="utf-8")
    return folder / "large.html"


def drawn(made, path):
    path.write_text(report_page(made), encoding="utf-8")
    return path


def overflowing(page):
    """What stands out of the page to the right, or over its neighbour's text, in words."""
    return page.js("""(function () {
      var wide = document.documentElement.clientWidth, bad = [];
      if (document.documentElement.scrollWidth > wide) { bad.push("the page is " + document.documentElement.scrollWidth); }
      var boxes = [];
      document.querySelectorAll("h1, h2, h3, p, dt, dd, li > span, .figure, figcaption, nav a, input, td, th, svg text, .file > *")
        .forEach(function (part) {
          if (!part.getClientRects().length || !part.textContent.trim()) { return; }
          var range = document.createRange();
          range.selectNodeContents(part);
          var box = range.getBoundingClientRect(), scroll = part.closest(".scroll");
          if (!scroll && (box.right > wide + 1 || box.left < -1)) { bad.push("outside: " + part.textContent.slice(0, 40)); }
          boxes.push([box, part, scroll]);
        });
      boxes.sort(function (a, b) { return a[0].top - b[0].top; });
      boxes.forEach(function (one, i) {
        for (var j = i + 1; j < boxes.length && boxes[j][0].top < one[0].bottom - 2; j++) {
          var a = one[0], b = boxes[j][0];
          if (one[1].contains(boxes[j][1]) || boxes[j][1].contains(one[1])) { continue; }
          if (one[2] !== boxes[j][2] && (one[2] || boxes[j][2])) { continue; }
          if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2) {
            bad.push("'" + one[1].textContent.slice(0, 40) + "' over '" + boxes[j][1].textContent.slice(0, 40) + "'");
          }
        }
      });
      return bad.slice(0, 10);
    })()""")


def column(page, number):
    return page.js("Array.from(document.querySelectorAll('#class-table tbody tr')).filter(r => !r.hidden)"
                   ".map(r => r.cells[%d].textContent.trim())" % number)


def type_into(page, selector, text):
    page.js("var i = document.querySelector(%s); i.value = %s; i.dispatchEvent(new Event('input'))"
            % (json.dumps(selector), json.dumps(text)))


def test_equal_reports_give_equal_bytes_and_the_file_is_enough():
    made = report()
    first = report_page(made)
    assert report_page(json.loads(json.dumps(made))) == first
    assert len(first.encode()) < 300_000 and not re.search(r"https?://", first)


def test_the_picture_in_the_docs_is_of_this_page(repo):
    parts = [repo / "tsm/report/templates" / name for name in ("frame.html.j2", "parts.html.j2", "report.html.j2", "page.css")]
    drawn_with = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert (repo / "demo/report.sha256").read_text().strip() == drawn_with, "the page changed: make demo/report.png by demo/screenshot.sh"


@pytest.mark.browser
def test_a_page_of_24777_videos_opens_and_works(page, large, names):
    assert large.stat().st_size < 5_000_000
    page.size(1400)
    page.open(large)
    assert page.logs == [] and page.requests == [large.as_uri()]
    assert page.js("document.querySelectorAll('#class-table tbody tr').length") == 174

    page.js("document.querySelector('#class-table').closest('details').open = true")
    page.js("document.querySelector('#class-table th:nth-child(3) button').click()")
    shares = [float(text.rstrip("\u202f%")) for text in column(page, 2)]
    assert shares == sorted(shares) and shares[0] < shares[-1]
    page.js("document.querySelector('#class-table th:nth-child(3) button').click()")
    assert [float(text.rstrip("\u202f%")) for text in column(page, 2)] == sorted(shares, reverse=True)
    type_into(page, "input[data-filters=class-table]", "left RIGHT pushing")
    assert sorted(column(page, 0)) == ["Pushing something from left to right", "Pushing something from right to left"]

    rank, made = "#video-table th:nth-child(5)", report(24777, 174, names)["findings"]["videos"]
    for order in (1, -1):  # over all videos, not only those that are shown, and whatever is typed after
        page.js("document.querySelector('%s button').click()" % rank)
        type_into(page, "#video-search", "pushing something")
        found = json.loads(page.js("JSON.stringify(Array.from(document.querySelectorAll('#video-table td:nth-child(5)'),"
                                   "c => c.textContent))"))
        ranks = sorted((rank for rank, *classes in zip(made["rank"], made["label"], made["answer"]) if rank > 1 and any(
            "pushing something" in names[number].lower() for number in classes)), key=lambda rank: order * rank)
        assert [int(text) for text in found] == ranks[:25] and 1 < ranks[0] != ranks[-1]
    assert page.js("document.querySelector('%s').getAttribute('aria-sort')" % rank) == "descending"

    type_into(page, "#video-search", "70123.webm")
    page.js("var c = document.querySelector('#only-wrong'); c.checked = false; c.dispatchEvent(new Event('change'))")
    assert page.js("document.querySelector('#video-count').textContent") == "1 video"
    assert page.js("document.querySelector('#video-table tbody td').textContent") == "70123.webm"
    type_into(page, "#video-search", "")
    page.js("document.querySelector('#video-all').click()")
    assert page.js("document.querySelectorAll('#video-table tbody tr').length") == 24777
    assert page.js("document.querySelector('#video-all').hidden")
    laid_out = ("Array.from(document.querySelectorAll('#video-table td:first-child'))"
                ".filter(c => c.checkVisibility({contentVisibilityAuto: true})).length")
    page.picture(large.parent / "seen.png", whole=False)
    assert 0 < page.js(laid_out) <= 300  # what is in sight, by hundreds
    type_into(page, "#video-search", "70123.webm")
    assert page.js("document.querySelector('#video-table').offsetHeight") < 150
    type_into(page, "#video-search", "no such video")
    assert page.js("document.querySelectorAll('#video-table tbody tr').length") == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_overlaps(page, large, tmp_path, width):
    page.size(width)
    for path in (large, drawn(report(names=["a very long name of a class, %d, that goes on and on" % i for i in range(12)]),
                              tmp_path / "small.html")):
        page.open(path)
        page.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert overflowing(page) == []


@pytest.mark.browser
def test_the_test_of_overlaps_sees_one(page, tmp_path):
    path = drawn(report(), tmp_path / "r.html")
    page.size(1400)
    page.open(path)
    page.js("document.querySelector('h2').style.marginTop = '-40px'; document.querySelector('h1').style.width = '3000px';"
            "document.querySelector('h1').style.textAlign = 'right'")
    assert len(overflowing(page)) >= 2


@pytest.mark.browser
def test_without_scripts_the_page_shows_what_it_knows(page, tmp_path):
    path = drawn(report(), tmp_path / "r.html")
    page.scripts(False)
    try:
        page.open(path)
    finally:
        page.scripts(True)
    page.open(tmp_path / "r.html")  # the same page with scripts, to compare with
    assert page.js("getComputedStyle(document.querySelector('#videos')).display") == "block"
    text = re.sub("<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "predictions.csv, beside this page" in text and text.count("<tr>") > 20
    for part in re.findall(r"<(?:input|section)[^>]*live[^>]*>", text):
        assert " hidden" in part  # what needs scripts is shown by scripts


@pytest.mark.browser
def test_it_is_light_and_dark_and_printed(page, tmp_path):
    path = drawn(report(), tmp_path / "r.html")

    def colours():
        return page.js("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")

    def contrast(pair):
        lights = []
        for colour in pair:
            values = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
            linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
            lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
        return (max(lights) + 0.05) / (min(lights) + 0.05)

    page.open(path)
    light = colours()
    page.media(dark=True)
    dark = colours()
    page.media("print", dark=True)
    printed = colours()
    hidden = page.js("getComputedStyle(document.querySelector('nav')).display")
    page.media()
    assert light[0] == "rgb(255, 255, 255)" == printed[0] and dark[0] != light[0] and hidden == "none"
    assert min(map(contrast, (light, dark, printed))) > 7


@pytest.mark.browser
def test_names_are_text_whatever_they_hold(page, tmp_path):
    sources = {index: NASTY[index % len(NASTY)] + "\udcff.webm" for index in range(60)}
    path = drawn(report(60, 12, NASTY, sources=sources), tmp_path / "r.html")
    page.open(path)
    assert page.logs == [] and page.requests == [path.as_uri()]
    assert page.js("document.querySelectorAll('img, b b, main script').length") == 0
    shown = set(column(page, 0))
    assert {name for name in NASTY if "\0" not in name} <= shown
    assert page.js("JSON.parse(document.getElementById('videos-data').textContent).names[3]") == NASTY[3]
    data = path.read_text(encoding="utf-8").split('id="videos-data">')[1].split("</script>")[0]
    assert "\u2028" not in data and json.loads(data)["names"][3] == NASTY[3]


@pytest.mark.browser
def test_the_page_forbids_every_request(page, tmp_path):
    path = drawn(report(), tmp_path / "r.html")
    more = '<img src="https://example.org/x.png"><script>document.title = "ran"</script></main>'
    text = path.read_text(encoding="utf-8").replace("</main>", more)
    path.write_text(text, encoding="utf-8")
    page.open(path)
    assert page.js("document.title") != "ran" and "https://example.org/x.png" not in page.requests
    assert len(page.logs) >= 2  # the policy says what it refused


def test_who_computed_it_is_a_row_each_where_several_did():
    made = report()
    worker = {"host": "<one>", "device": "chip 0", "chunks": 3, "videos": 60, "seconds": 12.0, "videos_per_second": 5.0}
    made["inference"]["tsm"] = {"workers": [worker]}
    assert "Who computed it" not in report_page(made)
    made["inference"]["tsm"]["workers"].append(dict(worker, host="two", chunks=4))
    page = report_page(made)
    assert re.findall("<bdi>(.*?)</bdi>", page.split("Who computed it")[1])[:4] == ["&lt;one&gt;", "chip 0", "3", "60"]
    assert "<bdi>two</bdi>" in page


def test_what_tuning_tried_is_a_table():
    made = report()
    assert "Forms tried on a chip" not in report_page(made)
    rows = [tune.Candidate("guide", "float32", [], "", 20.0, 19.0, 0.0, 8), tune.Candidate("parts", "uint8", [], "", 60.0, 55.5, 0.3, 2),
            tune.Candidate("mask", "aipp", [], "atc: <E1>")]
    made["tune"] = {"chip": "310P3", "cann": "8.5.0", "batch_size": 8, "videos": 8, "candidates": [row._asdict() for row in rows],
                    "chosen": {"form": "guide", "input": "float32"}}
    shown = re.findall("<tr>(.*?)</tr>", report_page(made).split("Forms tried on a chip")[1], re.DOTALL)[:4]
    cells = [re.findall("<bdi>(.*?)</bdi>", row) for row in shown]
    same = "top-1 the same on %d of 8, largest difference %s"
    assert cells == [[], ["guide", "float32", "kept", same % (8, "0"), "20.00", "19.00"],
                     ["parts", "uint8", "", same % (2, "0.3") + ", which is too large", "60.00", "55.50"],
                     ["mask", "aipp", "", "refused: atc: &lt;E1&gt;", "", ""]]


def test_an_option_in_a_text_is_one_word():
    made = report()
    made["checks"][0]["text"] = "see --list, (--a_b), a--b <--c>"
    assert "see <code>--list</code>, (<code>--a_b</code>), a--b &lt;--c&gt;" in report_page(made)


def test_film_strips_are_pictures_and_nothing_else():
    made = report()
    made["findings"]["gallery"]["failures"][0]["strip"] = PIXEL
    text = report_page(made)
    assert PIXEL in text and "holds frames of the data" in text
    assert "holds frames of the data" not in report_page(report())


def flat(right, videos=8, classes=12):
    labels = {index: index % 3 for index in range(videos)}
    scores = {index: np.full(classes, 0.01) for index in labels}
    for index, label in labels.items():
        scores[index][label if right else (label + 1) % classes] = 0.9
    return scores, labels


@pytest.mark.browser
@pytest.mark.parametrize("right, videos", [(True, 8), (False, 8), (True, 1), (False, 1)])
def test_all_right_all_wrong_one_video(page, tmp_path, right, videos):
    scores, labels = flat(right, videos)
    path = drawn(report(classes=12, scores=scores, labels=labels), tmp_path / "r.html")
    page.open(path)
    assert page.logs == []
    text = page.js("document.body.innerText")
    assert ("100.00\u202f%" if right else "0.00\u202f%") in text
    assert ("No video was taken for another class" in text) == right
    assert "9 of the 12 have none" in text if videos == 8 else "11 of the 12 have none" in text


def test_one_video_of_the_fewest_classes_and_no_names():
    scores, labels = {0: np.array([0.75, 0.25])}, {0: 0}
    assert "class 0" in report_page(report(classes=2, scores=scores, labels=labels))


def test_the_numbers_of_the_charts():
    columns = {"probability": [0.95, 0.85, 0.85, 0.17], "rank": [1, 1, 2, 3]}
    found = confidence(columns)
    assert sum(found["right"]) == 2 and sum(found["wrong"]) == 2 and found["wrong"][3] == 1
    assert found["ece"] == pytest.approx((0.05 + 2 * abs(0.85 - 0.5) + 0.17) / 4)
    assert found["coverage"] == [[0.25, 1.0], [0.5, 1.0], [0.75, pytest.approx(2 / 3)], [1.0, 0.5]]
    cells = matrix({"classes": [4, 7], "counts": [[900, 1, 0], [64, 3, 0], [0, 0, 5]]})
    assert [cell["heat"] for cell in cells[1]["cells"]] == [5, 0, 0] and cells[0]["cells"][1]["heat"] == 1
    assert [row["number"] for row in cells] == [4, 7, None]
    assert [[cell["right"] for cell in row["cells"]] for row in cells] == [[True, False, False], [False, True, False], [False] * 3]


def test_time_reversed_pairs_are_known_by_their_words(names):
    backwards = reverses(names)

    def other(name):
        return name_of(backwards[names.index(name)], names)

    assert other("Moving something up") == "Moving something down"
    assert other("Pushing something from left to right") == "Pushing something from right to left"
    assert other("Putting something into something") == "Taking something out of something"
    assert other("Uncovering something") == "Covering something with something"
    assert names.index("Poking something so it slightly moves") not in backwards
    assert all(backwards[backwards[number]] == number for number in backwards) and reverses(None) == {}
    assert reverses(["Thumb Up", "Thumb Down", "Turning Hand Clockwise", "Turning Hand Counterclockwise"]) == {2: 3, 3: 2}
    scores, labels = flat(False)
    made = report(classes=3, names=["Opening a box", "Closing a box", "Holding a box"],
                  scores={index: row[:3] for index, row in scores.items()}, labels=labels)
    marks = {(pair["truth"], pair["answer"]): pair["reversed"] for pair in made["findings"]["pairs"]}
    assert marks == {(0, 1): True, (1, 2): False} or marks == {(0, 1): True, (1, 2): False, (2, 0): False}


def places(value, path=()):
    """The path of every value in a JSON value; of a list the first, second and last."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = [(number, value[number]) for number in sorted({0, min(1, len(value) - 1), len(value) - 1}) if value]
    for key, item in items:
        yield from places(item, path + (key,))


def with_value(value, path, new):
    """A copy of a JSON value with another value at a path."""
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


def test_a_seal_breaks_with_every_value(tmp_path):
    made = json.loads(json.dumps(sealed(report(6, 5, ["one", "two", "three", "four", "\udcff"]), "report")))
    assert unsealed(made, "report") and unsealed(made, "accuracy") is None
    for place in places(made):
        old = functools.reduce(lambda value, key: value[key], place, made)
        for new in ("text", None, [], 0, 0.5, float("nan")):
            if new != old or type(new) is not type(old):
                assert unsealed(with_value(made, place, new), "report") is None, (place, new)


def test_a_report_with_a_damaged_byte_is_one_line(tmp_path):
    path = tmp_path / "report.json"
    write_json(str(path), report(6, 5), "report")
    good, whole, chance = path.read_bytes(), read_json(str(path), "report"), random.Random("seal")
    assert whole == json.loads(json.dumps(report(6, 5)))
    for _ in range(FUZZ):
        path.write_bytes(damaged(good, chance))
        try:
            assert read_json(str(path), "report") == whole  # of lines with other ends, say
        except UserError as error:
            assert str(error).startswith(str(path)) and "make it again" in str(error) or "UTF-8" in str(error)


@pytest.mark.parametrize("path, new", [
    (("findings", "videos", "rank", 0), float("nan")), (("findings", "videos", "video", 0), 5), (("names",), "text"),
    (("findings", "videos", "margin"), [0.5]), (("digest",), "0"), (("format",), 2), (("kind",), "accuracy")])
def test_a_damaged_report_is_neither_drawn_nor_compared(fails, tmp_path, path, new):
    write_json(str(tmp_path / "good.json"), report(names=["name %d" % number for number in range(12)]), "report")
    (tmp_path / "bad.json").write_text(json.dumps(with_value(json.loads((tmp_path / "good.json").read_text()), path, new)))
    assert "bad.json" in fails("TSM_report.py", "--redraw", "bad.json", cwd=tmp_path)
    assert "bad.json" in fails("TSM_compare.py", "good.json", "bad.json", "--json", "c.json", cwd=tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.json", "good.json"]


@pytest.mark.browser
def test_two_runs_have_a_page(page, tmp_path):
    runs = []
    for seed in (0, 1):
        scores, labels = scores_of(40, 12)
        scores = scores if not seed else {index: np.roll(row, index % 2) for index, row in scores.items()}
        columns = columns_of(scores, labels, {index: NASTY[index % len(NASTY)] for index in labels})
        about = dict(dict.fromkeys(("precision", "device", "data_root")), title="run <%d>" % seed)
        runs.append(Measured(about["title"], about, NASTY, 12, columns, np.stack(list(scores.values()))))
    path = tmp_path / "c.html"
    path.write_text(compare_page(compare(*runs)), encoding="utf-8")
    for width in (400, 1400):
        page.size(width)
        page.open(path)
        assert page.logs == [] and page.requests == [path.as_uri()] and overflowing(page) == []
    kinds = [flip["kind"] for flip in compare(*runs)["flips"]]
    assert page.js("document.querySelectorAll('#flips tbody tr').length") == len(kinds) > 5
    page.js("var s = document.querySelector('select'); s.value = 'lost'; s.dispatchEvent(new Event('input'))")
    shown = page.js("document.querySelectorAll('#flips tbody tr:not([hidden])').length")
    assert shown == kinds.count("lost") and 0 < shown < len(kinds)


def test_the_accuracy_while_a_clip_runs_is_a_part_where_it_is_known():
    made = report()
    assert "While a clip runs" not in report_page(made)
    made["findings"]["curve"] = [{"share": share, "top1_acc": share, "top1_interval_95": [share / 2, 1.0]} for share in (0.5, 1.0)]
    made["findings"]["clip"] = dict(made["accuracy"], top1_acc=0.875)
    made["model"]["tsm.approximates"] = "bi"
    text = report_page(made)
    assert "25.0\u202f% to 100.0\u202f%" in text and "Top-1 by the share of a clip" in text and "run causally" in text
    assert "the clip’s model, 87.5\u202f%" in text
    assert [row[3][:6] for row in closing_rows(made) if row[0] == "the clip's model"] == ["0.8750"]
