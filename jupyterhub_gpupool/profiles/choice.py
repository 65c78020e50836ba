"""The one door: whatever a form, the REST interface, a link or the hub's database says becomes a choice, or
is refused in one bounded sentence.  Nothing of the input is trusted, nothing of it is repeated at length.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Rejected
from ..model import Terms, Wish
from .reading import UNLISTED_CHOICE, Option, Profile, Profiles, Unlisted
from .schema import ProfileError, Where, is_plain, listed, shown
from .settings import build, fill, lay_over, read_layer

LONGEST_TEXT = 1000
"""Characters of a typed text; a regular expression never sees more."""

MOST_KEYS = 100

TYPED = f"--{UNLISTED_CHOICE}"
"""How the key of a typed text ends."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person chose, resolved and authorised.  ``profile`` is a slug, ``mem_limit`` in bytes."""

    profile: str
    display_name: str
    options: Mapping[str, str]
    """In canonical form: resolving it again gives the same choice."""
    wish: Wish
    terms: Terms
    image: str
    cpu_limit: float | None
    mem_limit: int | None
    cpuset: str
    """CPUs that the session sees, such as ``0-7,16``; empty: all."""
    tensorflow: Mapping[str, str]
    unsafe: tuple[str, ...]
    """Names of the dangers that the admin accepts for it."""
    spawner_override: Mapping[str, Any]


def may_use(profile: Profile, groups: Collection[str], admin: bool = False) -> tuple[bool, str]:
    """Whether somebody in these groups may use a profile, and if not, why."""
    if admin or not profile.allowed_groups or set(profile.allowed_groups) & set(groups):
        return True, ""
    many = "groups" if len(profile.allowed_groups) > 1 else "group"
    return False, f"for {many} {listed(profile.allowed_groups)}"


def resolve(
    profiles: Profiles, options: Any, *, user: str, groups: Collection[str], admin: bool = False
) -> Choice:
    """Resolve and authorise options of any origin: a form's, a REST body with or without ``user_options``.

    No options at all mean the default profile, or the first that this person may use.  Raises Rejected
    (400, or 403 for a profile of another group) and nothing else, whatever the options are.
    """
    given = _unwrap(options)
    profile = _profile(profiles, given.pop("profile", None), user, groups, admin)
    known = {name + end for name in profile.options for end in ("", TYPED)}
    for key in given:
        if key not in known:
            raise _refuse(
                f"Profile {shown(profile.slug)} has no option {shown(key)}; "
                f"allowed are {listed(profile.options)}.",
                "unknown-option",
            )
    layer = profile.layer
    canonical = {"profile": profile.slug}
    for name, option in profile.options.items():
        key, value, over = _option(profiles, profile, option, given.get(name), given.get(name + TYPED))
        canonical[key] = value
        layer = lay_over(layer, over)
    try:
        settings = build(layer, Where(shown(profile.slug)))
    except ProfileError as problem:
        raise _refuse(f"These options do not go together. {problem}", "bad-option") from problem
    return Choice(
        profile=profile.slug,
        display_name=profile.display_name,
        options=canonical,
        wish=settings.wish,
        terms=settings.terms,
        image=settings.image,
        cpu_limit=settings.cpu_limit,
        mem_limit=settings.mem_limit,
        cpuset=settings.cpuset,
        tensorflow=settings.tensorflow,
        unsafe=settings.unsafe,
        spawner_override=settings.spawner_override,
    )


def _refuse(message: str, reason: str, status: int = 400) -> Rejected:
    return Rejected(message, reason=reason, status=status)


def _unwrap(options: Any) -> dict[str, Any]:
    """The options as a dictionary of texts and Nones; the body that newer hubs unwrap is unwrapped."""
    if isinstance(options, Mapping) and "user_options" in options and len(options) == 1:
        options = options["user_options"]
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise _refuse(f"The options are {shown(options)}; allowed is an object with texts.", "bad-option")
    if len(options) > MOST_KEYS:
        raise _refuse(f"There are {len(options)} options; allowed are at most {MOST_KEYS}.", "bad-option")
    return {key: _text(key, value) for key, value in options.items()}


def _text(key: Any, value: Any) -> str | None:
    """One value: a bounded text without control characters; empty means not given, as in KubeSpawner."""
    if not isinstance(key, str):
        raise _refuse(f"The options have the key {shown(key)}; allowed are texts.", "bad-option")
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _refuse(f"Option {shown(key)} is {shown(value)}; allowed is a text.", "bad-option")
    if len(value) > LONGEST_TEXT:
        raise _refuse(
            f"Option {shown(key)} has {len(value)} characters; allowed are at most {LONGEST_TEXT}.",
            "bad-option",
        )
    if not is_plain(value):
        raise _refuse(
            f"Option {shown(key)} is {shown(value)}; allowed is a text without control characters.",
            "bad-option",
        )
    return value


def _profile(
    profiles: Profiles, slug: str | None, user: str, groups: Collection[str], admin: bool
) -> Profile:
    allowed = [profile for profile in profiles.values() if may_use(profile, groups, admin)[0]]
    if slug is None:
        if not allowed:
            raise _refuse(
                f"No profile is open to {shown(user)}; each is for members of certain groups.",
                "not-allowed",
                403,
            )
        return profiles.default if profiles.default in allowed else allowed[0]
    profile = profiles.get(slug)
    if profile is None:
        offered = listed(item.slug for item in allowed)
        raise _refuse(f"There is no profile {shown(slug)}; allowed are {offered}.", "unknown-profile")
    may, reason = may_use(profile, groups, admin)
    if not may:
        raise _refuse(
            f"Profile {shown(slug)} is {reason}, and {shown(user)} is not a member; "
            f"allowed are {listed(item.slug for item in allowed)}.",
            "not-allowed",
            403,
        )
    return profile


def _option(
    profiles: Profiles, profile: Profile, option: Option, key: str | None, typed: str | None
) -> tuple[str, str, Mapping[str, Any]]:
    """One option: its canonical key and value, and the settings to lay over.  A typed text wins."""
    title = f"Option {shown(option.name)} of profile {shown(profile.slug)}"
    offered = list(option.choices) + ([UNLISTED_CHOICE] if option.unlisted else [])
    if key is not None and key not in offered:
        raise _refuse(f"{title} is {shown(key)}; allowed are {listed(offered)}.", "bad-option")
    if typed is not None:
        if option.unlisted is None:
            raise _refuse(f"{title} takes no text of your own; allowed are {listed(offered)}.", "bad-option")
        return option.name + TYPED, typed, _typed(profiles, profile, option, option.unlisted, typed, title)
    if key == UNLISTED_CHOICE or not (key or option.default):
        wanted = option.unlisted.validation_message if option.unlisted else ""
        raise _refuse(
            f"{title} needs a text in {shown(option.name + TYPED)}; allowed is: {wanted or 'any text'}.",
            "bad-option",
        )
    chosen = option.choices[key or option.default]
    return option.name, chosen.key, chosen.layer


def _typed(
    profiles: Profiles, profile: Profile, option: Option, unlisted: Unlisted, typed: str, title: str
) -> Mapping[str, Any]:
    regex = unlisted.validation_regex
    if regex and not re.fullmatch(regex, typed):
        wanted = unlisted.validation_message or f"a text that matches {regex} as a whole"
        raise _refuse(f"{title} is {shown(typed)}; allowed is: {wanted}.", "bad-option")
    where = Where(shown(profile.slug)).at("profile_options").at(option.name)
    try:
        layer, _ = read_layer(fill(unlisted.entry, typed), replace(where, typed=True), profiles.names)
        build(lay_over(profile.layer, layer), where)
    except ProfileError as problem:
        raise _refuse(f"{title} cannot be {shown(typed)}. {problem}", "bad-option") from problem
    return layer
