"""Train on what frozen layers make of images, computed once, in place of images that pass them each time.

A frozen backbone makes the same features of an image in every round, and so do the frozen layers before the
first trained one (``models.frozen_front``). They are computed once, kept in a file (``data.feature_file``),
and what trains and measures from then on is the rest of the network, on a data set whose images are those
features. Tensors keep their names, so messages, checkpoints and the final model are those of the whole
network.
"""

from __future__ import annotations

import glob
import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision import plugin_folder, registry
from fedvision.config import ExperimentConfig, ModelConfig, TransformConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.feature_file import FeatureFile, Rows
from fedvision.data.identity import pixels, rows_of
from fedvision.data.transforms import augmentations, input_shape
from fedvision.errors import ConfigError, PluginError
from fedvision.formatting import plural
from fedvision.models import frozen_front
from fedvision.models.base import ImageModel
from fedvision.models.freezing import freeze, frozen_names, thaw
from fedvision.models.frozen_front import Cut
from fedvision.models.meta import filled
from fedvision.models.state import digest, floating
from fedvision.tasks.base import Task, build_task
from fedvision.training.features import FeatureExtractor
from fedvision.training.forward import ForwardSettings

_VERSION = 2
"""Part of every key: to be raised when features are computed otherwise."""
_MOST_BYTES = 20e9
"""Size of a file of features above which images pass the frozen layers in every round."""
_SHOWN_EVERY = 10.0
"""Seconds between two lines on how far it is."""


@dataclass(frozen=True, kw_only=True)
class FeatureExperiment:
    """What trains and measures in place of an experiment's network and images."""

    config: ExperimentConfig
    """The experiment, without what is done to images."""
    dataset: Dataset
    """Features in the place of images; only those that were needed are there."""
    model: ImageModel
    """The rest of the network, behind a layer that passes features on."""


def check_views(config: ExperimentConfig, model: nn.Module, images: ImageSet) -> None:
    """Refuse views of images whose features are not computed once.

    Raises:
        ConfigError: They are not, or nothing distinguishes the views.
    """
    if not (views := config.transforms.views):
        return
    if not augmentations(config.transforms):
        raise ConfigError(
            f"transforms.views = {views}: all views of an image would be equal; set transforms.flip, crop, "
            "rotation or cutout"
        )
    found, why = frozen_part(config, model, images)
    if not found or why:
        why = why or "no frozen layers that could be run alone come before the first trained one"
        raise ConfigError(
            f"transforms.views = {views}: features are not computed once, as {why}; leave views out, or "
            "freeze the whole backbone"
        )


def frozen_part(config: ExperimentConfig, model: nn.Module, images: ImageSet) -> tuple[Cut | None, str]:
    """Return a network's backbone cut where its training begins, and why its front is not run once.

    Args:
        config: The experiment.
        model: Its network; it is not changed.
        images: Its training images.

    Returns:
        The parts, None where no frozen front could be run alone; and why features cannot be computed once
        all the same, in the words that follow "as", empty where they can.
    """
    if config.model.inputs and not _is_frozen_to_the_head(model):
        # Columns would have to come to the layers behind a cut.
        return None, "a part of what reads [model.inputs] is trained" if frozen_names(model) else ""
    found = frozen_front.cut(model, input_shape(config.transforms, images.images.shape[1:]))
    return found, _obstacle(config, model, found, len(images)) if found else ""


def _is_frozen_to_the_head(model: nn.Module) -> bool:
    own = _frozen(model)
    return isinstance(model, ImageModel) and all(id(t) in own for t in floating(model.backbone).values())


def _obstacle(config: ExperimentConfig, model: nn.Module, found: Cut, images: int) -> str:
    task = build_task(config.task)
    if not config.training.cache_features:
        return "training.cache_features = false"
    if _sees_images(config):
        return f"[strategy] use = {config.strategy.use!r} looks at the images themselves"
    assert isinstance(model, ImageModel)
    if not _frozen(model).isdisjoint(map(id, floating(model.head).values())):
        return "a part of the head is frozen"
    if not config.transforms.views and (drawn := augmentations(config.transforms)):
        return f"transforms.{drawn[0]} changes images anew each time"
    if config.transforms.views and type(task).transform is not Task.transform:
        return f"targets of the task {config.task.use!r} would have to move with each view"
    if type(task).collate is not Task.collate:
        return f"the task {config.task.use!r} makes its own batches of images"
    size = 4 * found.numbers * (1 + config.transforms.views) * images
    if size > _MOST_BYTES:
        return (
            f"their features would take {size / 1e9:.0f} GB, and at most {_MOST_BYTES / 1e9:.0f} GB are kept"
        )
    try:
        pickle.dumps((found.rest, model.head))
    except Exception:
        return "the head cannot be sent to worker processes"
    return ""


def _sees_images(config: ExperimentConfig) -> bool:
    """Return whether the client half of a strategy looks at the images; one that is not here does not."""
    try:
        strategy = registry.resolve("strategy", config.strategy.use).call
    except PluginError:  # across machines a client need not have it
        return False
    return bool(getattr(getattr(strategy, "client", None), "sees_images", False))


def _frozen(model: nn.Module) -> frozenset[int]:
    """Return the identities of the frozen tensors."""
    tensors = model.state_dict(keep_vars=True)
    return frozenset(id(tensors[name]) for name in frozen_names(model))


def on_features(
    config: ExperimentConfig,
    dataset: Dataset,
    model: nn.Module,
    parts: Cut,
    settings: ForwardSettings,
    *,
    used: NDArray[np.int64],
    folder: Path | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> FeatureExperiment:
    """Compute the features that are not there yet, and return what trains on them.

    Args:
        config: The experiment.
        dataset: Its images.
        model: Its network; the frozen layers have their tensors.
        parts: Its backbone, cut; nothing is in the way (``frozen_part``).
        settings: Normalisation, device and precision.
        used: Numbers of the training images that a client trains or measures on, int64 [n].
        folder: Where features are kept; by default beside the decoded images.
        on_progress: Takes a line on how far it is.

    Raises:
        DataError: The features cannot be kept.
    """
    front, rest = settings.place(parts.front), _trained_part(model, parts)

    def features_of(part: ImageSet, numbers: NDArray[np.int64], views: int) -> ImageSet:
        extract = FeatureExtractor(front, settings, views, config.seed)
        recipe = _recipe(config, front, settings, views)
        content = pixels(part.images) if part.further is None else f"{pixels(part.images)} {rows_of(part)}"
        key = hashlib.sha256(f"{recipe} {content}".encode()).hexdigest()[:40]

        def rows(missing: NDArray[np.int64]) -> Rows:
            return _shown(_rows(extract, part, missing), len(missing), on_progress)

        return replace(part, images=FeatureFile(key, len(part), folder).complete(numbers, rows), further=None)

    test = dataset.test
    return FeatureExperiment(
        config=replace(
            config,
            model=ModelConfig(
                use=config.model.use,
                args=config.model.args,
                shared=config.model.shared,
                personal=config.model.personal,
                frozen=tuple(map(glob.escape, frozen_names(rest))),
            ),
            transforms=TransformConfig(views=config.transforms.views),
        ),
        dataset=replace(
            dataset,
            train=features_of(dataset.train, used, config.transforms.views),
            test=None if test is None else features_of(test, np.arange(len(test)), 0),
        ),
        model=rest,
    )


def _trained_part(model: nn.Module, parts: Cut) -> ImageModel:
    """Return what trains on features, on the CPU; its tensors are frozen where they were in the network."""
    assert isinstance(model, ImageModel)
    rest = filled(ImageModel(parts.rest, model.head)).cpu()
    assert isinstance(rest, ImageModel)
    kept = [name for name in frozen_names(model) if name in floating(rest)]
    thaw(rest)
    freeze(rest, kept)
    return rest


def _rows(extract: FeatureExtractor, part: ImageSet, numbers: NDArray[np.int64]) -> Rows:
    further = part.further

    def beside(some: NDArray[np.int64]) -> NDArray[np.float32] | None:
        return None if further is None else further[some]

    for done, features in extract.each(lambda some: np.asarray(part.images[some]), numbers, beside):
        yield done, features.numpy()


def _shown(
    rows: Rows, total: int, on_progress: Callable[[str], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield rows, and say now and then how many there were."""
    count, last = 0, time.monotonic()
    on_progress(f"computing the features of {plural(total, 'image')}")
    for numbers, features in rows:
        yield numbers, features
        count += len(numbers)
        if time.monotonic() - last > _SHOWN_EVERY:
            last = time.monotonic()
            on_progress(f"computing features: {count:,} of {plural(total, 'image')}")


def _added(config: ModelConfig) -> Iterator[Any]:
    """Yield what changes the features of a backbone beside its tensors."""
    if config.mirrored:
        yield "mirrored"
    if config.feature_layers:
        yield list(config.feature_layers)


def _recipe(config: ExperimentConfig, front: nn.Module, settings: ForwardSettings, views: int = 0) -> str:
    """Return a text that is equal where features are: of network, transforms, arithmetic and machine."""
    transforms = asdict(config.transforms)
    if not views:  # the images as they are, whatever training draws
        plain = TransformConfig()
        transforms |= {name: getattr(plain, name) for name in (*augmentations(config.transforms), "views")}
    device = settings.device.type
    machine = (
        torch.cuda.get_device_name(settings.device)
        if device == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    facts = {
        "version": _VERSION,
        "torch": torch.__version__,
        "device": [device, machine],
        "precision": settings.precision,
        "channels_last": settings.channels_last,
        "transforms": transforms,
        "seed": config.seed if views else None,
        "model": [config.model.use, dict(config.model.args), *_added(config.model)],
        "code": plugin_folder.sources({"model": config.model.use}),
        "tensors": digest(dict(floating(front))),
    }
    return json.dumps(facts, sort_keys=True)
