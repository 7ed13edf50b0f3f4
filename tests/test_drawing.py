"""Small graphs as SVG: where boxes stand, what the drawing says, and that nothing breaks out of it."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from reports import HOSTILE

from bnfold.changes import DrawnNode, Picture, Role
from bnfold.render.drawing import MOST_BOXES, drawing, reduced, spoken

CHAIN = Picture(
    (
        DrawnNode(7, "Conv", "conv1", Role.ABSORBS),
        DrawnNode(9, "BatchNormalization", "bn1", Role.GOES),
        DrawnNode(3, "Relu", "relu1", Role.NEAR),
    ),
    ((7, 9), (9, 3)),
)
# conv1 is read right away by add, and once more behind bn; conv2 is read by add alone
RESIDUAL = Picture(
    (
        DrawnNode(0, "Conv", "conv1", Role.NEAR),
        DrawnNode(1, "BatchNormalization", "bn", Role.GOES),
        DrawnNode(2, "Relu", "relu", Role.PASSES),
        DrawnNode(3, "Conv", "conv2", Role.ABSORBS),
        DrawnNode(4, "Sum", "add", Role.ARRIVES),
    ),
    ((0, 1), (1, 2), (2, 4), (0, 4), (3, 4)),
)


def parts(picture: Picture, kind: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(drawing(picture, "Before")).iter() if e.tag == kind]


def corners(picture: Picture) -> dict[str, tuple[float, float, float, float]]:
    """Name to left, top, right, bottom."""
    boxes = [[float(e.attrib[k]) for k in ("x", "y", "width", "height")] for e in parts(picture, "rect")]
    return {n.name: (x, y, x + w, y + h) for n, (x, y, w, h) in zip(picture.nodes, boxes, strict=True)}


class TestLayout:
    @pytest.mark.parametrize("picture", [CHAIN, RESIDUAL])
    def test_data_flows_down(self, picture: Picture) -> None:
        boxes, names = corners(picture), {n.key: n.name for n in picture.nodes}
        for a, b in picture.edges:
            assert boxes[names[a]][3] < boxes[names[b]][1]

    def test_boxes_do_not_touch(self) -> None:
        boxes = list(corners(RESIDUAL).values())
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:i]:
                assert left > other[2] or right < other[0] or top > other[3] or bottom < other[1]

    def test_all_is_within_the_frame(self) -> None:
        _, _, width, height = map(
            float, ElementTree.fromstring(drawing(RESIDUAL, "")).attrib["viewBox"].split()
        )
        for left, top, right, bottom in corners(RESIDUAL).values():
            assert left >= 0 and top >= 0 and right <= width and bottom <= height

    def test_an_operand_stands_right_above_its_reader(self) -> None:
        boxes = corners(RESIDUAL)
        assert boxes["conv2"][1] == boxes["relu"][1]

    def test_a_long_edge_passes_beside_the_boxes(self) -> None:
        """Between conv1 and add it goes straight down through two layers."""
        (path,) = (e.attrib["d"] for e in parts(RESIDUAL, "path") if "V" in e.attrib["d"])
        boxes = corners(RESIDUAL)
        places = re.findall(r"([\d.]+) [\d.]+V([\d.]+)", path)
        assert len(places) == 2
        for name, (x, _) in zip(("bn", "relu"), places, strict=True):
            assert not boxes[name][0] <= float(x) <= boxes[name][2]

    def test_nothing_to_draw(self) -> None:
        assert "nothing" in drawing(Picture((), ()), "After")

    def test_the_same_picture_gives_the_same_bytes(self) -> None:
        assert drawing(RESIDUAL, "After") == drawing(RESIDUAL, "After")


class TestTooMany:
    """What would be wider or higher than a screen."""

    def fan(self, readers: int) -> Picture:
        norm = DrawnNode(0, "BatchNormalization", "bn", Role.GOES)
        convs = (DrawnNode(i, "Conv", f"conv{i}", Role.ABSORBS) for i in range(1, readers + 1))
        return Picture((norm, *convs), tuple((0, i) for i in range(1, readers + 1)))

    def chain(self, length: int) -> Picture:
        relus = tuple(DrawnNode(i, "Relu", f"relu{i}", Role.PASSES) for i in range(length))
        return Picture(relus, tuple(pairwise(range(length))))

    def test_few_are_drawn_as_they_are(self) -> None:
        for picture in (CHAIN, RESIDUAL, self.fan(8), self.chain(MOST_BOXES)):
            assert reduced(picture) == picture

    def test_many_abreast(self) -> None:
        picture = reduced(self.fan(2000))
        assert len(picture.nodes) == 9 and len(picture.edges) == 8
        last = picture.nodes[-1]
        assert (last.op_type, last.name) == ("and 1,993 more", "1,993 Conv")

    def test_many_one_below_the_other(self) -> None:
        picture = reduced(self.chain(3000))
        assert len(picture.nodes) == MOST_BOXES
        (more,) = (node for node in picture.nodes if node.op_type.startswith("and"))
        assert (more.op_type, more.name) == ("and 2,961 more", "2,961 Relu")
        assert picture.nodes[0].name == "relu0" and picture.nodes[-1].name == "relu2999"
        keys = [node.key for node in picture.nodes]
        assert picture.edges == tuple(pairwise(keys))  # in one piece

    @pytest.mark.parametrize("width", [7, 9, 100])
    def test_many_of_both(self, width: int) -> None:
        nodes = tuple(DrawnNode(i, "Add", f"n{i}", Role.NEAR) for i in range(100 * width))
        edges = tuple((i, i + width) for i in range(99 * width))
        picture = reduced(Picture(nodes, edges))
        assert len(picture.nodes) <= MOST_BOXES
        kept = [node for node in picture.nodes if not node.op_type.startswith("and")]
        more = [node.op_type.split()[1] for node in picture.nodes if node not in kept]
        assert len(kept) + sum(int(n.replace(",", "")) for n in more) == len(nodes)

    @pytest.mark.parametrize("size", [50, 2000])
    def test_its_size_is_bounded(self, size: int) -> None:
        for picture in (self.fan(size), self.chain(size)):
            svg = drawing(picture, "Before")
            root = ElementTree.fromstring(svg)
            assert len(svg) < 60_000 and len(root.attrib["aria-label"]) <= 4000
            assert int(root.attrib["width"]) < 2000 and int(root.attrib["height"]) < 4000
            assert "more" in root.attrib["aria-label"]

    def test_those_that_matter_are_kept(self) -> None:
        near = tuple(DrawnNode(i, "Relu", f"n{i}", Role.NEAR) for i in range(50))
        goes = DrawnNode(50, "BatchNormalization", "bn", Role.GOES)
        assert goes in reduced(Picture((*near, goes), ())).nodes


class TestWords:
    def test_the_alternative_says_what_is_seen(self) -> None:
        text = spoken(CHAIN, "Before")
        assert text == (
            "Before: Conv 'conv1' (absorbs it), BatchNormalization 'bn1' (goes), Relu 'relu1' (neighbour). "
            "Data flows Conv 'conv1' to BatchNormalization 'bn1', BatchNormalization 'bn1' to Relu 'relu1'."
        )
        root = ElementTree.fromstring(drawing(CHAIN, "Before"))
        assert root.attrib["aria-label"] == text and root.attrib["role"] == "img"

    def test_what_goes_is_struck_out_and_nothing_else(self) -> None:
        struck = [e.text for e in parts(CHAIN, "text") if "text-decoration" in e.attrib]
        assert struck == ["BatchNormalization", "bn1"]

    def test_roles_are_told_in_words(self) -> None:
        words = [e.text for e in parts(RESIDUAL, "text") if e.attrib.get("font-style")]
        assert words == ["neighbour", "goes", "passes it on", "absorbs it", "stays behind"]

    @pytest.mark.parametrize("name", HOSTILE)
    def test_names_stay_names(self, name: str) -> None:
        nodes = tuple(DrawnNode(i, name, name, role) for i, role in enumerate(Role))
        root = ElementTree.fromstring(drawing(Picture(nodes, ()), name))  # well-formed
        assert {e.tag for e in root.iter()} == {"svg", "rect", "text"}

    def test_long_names_fit_their_box(self) -> None:
        name = "/model" * 500 + "/last"
        texts = [e.text or "" for e in parts(Picture((DrawnNode(0, name, name, Role.NEAR),), ()), "text")]
        assert max(map(len, texts)) <= 27 and all(text.endswith("/last") for text in texts[:2])
