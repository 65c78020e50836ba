"""The profile form: what the hub's spawn page shows, and what comes back from it or from a link.

Field names are KubeSpawner's: ``profile``, ``profile-option-{slug}--{option}`` and
``profile-option-{slug}--{option}--unlisted-choice``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from .. import rungs
from ..errors import Rejected
from ..fairness import Budget, BudgetState
from ..model import Kind, Terms, Wish
from .choice import LONGEST_TEXT, MOST_KEYS, TYPED, may_use
from .reading import UNLISTED_CHOICE, Option, Profile, Profiles
from .schema import is_plain, shown
from .standing import budget_in_words, wait_in_words

PREFIX = "profile-option-"
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Availability:
    """What a person could have of a profile at this moment."""

    allowed: bool = True
    reason: str = ""
    """Why not, in words, where it is not allowed."""
    free: int | None = None
    """How many such slices could start now; None: not known."""
    queued: int = 0
    place_wait: tuple[float, float] | None = None
    """Seconds, from and to, that a new request would wait; None: not known."""
    budget_left_hours: float | None = None
    """GPU-hours that the person has left; None: nobody limits them."""


# --- what comes in ----------------------------------------------------------------------------------


def parse_form(formdata: Mapping[str, Any]) -> dict[str, str]:
    """Turn the form's fields into options; fields of profiles that were not chosen are left out.

    Raises Rejected (400) for a field that no form of ours has, or one that is given twice.
    """
    fields: dict[str, str] = {}
    for key, values in formdata.items():
        if key == "_xsrf":
            continue
        if key != "profile" and not key.startswith(PREFIX):
            raise Rejected(
                f"The form has the unknown field {shown(key)}; allowed are profile and {PREFIX}….",
                reason="bad-option",
            )
        if len(values) != 1 or not isinstance(values[0], str):
            what = "a file" if len(values) == 1 else f"given {len(values)} times"
            raise Rejected(
                f"The form's field {shown(key)} is {what}; allowed is one text.", reason="bad-option"
            )
        fields[key] = values[0]
    return _of_profile(fields)


def parse_query(query: Mapping[str, Any]) -> dict[str, str]:
    """Turn the ``opt-`` parameters of a link into a preselection for the form.  Never raises.

    Understands the names of options and those of the form's fields.  A link may come from a foreign
    page: whatever is not a short plain text is left out, the form checks the rest against the offer.
    """
    found: dict[str, str] = {}
    for key, values in list(query.items())[:MOST_KEYS]:
        value = values[0] if isinstance(values, list) and values else ""
        if isinstance(key, str) and _is_short(value):
            found[key] = value
    short = {key: value for key, value in found.items() if not key.startswith(PREFIX)}
    return _of_profile(found) | short


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and is_plain(value)


def _of_profile(fields: Mapping[str, str]) -> dict[str, str]:
    slug = fields.get("profile")
    if not slug:
        return {}
    prefix = f"{PREFIX}{slug}--"
    options = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    return {key: value for key, value in options.items() if value} | {"profile": slug}


# --- words ------------------------------------------------------------------------------------------


def describe_wish(wish: Wish) -> str:
    """The slice in words for people: ``25 % of a GPU with 20 GiB (A100*)``."""
    match wish.kind:
        case Kind.CPU:
            return "no GPU"
        case Kind.GPU:
            what = "1 whole GPU" if wish.count == 1 else f"{wish.count} whole GPUs"
        case Kind.MIG:
            what = f"MIG instance {wish.mig}"
        case Kind.SHARE:
            memory = f"{wish.fraction} of the memory" if wish.fraction else size(wish.memory_mib << 20)
            parts = [memory] if wish.fraction or wish.memory_mib else []
            parts += [f"{wish.compute} % of the compute"] if wish.compute else []
            what = f"share of a GPU: {', '.join(parts)}"
    return what if wish.model == "*" else f"{what} ({wish.model})"


def size(count: int) -> str:
    """Bytes for people, in GiB or MiB."""
    gib = count / (1 << 30)
    return f"{gib:.4g} GiB" if gib >= 1 else f"{count / (1 << 20):.4g} MiB"


def duration(seconds: float) -> str:
    """Seconds for people: ``90 s``, ``30 min``, ``12 h``."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (seconds >= length and seconds % length == 0):
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def facts(profile: Profile, *, simulated: bool = False, mps: bool = False) -> list[str]:
    """What a profile gives and under which terms, in words, one line each."""
    words = [describe_wish(profile.wish)]
    if profile.wish.kind is Kind.SHARE:
        limited = rungs.is_limited(profile.tensorflow, {})
        rung = rungs.rung_of(Kind.SHARE, simulated=simulated, limited=limited)
        words.append(f"held by: {rungs.in_words(rung, stops=None)}")
        if mps:
            through = rungs.in_words(rungs.Rung.MPS, stops=None)
            words.append(f"held by, where its GPU is one shared through MPS: {through}")
    if profile.cpu_limit is not None:
        words.append(f"{profile.cpu_limit:g} CPU cores")
    if profile.mem_limit is not None:
        words.append(f"{size(profile.mem_limit)} main memory")
    if profile.image:
        words.append(f"image {profile.image}")
    return words + _terms(profile.terms, profile.wish)


def _terms(terms: Terms, wish: Wish) -> list[str]:
    words = []
    if terms.window and wish.kind is not Kind.CPU:
        words.append(
            f"taken back after {duration(terms.window)} without use, "
            f"with a warning {duration(terms.warn)} before"
        )
    if terms.max_age:
        words.append(f"ends after {duration(terms.max_age)}")
    return words


def state_in_words(profile: Profile, seen: Availability | None) -> str:
    """What is free now: ``2 free``, ``none free, 3 in the queue, wait unknown``, ``not known yet``."""
    if profile.wish.kind is Kind.CPU:
        return "needs no GPU"
    if seen is None or seen.free is None:
        return "not known yet"
    words = [f"{seen.free} free" if seen.free else "none free"]
    if seen.queued:
        words.append(f"{seen.queued} in the queue")
    if not seen.free:
        words.append(f"wait {wait_in_words(seen.place_wait)}")
    return ", ".join(words)


# --- what is shown ----------------------------------------------------------------------------------


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader([PACKAGE / "templates", PACKAGE / "static"])
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render_form(
    profiles: Profiles,
    *,
    user: str,
    groups: Collection[str],
    availability: Mapping[str, Availability],
    selected: Mapping[str, Any] | None,
    notice: str = "",
    simulated: bool = False,
    mps: bool = False,
    isolation_note: str = "",
    admin: bool = False,
    budget: Budget | None = None,
    over: Collection[str] = (),
) -> str:
    """Render the inside of the hub's spawn form, with ``selected`` (a last choice or a link's) filled in.

    Works without JavaScript.  ``availability`` may lack profiles: then only the groups decide here, and
    what is free is said to be unknown.  What is no longer offered in ``selected`` is passed over.
    ``budget`` is what decides for the person; ``over`` are sentences on limits that they exceed.
    """
    rows: list[dict[str, Any]] = []
    shared = _shared_reasons(profiles, groups, admin, availability)
    for profile in profiles.values():
        seen = availability.get(profile.slug)
        allowed, reason = may_use(profile, groups, admin)
        if allowed and seen is not None:
            allowed, reason = seen.allowed, seen.reason
        why = shared.index(reason) + 1 if not allowed and reason in shared else 0
        state = state_in_words(profile, seen) if allowed else f"not for you: {_reason(reason, why, shared)}"
        words = facts(profile, simulated=simulated, mps=mps)
        rows.append({"profile": profile, "allowed": allowed, "state": state, "why": why, "facts": words})
    open_to = [row["profile"].slug for row in rows if row["allowed"]]
    wanted = selected.get("profile") if isinstance(selected, Mapping) else None
    first = [slug for slug in (wanted, profiles.default.slug, *open_to) if slug in open_to][:1]
    for row in rows:
        slug = row["profile"].slug
        row["checked"] = [slug] == first
        filled = selected if selected and wanted == slug else {}
        options = row["profile"].options.values() if row["allowed"] else ()
        row["options"] = [_option_row(slug, option, filled) for option in options]
    template = _environment().get_template("form.html")
    return template.render(
        user=user,
        rows=rows,
        notice=notice,
        simulated=simulated,
        isolation_note=isolation_note,
        any_open=bool(open_to),
        budget=budget_in_words(budget) if budget else "",
        short_of_hours=budget is not None and budget.state is not BudgetState.OK,
        over=list(over),
        shared=shared,
    )


def _shared_reasons(
    profiles: Profiles, groups: Collection[str], admin: bool, availability: Mapping[str, Availability]
) -> list[str]:
    """The reasons that keep somebody from more than one profile: each is said once, above all of them."""
    count = Counter(
        seen.reason
        for profile in profiles.values()
        if may_use(profile, groups, admin)[0]
        and (seen := availability.get(profile.slug)) is not None
        and not seen.allowed
    )
    return [reason for reason, times in count.items() if times > 1 and reason]


def _reason(reason: str, why: int, shared: Collection[str]) -> str:
    """What stands at a profile: the reason, or which one of those above all profiles."""
    if not why:
        return reason
    return "the reason is above" if len(shared) == 1 else f"reason {why} above"


def _option_row(slug: str, option: Option, filled: Mapping[str, Any]) -> dict[str, Any]:
    """What the template needs of an option: field name, entries, and what is filled in."""
    typed = filled.get(option.name + TYPED)
    if not (option.unlisted and _is_short(typed)):
        typed = ""
    key = filled.get(option.name)
    if typed:
        key = UNLISTED_CHOICE
    elif not (isinstance(key, str) and key in option.choices):
        key = option.default or UNLISTED_CHOICE
    entries = [(choice.key, choice.display_name) for choice in option.choices.values()]
    if option.unlisted:
        entries.append((UNLISTED_CHOICE, option.unlisted.display_name_in_choices))
    return {
        "field": f"{PREFIX}{slug}--{option.name}",
        "typed_field": f"{PREFIX}{slug}--{option.name}{TYPED}",
        "option": option,
        "entries": entries,
        "key": key,
        "typed": typed,
        "longest": LONGEST_TEXT,
    }
