"""A run's final model, used without the experiment: its partition, its clients and its data are not needed.

``model.json`` and ``model.safetensors`` of the run folder say all but the code of a network that the
experiment named as ``module:attr``: such a module is looked for where the run found it, then in the run
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedvision import plugin_folder, registry
from fedvision.errors import ConfigError, DataError, RunFolderError
from fedvision.formatting import listed
from fedvision.runs.model_description import FILE, ModelDescription, code_of
from fedvision.runs.saved_network import build_network, code_folder
from fedvision.runs.tensor_file import read_checked
from fedvision.tasks.class_predictions import ClassPredictions, ClassScores
from fedvision.tasks.mask_predictions import MaskPredictions, made

if TYPE_CHECKING:
    from torch import nn

    from fedvision.data.dataset import Dataset
    from fedvision.data.decoding.process_pool import PixelFormat
    from fedvision.data.shards import Shard
    from fedvision.data.sources.unlabelled import UnlabelledImages
    from fedvision.explanation.result import Explanations
    from fedvision.explanation.scored_network import ScoredNetwork
    from fedvision.tasks.base import Task
    from fedvision.training.forward import ForwardSettings

TENSORS = "model.safetensors"
Part = Literal["train", "test"]


def load(run: str | Path, *, device: str = "auto") -> TrainedModel:
    """Load the final model of a run.

    Args:
        run: The run folder; of its files ``model.json`` and ``model.safetensors`` are read. Of a network that
            is named as ``module:attr`` the module is imported, which runs its code.
        device: ``"auto"`` (cuda, then mps, then cpu) or a torch device.

    Raises:
        RunFolderError: A file is missing or damaged, or the tensors are others than in ``model.json``.
        PluginError: The network's module is not there.
        ConfigError: There is no such device.
    """
    return TrainedModel.load(Path(run), device=device)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A trained network and what must be known to use it; ``load`` makes it."""

    path: Path
    """The run folder."""
    description: ModelDescription
    """The content of ``model.json``."""
    network: nn.Module
    """The network, on the device."""
    task: Task
    """What the network's outputs mean, and what is counted of them."""
    settings: ForwardSettings
    """Normalisation, device and precision, as in the run's own measurement."""
    notices: tuple[str, ...] = ()
    """What a person should know of the model."""

    @classmethod
    def load(cls, run: Path, *, device: str = "auto") -> TrainedModel:
        """Load a run's final model; arguments and errors as of the function ``load``."""
        from fedvision.data.transforms import prepare
        from fedvision.devices import choose_device
        from fedvision.tasks.base import build_task
        from fedvision.training.client_plugins import may_draw, network_plugins
        from fedvision.training.forward import ForwardSettings

        description = ModelDescription.read(run)
        place, inference = run / FILE, description.inference
        state = read_checked(run / TENSORS, description.sha256)
        try:
            code: dict[str, str] = {}
            with code_folder(run, description.task.use):
                task = build_task(description.task)
                code |= plugin_folder.sources({"use": description.task.use})
            settings = ForwardSettings(
                task=task,
                transform=prepare(description.transforms.config, description.image.channels),
                device=choose_device(device),
                precision=inference.precision,
                channels_last=inference.channels_last,
                draws=may_draw(network_plugins(description.model)),
            )
            with ExitStack() as places:
                for spec in code_of(description.model):
                    places.enter_context(code_folder(run, spec.use))
                network = build_network(description, task, state, run / TENSORS)
                code |= plugin_folder.sources({"use": [spec.use for spec in code_of(description.model)]})
        except RunFolderError:
            raise
        except ConfigError as error:
            raise type(error)(f"{place}: {error}") from error
        changed = [module for module, digest in code.items() if description.code.get(module) != digest]
        return cls(
            path=run,
            description=description,
            network=settings.place(network),
            task=task,
            settings=settings,
            notices=tuple(
                f"the source of {module} is not that of the run, so the network may compute something else"
                for module in changed
            ),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names [C], in the order of the logits."""
        return self.description.classes

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | NDArray[np.uint8],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        workers: int = 0,
    ) -> ClassPredictions | MaskPredictions:
        """Predict the class of each image, or its labels, or the class of each of its pixels.

        Args:
            images: uint8 [N, H, W, channels] as the network takes them; or files, folders of image files at
                any depth, .npz files with arrays ``images`` or ``NAME_images``, and .csv files whose column
                ``file`` names image files. Files are brought to the network's size as in the run; where its
                images were arrays, files must have that size.
            columns: Of an array, what the network reads beside the pixels: cells [N] by column. Of the files
                in a .csv file its columns are taken. What is not given is absent, and masked.
            workers: Processes that decode files; 0 is one per CPU core where that pays.

        Returns:
            One prediction an image, in the order of the paths; files that cannot be read are listed apart.

        Raises:
            RunFolderError: Tensors of the network stayed on the clients.
            ConfigError: The run's task does not say what is predicted.
            DataError: There is no image that can be read, or an array does not fit the network.
        """
        from fedvision.training.evaluate import classify, nothing_decided

        source, rows = self.read(images, columns, workers)
        scale, names = self.description.probability_scale, list[str]()
        # A task that does not say what is predicted is refused here.
        nothing = nothing_decided(self.task, len(self.classes), self.description.image.shape[:2])
        labels, probabilities = [nothing[0]], [nothing[1]]
        for batch in source:
            decided, shares = classify(
                self.network,
                batch.images,
                self.settings,
                num_classes=len(self.classes),
                sharpness=scale,
                further=rows(batch.names),
            )
            names += batch.names
            labels.append(decided.astype(nothing[0].dtype))
            # Of pixels they would take C times as much memory as the images.
            probabilities += [] if self.task.dense else [shares]
        if source.unreadable and not names:
            reasons = listed([f"{name} ({why})" for name, why in source.unreadable.items()])
            raise DataError(f"none of {len(source.unreadable):,} images can be read: {reasons}")
        found = np.concatenate(labels), np.concatenate(probabilities)
        about: dict[str, Any] = {"fit": how.fit} if (how := self.description.decoding) else {}
        about |= {"unreadable": source.unreadable, "notices": tuple(source.notices)}
        return made(self.task, self.classes, names, *found, **about)

    def explain(
        self,
        images: str | Path | Sequence[str | Path] | NDArray[np.uint8],
        *,
        method: str = "auto",
        label: str | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        limit: int | None = None,
        workers: int = 0,
    ) -> Explanations:
        """Show which pixels the model's decisions rest on; see ``docs/explain.md``.

        Args:
            images: As of ``predict``.
            method: ``"auto"`` or another of ``explanation.result.METHODS``.
            label: Name of the class to explain; None takes each image's most probable one.
            columns: As of ``predict``.
            limit: Explains the first so many alone; None all.
            workers: As of ``predict``.

        Returns:
            Maps float32 [N, H, W] with scores, in the order of the images.

        Raises:
            RunFolderError, DataError: As of ``predict``.
            ConfigError: There is no such class, or the method does not fit the network.
        """
        from fedvision.explanation.explainer import explain_all

        source, rows = self.read(images, columns, workers)
        return explain_all(
            self.scored, source, classes=self.classes, method=method, name=label, limit=limit, rows=rows
        )

    @property
    def scored(self) -> ScoredNetwork:
        """The network as explanations take it.

        Raises:
            RunFolderError: Tensors of the network stayed on the clients.
        """
        from fedvision.explanation.scored_network import ScoredNetwork

        self.require_whole()
        return ScoredNetwork(
            network=self.network,
            settings=self.settings,
            num_classes=len(self.classes),
            sharpness=self.description.probability_scale,
            batch_size=self.description.inference.batch_size,
        )

    def read(
        self,
        images: str | Path | Sequence[str | Path] | NDArray[np.uint8],
        columns: Mapping[str, Sequence[Any]] | None,
        workers: int,
    ) -> tuple[UnlabelledImages, Callable[[Sequence[str]], NDArray[np.float32] | None]]:
        """Return images as the network takes them, and what it reads beside them; see ``predict``."""
        from fedvision.data.sources.unlabelled import UnlabelledImages

        self.require_whole()
        source = UnlabelledImages(
            [images] if isinstance(images, str | Path) else images,
            self.description.image.shape,
            self.pixel_format(),
            batch_size=self.description.inference.batch_size,
            workers=workers,
        )
        return source, self._further(source, columns if isinstance(images, np.ndarray) else None)

    def _further(
        self, source: UnlabelledImages, columns: Mapping[str, Sequence[Any]] | None
    ) -> Callable[[Sequence[str]], NDArray[np.float32] | None]:
        """Return ``rows(names)``: what the network reads beside the pixels of some images, float32 [B, W].

        It is None where the network reads pixels alone; images of which nothing is known are noted.
        """
        from fedvision.data.sources.inputs import encode_columns

        inputs, cells = self.description.model.inputs, dict(source.cells)
        for column, values in (columns or {}).items():
            for number, value in enumerate(values):
                cells[str(number)] = {**cells.get(str(number), {}), column: str(value)}
        known = sorted({column for own in cells.values() for column in own})
        alone = "of some images nothing but the pixels is known; the model's inputs are masked there"

        def rows(names: Sequence[str]) -> NDArray[np.float32] | None:
            if not inputs:
                return None
            given = {column: [cells.get(name, {}).get(column, "") for name in names] for column in known}
            found = encode_columns(given, names, inputs)
            if np.isnan(found).all(axis=1).any() and alone not in source.notices:
                source.notices.append(alone)
            return found

        return rows

    def evaluate(self, dataset: Dataset, *, part: Part | None = None) -> ClassScores:
        """Measure the model on labelled images as its run did: on the run's test images the same numbers.

        Args:
            dataset: As a data source returns it; its classes are found among the model's by their names.
            part: ``"test"`` or ``"train"``; by default the test images where there are any, else all.

        Raises:
            RunFolderError: Tensors of the network stayed on the clients.
            DataError: There are no such images, they do not fit the network or its task, or one is of a class
                that the model does not know.
        """
        from fedvision.data.targets import one_class, several
        from fedvision.tasks.calibration import Calibration
        from fedvision.training.evaluate import evaluate

        shard, missing = self.labelled(dataset, part=part)
        description, labels = self.description, shard.labels
        calibration = Calibration(len(self.classes)) if self.task.decides and one_class(labels) else None
        measured = evaluate(
            self.network,
            shard,
            self.settings,
            batch_size=description.inference.batch_size,
            num_classes=len(self.classes),
            sharpness=description.probability_scale,
            calibration=calibration,
        )
        metrics = {}
        for use in description.metrics:
            with code_folder(self.path, use):
                metrics[use] = registry.resolve("metric", use).call
        none = f"there are no images of {listed(missing)}, so the scores are without these classes"
        return ClassScores(
            classes=self.classes,
            class_counts=description.class_counts,
            stats=measured.stats,
            by_class=self.task.by_class(measured.stats),
            several_labels=several(labels),
            counted=self.task.example,
            examples=(examples := self.task.examples(measured.stats)),
            loss=measured.loss_sum / max(1, examples),
            scores=self.task.scores(measured.stats, description.class_counts, metrics),
            intervals=self.task.intervals(measured.stats, description.class_counts),
            calibration=calibration,
            notices=(*dataset.notices, *((none,) if missing else ())),
        )

    def labelled(self, dataset: Dataset, *, part: Part | None = None) -> tuple[Shard, tuple[str, ...]]:
        """Return labelled images as the network takes them; arguments and errors as of ``evaluate``.

        Returns:
            All images of the part, labels under the model's numbers, and its classes without images.
        """
        from fedvision.data.masks import check_sizes
        from fedvision.data.relabel import by_name
        from fedvision.data.shards import Shard
        from fedvision.data.sources.inputs import encoded
        from fedvision.data.sources.unlabelled import fitting
        from fedvision.data.targets import form

        self.require_whole()
        description, chosen = self.description, dataset.train
        if part == "test" or (part is None and dataset.test is not None):
            if dataset.test is None:
                raise DataError(
                    "the data has no test images; name a source that has, or take its training ones"
                )
            chosen = dataset.test
        if not self.task.fits(chosen.labels):
            raise DataError(
                f"the model's task needs {self.task.targets}, and the data has {form(chosen.labels)}"
            )
        images = fitting(chosen.images, description.image.shape, "the data's array of images")
        if self.task.dense:
            check_sizes(images, chosen.labels, "the data")
        labels, missing = by_name(chosen, dataset.classes, self.classes)
        further = encoded(chosen, description.model.inputs).further
        shard = Shard(images=images, labels=labels, indices=np.arange(len(labels)), further=further)
        return shard, missing

    def files_as(self) -> dict[str, Any]:
        """Return the keys of ``[data]`` with which a source makes the network's images of files.

        Raises:
            DataError: The network takes no square images of one or three channels, which files become.
        """
        if (found := self.pixel_format()) is None:
            raise DataError(
                f"the model takes images of {self.description.image}, which no file is brought to; give them "
                "as uint8 arrays in an .npz file"
            )
        return {"size": found.size, "channels": found.channels, "fit": found.fit, "range": found.white}

    def pixel_format(self) -> PixelFormat | None:
        """Return what becomes of files; None where the network's images can only be arrays.

        Where the run's images were arrays, files of their very size are the same; how others would have been
        cut is unknown.
        """
        from fedvision.data.decoding.process_pool import PixelFormat

        image, how = self.description.image, self.description.decoding
        if image.height != image.width or image.channels not in (1, 3):
            return None
        if how is None:
            return PixelFormat(image.height, image.channels, "exact")
        return PixelFormat(how.size, image.channels, how.fit, how.range)

    def require_whole(self) -> None:
        """Refuse a model of which tensors stayed on the clients.

        Raises:
            RunFolderError: There are such tensors.
        """
        if personal := self.description.personal:
            raise RunFolderError(
                f"{self.path}: this run has no model of its own to use: {listed(personal)} were trained and "
                'stayed on the clients; train with shared = "all" in [model]'
            )
