"""Distillation: FedAvg whose clients teach a small network what a finished run's larger one knows.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, with the images
of the clients as the transfer set: each client minimises::

    (1 - alpha) * loss + alpha * tau^2 * KL(p_teacher || p_student)     p = softmax(z / tau) over all classes

with the logits z of a teacher that does not change and of the student that is trained. The teacher's tensors
travel to each client's machine once, the student's in every round. Teacher and student see the same batch,
augmented in the same way (Beyer et al. 2022, "A good teacher is patient and consistent", arXiv 2106.05237).

The task's loss can be any of the package's. The divergence is of probabilities as both networks predict them:
where a loss has a scale s of its own, of s z. Each step takes one further forward pass, of the teacher,
without gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError, ConfigError, FedVisionError
from fedvision.inputs import Batch, images_of
from fedvision.losses.logits import sharpness
from fedvision.ranges import check_range
from fedvision.training import teacher
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientConfig, LossFn, State, TrainRequest

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig

_GROUP = "teacher"
_NUMBERS = ("alpha", "tau")


class DistillationClient(ClientAlgorithm):
    """The task's loss and the divergence from the teacher."""

    sees_images = True

    def begin(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], request: TrainRequest, memory: State
    ) -> None:
        """Build the teacher, or take the one that this process has.

        Raises:
            ClientError: The request has no teacher, or its network cannot be built here.
        """
        sent = request.client_config
        missing = [name for name in _NUMBERS if name not in sent.numbers]
        if missing or _GROUP not in sent.texts or _GROUP not in sent.constants:
            raise ClientError(
                request.client,
                "training",
                "distillation got no teacher with alpha and tau; the strategy must send them (configure, "
                "constant_tensors)",
            )
        self._alpha, self._tau = (sent.numbers[name] for name in _NUMBERS)
        device = next(model.parameters()).device
        try:
            self._teacher = teacher.network(sent.texts[_GROUP], sent.constants[_GROUP], device)
        except FedVisionError as error:
            raise ClientError(request.client, "training", str(error)) from error
        if not set(self._teacher.description.code) <= set(sent.models):
            raise ClientError(
                request.client, "training", "the teacher is built of networks that the message does not name"
            )

    def loss(self, model: nn.Module, x: Batch, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        """Return ``(1 - alpha) loss + alpha tau^2 KL`` of each example [B]."""
        logits = model(x)
        with torch.no_grad():
            taught = self._teacher(images_of(x))
        divergence = kl_divergence(sharpness(task_loss) * logits, taught, self._tau)
        return (1 - self._alpha) * task_loss(logits, labels) + self._alpha * self._tau**2 * divergence


class Distillation(FedAvg):
    """FedAvg that distils a finished run's model into the network of the experiment.

    Args:
        teacher: Folder of a finished run with the same classes; its network may be of any kind and size.
        alpha: Share of the teacher in the loss, 0 <= alpha <= 1; 0 is FedAvg, 1 looks at no label.
        tau: Temperature of both networks' predictions, > 0; larger makes the less likely classes count more.
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    client = DistillationClient

    def __init__(
        self,
        *,
        teacher: str = "",
        alpha: float = 0.5,
        tau: float = 2.0,
        fraction: float = 1.0,
        min_clients: int = 1,
    ) -> None:
        super().__init__(fraction=fraction, min_clients=min_clients)
        check_range(at_least=0, at_most=1, alpha=alpha)
        check_range(above=0, tau=tau)
        self.teacher, self.alpha, self.tau = teacher, alpha, tau
        self.taught = _Taught()

    def check(self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]) -> None:
        """Read the teacher.

        Raises:
            ConfigError: It is no finished run, or does not fit the experiment.
        """
        key = "strategy.teacher"
        if not self.teacher:
            raise ConfigError(f"{key} is empty; name the folder of the finished run that teaches")
        self.taught.set(*teacher.read(self.teacher, config, classes, image, key=key))

    def constant_tensors(self) -> Mapping[str, State]:
        """Send the teacher's tensors, once."""
        return {_GROUP: self.taught.state}

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Send alpha, tau and how the teacher is built."""
        return ClientConfig(
            numbers={"alpha": self.alpha, "tau": self.tau},
            texts={_GROUP: self.taught.text},
            models=self.taught.models,
        )


class _Taught:
    """The teacher on the server: what a checkpoint needs of it is its digest alone."""

    def __init__(self) -> None:
        self.state: State = {}
        self.text = ""
        self.models: tuple[str, ...] = ()
        self._sha256 = ""

    def set(self, description: teacher.TeacherDescription, state: State) -> None:
        """Take the teacher up."""
        self.state, self.text, self._sha256 = state, description.to_text(), description.sha256
        self.models = description.code

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"sha256": self._sha256}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare a checkpoint with the teacher that is there.

        Raises:
            ConfigError: The run began with another one.
        """
        if state.get("sha256") != self._sha256:
            raise ConfigError("strategy.teacher is another model than the run began with; restore it")


def kl_divergence(student: torch.Tensor, taught: torch.Tensor, tau: float) -> torch.Tensor:
    """Return KL(teacher || student) of softmax(z / tau) [B], in nats.

    Args:
        student: The student's logits [B, C].
        taught: The teacher's [B, C]; -inf is a class that it rules out.
        tau: Temperature, > 0.
    """
    # float32 whatever the forward pass computed in: bfloat16 has 8 bits for a difference of logarithms.
    own, target = (z.float().div(tau).log_softmax(dim=1) for z in (student, taught))
    weights = target.exp()
    return torch.where(weights > 0, weights * (target - own), 0.0).sum(dim=1)
