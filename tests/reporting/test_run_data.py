"""Facts read from a run folder, also from one with gaps."""

from __future__ import annotations

import numpy as np
import pytest

from fedvision.reporting.class_facts import frequency_groups
from fedvision.reporting.render import run_table
from fedvision.reporting.run_data import read_facts
from fedvision.reporting.series import Band, Series
from fedvision.reporting.summary_sentences import summary_sentences
from fedvision.runs.folder import RunFolder
from tests.reporting.sample import COUNTS, MakeRun, record


def test_series_leave_out_what_was_not_measured(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    folder.append_round(record(3, server=None, train_loss=None), {})
    folder.append_round({"round": 4}, {})
    facts = read_facts(folder)
    assert facts.series("train_loss") == Series([1, 2], [1.0, 0.5])
    assert facts.series("server", "loss") == Series([1, 2], [2.0, 1.0])
    assert facts.series("local", "scores", "accuracy").rounds == [1, 2, 3]
    assert facts.series("server", "nothing") == Series([], [])
    assert facts.done == 4


def test_the_band_of_clients_is_worst_median_best(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    folder.append_round(record(2, local={"accuracy": {"0": 0.2, "1": 0.9, "2": 0.4, "3": None}}), {})
    band = read_facts(folder).client_band("local", "accuracy")
    assert band == Band([1, 2], [0.5, 0.2], [0.55, 0.4], [0.6, 0.9])


def test_the_last_measurement_of_a_view_is_found(make_run: MakeRun) -> None:
    folder = make_run(rounds=2)
    folder.append_round(record(3, server=None), {})
    facts = read_facts(folder)
    server, local = facts.measurement("server"), facts.measurement("local")
    assert server is not None
    assert local is not None
    assert (server.round, server.loss, server.worst) == (2, 1.0, None)
    assert server.confusion.to_record() == [[7, 3, 0], [4, 6, 0], [7, 0, 3]]
    assert server.scores["accuracy"] == pytest.approx(16 / 30)
    assert (local.round, local.worst) == (3, ("1", 0.5, None))
    best = facts.best_view
    assert best is not None
    assert best.view == "server"


def test_classes_stand_by_training_frequency_with_their_recall(make_run: MakeRun) -> None:
    facts = read_facts(make_run(rounds=2))
    classes = facts.class_facts(facts.best_view)
    assert [(c.name, c.train, c.test, c.recall, c.group) for c in classes] == [
        ("cat", 10, 10, 0.7, "head"),
        ("dog", 8, 10, 0.6, "medium"),
        ("ant", 2, 10, 0.3, "tail"),
    ]
    assert [c.recall for c in facts.class_facts(None)] == [None, None, None]


def test_refusals_bytes_and_seconds_are_summed(make_run: MakeRun) -> None:
    item = {"client": 1, "stage": "training", "reason": "NaN"}
    items = [{**item, "kind": "failed"}, {**item, "kind": "refused"}, {**item, "kind": "failed"}]
    facts = read_facts(make_run(rounds=2, changes={"refused": items}))
    assert facts.unused() == "6 replies not used (2 refused, 4 failed)"
    assert read_facts(make_run("old", rounds=2, changes={"refused": [item]})).unused() == (
        "2 replies not used (2 unused)"
    )
    assert facts.sent() == {"down": 2000, "up": 1000, "up_whole": 1000}
    assert facts.seconds() == {"train": 4.0, "server": 1.0, "local": 1.0, "total": 6.0}
    assert list(facts.seconds())[-1] == "total"
    assert (facts.seconds_of(2), facts.seconds_of(3)) == (3.0, None)


def test_bytes_of_transformed_updates_stand_beside_those_of_whole_models(make_run: MakeRun) -> None:
    sent = {"down": 100_000, "up": 2_000, "up_whole": 100_000}
    folder = make_run(rounds=2, changes={"bytes": sent})
    assert read_facts(folder).sent() == {"down": 200_000, "up": 4_000, "up_whole": 200_000}
    assert "4 kB back (200 kB without [[update]])" in run_table(folder)


def test_a_run_that_has_just_begun_has_no_facts(make_run: MakeRun) -> None:
    facts = read_facts(make_run(rounds=0, split=False))
    assert (facts.done, facts.status, facts.best_view, facts.classes) == (0, "unfinished", None, ())
    assert facts.counts.shape == (0, 0)
    assert facts.class_facts(None) == []
    assert facts.unused() == ""
    assert facts.seconds() == {"total": 0}


def test_classes_without_a_split_are_numbered(make_run: MakeRun) -> None:
    folder = make_run(rounds=1, split=False)
    facts = read_facts(RunFolder.read(folder.path))
    assert facts.classes == ("0", "1", "2")
    assert [c.recall for c in facts.class_facts(facts.best_view)] == [0.6, 0.6, 0.2]


def test_equally_frequent_classes_have_no_groups() -> None:
    assert frequency_groups(np.array([5, 5, 5])) == ["", "", ""]
    assert frequency_groups(np.array([1, 9, 5])) == ["tail", "head", "medium"]
    assert frequency_groups(np.array([], np.int64)) == []


SAMPLED = {
    "digest": "d",
    "classes": ["cat", "dog", "ant"],
    "clients": 1_000_000,
    "totals": [50, 900, 5_000_000],
    "exact": False,
    "shown": [7, 99],
    "counts": COUNTS,
    "left_out": 0,
}


def test_a_sample_of_the_clients_does_not_stand_for_the_whole(make_run: MakeRun) -> None:
    folder = make_run(split=False)
    folder.write_split(SAMPLED)
    facts = read_facts(folder)
    assert facts.counts.tolist() == COUNTS
    assert (facts.clients, facts.exact, facts.totals.tolist()) == (1_000_000, False, [50, 900, 5_000_000])
    assert [(c.name, c.train) for c in facts.class_facts(None)] == [
        ("ant", 5_000_000),
        ("dog", 900),
        ("cat", 50),
    ]
    assert summary_sentences(facts)[0].startswith(
        "1,000,000 clients keep about 5,000,950 training images of 3 classes: "
    )
    assert run_table(folder).splitlines()[0].endswith(", 1,000,000 clients")


def test_all_clients_are_the_whole(make_run: MakeRun) -> None:
    facts = read_facts(make_run())
    assert (facts.clients, facts.exact, facts.totals.tolist()) == (2, True, [10, 8, 2])
