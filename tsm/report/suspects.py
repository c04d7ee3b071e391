"""Why an accuracy is low where no stage departs: a run's videos under one change at a time of what its weights may have been made for.

One view of a video is computed per change, but for fusion, as more views never explain more than a few points. The
changes race: all of them run on the first of ROUNDS videos, the better half goes on, then the best three, and none that
cannot catch up. Each is held against the run as it was on the same videos by McNemar's exact test, Holm's correction
(Scand. J. Stat. 6, 1979) being made for the number of changes that were tried.
"""

import os
import re
from collections import Counter
from functools import partial
from itertools import accumulate
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from tsm.cli import Corrupt, printable, progress
from tsm.infer.engine import BACKENDS, default_backend
from tsm.infer.tensors import reading_ahead
from tsm.labels import name_of
from tsm.machine import cores, has_bf16
from tsm.model.graph import Trunk, build, trunk_of
from tsm.model.offline import clip_of
from tsm.protocol import CENTRE_VIEW, FUSIONS, MOVES, SAMPLINGS, SHIFTS, SSV2, Protocol, frame_indices, fuse
from tsm.report.compare import chance
from tsm.report.diagnose import Chain, looked_up
from tsm.report.findings import other_orders
from tsm.results import mcnemar
from tsm.video import clips

ROUNDS, MOST = (30, 100), 200  # videos at the end of each round, and of the last unless the user says how many
BEST = 3  # changes that the last round is for; that before it is for the better half
CERTAIN, GOOD = 0.01, 0.9  # a corrected p below which a change explains something; top-1 that needs no explanation
FEW = 20  # videos below which hardly any p is that small
NEAR = 0.02  # of top-1: of changes that explain as much but for this, the one that is listed first, the simplest, stands first
SURE, MOSTLY, INSIDE = 0.5, 0.8, 5  # a folder with a wrong label: probability of the other answer, share and least number of its videos
AS_IT_WAS = "as it was"
Sample = Callable[[int, Protocol], List[int]]


class Suspect(NamedTuple):
    """A change. `protocol` is of one view, but for fusion; `table` float32 [3, 256] has the network's value of each byte of R, G, B."""

    name: str
    because: str  # what follows if it is the one
    remedy: str  # what makes the run right
    protocol: Protocol
    table: np.ndarray
    sample: Sample
    precision: str
    bgr: bool = False
    backwards: bool = False
    fusion: str = FUSIONS[0]  # of FUSIONS
    before: str = AS_IT_WAS  # what it is held against

    def views(self, raw: np.ndarray) -> np.ndarray:
        """What the network takes, float32 [views, segments, 3, size, size], of a video's pixels RGB uint8 [frames, 3, size, size]."""
        taken = looked_up(self.table, raw[::-1] if self.backwards else raw)
        return np.ascontiguousarray(taken[:, ::-1] if self.bgr else taken).reshape((-1,) + self.protocol.view_shape)


class Trial(NamedTuple):
    """What a change gives: on `videos` videos, the share that is right of the run as it was and under the change."""

    change: str
    videos: int
    before: float
    after: float
    lost: int
    gained: int
    p: float
    corrected: float  # p times what Holm's correction asks for
    because: str
    remedy: str
    problem: str  # why it was not computed; empty if it was

    @property
    def explains(self) -> bool:
        """Whether the change is better, and that is no chance."""
        return not self.problem and self.gained > self.lost and self.corrected < CERTAIN


def _sample_of(sampling: str) -> Sample:
    """The middle one of a sampling's samples of a video: the middles of the segments, their starts, the sixth dense one."""
    place = SAMPLINGS[sampling] // 2
    return lambda frames, protocol: frame_indices(frames, protocol._replace(sampling=sampling))[
        place * protocol.segments : (place + 1) * protocol.segments]


MIDDLES, STARTS, DENSE = map(_sample_of, ("uniform", "twice", "dense"))


def suspects_of(protocol: Protocol, precision: str = "fp32", fusion: str = "score") -> Tuple[Suspect, List[Suspect]]:
    """(a run as it was, what may have been otherwise when its weights were trained, the simplest first), of a run of this protocol."""
    one = protocol._replace(**CENTRE_VIEW)
    base = Suspect(AS_IT_WAS, "", "", one, clips.normalisation(one), DENSE if protocol.sampling == "dense" else MIDDLES, precision)
    others = [*_of_pixels(base, protocol), *_of_frames(base, protocol), *_of_shift(base, protocol)]
    if protocol.views > 1:
        other = next(name for name in FUSIONS if name != fusion)
        others.append(base._replace(
            name="fusion " + other, because="the views are fused so where the accuracy is from", remedy="--fusion %s of run_all.sh" % other,
            protocol=protocol, sample=frame_indices, fusion=other, before="fusion " + fusion))
    if precision != "fp32":
        others.append(base._replace(name="computed in fp32, all else in " + precision, precision="fp32", because="%s is too rough for the "
                                    "weights" % precision, remedy="--precision fp32 of run_all.sh"))
    return base, others


def _of_pixels(base: Suspect, run: Protocol) -> Iterator[Suspect]:
    """Order of the colours, scaling, mean and standard deviation."""
    kinds: Dict[Any, str] = {}  # by (mean and std of R, G, B; whether the network takes them as B, G, R)
    divided = tuple(tuple(255 * value for value in values) for values in (run.mean, run.std))
    for name, (mean, std), bgr in (
            ("BGR frames", (run.mean, run.std), True), ("BGR frames, mean and std of RGB", (run.mean[::-1], run.std[::-1]), True),
            ("ImageNet's mean and std", (SSV2.mean, SSV2.std), False), ("Caffe's BGR and mean", (SSV2.mean, (1.0,) * 3), True),
            ("mean and std of 127.5", ((127.5,) * 3,) * 2, False), ("pixels divided by 255 alone", ((0.0,) * 3, (255.0,) * 3), False),
            ("pixels as they are, 0 to 255", ((0.0,) * 3, (1.0,) * 3), False),
            ("pixels divided by 255, then mean and std", divided, False)):
        kinds.setdefault((mean, std, bgr), name)
    for (mean, std, bgr), name in kinds.items():
        tested = run._replace(mean=mean, std=std)
        flipped = ["in the checkpoint, exchange the inputs of the first convolution, weight = weight.flip(1)"] * bgr
        if bgr or tested != run:
            yield base._replace(name=name, because="the weights were trained on " + name, table=clips.normalisation(tested), bgr=bgr,
                                remedy="; and ".join(flipped + [in_config(tested)] * (tested != run)))


def _of_frames(base: Suspect, run: Protocol) -> Iterator[Suspect]:
    """Crops and sizes, sampling, segments, order in time."""
    own = run.size
    for side, size in dict.fromkeys(((256, 224), (256, 256), (224, 224), (own, own), (own * 8 // 7, own))):  # the last is MIT's rule
        if (side, size) != (run.short_side, own):
            crops = run.crops if side == size or run.crops == "ten" else "centre"
            yield base._replace(name="crops of %d of a short side of %d" % (size, side), because="the weights want objects of that size",
                                protocol=base.protocol._replace(short_side=side, size=size),
                                remedy=in_config(run._replace(short_side=side, size=size, crops=crops)))
    for name, sample, sampling in (("frames at the middles of segments", MIDDLES, "uniform"),
                                   ("frames at the starts of segments", STARTS, "twice"), ("dense sampling", DENSE, "dense")):
        if sample is not base.sample and sampling != run.sampling:
            yield base._replace(name=name, because="the weights were trained on other frames of a video", sample=sample,
                                remedy=in_config(run._replace(sampling=sampling)))
    for segments in (8, 16):
        if segments != run.segments:
            yield base._replace(name="%d segments" % segments, because="the weights were trained on %d frames of a video" % segments,
                                protocol=base.protocol._replace(segments=segments), remedy=in_config(run._replace(segments=segments)))
    yield base._replace(name="frames backwards, or the shift in the other direction", backwards=True, because="time runs the other way "
                        "in the weights or in the frames", remedy="look at how frames were numbered when they were extracted; if the "
                        "weights have it, exchange the first two folds of every residual stream, as exchanged() in demo/train.py")


def _of_shift(base: Suspect, run: Protocol) -> Iterator[Suspect]:
    """Kinds of shift, and how many channels are shifted."""
    for kind in MOVES:
        if kind not in (run.shift, "reversed"):
            remedy = "--shift %s of run_all.sh or TSM_checkpoint.py" % kind if kind in SHIFTS else (
                "this suite does not run such weights; train them with one of " + ", ".join(SHIFTS))
            yield base._replace(name="shift %s" % kind, because="the weights were trained with that shift", remedy=remedy,
                                protocol=base.protocol._replace(shift=kind))
    for div in (4, 8, 16):
        if div != run.shift_div:
            yield base._replace(name="shift_div %d" % div, because="the weights were trained with shift_div %d" % div,
                                protocol=base.protocol._replace(shift_div=div), remedy=in_config(run._replace(shift_div=div)))


def in_config(protocol: Protocol) -> str:
    """What makes run_all.sh test as a protocol says, as tsm.checkpoint.config reads it."""
    sample = {"uniform": "'SampleFrames'", "twice": "'SampleFrames', twice_sample=True", "dense": "'DenseSampleFrames'"}
    crop = {"centre": "CenterCrop", "three": "ThreeCrop", "ten": "TenCrop"}[protocol.crops]
    mean, std = ([float("%.6g" % value) for value in values] for values in (protocol.mean, protocol.std))
    return ("--config FILE of run_all.sh, where FILE has, and need not have more: model = dict(backbone=dict(num_segments=%d, "
            "shift_div=%d)); test_pipeline = [dict(type=%s, clip_len=1, num_clips=%d, test_mode=True), dict(type='Resize', "
            "scale=(-1, %d)), dict(type='%s', crop_size=%d), dict(type='Normalize', mean=%s, std=%s), dict(type='FormatShape', "
            "input_format='NCHW')]" % (
                protocol.segments, protocol.shift_div, sample[protocol.sampling], protocol.segments, protocol.short_side, crop,
                protocol.size, mean, std))


def spread(labels: Dict[int, int]) -> List[int]:
    """The videos in an order whose every beginning is spread over the labels, by a fixed seed."""
    order, seen, turns = sorted(labels), Counter(), {}  # type: ignore[var-annotated]
    np.random.RandomState(0).shuffle(order)
    for index in order:
        turns[index] = seen[labels[index]] = seen[labels[index]] + 1
    return sorted(order, key=lambda index: turns[index])


class Hunt:
    """The race over a run's videos. What is known at any moment, also after Ctrl-C, is in `right` and in rows()."""

    def __init__(self, chain: Chain, videos: int) -> None:
        self.chain, self.order = chain, spread(chain.labels)[:videos]
        self.backend = default_backend()
        precision = "bf16" if self.backend == "openvino" and has_bf16() else "fp32"
        self.base, self.suspects = suspects_of(chain.protocol, precision, chain.model.fusion or FUSIONS[0])
        self.right: Dict[str, Dict[int, bool]] = {name: {} for one in [self.base] + self.suspects for name in (one.name, one.before)}
        self.problems: Dict[str, str] = {}
        self.unread: Dict[int, str] = {}  # videos, and why
        clip_of(chain.model, "view")  # says what is wrong with a model that was changed
        self.trunk = trunk_of(chain.model.proto)
        self.weights = weights_of(self.trunk, chain.checkpoint)
        results = chain.results()
        there = results if isinstance(results, dict) else {}
        self.given = {index: int(there[index].argmax()) for index in sorted(there)}  # the answers of the run's results
        self.notes = [note for note, so in (
            ("the results cannot be read, so nothing is said of the labels", not there),
            ("%d videos are few: p cannot be small" % len(self.order), len(self.order) < FEW),
            ("all videos are of one class: a change that favours it looks right", len(set(chain.labels.values())) == 1)) if so]
        self.notes += _folders(chain, there)

    def race(self) -> None:
        """Compute the suspects, in rounds."""
        if not any(os.path.exists(self.chain.source(index)) for index in self.order):
            self.notes.append("no change of frames or network was computed: the videos are missing; --data_root names their folder")
            self.problems.update(dict.fromkeys((one.name for one in self.suspects), "the videos are missing"))
            return
        alive, ends = self.suspects, sorted({min(end, len(self.order)) for end in ROUNDS + (len(self.order),)})
        rounds = list(zip((len(alive), len(alive) // 2, BEST), [0] + ends, ends))
        views = sum((count + 1) * (end - start) for count, start, end in rounds) + ends[0] * sum(one.protocol.views - 1 for one in alive)
        with progress(views, "suspects", "view") as tick:
            for count, start, end in rounds:
                alive = alive[:count]
                tick((count - len(alive) + (not alive)) * (end - start))  # what the rounds before have spared
                if alive:
                    self.compute([self.base] + alive, self.order[start:end], tick)
                    alive = self.hopeful(alive)
        if self.unread:
            self.notes.append("%d of the videos cannot be read, and are left out, such as %s: %s" % (
                (len(self.unread), self.chain.sources[min(self.unread)], self.unread[min(self.unread)])))

    def hopeful(self, alive: Sequence[Suspect]) -> List[Suspect]:
        """The suspects that may still explain the most, the best first."""
        rows = [row for row in self.rows() if not row.problem]
        least = max([_gain(row, -2) for row in rows] + [-1.0])
        names = [row.change for row in rows if _gain(row, 2) >= least and (row.gained > row.lost or not row.change.startswith("fusion"))]
        return sorted((one for one in alive if one.name in names), key=lambda one: names.index(one.name))

    def compute(self, suspects: Sequence[Suspect], videos: Sequence[int], tick: Callable[..., None]) -> None:
        """Whether each suspect, the base being the first, is right on each video: one network after the other, and each of
        these over all videos. The pixels that the base takes are kept for the networks that take the same: 1.5 MB a video."""
        groups: Dict[Any, List[Suspect]] = {}
        for one in suspects:
            groups.setdefault((one.protocol, one.sample, one.precision), []).append(one)
        kept: Dict[int, np.ndarray] = {}
        for (protocol, sample, precision), group in groups.items():
            try:
                engine = BACKENDS[self.backend](build(self.trunk, "view", protocol), self.chain.model.path, precision, cores())
            except Exception:  # a network can be too narrow for a shift, or too small for its input, in many ways
                self.problems.update({one.name: "cannot be built for this network" for one in group})
                tick(len(group) * len(videos) * protocol.views)
                continue
            same = sample is self.base.sample and protocol.pixels("uint8") == self.base.protocol.pixels("uint8")
            source: Iterable[Any] = kept.items() if same and kept else reading_ahead(self.decoded(videos, protocol, sample))
            try:
                for index, raw in source:
                    if same:
                        kept[index] = raw
                    for one in group:
                        scores: List[np.ndarray] = []
                        for view in one.views(raw):
                            engine.submit(view, partial(self.take, one, index, scores))
                        tick(protocol.views)
            finally:
                engine.wait()

    def decoded(self, videos: Sequence[int], protocol: Protocol, sample: Sample) -> Any:
        """(index, pixels uint8 [frames, 3, size, size]) of the videos that can be read."""
        for index in videos:
            raw = np.empty(protocol.video_shape, np.uint8)
            try:
                clips.fill(self.chain.source(index), None, protocol, None, raw, None, sample)
                yield index, raw
            except Corrupt as error:
                self.unread[index] = str(error)

    def take(self, one: Suspect, index: int, views: List[np.ndarray], scores: np.ndarray) -> None:
        """Add frame scores [segments, classes] to those of a video's views, and keep whether all of them are right,
        fused as it was and as it is suspected; called by the engine's threads."""
        views.append(scores.mean(0))
        if len(views) == one.protocol.views:
            for fusion in [one.fusion] if one.before == AS_IT_WAS else FUSIONS:
                answer = fuse(np.stack(views), len(views), fusion)[0].argmax()
                self.right[one.name if fusion == one.fusion else one.before][index] = bool(answer == self.chain.labels[index])

    def rows(self) -> List[Trial]:
        """What is known of each suspect, the one that explains most first."""
        rows = [_trial("BatchNorm and classifier", np.zeros(0, bool), np.zeros(0, bool), "", "", self.weights)] if self.weights else []
        for one in self.suspects:
            both = sorted(set(self.right[one.name]) & set(self.right[one.before]))
            after, before = (np.array([self.right[name][index] for index in both], bool) for name in (one.name, one.before))
            problem = self.problems.get(one.name, "" if both else "not reached")
            rows.append(_trial(one.name, before, after, one.because, one.remedy, problem))
        return _corrected(rows + self.of_labels())

    def of_labels(self) -> List[Trial]:
        """The same of the orders that labels may have, over the run's own results."""
        if not self.given:
            return []
        rows, truth = [], np.array([self.chain.labels[index] for index in self.given])
        answers = np.array(list(self.given.values()))
        for found, before, words in other_orders(truth, answers, self.chain.protocol.classes, self.chain.names):
            what, remedy = (words.split("; ") + ["make the lists again with the network's labels file"])[:2]
            name, *more = re.split(": |, (?=as |learnt )", what)
            because = "the labels are numbered otherwise than the network's classes" + "".join(" (%s)" % part for part in more)
            rows.append(_trial(name.replace("with", "labels,", 1), before, found, because, remedy, "" if len(found) else
                               "no class has two videos"))
        return rows

    def verdict(self, rows: Sequence[Trial]) -> str:
        """What explains the accuracy, in a sentence or two."""
        tried = [row for row in rows if not row.problem]
        if self.weights and not (tried and tried[0].before >= GOOD):
            return "the weights were loaded or trained in part: %s" % self.weights
        if not tried:
            return "nothing could be tried"
        best, as_good = tried[0], [row.change for row in tried[1:] if row.explains and _gain(row) > _gain(tried[0]) - NEAR]
        if not best.explains:
            more = self.unlike_the_results() or ("; it is good already" if best.before >= GOOD else "")
            return "no single change explains the accuracy (%d were tried, on up to %d videos)%s" % (
                len(tried), max(row.videos for row in tried), more)
        return "with %s, top-1 is %.4f instead of %.4f on %d videos (%s): %s.\nTo make it right: %s%s" % (
            best.change, best.after, best.before, best.videos, chance(best.corrected), best.because, best.remedy,
            "\nAs good, but not as simple: " + "; ".join(as_good) if as_good else "")

    def unlike_the_results(self) -> str:
        """Whether the run's results are worse than the same videos computed again, in words; empty if not."""
        both = [index for index in self.right[AS_IT_WAS] if index in self.given]
        again = np.array([self.right[AS_IT_WAS][index] for index in both], bool)
        then = np.array([self.given[index] == self.chain.labels[index] for index in both], bool)
        row = _trial("", then, again, "", "")
        return "; but top-1 of the results is %.4f, and computed again %.4f: a stage departs, and --stages tells which" % (
            row.before, row.after) if row.gained > row.lost and row.p < CERTAIN else ""


def _trial(change: str, before: np.ndarray, after: np.ndarray, because: str, remedy: str, problem: str = "") -> Trial:
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    shares = [float(right.mean()) if len(right) else 0.0 for right in (before, after)]
    return Trial(change, len(after), shares[0], shares[1], lost, gained, mcnemar(lost, gained), 1.0, because, remedy, problem)


def _corrected(rows: Sequence[Trial]) -> List[Trial]:
    """The rows, those that were computed by what they explain and with Holm's corrected p; of several by one name the best."""
    tried = sorted((row for row in rows if not row.problem), key=lambda row: row.p)
    holm = accumulate((min(1.0, row.p * (len(tried) - place)) for place, row in enumerate(tried)), max)
    made = [row._replace(corrected=p) for row, p in zip(tried, holm)]
    made.sort(key=lambda row: (not row.explains, -_gain(row, -2)))
    near = [row.change for row in made if row.explains and _gain(row) >= _gain(made[0]) - NEAR]
    simplest = next((row.change for row in rows if row.change in near), "")
    best: Dict[str, Trial] = {}
    for row in sorted(made, key=lambda row: row.change != simplest):
        best.setdefault(row.change, row)
    missing = [row for row in rows if row.problem]
    return [row for row in missing if not row.because] + list(best.values()) + [row for row in missing if row.because]


def _gain(row: Trial, errors: float = 0) -> float:
    """What a change adds to top-1, plus so many standard errors."""
    return (row.gained - row.lost + errors * (row.gained + row.lost) ** 0.5) / max(1, row.videos)


def _folders(chain: Chain, results: Dict[int, np.ndarray]) -> List[str]:
    """Notes of the folders most of whose videos are surely answered as one class that is not their label."""
    inside: Counter = Counter(os.path.dirname(chain.sources[index]) for index in results)
    sure = {index: int(one.argmax()) for index, one in results.items() if one.max() >= SURE}
    wrong = Counter((os.path.dirname(chain.sources[index]), answer) for index, answer in sure.items() if answer != chain.labels[index])
    told = ["%d of the %d videos in %s are surely answered as %s, which is not their label" % (
        count, inside[folder], folder or "the folder of the videos", name_of(answer, chain.names))
        for (folder, answer), count in sorted(wrong.items()) if count >= max(INSIDE, MOSTLY * inside[folder])]
    return told[:3] + ["and so in %d more folders" % len(told[3:])] * bool(told[3:])


def weights_of(trunk: Trunk, checkpoint: str) -> str:
    """What of the weights is as nobody trains it, in words; empty if nothing is, as far as the checkpoint is there."""
    found = ["the classifier's rows are all equal, so all videos get one answer"] * bool((trunk.fc_weight == trunk.fc_weight[0]).all())
    if os.path.exists(checkpoint):
        from tsm.checkpoint.reader import load

        state = {name: np.asarray(value) for name, value in load(checkpoint)[0].items()}
        layers = [name[: -len(".running_var")] for name in state if name.endswith(".running_var")]
        fresh = [name for name in layers if (state[name + ".running_var"] == 1).all() and not state[name + ".running_mean"].any()]
        if fresh:
            found.append("%d of %d BatchNorm layers have the statistics they were made with, mean 0 and variance 1 (%s)" % (
                len(fresh), len(layers), ", ".join(fresh[:3]) + (", …" if fresh[3:] else "")))
    return "; ".join(found)


def suspects_text(found: Dict[str, Any]) -> str:
    """suspects_json() for a terminal."""
    wide = max(len(row["change"]) for row in found["rows"])
    lines = ["%-*s  videos  as it was  changed  difference  p (Holm)" % (wide, "change")]
    lines += ["%-*s  %s" % (wide, row["change"], row["problem"] or "%6d  %9.4f  %7.4f  %+10.4f  %.2g" % (
        row["videos"], row["before"], row["after"], row["after"] - row["before"], row["corrected"])) for row in found["rows"]]
    lines += ["", *("note: " + note for note in found["notes"]), *found["verdict"].split("\n")]
    return "\n".join(map(printable, lines))


def suspects_json(hunt: Hunt) -> Dict[str, Any]:
    """What is known, for JSON and the page."""
    rows = hunt.rows()
    return {"run": os.path.abspath(hunt.chain.folder), "rows": [row._asdict() for row in rows], "notes": hunt.notes,
            "verdict": hunt.verdict(rows), "about": hunt.chain.model.metadata.get("tsm.about"), "precision": hunt.base.precision}
