"""What rivals need beside this project: an environment each with its own packages, and the images.

An environment borrows the packages of the running one (a ``.pth`` file names its folder), so torch is not
fetched twice and all rivals compute with the same one; what a rival pins beside it goes into its own.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CACHE = Path(os.environ.get("FEDVISION_BENCHMARKS") or "~/.cache/fedvision-benchmarks").expanduser()
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
RAW = "FashionMNIST/raw"
REQUIREMENTS = {
    "pfl": ["pfl==0.6.0"],
    "flower": ["flwr[simulation]==1.41.0"],
}


def python(rival: str) -> Path:
    """Return the interpreter of a rival's environment, making it where it is not there yet.

    Raises:
        subprocess.CalledProcessError: pip could not install the rival.
    """
    folder = CACHE / rival
    interpreter, ready = folder / "bin/python", folder / ".ready"
    wanted = "\n".join(REQUIREMENTS[rival])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {', '.join(REQUIREMENTS[rival])} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (folder / site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *REQUIREMENTS[rival]], check=True)
        ready.write_text(wanted)
    return interpreter


def images() -> Path:
    """Return the folder that holds Fashion-MNIST as torchvision lays it out.

    ``$FEDVISION_DATA`` or ``~/.cache/fedvision`` where it is there, else Debian's package is unpacked.

    Raises:
        SystemExit: It is nowhere.
    """
    own = Path(os.environ.get("FEDVISION_DATA") or "~/.cache/fedvision").expanduser()
    for root in (own, CACHE / "data"):
        if (root / RAW / "train-images-idx3-ubyte").is_file():
            return root
    packed = sorted(DEBIAN.glob("*-ubyte.gz"))
    if not packed:
        raise SystemExit(
            f"Fashion-MNIST is not in {own}: install Debian's dataset-fashion-mnist, or run an experiment "
            "once with data.download = true"
        )
    folder = CACHE / "data" / RAW
    folder.mkdir(parents=True, exist_ok=True)
    for file in packed:
        (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return CACHE / "data"


def photographs() -> Path:
    """Return the file that holds CIFAR-10: train_images, train_labels, test_images, test_labels.

    Raises:
        SystemExit: It is not in ``$FEDVISION_DATA`` or ``~/.cache/fedvision``.
    """
    for folder in (os.environ.get("FEDVISION_DATA"), "~/.cache/fedvision"):
        if folder and (file := Path(folder).expanduser() / "cifar10.npz").is_file():
            return file
    raise SystemExit(
        "cifar10.npz (train_images, train_labels, test_images, test_labels) is not in $FEDVISION_DATA or "
        "~/.cache/fedvision: save CIFAR-10's arrays there with numpy.savez"
    )
