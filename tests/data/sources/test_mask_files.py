"""Masks are no images of their class: files beside images are left out, whole folders of them refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.data.sources.image_folder import image_folder
from fedvision.data.sources.mask_files import without_masks
from fedvision.errors import DataError
from tests.data.pictures import save


@pytest.mark.parametrize(
    "mask", ["a_mask.png", "a-mask.tif", "a_mask_1.png", "a_Segmentation.png", "mask_a.png", "a.mask.png"]
)
def test_a_mask_beside_its_image_is_left_out(mask: str) -> None:
    retained, sentences = without_masks([f"cat/{mask}", "cat/a.png"], Path("/x"))
    assert retained == ["cat/a.png"]
    assert sentences == (f"1 files are masks of images beside them by their name, and left out: cat/{mask}",)


@pytest.mark.parametrize(
    "names", [["with_mask/a_mask.png"], ["cat/a_mask.png", "dog/a.png"], ["mask/a.png", "no/a.png"]]
)
def test_what_is_only_called_a_mask_stays(names: list[str]) -> None:
    assert without_masks(names, Path("/x")) == (names, ())


def test_an_image_is_not_trained_on_beside_its_mask(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "b.png"):
        save(tmp_path / "cat" / name)
    dataset = image_folder(path=str(tmp_path), size=4, channels=1, workers=1)
    assert sorted(dataset.train.names) == ["cat/a.png", "cat/b.png"]
    assert dataset.notices[0].startswith("1 files are masks")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.png", "masks/a.png"),
        ("cat/Images/a.jpg", "cat/Masks/a_mask.png"),
        ("img/a.png", "gt/a.tif"),
    ],
)
def test_a_folder_of_masks_beside_one_of_images_is_refused(image: str, mask: str) -> None:
    with pytest.raises(
        DataError, match=rf"/x/{mask}: it has the name of a mask of {image.split('.')[0]}; move"
    ):
        without_masks([image, mask], Path("/x"))
