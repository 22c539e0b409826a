"""Explain a network's decision on single images, one after the other: no image's map depends on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.data.sources.unlabelled import UnlabelledImages
from fedvision.errors import ConfigError, DataError, nearest
from fedvision.explanation.branches import drops, only, shares
from fedvision.explanation.faithfulness import enlarged, faithfulness
from fedvision.explanation.integrated_gradients import Attribution, integrated_gradients
from fedvision.explanation.plan import Plan, plan
from fedvision.explanation.result import Branch, Explanation, Explanations
from fedvision.explanation.scored_network import ScoredNetwork, unchanged
from fedvision.formatting import listed
from fedvision.inputs import Batch, Inputs, images_of, with_images

Rows = Callable[[Sequence[str]], NDArray[np.float32] | None]
"""``rows(names)``: what a network reads beside some images, float32 [B, W]; None where there is nothing."""


class Explainer:
    """Explains one network.

    Args:
        scored: The network, which is as it was after each call.
        method: One of ``result.METHODS``.
        seed: Of random maps.
    """

    def __init__(self, scored: ScoredNetwork, *, method: str = "auto", seed: int = 0) -> None:
        if not scored.task.decides:
            raise ConfigError(
                f"the task {scored.task.name!r} does not say what is predicted for an image, so there is no "
                "decision to explain; let its class override decide"
            )
        if scored.task.example != "image":
            raise ConfigError(
                f"the task {scored.task.name!r} decides on {scored.task.example}s, and what is explained is "
                "one decision on a whole image; look at what it predicts instead"
            )
        self._scored, self._method, self._seed = scored, method, seed
        self._plan: Plan | None = None

    def explain(
        self,
        image: NDArray[np.uint8],
        *,
        label: int | None = None,
        further: NDArray[np.float32] | None = None,
    ) -> Explanation:
        """Explain one image.

        Args:
            image: uint8 [H, W, channels].
            label: The class to explain; None takes the most probable one.
            further: What the network reads beside it, float32 [W]; it is held fixed.

        Raises:
            ConfigError: The method does not fit the network.
        """
        scored = self._scored
        with unchanged(scored.network):
            probabilities = scored.probabilities(image[None], further)[0]
            predicted = int(probabilities.argmax())
            label = predicted if label is None else label
            batch = scored.inputs(image, further)
            self._plan = self._plan or plan(scored.network, _twice(batch), self._method)
            attribution: Attribution | None = None
            if self._plan.probes:
                cells = self._relevances(self._plan, batch, label)
            else:
                attribution = integrated_gradients(scored, batch, label)
                cells = {"": attribution.values.sum(0).clamp(min=0)}
            maps = {name: _scaled(enlarged(one, image.shape[:2])) for name, one in cells.items()}
            branches = self._branches(self._plan, batch, label, maps)
            whole = _joined(maps, branches)
            grids = [min(tuple(one.shape), image.shape[:2]) for one in cells.values()]
            scores = faithfulness(
                scored,
                image,
                whole,
                label,
                grid=max(grids),
                further=further,
                seed=self._seed,
            )
        return Explanation(
            map=whole,
            method=self._plan.method,
            label=label,
            predicted=predicted,
            probability=float(probabilities[label]),
            scores=scores,
            branches=branches,
            completeness_error=attribution.error if attribution else None,
            complete=attribution is None or attribution.complete,
        )

    def _relevances(self, plan: Plan, batch: Batch, label: int) -> dict[str, torch.Tensor]:
        """Return each probe's map [h, w], of a pass of its own."""
        found = {}
        for name, probe in plan.probes.items():
            with ExitStack() as stack:
                stack.enter_context(probe.attached())
                if plan.fusion is not None:
                    stack.enter_context(only(plan.fusion, name))
                # The layers before the first noted one may have no parameter that is trained.
                x = images_of(batch).detach().clone().requires_grad_()
                logit = self._scored.logits(with_images(batch, x))[0, label]
            gradients = torch.autograd.grad(logit, probe.noted, allow_unused=True, materialize_grads=True)
            found[name] = probe.map(gradients, plan.visits).detach()
            probe.noted.clear()
        return found

    def _branches(
        self, plan: Plan, batch: Batch, label: int, maps: dict[str, NDArray[np.float32]]
    ) -> dict[str, Branch]:
        """Return what each branch of a fusion did; nothing of another network."""
        if plan.fusion is None:
            return {}
        fallen = drops(self._scored, plan.fusion, batch, label)
        parts = shares(fallen)
        nothing = np.zeros_like(next(iter(maps.values())))
        return {
            name: Branch(map=maps.get(name, nothing), drop=fallen[name], share=parts[name]) for name in fallen
        }


def explain_all(
    scored: ScoredNetwork,
    source: UnlabelledImages,
    *,
    classes: tuple[str, ...],
    rows: Rows,
    method: str = "auto",
    name: str | None = None,
    limit: int | None = None,
) -> Explanations:
    """Explain images of files or of an array.

    Args:
        scored: The network.
        source: The images.
        classes: Class names [C].
        rows: What the network reads beside them.
        method: One of ``result.METHODS``.
        name: Of the class to explain; None takes each image's most probable one.
        limit: Explains the first so many alone.

    Raises:
        ConfigError: There is no such class, ``limit`` is below 1, or the method does not fit the network.
        DataError: There is no image that can be read.
    """
    if name is not None and name not in classes:
        raise ConfigError(f"the model has no class {name!r}{nearest(name, classes)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be >= 1, not {limit}")
    label = None if name is None else classes.index(name)
    explainer = Explainer(scored, method=method)
    names, images, found = list[str](), list[NDArray[np.uint8]](), list[Explanation]()
    for batch in source:
        further = rows(batch.names)
        for place, image in enumerate(batch.images[: None if limit is None else limit - len(found)]):
            row = None if further is None else further[place]
            found.append(explainer.explain(image, label=label, further=row))
            names.append(batch.names[place])
            images.append(image)
        if limit is not None and len(found) >= limit:
            break
    if not found:
        reasons = listed([f"{one} ({why})" for one, why in source.unreadable.items()])
        raise DataError(f"none of {len(source.unreadable):,} images can be read: {reasons}")
    return Explanations(
        classes=classes,
        names=names,
        images=np.stack(images),
        each=found,
        unreadable=source.unreadable,
        notices=tuple(source.notices),
    )


def _joined(maps: dict[str, NDArray[np.float32]], branches: dict[str, Branch]) -> NDArray[np.float32]:
    """Return one map, 0 to 1: of branches their sum by share, or in equal parts where nothing falls."""
    if len(maps) == 1:
        return next(iter(maps.values()))
    weights = {name: branches[name].share for name in maps}
    each = {name: 1 / len(maps) if weight is None else weight for name, weight in weights.items()}
    total = sum((each[name] * one for name, one in maps.items()), np.zeros_like(next(iter(maps.values()))))
    return _scaled(total)


def _scaled(map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map whose largest value is 1, or zeros."""
    most = float(map.max())
    return (map / most).astype(np.float32) if most > 0 else np.zeros_like(map, np.float32)


def _twice(batch: Batch) -> Batch:
    """Return two images of one: with a single one, a tensor's first size does not tell what it counts."""
    if isinstance(batch, Inputs):
        return Inputs(batch.images.repeat(2, 1, 1, 1), batch.further.repeat(2, 1))
    return batch.repeat(2, 1, 1, 1)
