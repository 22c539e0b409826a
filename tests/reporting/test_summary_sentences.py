"""The sentences of a report agree with the figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvision.reporting.run_data import read_facts
from fedvision.reporting.summary_sentences import headlines, summary_sentences, trust
from tests.reporting.sample import MakeRun


def test_headlines_are_the_four_that_matter(make_run: MakeRun) -> None:
    found = headlines(read_facts(make_run(rounds=2)))
    assert [(line.label, line.value) for line in found] == [
        ("Accuracy", "53.3%"),
        ("Balanced accuracy", "53.3%"),
        ("Rare classes", "30.0%"),
        ("Worst client", "50.0%"),
    ]
    assert found[0].meaning == "share of all test images that get their right name"
    assert found[2].meaning == "recall of the rarest classes: ant"
    assert found[3].meaning == "accuracy on the images of client 1"


def test_without_clients_that_measure_macro_f1_takes_the_place(make_run: MakeRun) -> None:
    found = headlines(read_facts(make_run(changes={"local": None})))
    assert [line.label for line in found] == ["Accuracy", "Balanced accuracy", "Rare classes", "Macro F1"]


def test_without_a_server_that_measures_the_clients_figures_are_shown(make_run: MakeRun) -> None:
    found = headlines(read_facts(make_run(changes={"server": None})))
    assert found[0].meaning == "share of all images that clients keep for measuring that get their right name"


def test_the_summary_has_data_result_and_ending(make_run: MakeRun) -> None:
    facts = read_facts(make_run(rounds=2, summary={"status": "failed", "error": "no client answered"}))
    assert summary_sentences(facts) == [
        "2 clients keep 20 training images of 3 classes: 10 of cat, the most frequent one, and 2 of ant, "
        "the rarest.",
        "After round 2 the model names 53 of 100 test images rightly; it knows cat best (70.0%) and ant "
        "least (30.0%).",
        "The run failed after 2 of 3 rounds: no client answered",
    ]


def test_the_story_of_other_endings(make_run: MakeRun) -> None:
    assert len(summary_sentences(read_facts(make_run("a", summary={"status": "finished"})))) == 2
    assert summary_sentences(read_facts(make_run("b", summary={"status": "stopped"})))[-1] == (
        "The run stopped after 3 of 3 rounds."
    )
    assert "still going on, or was killed" in summary_sentences(read_facts(make_run("c", rounds=0)))[-1]


def test_classes_that_are_equally_frequent_are_not_called_rare(make_run: MakeRun) -> None:
    folder = make_run(split=False)
    even = np.full((2, 3), 4)
    folder.write_split({"digest": "d", "classes": ["a", "b", "c"], "counts": even, "left_out": 0})
    facts = read_facts(folder)
    assert summary_sentences(facts)[0] == (
        "2 clients keep 24 training images of 3 classes, equally many of each: none is rare."
    )
    assert "Rare classes" not in [line.label for line in headlines(facts)]


def test_the_worst_client_is_shown_with_its_number_of_images(make_run: MakeRun) -> None:
    spread = {"worst_client": 1, "worst": 0.0, "worst_images": 1}
    found = headlines(
        read_facts(make_run(changes={"local": {"scores": {"accuracy": 0.5}, "spread": spread}}))
    )
    assert found[-1].meaning == "accuracy on 1 image of client 1"


def test_classes_without_test_images_stand_beside_balanced_accuracy(make_run: MakeRun) -> None:
    confusion = [[5, 5, 0], [0, 0, 0], [0, 0, 10]]
    server = {"scores": {"accuracy": 0.75, "balanced_accuracy": 0.75}, "confusion": confusion}
    facts = read_facts(make_run(changes={"server": server}))
    found = next(line for line in headlines(facts) if line.label == "Balanced accuracy")
    assert found.meaning == (
        f"the same if every class counts alike, however rare; without {facts.classes[1]}, "
        "of which there are no images"
    )


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (1.0, "100 of 100"),
        (0.9961, "more than 99 of 100"),
        (0.991, "99 of 100"),
        (0.0, "0 of 100"),
        (0.004, "fewer than 1 of 100"),
    ],
)
def test_all_and_none_are_said_only_of_all_and_none(make_run: MakeRun, accuracy: float, words: str) -> None:
    facts = read_facts(make_run(rounds=1))
    facts.rounds[-1]["server"]["scores"]["accuracy"] = accuracy
    assert f"the model names {words} test images rightly" in " ".join(summary_sentences(facts))


@pytest.mark.parametrize(
    ("told", "curves", "end"),
    [
        ({}, True, "30 images that 2 of 2 clients hold out from training."),
        (
            {"clients": 1, "withheld": 1},
            True,
            "30 images that 1 of 2 clients hold out from training; of 2 clients 1 did not share the "
            "statistic calibration (share.statistics).",
        ),
        (
            {"clients": 1, "failed": [{"client": 1, "reason": "no"}]},
            False,
            "30 images that 1 of 2 clients hold out from training; of 2 clients 1 gave no usable answer. Of "
            "so many classes clients do not send what AP and AUROC are made of.",
        ),
    ],
)
def test_on_whose_images_probabilities_are_trusted(
    told: dict[str, Any], curves: bool, end: str, make_run: MakeRun
) -> None:
    reliability = {"images": [0, 10, 20], "right": [0, 4, 16], "confidence": [0.0, 5.0, 18.0]}
    held_out = {"clients": 2, "images": 30, "asked": 2, "withheld": 0, "failed": []} | told
    known: dict[str, Any] = {"reliability": reliability, "held_out": held_out}
    known |= {"ap": [0.5] * 3, "auroc": [0.5] * 3} if curves else {}
    facts = read_facts(make_run(summary={"status": "finished", "calibration": known}))
    text = trust(facts)
    assert text.startswith("On average the final model gives the class that it names 76.7%, and it is right ")
    assert text.endswith(f"The server has no test images: this rests on {end}")


def test_why_it_is_not_known_how_far_probabilities_can_be_trusted(make_run: MakeRun) -> None:
    held_out = {"clients": 0, "images": 0, "asked": 2, "withheld": 2, "failed": []}
    facts = read_facts(make_run(summary={"status": "finished", "calibration": {"held_out": held_out}}))
    assert trust(facts) == (
        "How far its probabilities can be trusted was not measured: of 2 clients 2 did not share the "
        "statistic calibration (share.statistics)."
    )
    assert trust(read_facts(make_run("old", summary={"status": "finished"}))) == ""
