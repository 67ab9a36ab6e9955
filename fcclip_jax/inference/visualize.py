"""Pictures of results: segments coloured and named, drawn by the supervision library."""

import colorsys
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import supervision as sv
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from fcclip_jax.inference import fonts
from fcclip_jax.inference.segments import Box, Instance, Panoptic
from fcclip_jax.text.vocabulary import Vocabulary

Color = tuple[int, int, int]

OPACITY = 0.5
TEXT_SHARE = 0.024
"""Height of the letters over the square root of the picture's area: 13 pixels at 640x480."""
LEAST_TEXT = 10
"""Pixels; smaller letters are illegible in a picture of any size."""
LEAST_ROOM = 0.5
"""Segments smaller than this share of their label have no label."""
CROWD = 20
"""With more instances, lines and letters are smaller, labels few, and a pixel has the colour of the best instance alone."""
CROWD_LABELS = 0.12
"""The share of a crowded picture that labels may cover; the best instances have them."""
LEAST_DISTANCE = 60
"""Between the colours of segments that touch, in RGB, where the class's shades allow it."""
SHADES = 16
"""How many shades of a class are tried for a segment."""
GRID = 256
"""Candidate places for labels: about this many points along the shorter side."""


class Region(NamedTuple):
    """Pixels of one colour."""

    box: Box
    mask: Bool[np.ndarray, "h w"]
    """Inside the box."""
    color: Color
    label: str


def draw_panoptic(image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary, panoptic: Panoptic) -> Image.Image:
    """Returns the image with its segments coloured, outlined and named; the plain image if it has none.

    A class has the same colour in every picture, unless it touches one of nearly the same colour; instances of one class are
    shades of it. Labels stand inside their segments and never overlap; segments that are too small to hold a label have
    none. The same holds for the other tasks.
    """
    fonts.warn_of_missing(vocabulary.names)
    shades, touching = _Shades(vocabulary), _touching(panoptic.id_map)
    colors: dict[int, Color] = {}
    regions = []
    for segment in panoptic.segments:
        near = [colors[id] for id in touching[segment.id] & colors.keys()]
        colors[segment.id] = shades.next(segment.class_index, near)
        label = _scored(segment.name, segment.score) if segment.is_thing else segment.name
        mask = _crop(panoptic.id_map, segment.box) == segment.id
        regions.append(Region(segment.box, mask, colors[segment.id], label))
    return _labelled(_painted(image, regions), regions)


def draw_semantic(
    image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary, classes: Int[np.ndarray, "H W"]
) -> Image.Image:
    """Returns the image with each class coloured, and each of its connected regions named.

    classes: counted from 0 in the vocabulary; pixels of -1 stay plain.
    """
    fonts.warn_of_missing(vocabulary.names)
    shades, touching = _Shades(vocabulary), _touching(classes + 1)
    colors: dict[int, Color] = {}
    regions = []
    for index, found in enumerate(ndimage.find_objects(classes + 1)):
        if found is not None:
            near = [colors[other] for other in touching[index + 1] & colors.keys()]
            colors[index + 1] = shades.next(index, near)
            y, x = found
            box = (x.start, y.start, x.stop, y.stop)
            regions.append(Region(box, classes[found] == index, colors[index + 1], vocabulary.classes[index].name))
    return _labelled(_painted(image, regions), [part for region in regions for part in _connected(region)])


def draw_instances(
    image: UInt8[np.ndarray, "H W 3"], vocabulary: Vocabulary, instances: Sequence[Instance], threshold: float
) -> Image.Image:
    """Returns the image with its instances coloured, boxed and named, the best on top.

    Of a crowd, a pixel has the colour of the best instance there, and labels name the best ones.

    instances: best first.
    threshold: the minimum score of an instance that is drawn.
    """
    fonts.warn_of_missing(vocabulary.names)
    shades = _Shades(vocabulary)
    shown = [instance for instance in instances if instance.score >= threshold]
    crowded = len(shown) > CROWD
    taken = np.zeros(image.shape[:2], bool)
    regions: list[Region] = []
    for instance in shown:
        mask, others = _crop(instance.mask, instance.box), _crop(taken, instance.box)
        if crowded:
            mask = mask & ~others
            others |= mask
        near = [region.color for region in regions if _meet(region.box, instance.box)]
        color = shades.next(instance.class_index, near)
        if mask.any():
            regions.append(Region(instance.box, mask, color, _scored(instance.name, instance.score)))
    scene = _boxed(_painted(image, regions[::-1]), regions[::-1], crowded=crowded)
    return _labelled(scene, regions, crowded=crowded)


def _touching(ids: Int[np.ndarray, "H W"]) -> defaultdict[int, set[int]]:
    """Returns the ids that each id has a common border with."""
    borders: defaultdict[int, set[int]] = defaultdict(set)
    for one, other in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        differ = one != other
        for a, b in np.unique(np.stack([one[differ], other[differ]], axis=1), axis=0).tolist():
            borders[a].add(b)
            borders[b].add(a)
    return borders


def _meet(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _painted(image: UInt8[np.ndarray, "H W 3"], regions: Sequence[Region]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a copy with the regions outlined and filled; supervision reads it as OpenCV does, blue first."""
    scene = np.ascontiguousarray(image[..., ::-1])
    # Lines first: colours over them leave the lines where segments meet, but paler and less coarse.
    for paint in (_outline, _fill):
        for region in regions:
            paint(scene, region)
    return scene


def _labelled(scene: UInt8[np.ndarray, "H W 3"], regions: Sequence[Region], *, crowded: bool = False) -> Image.Image:
    """Returns the scene, blue first, as a picture with the regions' labels; if it is crowded, with those of the first."""
    picture = Image.fromarray(np.ascontiguousarray(scene[..., ::-1]))
    _draw_labels(picture, regions, crowded=crowded)
    return picture


def _connected(region: Region) -> Iterator[Region]:
    numbered, _ = ndimage.label(region.mask)
    areas = np.bincount(numbered.reshape(-1))
    for number, (y, x) in enumerate(ndimage.find_objects(numbered), start=1):
        if areas[number] < LEAST_TEXT**2:  # too small for any label; noisy maps have thousands of such regions
            continue
        x0, y0, _, _ = region.box
        box = (x0 + x.start, y0 + y.start, x0 + x.stop, y0 + y.stop)
        yield region._replace(box=box, mask=numbered[y, x] == number)


class _Shades:
    """Colours for the segments of each class: its own for the first, then shades of it, away from those of neighbours."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._seen: Counter[int] = Counter()

    def next(self, class_index: int, near: Sequence[Color] = ()) -> Color:
        """Returns the next shade that differs from the colours nearby; if none does enough, the one that does most."""
        first = self._seen[class_index]
        best, furthest = (0, 0, 0), -1.0
        for order in range(first, first + SHADES):
            color = _shade(self._vocabulary.classes[class_index].color, order)
            distance = min((math.dist(color, other) for other in near), default=math.inf)
            if distance > furthest:
                best, furthest, self._seen[class_index] = color, distance, order + 1
            if distance >= LEAST_DISTANCE:
                break
        return best


def _shade(color: Color, order: int) -> Color:
    if not order:
        return color
    # Multiples of the golden ratio, modulo 1, lie far from all earlier ones.
    shift = (order * (math.sqrt(5) - 1) / 2 + 0.5) % 1 - 0.5
    hue, light, saturation = colorsys.rgb_to_hls(*(part / 255 for part in color))
    # The shades of black and white are greys.
    light = min(max(light, 0.4), 0.6) + 0.6 * shift
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb((hue + 0.1 * shift) % 1, light, saturation))
    return red, green, blue


def _outline(scene: UInt8[np.ndarray, "H W 3"], region: Region) -> None:
    height, width = scene.shape[:2]
    line = _line_width(height, width)
    x0, y0, x1, y1 = region.box
    outer = (max(x0 - line, 0), max(y0 - line, 0), min(x1 + line, width), min(y1 + line, height))
    mask = np.pad(region.mask, ((y0 - outer[1], outer[3] - y1), (x0 - outer[0], outer[2] - x1)))
    _annotate(sv.PolygonAnnotator(sv.Color.WHITE, line), scene, outer, mask)


def _fill(scene: UInt8[np.ndarray, "H W 3"], region: Region) -> None:
    _annotate(sv.MaskAnnotator(sv.Color(*region.color), OPACITY), scene, region.box, region.mask)


def _annotate(
    annotator: sv.PolygonAnnotator | sv.MaskAnnotator,
    scene: UInt8[np.ndarray, "H W 3"],
    box: Box,
    mask: Bool[np.ndarray, "h w"],
) -> None:
    """Paints in place, on the box alone: a stack of masks as large as the image would take gigabytes."""
    part = np.ascontiguousarray(_crop(scene, box))
    whole = np.array([[0, 0, part.shape[1], part.shape[0]]], np.float32)
    _crop(scene, box)[:] = annotator.annotate(part, sv.Detections(whole, mask=mask[None], class_id=np.zeros(1, int)))


def _boxed(
    scene: UInt8[np.ndarray, "H W 3"], regions: Sequence[Region], *, crowded: bool
) -> UInt8[np.ndarray, "H W 3"]:
    if not regions:
        return scene
    line = _line_width(*scene.shape[:2]) * (1 if crowded else 2)
    palette = sv.ColorPalette([sv.Color(*region.color) for region in regions])
    boxes = np.array([region.box for region in regions], np.float32)
    detections = sv.Detections(xyxy=boxes, class_id=np.arange(len(regions)))
    return sv.BoxAnnotator(palette, line).annotate(scene, detections)


def _draw_labels(picture: Image.Image, regions: Sequence[Region], *, crowded: bool) -> None:
    """Draws with Pillow: words without tall letters hang over the lower edge of supervision's labels."""
    share = TEXT_SHARE * (0.75 if crowded else 1)
    size = max(LEAST_TEXT, round(share * math.sqrt(picture.width * picture.height)))
    padding = 2 if crowded else max(2, size // 4)
    room = CROWD_LABELS * picture.width * picture.height if crowded else math.inf
    pen = ImageDraw.Draw(picture)
    places: list[Box] = []
    # Small regions first: large ones have more places for a label. In a crowd, the best first.
    for region in regions if crowded else sorted(regions, key=lambda region: region.mask.sum()):
        runs = fonts.runs(region.label, size)
        width, height = math.ceil(fonts.width(runs)) + 2 * padding, size + 2 * padding
        if width * height > room:
            continue
        place = _place(region, (width, height), (picture.height, picture.width), places)
        if place is not None:
            room -= width * height
            x0, y0, x1, y1 = place
            pen.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), padding, region.color)
            fonts.draw(pen, ((x0 + x1) / 2, (y0 + y1) / 2), runs, _ink(region.color))
            places.append(place)


def _place(region: Region, label_wh: tuple[int, int], shape: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    """Returns the box of a label: well inside the region and near its middle, within the picture, clear of other labels.

    None: the region has no place for it.
    """
    width, height = label_wh
    if region.mask.sum() < LEAST_ROOM * width * height:
        return None
    step = max(1, min(shape) // GRID)
    mask = np.pad(region.mask[::step, ::step], 1)
    # In units of the label's own sides, so that wide labels go to wide places. At 1 the label fits with room to spare.
    depth = ndimage.distance_transform_edt(mask, sampling=(step / height, step / width))[1:-1, 1:-1]
    x0, y0, x1, y1 = region.box
    y, x = np.mgrid[y0:y1:step, x0:x1:step]
    inside = depth > 0
    off_centre = np.hypot(y - y[inside].mean(), x - x[inside].mean()) / np.hypot(y1 - y0, x1 - x0)
    left, top = x - width // 2, y - height // 2
    free = inside & (left >= 0) & (top >= 0) & (left + width <= shape[1]) & (top + height <= shape[0])
    for x0, y0, x1, y1 in taken:
        free &= (left >= x1) | (left + width <= x0) | (top >= y1) | (top + height <= y0)
    if not free.any():
        return None
    best = np.where(free, np.minimum(depth, 1) - 0.2 * off_centre, -np.inf).argmax()
    x0, y0 = int(left.flat[best]), int(top.flat[best])
    return x0, y0, x0 + width, y0 + height


def _ink(background: Color) -> str:
    """Returns the colour that is legible on the background, by its brightness (ITU-R BT.601)."""
    return "black" if np.dot((0.299, 0.587, 0.114), background) > 140 else "white"


def _line_width(height: int, width: int) -> int:
    return max(1, round(math.sqrt(height * width) / 600))


def _scored(name: str, score: float) -> str:
    return f"{name} {score:.2f}"


def _crop(array: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return array[y0:y1, x0:x1]
