"""Apple's pfl: FederatedDataset, SimulatedBackend, FederatedAveraging and its central evaluation.

One process of one thread, or several with ``torchrun --nproc_per_node N``. It measures every sampled client
once before round 1, which no parameter stops: little on W1, much on W2. On a GPU all images are moved there
before they are split, as pfl's own benchmark with CIFAR-10 does.
"""

from __future__ import annotations

import itertools
import os
import time

BEGUN = time.perf_counter()

from typing import Any  # noqa: E402

import torch  # noqa: E402
from common import EVALUATION_BATCH, LR, Clock, Net, Workload, arguments, workload  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.internal.ops.pytorch_ops import to_tensor  # noqa: E402
from pfl.internal.ops.selector import get_framework_module  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Model(Net):
    """The network with the two methods that pfl needs."""

    steps = images = 0

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.train()
        self.steps += 1
        self.images += len(y)
        return F.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> dict[str, Any]:
        self.eval()
        return {"accuracy": Weighted(int((self(x).argmax(1) == y).sum()), len(y))}


class RoundState(TrainingProcessCallback):
    """Takes the times and measures on the test images as the others do."""

    def __init__(self, clock: Clock, workload: Workload, test: Any) -> None:
        self.clock, self.workload, self.test = clock, workload, test

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if self.workload.measured(central_iteration + 1):
            self.clock.evaluate(model.pytorch_model, *self.test, EVALUATION_BATCH)
        self.clock.round()
        return False, Metrics()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", help="where the model and the images are")
    options = parser.parse_args()
    w = workload(options)
    torch.set_num_threads(1)
    # How pfl gets its device; it takes a GPU where there is one unless set.
    os.environ["PFL_PYTORCH_DEVICE"] = options.device
    images, labels = to_tensor(w.images()), to_tensor(w.labels())
    clients = [to_tensor(mine) for mine in w.clients()]
    network = Model()
    network.load_state_dict(w.initial())

    def make(client: int) -> Dataset:
        mine = clients[client]
        mine = mine[torch.randperm(len(mine), device=mine.device)]
        return Dataset(raw_data=[images[mine], labels[mine]], user_id=str(client))

    # Sampling runs ahead in processes of several, so the schedule must not end.
    schedule = itertools.cycle([client for cohort in w.cohorts() for client in cohort])
    data = FederatedDataset(
        make, lambda: next(schedule), user_id_to_weight={c: len(mine) for c, mine in enumerate(clients)}
    )
    cohort, evaluation = len(w.cohorts()[0]), NNEvalHyperParams(local_batch_size=EVALUATION_BATCH)
    backend = SimulatedBackend(training_data=data, val_data=None, postprocessors=[WeightByDatapoints()])
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    test = to_tensor(w.images("test_")), to_tensor(w.labels("test_"))
    clock = Clock(BEGUN, options.device)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=w.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LR, local_batch_size=w.batch
        ),
        model_eval_params=evaluation,
        callbacks=[RoundState(clock, w, test)],
    )
    if get_framework_module().distributed.global_rank == 0:
        clock.report(steps=network.steps, examples=network.images)


if __name__ == "__main__":
    main()
