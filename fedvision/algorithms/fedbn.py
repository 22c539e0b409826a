"""FedBN: FedAvg of all but batch norm, which each client keeps for itself.

Li, Jiang, Zhang, Kamp, Dou 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, arXiv 2102.07623. Where clients differ in how their images look (cameras, scanners,
stains), batch norm's statistics differ, and their mean is nobody's. So its scales, shifts, running means and
variances stay with the client::

    x <- sum_k n_k y_k / sum_k n_k     over the tensors that are not batch norm's

The layers are found by their type in any network. (The authors' code finds them by ``bn`` in a tensor's
name.) The method is the pattern ``"batch-norm"`` in ``model.personal``, which ``fedbn`` adds to those of the
experiment; other strategies take it as well. As elsewhere here clients are weighted by their images, where
the authors' code weights all alike, and ``fraction`` may be less than 1.

There is no global model to test: in ``model.safetensors`` batch norm is as the model began, the server
measures nothing, and each client measures its own model on the images that it holds out
(``evaluation.holdout``). A client that has never trained has the first values, mean 0 and variance 1 where
no weights were loaded, and its scores are those of no trained model.

Costs: FedAvg's passes; batch norm's few tensors are not sent and lie on the client's disk.
"""

from __future__ import annotations

from fedvision.algorithms.fedavg import FedAvg
from fedvision.models.parameter_groups import BATCH_NORM


class FedBN(FedAvg):
    """FedAvg whose clients keep batch norm.

    Args:
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    def personal(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the experiment's patterns and batch norm."""
        return given if BATCH_NORM in given else (*given, BATCH_NORM)
