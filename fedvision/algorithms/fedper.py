"""FedPer: clients average the base of their networks and each keeps a head of its own.

Arivazhagan, Aggarwal, Singh, Choudhary 2019, "Federated Learning with Personalization Layers", arXiv
1912.00818. ``model.personal`` names the personalisation layers, which stay with each client; the server's
half is FedAvg of the others. As in the paper every local step trains base and head together; there all
clients work in every round, here ``fraction`` may be less than 1.
"""

from __future__ import annotations

from fedvision.algorithms.fedavg import FedAvg


class FedPer(FedAvg):
    """FedAvg of the shared tensors of networks whose other tensors are personal."""

    needs_personal = True
