"""Rendered clips of ten Something-Something V2 classes whose only difference within a pair is the direction of time.

A clip is a scene (a pure function of a random generator) and a progress 0..1 over time. The second class of a pair plays
the first one backwards, so that no single frame, and no order-blind statistic of frames, tells the two apart.
"""

from typing import Callable, Dict, List, NamedTuple, Tuple

import cv2
import numpy as np
from numpy.random import RandomState

Scene = Callable[[np.ndarray, float], None]  # paints the objects at a progress 0..1 over an image, uint8 [H, W, 3]


class Action(NamedTuple):
    """A pair of classes: the templates played forwards and backwards, and the maker of their scenes."""

    forwards: str
    backwards: str
    scene: Callable[[RandomState, int, int], Scene]


def _texture(rng: RandomState, height: int, width: int, contrast: float) -> np.ndarray:
    """A smooth random texture around a random colour, uint8 [height, width, 3], at times with stripes."""
    cells = rng.randint(2, 10, 2)
    coarse = rng.uniform(-contrast, contrast, (cells[0], cells[1], 3)) + rng.uniform(50, 205, 3)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.rand() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3) * max(height, width)
        y, x = np.mgrid[:height, :width]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        image += (wave * rng.uniform(0.2, 0.6) * contrast)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


class _Thing:
    """A textured polygon or ellipse, painted at any place and size."""

    def __init__(self, rng: RandomState, background: np.ndarray) -> None:
        corners = rng.choice([3, 4, 4, 5, 6, 40])
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(0.85, 1.15, corners) if corners < 40 else np.ones(corners)
        self.outline = np.stack((np.cos(angles) * radius, np.sin(angles) * radius * rng.uniform(0.6, 1.0)), 1)
        self.texture = _texture(rng, 64, 64, 40)
        while np.abs(self.texture.mean((0, 1)) - background).max() < 60:  # it has to stand out
            self.texture = _texture(rng, 64, 64, 40)

    def paint(self, image: np.ndarray, x: float, y: float, radius: float) -> None:
        height, width = image.shape[:2]
        side = max(2, int(2.4 * radius))
        left, top = int(round(x - side / 2)), int(round(y - side / 2))
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
        if x0 >= x1 or y0 >= y1:
            return
        mask: np.ndarray = np.zeros((side, side), np.uint8)
        points = self.outline * radius + (x - left, y - top)
        cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        mask = mask[y0 - top : y1 - top, x0 - left : x1 - left, None] / np.float32(255)
        texture = cv2.resize(self.texture, (side, side))[y0 - top : y1 - top, x0 - left : x1 - left]
        region = image[y0:y1, x0:x1]
        region[:] = (region + (texture - region.astype(np.float32)) * mask + 0.5).astype(np.uint8)


def _background(rng: RandomState, height: int, width: int) -> np.ndarray:
    return _texture(rng, height, width, 20)


def _travel(rng: RandomState, height: int, width: int, axis: int) -> Scene:
    """One object travels along an axis (0: rightwards, 1: upwards), through the part that all three crops see."""
    side, background = min(height, width), _background(rng, height, width)
    thing = _Thing(rng, background.mean((0, 1)))
    radius, length = rng.uniform(0.1, 0.22) * side, rng.uniform(0.3, 0.6) * side
    drift = rng.uniform(-0.06, 0.06) * side
    middle = np.array([width, height]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
    bystander = _bystander(rng, background)

    def paint(image: np.ndarray, progress: float) -> None:
        image[:] = background
        bystander(image)
        along, across = (progress - 0.5) * length, (progress - 0.5) * drift
        x, y = (along, across) if axis == 0 else (across, -along)
        thing.paint(image, middle[0] + x, middle[1] + y, radius)

    return paint


def _bystander(rng: RandomState, background: np.ndarray) -> Callable[[np.ndarray], None]:
    """At times a second object that does not move, near the rim."""
    height, width = background.shape[:2]
    thing, radius = _Thing(rng, background.mean((0, 1))), rng.uniform(0.05, 0.1) * min(height, width)
    x, y = rng.choice([0.12, 0.88]) * width, rng.choice([0.12, 0.88]) * height
    shown = rng.rand() < 0.4
    return lambda image: thing.paint(image, x, y, radius) if shown else None


def _right(rng: RandomState, height: int, width: int) -> Scene:
    return _travel(rng, height, width, 0)


def _up(rng: RandomState, height: int, width: int) -> Scene:
    return _travel(rng, height, width, 1)


def _towards(rng: RandomState, height: int, width: int) -> Scene:
    """One object comes towards the camera: it grows."""
    side, background = min(height, width), _background(rng, height, width)
    thing = _Thing(rng, background.mean((0, 1)))
    small = rng.uniform(0.06, 0.11) * side
    large = small * rng.uniform(2.2, 3.4)
    drift = rng.uniform(-0.05, 0.05, 2) * side
    middle = np.array([width, height]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
    bystander = _bystander(rng, background)

    def paint(image: np.ndarray, progress: float) -> None:
        image[:] = background
        bystander(image)
        x, y = middle + (progress - 0.5) * drift
        thing.paint(image, x, y, small * (large / small) ** progress)

    return paint


def _together(rng: RandomState, height: int, width: int) -> Scene:
    """Two objects come closer to each other, along a random line."""
    side, background = min(height, width), _background(rng, height, width)
    things = [_Thing(rng, background.mean((0, 1))) for _ in range(2)]
    radius = rng.uniform(0.07, 0.13, 2) * side
    near = radius.sum() / 2 + rng.uniform(0.0, 0.03) * side
    far = near + rng.uniform(0.14, 0.24) * side
    angle = rng.uniform(0, np.pi)
    line = np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([width, height]) / 2 + rng.uniform(-0.06, 0.06, 2) * side

    def paint(image: np.ndarray, progress: float) -> None:
        image[:] = background
        for thing, size, sign in zip(things, radius, (1, -1)):
            x, y = middle + sign * line * (far + (near - far) * progress)
            thing.paint(image, x, y, size)

    return paint


def _cover(rng: RandomState, height: int, width: int) -> Scene:
    """A sheet is drawn over an object, from one of the four sides, until it is hidden."""
    side, background = min(height, width), _background(rng, height, width)
    thing = _Thing(rng, background.mean((0, 1)))
    sheet = _texture(rng, 64, 64, 25)
    radius = rng.uniform(0.12, 0.2) * side
    half = radius * rng.uniform(1.25, 1.6)
    middle = np.array([width, height]) / 2 + rng.uniform(-0.1, 0.1, 2) * side
    edge = rng.randint(4)

    def paint(image: np.ndarray, progress: float) -> None:
        image[:] = background
        thing.paint(image, middle[0], middle[1], radius)
        box = np.array([middle - half, middle + half])  # [[left, top], [right, bottom]]
        box[1 - edge // 2, edge % 2] = box[edge // 2, edge % 2] + (1 - edge // 2 * 2) * 2 * half * progress
        (x0, y0), (x1, y1) = np.clip(np.round(box), 0, (width, height)).astype(int)
        if x1 > x0 and y1 > y0:
            image[y0:y1, x0:x1] = cv2.resize(sheet, (x1 - x0, y1 - y0))

    return paint


ACTIONS = (
    Action("Pushing something from left to right", "Pushing something from right to left", _right),
    Action("Moving something up", "Moving something down", _up),
    Action("Moving something towards the camera", "Moving something away from the camera", _towards),
    Action("Moving something and something closer to each other",
           "Moving something and something away from each other", _together),
    Action("Covering something with something", "Uncovering something", _cover),
)
TEMPLATES = [template for action in ACTIONS for template in (action.forwards, action.backwards)]


def render(rng: RandomState, template: str, height: int, width: int, times: np.ndarray) -> List[np.ndarray]:
    """Frames of one clip of the class `template`, BGR uint8 [height, width, 3] each, at `times` (0..1, ascending)."""
    action = next(action for action in ACTIONS if template in (action.forwards, action.backwards))
    scene = action.scene(rng, height, width)
    start, stop = rng.uniform(0, 0.1), rng.uniform(0.9, 1)
    sway, phase = rng.uniform(0, 0.06), rng.uniform(0, 2 * np.pi)  # an uneven pace
    shake, noise, light = rng.uniform(0, 0.012), rng.uniform(0, 6), rng.uniform(0, 0.05)
    if template == action.backwards:
        times = 1 - times
    frames = []
    for time in times:
        pace = np.clip((time - start) / (stop - start), 0, 1)
        progress = np.clip(pace + sway * np.sin(2 * np.pi * pace) * np.cos(phase), 0, 1)
        image = np.empty((height, width, 3), np.uint8)
        scene(image, progress)
        move = rng.normal(0, shake * min(height, width), 2)
        shaken = cv2.warpAffine(image, np.array([[1, 0, move[0]], [0, 1, move[1]]]), (width, height),
                                borderMode=cv2.BORDER_REFLECT)
        noisy = shaken * (1 + rng.normal(0, light)) + rng.normal(0, noise, (height, width, 1))
        frames.append(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))
    return frames


def shape_and_length(rng: RandomState) -> Tuple[int, int, int]:
    """(height, width, frames) of a clip, as varied as the real ones: landscape, portrait and square, 12 to 60 frames."""
    sizes = [(240, 320), (240, 320), (240, 426), (320, 240), (256, 256), (240, 300), (180, 240), (270, 240)]
    height, width = sizes[rng.randint(len(sizes))]
    return height, width, int(rng.randint(12, 61))


def label_index(labels: Dict[str, str]) -> Dict[str, int]:
    """{template: class index} of the rendered classes, from something-something-v2-labels.json."""
    return {template: int(labels[template]) for template in TEMPLATES}
