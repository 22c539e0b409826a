"""Make three machines' private images for a trial: ``python clients/example.py trial``.

A third of scikit-learn's handwritten digits each, in the three forms that clients have: ``north`` has a
folder of classes, ``south`` a CSV file that names images and labels, ``west`` arrays in an .npz file. Beside
the images lies each machine's ``client.toml``, made from this folder's; its keys go into ``keys``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
FILES = {"north": "folder.toml", "south": "manifest.toml", "west": "npz.toml"}
Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


def thirds() -> list[Digits]:
    """Return three parts of the digits, each with more of other ones: images uint8 [N, 8, 8], labels [N]."""
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    rng = np.random.default_rng(0)
    liking = rng.dirichlet([1.0] * 3, 10)[digits.target]
    owner = (rng.random((len(images), 1)) < liking.cumsum(1)).argmax(1)
    return [(images[owner == part], digits.target[owner == part]) for part in range(3)]


def write_folder(folder: Path, digits: Digits) -> None:
    """Write a folder of classes; zeros are called by another name here, and some images belong nowhere."""
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        name = "unsure" if number % 50 == 0 else "nought" if label == 0 else str(label)
        file = folder / "images" / name / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def write_manifest(folder: Path, digits: Digits) -> None:
    """Write images in one folder and a CSV file with their labels."""
    (folder / "scans").mkdir()
    with (folder / "scans.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "finding"])
        for number, (image, label) in enumerate(zip(*digits, strict=True)):
            Image.fromarray(image).save(folder / f"scans/{number:04}.png")
            table.writerow([f"scans/{number:04}.png", label])


def write_npz(folder: Path, digits: Digits) -> None:
    """Write arrays."""
    np.savez(folder / "own.npz", train_images=digits[0], train_labels=digits[1])


def main() -> None:
    """Make the three machines' folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="is made; north/, south/ and west/ go into it")
    parser.add_argument("--superlink", default="localhost:8443", help="the server (default: localhost:8443)")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already; name another folder or remove it")
    writers = (write_folder, write_manifest, write_npz)
    for (name, file), write, digits in zip(FILES.items(), writers, thirds(), strict=True):
        own = options.folder / name
        own.mkdir(parents=True)
        write(own, digits)
        text = (HERE / file).read_text().replace("fl.example.org:8443", options.superlink)
        (own / "client.toml").write_text(text)
        print(f"{own}: {len(digits[1])} images and client.toml; put this machine's keys into {own / 'keys'}")


if __name__ == "__main__":
    main()
