"""A head in one round, without training: the sums that clients send determine it exactly.

::

    1  clients:  n_c, sum x, sum x^2            server:  m, s and class weights u_c ~ n_c^-t
    2  clients:  sum u_y q q^T, sum_c q         server:  the head, ridge or LDA (``heads``)
    3  only for "auto": the server sends heads, clients count what each makes of held-out images

Where the network expands features, 1 is answered twice: of the features before the expansion, whose m and s
become a part of the network, and of those after it.

q are standardised features in whole steps (``rounding``), so the sums, and with them the head, have the same
bits for any division of the same images over clients, and masked or not. t = 0 is the plain solution of AFL
and Fed3R, which neglects rare classes; t = 1 weighs all classes alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedvision.aggregation.fixed_point import FixedPoint, FixedPointSum
from fedvision.algorithms.base import Answer, QueryStrategy, ServerContext
from fedvision.algorithms.closed_form import rounding
from fedvision.algorithms.closed_form.heads import FeatureSums, Head, in_whole_numbers, lda, ridge
from fedvision.algorithms.closed_form.sums import DEVIATION, LEVEL, MEAN, NEEDED_BY, PRODUCTS
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import halves
from fedvision.models.expansions import ExpandedLinear, short
from fedvision.models.personalized_heads import RealignedHead
from fedvision.ranges import check_range
from fedvision.types import Query, State

AUTO = "auto"
CANDIDATES: Mapping[str, tuple[float, ...]] = {
    "ridge": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "lda": (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9),
}
"""Values among which ``"auto"`` chooses, rising."""
_INPUT_MEAN, _INPUT_DEVIATION = "head.expansion.mean", "head.expansion.deviation"
_KEYS = {"ridge": "regularization", "lda": "shrinkage"}
_DEFAULT = 0.3


class ClosedForm(QueryStrategy):
    """A linear head from exact sums over the features of a backbone that stays as it is.

    A round's record has the regularization or shrinkage and, with ``"auto"``, each candidate's macro recall.

    Args:
        head: ``"ridge"`` or ``"lda"``.
        balance: t of the class weights n_c^-t, 0 <= balance <= 1: 0 weighs images alike, 1 classes.
        regularization: Of ridge: lambda divided by the number of images, > 0, or ``"auto"``; 0.3 by default.
        shrinkage: Of LDA: share of the covariance that becomes isotropic, > 0 and <= 1, or ``"auto"``; 0.3 by
            default.
        scale: Factor of the logits, > 0. It changes no prediction, but the loss and what later training does:
            ridge's logits, mostly between 0 and 1, are too small for softmax, those of LDA often too large.
        fraction: Share of the clients that answer, 0 < fraction <= 1.
        min_clients: Clients that answer at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range, or belongs to the other head.
    """

    def __init__(
        self,
        *,
        head: str = "ridge",
        balance: float = 1.0,
        regularization: float | str | None = None,
        shrinkage: float | str | None = None,
        scale: float = 1.0,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        if head not in _KEYS:
            raise ValueError(f"head must be 'ridge' or 'lda', not {head!r}")
        check_range(at_least=0, at_most=1, balance=balance)
        check_range(above=0, scale=scale)
        given = {"regularization": regularization, "shrinkage": shrinkage}
        for other, key in _KEYS.items():
            if other != head and given[key] is not None:
                raise ValueError(f"{key} is of head = {other!r}, and head is {head!r}; leave it out")
        self.head, self.balance, self.scale = head, balance, scale
        self.value = _value(_KEYS[head], given[_KEYS[head]])
        self.constants: State = {}
        """After a round: ``mean``, ``deviation`` and ``weight``, with which its sums were made, and
        ``input.mean`` and ``input.deviation`` where the network expands features."""
        self.sums: State = {}
        """After a round: ``count``, ``sum`` and ``product``, int64, of all clients that answered."""
        self.chosen = 0.0
        """After a round: the regularization or shrinkage of its head."""

    @property
    def key(self) -> str:
        """Name of the argument that keeps the head small: ``regularization`` or ``shrinkage``."""
        return _KEYS[self.head]

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Query the moments of the features, then their products, then perhaps scores of heads."""
        if not answers:
            return Query(use="feature-sums")
        inputs = _input_constants(answers[0])
        if inputs and len(answers) == 1:
            return Query(use="feature-sums", tensors=inputs)
        moments, *later = answers[1:] if inputs else answers
        constants = self._constants(moments) | inputs
        if not later:
            bits = rounding.bits_of_products(moments["count"].astype(np.int64), constants["weight"].numpy())
            return Query(use=PRODUCTS, tensors=constants, bits=bits)
        if len(later) == 1 and self.value == AUTO:
            sums = _sums(moments, later[0], constants)
            heads = in_whole_numbers([self._solve(sums, value) for value in self._candidates])
            standard = {name: tensor for name, tensor in constants.items() if name != "weight"}
            return Query(use="head-scores", tensors=standard | heads)
        return None

    def refine(self, state: State, server: ServerContext) -> State:
        """Return the model with the head that the sums determine.

        Raises:
            ConfigError: The network's head is not linear, has no bias, or takes other features.
            RunError: The head stays on the clients, the sums are impossible, or nobody held images out.
        """
        inputs = _input_constants(server.answers[0])
        moments, products, *scores = server.answers[1:] if inputs else server.answers
        constants = self._constants(moments) | inputs
        sums = _sums(moments, products, constants)
        self._check_head(server.make_model(state), state, sums)
        if self.value == AUTO:
            found = [_macro_recall(one) for one in scores[0]["confusion"]]
            self.chosen = _within_an_error(self._candidates, found)
            server.facts["macro recall"] = {
                f"{value:g}": recall for value, (recall, _) in zip(self._candidates, found, strict=True)
            }
        else:
            self.chosen = float(self.value)
        server.facts[self.key] = self.chosen
        self.constants = constants
        self.sums = {
            name: torch.from_numpy(np.array(getattr(sums, name))) for name in ("count", "sum", "product")
        }
        return state | self.head_tensors(sums, state)

    def change_clients(
        self, *, without: Sequence[State] = (), including: Sequence[State] = ()
    ) -> FeatureSums:
        """Subtract clients' sums from those of the last round or add them, and return the new ones.

        Args:
            without: The answers of clients in the sums to the second query, with ``constants`` as they are.
            including: Those of clients that are not in the sums.

        Raises:
            ValueError: There is no such part of the sums, nothing is left, or a number is above 2^62.
        """
        total = FixedPointSum()
        whole = frozenset(self.sums)
        for sign, parts in ((1, (self.sums, *including)), (-1, without)):
            for part in parts:
                total.add(
                    FixedPoint(numbers={name: sign * part[name].numpy() for name in whole}, whole=whole)
                )
        found = {name: torch.from_numpy(array) for name, array in total.total.numbers.items()}
        if bool((found["count"] < 0).any()):
            raise ValueError("more images would be taken out than there are")
        if not int(found["count"].sum()):
            raise ValueError("no images would be left")
        self.sums = found
        return self.feature_sums()

    def feature_sums(self) -> FeatureSums:
        """Return the sums of the last round."""
        arrays = {name: tensor.numpy() for name, tensor in self.sums.items()}
        return FeatureSums(weight=self.constants["weight"].numpy(), **arrays)

    def head_tensors(self, sums: FeatureSums, state: State) -> State:
        """Return the head's tensors for sums made with this strategy's constants, in the state's types."""
        solved = self._solve(sums, self.chosen)
        whole = solved.on_features(self.constants["mean"], self.constants["deviation"])
        tensors = {"head.weight": self.scale * whole.weight, "head.bias": self.scale * whole.bias}
        if MEAN in self.constants:
            tensors |= {_INPUT_MEAN: self.constants[MEAN], _INPUT_DEVIATION: self.constants[DEVIATION]}
        return {name: tensor.to(state[name].dtype) for name, tensor in tensors.items()}

    @property
    def _candidates(self) -> tuple[float, ...]:
        return CANDIDATES[self.head]

    def _solve(self, sums: FeatureSums, value: float) -> Head:
        return ridge(sums, value) if self.head == "ridge" else lda(sums, value)

    def _constants(self, answer: Answer) -> State:
        weight = rounding.class_weights(answer["count"].astype(np.int64), self.balance)
        return {**_moments(answer), "weight": torch.from_numpy(weight)}

    @staticmethod
    def _check_head(model: nn.Module, state: State, sums: FeatureSums) -> None:
        head = halves(model, NEEDED_BY).head
        if not isinstance(head, nn.Linear) or isinstance(head, RealignedHead) or head.bias is None:
            raise ConfigError(
                f"{NEEDED_BY} writes a linear head with a bias, and this network's is a {type(head).__name__}"
                f"{' without one' if type(head) is nn.Linear else ''}; use another network"
            )
        if tuple(head.weight.shape) != sums.sum.shape:
            raise ConfigError(
                f"{NEEDED_BY}: the head takes {head.in_features} features for {head.out_features} classes, "
                f"and the clients' sums are of {sums.features} for {len(sums.count)}"
            )
        needed = ["head.weight", "head.bias"]
        if isinstance(head, ExpandedLinear):
            needed += [_INPUT_MEAN, _INPUT_DEVIATION]
        if missing := [name for name in needed if name not in state]:
            raise RunError(
                f"{NEEDED_BY} computes the head on the server, and {missing[0]!r} stays on the clients; "
                "share it in [model]"
            )


def _moments(answer: Answer, level: str = "") -> State:
    """Return mean and deviation of the features that a first answer has sums of.

    Raises:
        RunError: Nobody has images.
    """
    images = int(answer["count"].sum())
    if images < 1:
        raise RunError(f"{NEEDED_BY}: the clients that answered have no images")
    sums, squares = (answer[f"{level}{name}"].astype(np.int64) for name in ("sum", "square"))
    return rounding.constants(images, sums, squares)


def _input_constants(answer: Answer) -> State:
    """Return the constants of the features that the network expands, in its type; none where it does not."""
    if f"{LEVEL}sum" not in answer:
        return {}
    return {f"{LEVEL}{name}": short(tensor.float()) for name, tensor in _moments(answer, LEVEL).items()}


def _value(key: str, given: float | str | None) -> float | str:
    if given is None:
        return _DEFAULT
    if isinstance(given, str):
        if given != AUTO:
            raise ValueError(f"{key} must be a number or 'auto', not {given!r}")
        return given
    if key == "shrinkage":
        check_range(above=0, at_most=1, shrinkage=given)
    else:
        check_range(above=0, regularization=given)
    return given


def _sums(moments: Answer, products: Answer, constants: State) -> FeatureSums:
    """Return the sums of the products' query.

    Raises:
        RunError: More images are in them than their number of bits was chosen for, or none.
    """
    counted = moments["count"].astype(np.int64)
    found, weight = {name: array.astype(np.int64) for name, array in products.items()}, constants["weight"]
    if not found["count"].sum() or (found["count"] > counted).any():
        raise RunError(
            f"{NEEDED_BY}: the clients' products rest on other images than their counts; run again, and let "
            "no client change its images meanwhile"
        )
    return FeatureSums(
        count=found["count"], sum=found["sum"], product=found["product"], weight=weight.numpy()
    )


def _macro_recall(confusion: np.ndarray) -> tuple[float, float]:
    """Return the mean recall of the classes that occur, and its standard error.

    Args:
        confusion: Counts [C, C] by true and predicted class.

    Raises:
        RunError: There are no counts.
    """
    rows = confusion.sum(1)
    if not rows.any():
        raise RunError(
            f"{NEEDED_BY}: no client that answered keeps images out of training, and 'auto' chooses by them; "
            "raise evaluation.holdout or set a number"
        )
    right, images = confusion.diagonal()[rows > 0].astype(float), rows[rows > 0].astype(float)
    # Laplace's rule: a class of which all of few images are right is not known to the last digit.
    share = (right + 1) / (images + 2)
    error = np.sqrt((share * (1 - share) / images).sum()) / len(images)
    return float((right / images).mean()), float(error)


def _within_an_error(candidates: Sequence[float], found: Sequence[tuple[float, float]]) -> float:
    """Return the largest candidate that is within a standard error of the best.

    A few held-out images of the rare classes do not tell neighbours apart; of those that they do not, the one
    that keeps the head smallest is taken (Breiman et al. 1984, "Classification and regression trees", 3.4.3).

    Args:
        candidates: Rising.
        found: The macro recall of each and its standard error.
    """
    best, error = max(found)
    return max(value for value, (recall, _) in zip(candidates, found, strict=True) if recall >= best - error)
