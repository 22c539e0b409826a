"""The model card: valid for the hub, its numbers those of the run, its words those of nobody else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

from fedvision.api import simulate
from fedvision.errors import ConfigError
from fedvision.files import json_line
from fedvision.formatting import ends, percent
from fedvision.reporting.card_file import edited, update_card, write_card
from fedvision.reporting.model_card import OWNER, CardOptions, model_card
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from tests.experiments import digits_of_several_labels, several_labels, tiny
from tests.reporting.sample import MakeRun

NASTY = ("a|b `c`", "<img src=x onerror=alert(1)>", "two\nlines [x](http://x.invalid)")
CALIBRATION = {
    "error": 0.1,
    "reliability": {"images": [0, 10, 20], "right": [0, 4, 16], "confidence": [0.0, 5.0, 18.0]},
    "ap": [0.5, 0.25, 0.125],
    "auroc": [0.75, 0.5, 0.25],
}


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    return make_run(summary={"status": "finished", "parameters": 1234, "calibration": CALIBRATION})


def card(folder: RunFolder, **options: str) -> str:
    return model_card(read_facts(folder), CardOptions(**options))


def front(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    facts: dict[str, Any] = yaml.safe_load(found[1])
    return facts


def test_the_hub_reads_it_and_finds_the_scores_of_the_run(run: RunFolder) -> None:
    text = card(run, name="mine", license="apache-2.0")
    read = ModelCard(text)
    assert isinstance(read.data, ModelCardData)
    assert (read.data.license, read.data.model_name, read.data.library_name) == (
        "apache-2.0",
        "mine",
        "fedvision",
    )
    results = read.data.eval_results
    assert results is not None
    last = run.rounds()[-1]
    for split, view in (("test", "server"), ("held out by clients", "local")):
        found = {one.metric_name: one.metric_value for one in results if one.dataset_split == split}
        scores = {key: value for key, value in last[view]["scores"].items() if value is not None}
        assert sorted(found.values()) == sorted(scores.values())
        assert found["Accuracy"] == scores["accuracy"]
        assert found["Balanced accuracy"] == scores["balanced_accuracy"]


def test_the_model_index_survives_the_hubs_own_round_trip(run: RunFolder) -> None:
    index = front(card(run, name="mine"))["model-index"]
    name, results = model_index_to_eval_results(index)
    assert all(isinstance(one, EvalResult) for one in results)
    again = eval_results_to_model_index(name, results)
    assert model_index_to_eval_results(again) == (name, results)
    assert [one["metrics"] for one in again[0]["results"]] == [one["metrics"] for one in index[0]["results"]]


def test_a_card_of_the_library_parses_to_the_same_front(run: RunFolder) -> None:
    text = card(run)
    assert yaml.safe_load(ModelCard(text).data.to_yaml())["tags"] == front(text)["tags"]


def test_each_class_has_its_recall_interval_and_images(run: RunFolder) -> None:
    text, facts = card(run), read_facts(run)
    for one in facts.class_facts(facts.best_view):
        assert one.interval is not None
        cells = [one.name, str(one.train), str(one.test), percent(one.recall), ends(*one.interval)]
        assert "| " + " | ".join([*cells, percent(one.ap), percent(one.auroc)]) + " |" in text
    assert "Worst class: ant, recall 40.0%" in text
    assert "on 10 images" in text


def test_every_score_in_the_text_is_of_the_record(run: RunFolder) -> None:
    text, last = card(run), run.rounds()[-1]
    rows = re.findall(r"^\| ([a-zA-Z1 ]+) \| ([0-9.]+%) \| [0-9.]+ to [0-9.]+ \|$", text, re.MULTILINE)
    names = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy", "macro F1": "macro_f1"}
    names |= {f"{group} classes": group for group in ("head", "medium", "tail")}
    expected = [percent(last[view]["scores"][key]) for view in ("server", "local") for key in names.values()]
    assert [value for _, value in rows] == expected
    reliability = read_facts(run).reliability
    assert reliability is not None
    assert f"{percent(reliability.error)[:-1]} points (expected calibration error" in text


def test_what_people_must_say_is_marked(run: RunFolder) -> None:
    sections = re.split(r"^## ", card(run), flags=re.MULTILINE)
    marked = {section.split("\n")[0] for section in sections if OWNER in section}
    assert marked == {"Intended use", "Data", "Licence", "Limitations"}
    assert OWNER not in card(run, license="mit").split("## Licence")[1].split("## Limitations")[0]


def test_skew_privacy_and_limits_are_told(run: RunFolder) -> None:
    text = card(run)
    assert "2 clients with 20 training images in all" in text
    assert (
        "Long-tail factor 5.0: images of the most frequent class (cat, 10) by those of the rarest (ant, 2)"
        in text
    )
    assert "A client has 8, 10, 12 images (lowest, median, highest) and 2, 2.5, 3 of the 3 classes." in text
    assert "Differential privacy of the model: none" in text
    assert "Worst client: 1, accuracy 50.0%" in text
    assert "Measured on fewer than 30 images each, so hardly known: cat, dog, ant." in text
    assert "More often missed than found: ant." in text
    assert "Trained on fewer than 30 images each in the whole federation: cat, dog, ant." in text
    assert "3 kB sent to clients and 1.5 kB by them in 3 rounds, 9.00 s" in text


def test_noise_of_a_strategy_is_not_called_none(make_run: MakeRun) -> None:
    strategy = {
        "use": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "noise_multiplier": 1.0,
        "clipping_norm": 1.0,
        "num_sampled_clients": 2,
        "strategy": {"use": "fedavg"},
    }
    text = card(make_run(strategy=strategy))
    assert "no privacy budget was computed" in text
    assert "privacy of the model: none" not in text
    text = card(make_run("seeded", strategy=strategy, privacy={"noise": "reproducible"}))
    assert "which is NO privacy" in text


def test_across_machines_it_says_how_class_counts_were_shared(make_run: MakeRun) -> None:
    folder = make_run(data={"use": "elsewhere", "classes": ["cat", "dog", "ant"]})
    members = folder.members()
    for client, (name, sharing) in enumerate([("north", "plain"), ("south <b>", "noisy")]):
        members.joined(client, name, f"SHA256:{client}", node=client + 1, sharing=sharing)
    text = card(folder)
    assert "Clients sent model updates; how they shared class counts: 1 noisy, 1 plain." in text
    assert "noise of the clients' own choice of epsilon" in text
    assert "A simulation" not in text
    assert "south <b>" not in text
    assert "Worst client: south &lt;b&gt;, accuracy 50.0%" in text


def test_of_several_labels_no_interval_is_promised(tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path)) | {"partition": {"use": "iid", "clients": 3}}
    simulate(tiny(rounds=1, **tables), out=tmp_path / "run")
    text = (tmp_path / "run/model_card.md").read_text()  # written at the end of the run
    assert ModelCard(text).data.eval_results[0].metric_name == "Mean average precision"
    assert "| score | value |\n" in text
    assert "with 95 % intervals" not in text
    assert "An image classifier of 3 labels" in text
    assert "images (lowest" not in text


def test_names_of_classes_stay_names(make_run: MakeRun) -> None:
    folder = make_run(classes=NASTY, summary={"status": "finished"})
    text = card(folder, name="x\n---\n# y: [z](w)")
    assert front(text)["model-index"][0]["name"] == "x\n---\n# y: [z](w)"
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    inline = [child.type for token in tokens for child in token.children or []]
    assert "html_inline" not in inline
    assert "link_open" not in inline
    assert "image" not in inline
    assert not [token for token in tokens if token.type == "html_block"]
    rows = [token for token in tokens if token.type == "tr_open"]
    plain_rows = MarkdownIt("gfm-like", {"linkify": False}).parse(card(make_run("plain", summary={})))
    assert len(rows) == len([token for token in plain_rows if token.type == "tr_open"])


def test_a_card_of_a_run_without_measurements_says_so(make_run: MakeRun) -> None:
    text = card(make_run(rounds=0))
    assert "Nothing was measured." in text
    assert "model-index" not in front(text)
    assert "how good the model is, nobody knows" in text


def test_a_card_is_written_anew_until_somebody_edits_it(run: RunFolder, tmp_path: Path) -> None:
    path = write_card(run, CardOptions(license="mit", name="a--b"))
    assert path == run.path / "model_card.md"
    first = path.read_text()
    assert ModelCard(first).data.license == "mit"
    update_card(run)  # as a run does at its end: the options stay
    assert path.read_text() == first
    assert not edited(path)
    mine = first.replace(OWNER, "For teaching.", 1)
    path.write_text(mine)
    assert edited(path)
    update_card(run)
    assert path.read_text() == mine
    with pytest.raises(ConfigError, match="somebody has edited it; name another file with --out"):
        write_card(run)
    assert path.read_text() == mine
    other = tmp_path / "other.md"
    write_card(run, None, other)
    assert other.exists()


def test_another_file_is_never_overwritten(run: RunFolder, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_bytes(b"\xff mine")
    with pytest.raises(ConfigError, match="no model card"):
        write_card(run, None, notes)
    assert notes.read_bytes() == b"\xff mine"


def test_a_folder_in_the_cards_place_is_a_sentence(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it cannot be read: Is a directory; name another file"):
        write_card(run, None, tmp_path)


def test_baselines_are_told(run: RunFolder) -> None:
    from fedvision.runs.baseline_folder import BaselineFolder

    place = BaselineFolder(run.path, "local")
    place.begin({"rounds": [1], "rounds_done": 3})
    scores = {"accuracy": 0.5, "balanced_accuracy": 0.5}
    place.append(
        {"client": 0, "images": 12, "loss": 1, "server": {"scores": scores, "loss": 1, "examples": 30}}
    )
    place.finish()
    assert "1 of 1 client gain by taking part" in card(run).replace("\\", "")


def test_the_summary_and_the_card_agree(run: RunFolder) -> None:
    summary = json.loads((run.path / "summary.json").read_text())
    assert f"{summary['parameters']:,} parameters" in card(run)
    assert json_line(summary)  # what was written is JSON
