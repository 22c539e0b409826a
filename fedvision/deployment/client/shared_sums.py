"""Whether a statistic's sums leave this machine, and how: as its owner shares class counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from flwr.app import RecordDict

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.masked_counts import MaskedCounts
from fedvision.errors import ConfigError
from fedvision.flower import codec, masked_codec, query_codec
from fedvision.flower.query_codec import STATISTIC

log = logging.getLogger("fedvision.deployment")


def answer_statistic(
    client: ClientMachineConfig,
    masks_here: Callable[[], MaskedCounts],
    content: RecordDict,
    compute: Callable[[], RecordDict],
) -> RecordDict:
    """Return the reply to a query for a statistic.

    Args:
        client: This machine's file.
        masks_here: Opens the masks of the run.
        content: The query's.
        compute: Computes the sums and returns them as they are.

    Returns:
        The sums, plain or masked; of an optional statistic that the owner does not allow, that it is
        withheld.

    Raises:
        ConfigError: The owner does not allow a statistic that is not optional.
    """
    query = query_codec.decode_query(content)
    try:
        masks = _permitted(client, masks_here, query.use)
    except ConfigError as error:
        if not query_codec.is_optional(content):
            raise
        log.warning("nothing is sent: %s", error)
        return query_codec.encode_withheld()
    computed = compute()
    if masks is None:
        return computed
    kind = f"{STATISTIC}\n{query.use}\n{json.dumps(query.args, sort_keys=True)}\n{query.bits}"
    question = masked_codec.question(kind, content, sorted(codec.arrays_of(content)))
    masked = masks.hide(query_codec.numbers_to_mask(computed, query.bits), question)
    return query_codec.with_masked(computed, masked, masks.group, query.bits)


def _permitted(
    client: ClientMachineConfig, masks_here: Callable[[], MaskedCounts], use: str
) -> MaskedCounts | None:
    """Return the masks for a statistic's sums, None where they are sent as they are.

    Raises:
        ConfigError: They are not to be sent.
    """
    client.permit_statistic(use)
    shared = client.share.counts
    masks = masks_here() if shared == "masked" else None
    if shared != "plain" and (masks is None or not masks.group):
        raise ConfigError(
            f'share.counts is "{shared}" here: sums over its images are sent where it is "plain", '
            'or "masked" and a group of masked clients is complete'
        )
    return masks
