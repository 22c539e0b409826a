"""Late answers: a change that was made to an older model, brought to the present one.

A client that was sent x_t and answers y in round t + s has changed its model by y - x_t. What the strategy
gets is the present model with that change, the smaller the older it is (Nguyen et al. 2022, arXiv 2106.06639;
the polynomial weight is that of Xie, Koyejo, Gupta 2019, arXiv 1903.03934)::

    y' = x_{t+s} + (1 + s)^-a (y - x_t)

So every strategy can use it as it uses the others: a mean of models, a server's optimiser, a median. As in
FedBuff the weight shrinks the change and is not divided out again, so that a round of old changes alone is a
small step. Running statistics of batch normalisation are mixed, not shifted: a variance stays positive. Other
tensors, such as the change of a control variate, count in full.
"""

from __future__ import annotations

from fedvision.aggregation.summation import accumulate_dtype
from fedvision.algorithms.fedavg import only_averaged
from fedvision.flower.train_reply import TrainReply
from fedvision.types import State


def weight(age: int, exponent: float) -> float:
    """Return what a change of some age counts: ``(1 + age)^-exponent``.

    Args:
        age: s, in rounds, >= 0.
        exponent: a, >= 0.
    """
    return float((1 + age) ** -exponent)


def rebase_update(reply: TrainReply, sent: State, present: State, share: float) -> None:
    """Change a late reply into one of a client that had started from the present model.

    Args:
        reply: It has passed the validator.
        sent: The model that the client was sent.
        present: The present model.
        share: What its change counts, 0 to 1.
    """
    assert reply.state is not None, "a grid that answers late sums nothing"
    state: State = {}
    for name, new in reply.state.items():
        kind = accumulate_dtype(new.dtype)
        now = present[name].to(kind)
        old = now if only_averaged(name) else sent[name].to(kind)
        state[name] = (now + share * (new.to(kind) - old)).to(new.dtype)
    reply.state, reply.late = state, True
