"""Malformed annotations: each gets its own sentence, before anything is decoded or written."""

# ruff: noqa: E501 (one fault a line)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedvision import registry
from fedvision.errors import ConfigError
from fedvision.types import PluginSpec
from tests.data.annotated import CATEGORIES, box, coco_folder, document, image, picture, voc_xml

FINE = [0, 0, 2, 2]


class Fault(NamedTuple):
    """One malformed set."""

    name: str
    use: str
    make: Callable[[Path], object]
    """Writes it into a folder."""
    sentence: str
    """The whole error; HERE is the folder."""
    keys: tuple[tuple[str, Any], ...] = ()


def _coco(name: str, sentence: str, *annotations: Any, **lists: Any) -> Fault:
    content = document([image(1)], annotations) | lists
    return Fault(name, "coco", lambda here: coco_folder(here, content), f"HERE/boxes.json{sentence}")


def _raw(name: str, text: str, sentence: str) -> Fault:
    return Fault(
        name, "coco", lambda here: (here / "boxes.json").write_text(text), f"HERE/boxes.json{sentence}"
    )


def _mask(name: str, segmentation: Any, sentence: str) -> Fault:
    content = document([image(1)], [box(1, 1, FINE, segmentation=segmentation)])
    return Fault(name, "coco-masks", lambda here: coco_folder(here, content), f"HERE/boxes.json{sentence}")


def _voc(name: str, text: str, sentence: str) -> Fault:
    def make(here: Path) -> None:
        picture(here / "a.png")
        (here / "a.xml").write_text(text)

    return Fault(name, "voc", make, sentence)


def _yolo(name: str, row: str, sentence: str, yaml: str = "names: [cat, dog]\n") -> Fault:
    def make(here: Path) -> None:
        picture(here / "images/a.png")
        (here / "labels").mkdir()
        (here / "labels/a.txt").write_text(row)
        (here / "data.yaml").write_text(yaml)

    return Fault(name, "yolo", make, sentence)


def _without_image(here: Path) -> None:
    coco_folder(here, document([image(1)], []))
    (here / "1.png").unlink()


def _elsewhere(here: Path) -> None:
    _without_image(here)
    picture(here / "photos/1.png")


def _other_size(here: Path) -> None:
    picture(here / "1.png", 8, 6)
    coco_folder(here, document([image(1)], []))


def _voc_of_other_size(here: Path) -> None:
    picture(here / "a.png")
    voc_xml(here / "a.xml", "a.png", [("dog", (1, 1, 2, 2))], (16, 16))


def _voc_without_image(here: Path) -> None:
    picture(here / "b.png")
    voc_xml(here / "a.xml", "a.png", [("dog", (1, 1, 2, 2))])


def _voc_listed(here: Path) -> None:
    voc_xml(here / "Annotations/a.xml", "a.png", [("dog", (1, 1, 2, 2))])
    picture(here / "JPEGImages/a.png")
    (here / "ImageSets/Main").mkdir(parents=True)
    (here / "ImageSets/Main/train.txt").write_text("a\nb\n")


def _orphan(here: Path) -> None:
    picture(here / "images/a.png")
    (here / "labels").mkdir()
    (here / "labels/b.txt").write_text("0 .5 .5 .5 .5")
    (here / "data.yaml").write_text("names: [cat]\n")


def _unnamed(here: Path) -> None:
    picture(here / "images/a.png")


def _inside(text: str) -> str:
    return f"<annotation><size><width>8</width><height>8</height></size>{text}</annotation>"


def _object(text: str) -> str:
    return _inside(f"<object><name>dog</name>{text}</object>")


_BOMB = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
_OUT = "; correct it, or set data.repair = true to"
FAULTS = [
    _raw("no JSON", "{", ": this is no JSON file: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); export the annotations again"),
    _raw("a list", "[]", ": this is a list, as files of detections are, and no COCO file of annotations with images, annotations and categories; name that one"),
    _raw("no COCO", '{"shapes": []}', ": this is no COCO file: it has no list 'images'; export the annotations as COCO JSON"),
    _raw("no categories", '{"images": [], "annotations": []}', ": this is no COCO file: it has no list 'categories'; export the annotations as COCO JSON"),
    Fault("no file", "coco", lambda here: None, "HERE/boxes.json: this file cannot be read: No such file or directory; correct data.path"),
    _coco("no category", ": it has no categories; they are the classes", categories=[]),
    Fault("no images", "coco", lambda here: coco_folder(here, document([], [])), "HERE: there are no annotated images; correct data.path"),
    _coco("an image that is no object", ": image number 0 in its list is no object but 'x'; remove it", images=["x"]),
    _coco("an id that is none", ": annotation number 0 in its list has no id; give each annotation a whole number of its own", {"image_id": 1}),
    _coco("image ids twice", ": two images have the id 1; give each its own", images=[image(1), image(1, file_name="2.png")]),
    _coco("annotation ids twice", ": two annotations have the id 5; give each its own", box(5, 1, FINE), box(5, 1, FINE)),
    _coco("category ids twice", ": two categories have the id 2; give each its own", categories=[*CATEGORIES, {"id": 2, "name": "cow"}]),
    _coco("category names twice", ", category 9: its name 'dog' is that of category 2 already; rename or merge them", categories=[*CATEGORIES, {"id": 9, "name": "dog"}]),
    _coco("a file twice", ", image 2: its file 1.png is that of image 1 already; keep one", images=[image(1), image(2, file_name="1.png")]),
    _coco("an unknown class", ", annotation 1: its category_id 5 is that of no category; remove the annotation or add the category", box(1, 1, FINE, 5)),
    _coco("an unknown image", ", annotation 1: its image_id 3 is that of no image; remove the annotation or add the image", box(1, 3, FINE)),
    _coco("a box of three numbers", ", annotation 1: its bbox is [1, 2, 3]; it must be the four numbers x, y, width, height in pixels", box(1, 1, [1, 2, 3])),
    _coco("no box", ", annotation 1: its bbox is missing; it must be the four numbers x, y, width, height in pixels", {"id": 1, "image_id": 1, "category_id": 2}),
    _coco("NaN", ", annotation 1: the box has a value that is no finite number; correct or remove it", box(1, 1, [0, 0, float("nan"), 2])),
    _coco("a box without area", ", annotation 1: the box x 1, y 1, width 0, height 2 has no area; remove it, or set data.repair = true to leave it out", box(1, 1, [1, 1, 0, 2])),
    _coco("a box outside", f", annotation 1: the box x 8, y 0, width 2, height 2 lies outside of the image of 8 x 8 pixels{_OUT} leave it out", box(1, 1, [8, 0, 2, 2])),
    _coco("a box that sticks out", f", annotation 1: the box x 0, y 7, width 2, height 3 sticks out of the image of 8 x 8 pixels by more than one{_OUT} clip it", box(1, 1, [0, 7, 2, 3])),
    _coco("a negative area", ", annotation 1: its area is -1; it must be a number of pixels, or be left out for that of the box", box(1, 1, FINE, area=-1)),
    _coco("iscrowd", ", annotation 1: iscrowd is 2; it must be 0 or 1", box(1, 1, FINE, iscrowd=2)),
    _coco("no file name", ", image 1: file_name is missing; it must name the image's file", images=[{"id": 1}]) ,
    _coco("a width of 0", ", image 1: width is 0; it must be a number of pixels", images=[image(1, width=0)]),
    _coco("a strange split", ", image 1: split must be train, val or test, not 'fold1'", images=[image(1, split="fold1")]),
    Fault("an image that is not there", "coco", _without_image, "HERE/boxes.json: 1 of 1 image files are not in HERE: 1.png; set data.root to their folder, or remove their records"),
    Fault("images in another folder", "coco", _elsewhere, "HERE/boxes.json: 1 of 1 image files are not in HERE: 1.png; HERE/photos/1.png is there: set data.root = \"HERE/photos\""),
    Fault("an image of another size", "coco", _other_size, "HERE/boxes.json, image 1: it says 8 x 8 pixels, but 1.png has 8 x 6: it is another file, or was resized; bring back the annotated one, or scale its annotations"),
    _mask("an odd polygon", [[1, 1, 5, 1, 5]], ", annotation 1: a polygon of its segmentation has 5 values, and x and y come in pairs; correct it"),
    _mask("two points", [[1, 1, 5, 1]], ", annotation 1: a polygon of its segmentation has 2 points, and an area needs 3; correct or remove it"),
    _mask("run lengths of another size", {"size": [4, 4], "counts": [16]}, ", annotation 1: its run lengths are of size [4, 4] (height, width), and its image has [8, 8]; export it again"),
    _mask("damaged run lengths", {"size": [8, 8], "counts": [16]}, ", annotation 1: its run lengths are damaged: counts must be numbers, or the text that stands for them, of 8 x 8 pixels in all; export it again"),
    _mask("no segmentation", None, ", annotation 1: its segmentation must be a list of polygons or run lengths with size and counts; annotate it, or read the boxes alone with use = \"coco\""),
    _voc("no XML", "<annotation>", "HERE/a.xml: this is no XML file: no element found: line 1, column 12; export it again"),
    _voc("an entity", _BOMB, "HERE/a.xml: it has a document type (<!DOCTYPE ...>), which is not read; remove that line"),
    _voc("another XML", "<svg/>", "HERE/a.xml: its root is <svg>, not <annotation>: this is no VOC file; remove it"),
    _voc("no size", "<annotation/>", "HERE/a.xml: size/width is ''; it must be the width of the image in pixels, above 0"),
    _voc("no name", _inside("<object/>"), "HERE/a.xml, object 1: it has no <name>; name its class"),
    _voc("no box", _object(""), "HERE/a.xml, object 1: its bndbox has xmin '', ymin '', xmax '', ymax ''; all four must be numbers of pixels"),
    _voc("a strange difficult", _object("<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox><difficult>no</difficult>"), "HERE/a.xml, object 1: difficult is 'no'; it must be 0 or 1"),
    _voc("corners the wrong way round", _object("<bndbox><xmin>5</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"), "HERE/a.xml, object 1: the box x 4, y 0, width -2, height 2 has no area; remove it, or set data.repair = true to leave it out"),
    _voc("infinity", _object("<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>inf</xmax><ymax>2</ymax></bndbox>"), "HERE/a.xml, object 1: the box has a value that is no finite number; correct or remove it"),
    _voc("no object anywhere", _inside(""), "HERE: no XML file has an object; name the classes in data.classes"),
    Fault("VOC of another size", "voc", _voc_of_other_size, "HERE/a.xml: it says 16 x 16 pixels, but a.png has 8 x 8: it is another file, or was resized; bring back the annotated one, or scale its annotations"),
    Fault("VOC without its image", "voc", _voc_without_image, "HERE: 1 of 1 XML files have no image beside them or in JPEGImages: a.png; bring back the images, or remove the XML files"),
    Fault("VOC with a strange line in a list", "voc", _voc_listed, "HERE/ImageSets/Main/train.txt, line 2: b has no XML file in HERE/Annotations; remove the line, or add the file"),
    Fault("an empty folder", "voc", lambda here: None, "HERE: there is no XML file in Annotations/ or below; correct data.path"),
    _yolo("four values", "0 .5 .5 .5", "HERE/labels/a.txt, line 1: it has 4 values; a box has 5 (class number, centre x, centre y, width, height), a polygon the class number and three or more pairs x y"),
    _yolo("a score", "0 .5 .5 .5 .5 .9", "HERE/labels/a.txt, line 1: it has 6 values, as lines of detections have with a score; remove the last one"),
    _yolo("text", "\ndog .5 .5 .5 .5", "HERE/labels/a.txt, line 2: 'dog .5 .5 .5 .5' is more than numbers; a line is a class number and the box's centre x, centre y, width and height"),
    _yolo("pixels", "0 4 4 2 2", "HERE/labels/a.txt, line 1: 4 is outside 0 to 1: YOLO's values are shares of the image's width and height; divide pixels by them"),
    _yolo("a class over the names", "2 .5 .5 .5 .5", "HERE/labels/a.txt, line 1: class number 2 is none of the numbers 0 to 1 that HERE/data.yaml names; correct it, or add the name"),
    _yolo("half a class", "0.5 .5 .5 .5 .5", "HERE/labels/a.txt, line 1: class number 0.5 is none of the numbers 0 to 1 that HERE/data.yaml names; correct it, or add the name"),
    _yolo("NaN in a line", "0 nan .5 .5 .5", "HERE/labels/a.txt, line 1: a value is no finite number; correct or remove the line"),
    _yolo("no width", "0 .5 .5 0 .5", "HERE/labels/a.txt, line 1: the box x 4, y 2, width 0, height 4 has no area; remove it, or set data.repair = true to leave it out"),
    _yolo("a box that reaches out", "0 .1 .5 .8 .5", "HERE/labels/a.txt, line 1: the box x -2.4, y 2, width 6.4, height 4 sticks out of the image of 8 x 8 pixels by more than one; correct it, or set data.repair = true to clip it"),
    _yolo("no mapping", "", "HERE/data.yaml: this is no YAML mapping with names; write names: [car, bus], say", "- cat\n"),
    _yolo("no YAML", "", "HERE/data.yaml: this is no YAML file: while parsing a flow sequence in \"<byte string>\", line 1, column 8: names: [cat ^ expected ',' or ']', but got '<stream end>' in \"<byte string>\", line 2, column 1: ^; correct it", "names: [cat\n"),
    _yolo("code in YAML", "", "HERE/data.yaml: this is no YAML file: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system' in \"<byte string>\", line 1, column 8: names: !!python/object/apply:os.system ... ^; correct it", "names: !!python/object/apply:os.system ['true']\n"),
    _yolo("names that are no text", "", "HERE/data.yaml: names must be a list of class names, or a mapping of numbers from 0 to names, each in quotes where it is a number, yes or no; it is [True, 'dog']", "names: [yes, dog]\n"),
    _yolo("a name twice", "", "HERE/data.yaml: the name 'dog' is there twice; rename one, or merge the classes", "names: [dog, dog]\n"),
    _yolo("a wrong number of names", "", "HERE/data.yaml: nc is 3 and there are 2 names; correct one of them", "names: [cat, dog]\nnc: 3\n"),
    _yolo("a list of files", "", "HERE/data.yaml: train = 'train.txt' is a list of files; name the folder of its images there", "names: [cat, dog]\ntrain: train.txt\n"),
    _yolo("a number without a name", "1 .5 .5 .5 .5", "HERE/labels/a.txt, line 1: class number 1 is none of the numbers 0 to 2 that HERE/data.yaml names; correct it, or add the name", "names: {0: cat, 2: dog}\n"),
    Fault("a label without an image", "yolo", _orphan, "HERE: 1 text files have no image: labels/b.txt; bring back the images, or remove the text files"),
    Fault("no names", "yolo", _unnamed, "HERE: there is neither data.yaml nor classes.txt to name the classes; name them in data.classes"),
    Fault("an empty YOLO folder", "yolo", lambda here: None, "HERE: there are no images; correct data.path", (("classes", ["cat"]),)),
    Fault("no YOLO folder", "yolo", lambda here: here.rmdir(), "HERE: there is no such file or folder; correct data.path"),
]  # fmt: skip


def contents(here: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(here.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{one.use}: {one.name}" for one in FAULTS])
def test_each_fault_has_its_sentence_and_nothing_is_written(fault: Fault, tmp_path: Path) -> None:
    here = tmp_path / "data"
    here.mkdir()
    fault.make(here)
    before = contents(tmp_path)
    path = here / "boxes.json" if fault.use.startswith("coco") else here
    keys = {"path": str(path), "size": 8, "channels": 1, "workers": 1, "cache": str(tmp_path / "cache")}
    with pytest.raises(ConfigError) as found:
        registry.build("data", PluginSpec(use=fault.use, args={**keys, **dict(fault.keys)}))
    told = str(found.value).removeprefix(f"[data] use = {fault.use!r}: ").replace(str(here), "HERE")
    assert told == fault.sentence
    assert contents(tmp_path) == before
    assert [one for one in tmp_path.glob("cache/**/*") if one.is_file()] == []
