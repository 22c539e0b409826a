"""How a run stands, in plain sentences: for the top of the page, its title, and those who hear it."""

from __future__ import annotations

from datetime import datetime

from fedvision.formatting import GROUPS, percent, plural, score_name, whole
from fedvision.reporting.run_data import RunData
from fedvision.runs.run_state import RunState
from fedvision.watching.followed_run import Snapshot

NAMES = {
    "absent": "waiting for the run",
    "preparing": "getting ready",
    "waiting": "waiting for clients",
    "running": "running",
    "finished": "done",
    "early": "stopped early",
    "failed": "failed",
    "stopped": "stopped",
    "interrupted": "interrupted",
}
"""States in words, by the class that colours them."""


def kind(state: RunState) -> str:
    """Return the key in ``NAMES`` of how a run stands."""
    return "early" if state.status == "finished" and state.done < state.rounds else state.status


def standing(state: RunState) -> str:
    """Return a sentence on how a run stands, without the time left."""
    done, of = state.done, plural(state.rounds, "round")
    if state.status == "preparing":
        return "The images are read and the model is built; the first round has not begun."
    if state.status == "waiting":
        return f"The server waits until enough clients are connected; {_here(state)}."
    if state.status == "running":
        if done >= state.rounds:
            return f"All {of} are done; the final model is measured and written."
        return f"Round {done + 1} of {whole(state.rounds)} is under way."
    if state.status == "finished":
        early = _sentence(state.stopped_early) if done < state.rounds else ""
        where = f"It ended after round {done} of {whole(state.rounds)}."
        return f"{where} {early}" if early else f"All {of} are done."
    if state.status == "failed":
        return f"It failed after {done} of {of}. {_sentence(state.error)}".strip()
    if state.status == "stopped":
        return f"Somebody stopped it after {done} of {of}; the same command goes on from there."
    return (
        f"It has recorded {done} of {of}, and no process on this machine works on it: it was killed, or it "
        "runs where this machine cannot see it."
    )


def about(seconds: float) -> str:
    """Return a time that is not known exactly: ``"about 40 s"``, ``"about 12 min"``, ``"about 3 h"``."""
    if seconds < 10:
        return "less than 10 s"
    if seconds < 95:
        return f"about {round(seconds / 10) * 10} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"about {minutes} min"
    if minutes < 90:
        return f"about {round(minutes / 5) * 5} min"
    quarters = round(minutes / 15)
    if quarters < 40:
        hours, rest = divmod(quarters * 15, 60)
        return f"about {hours} h {rest} min" if rest else f"about {hours} h"
    return f"about {round(minutes / 60)} h"


def at(seconds: float, now: float) -> str:
    """Return a time of day on this machine; of another day than now with its date.

    Args:
        seconds: Since 1970 (UTC).
        now: Likewise.
    """
    then = datetime.fromtimestamp(seconds)
    today = then.date() == datetime.fromtimestamp(now).date()
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def announcement(found: Snapshot) -> str:
    """Return one sentence on the last round and its result, or on how the run ended."""
    state = found.state
    result = _result(found.facts)
    if state.over or not state.done or state.status == "waiting":
        return f"{NAMES[kind(state)].capitalize()}. {standing(state)} {result}".strip()
    return f"Round {state.done} of {whole(state.rounds)} is done. {result}".strip()


def _result(facts: RunData) -> str:
    best = facts.best_view
    if best is None:
        return ""
    shown = [key for key in ("mean_ap", "balanced_accuracy", "tail") if best.scores.get(key) is not None]
    parts = []
    for key in shown or list(best.scores)[:1]:
        name = score_name(key, facts.kinds)
        parts.append(
            f"{f'{facts.rare_score} of {name}' if key in GROUPS else name} {percent(best.scores[key])}"
        )
    where = f"After round {best.round}: " if best.round != facts.done else ""
    text = where + ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else ""


def _here(state: RunState) -> str:
    number = len(state.here)
    return (
        f"{plural(number, 'client')} {'is' if number == 1 else 'are'} here" if number else "none is here yet"
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""
