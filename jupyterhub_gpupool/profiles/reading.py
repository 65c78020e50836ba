"""The profile list as frozen types: every key checked at load, nothing left to fail when somebody clicks."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..model import Terms, Wish
from .keys import CHOICE, OPTION, PROFILE, SETTINGS, UNLISTED, refuse_typed_names
from .schema import (
    ProfileError,
    Where,
    is_name,
    is_plain,
    listed,
    read_section,
    shown,
)
from .settings import SPAWNER_NAMES, build, lay_over, read_layer

UNLISTED_CHOICE = "unlisted-choice"
"""The value of a list, and the end of a field's name, that stand for a typed text."""

RESERVED = frozenset({"profile", "user_options"})
"""Names that an option cannot have: the options of a choice have these keys already."""

LAYER_KEYS = frozenset({"kubespawner_override", *SETTINGS})
"""Keys that make up a layer of settings."""

LONGEST_KEY = 100


@dataclass(frozen=True, slots=True)
class Offered:
    """One choice of an option, with the settings that it lays over its profile's."""

    key: str
    display_name: str
    layer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unlisted:
    """The field for a typed text; its settings are read once the text is in them."""

    display_name: str
    display_name_in_choices: str
    validation_regex: str
    validation_message: str
    entry: Mapping[str, Any]
    layer: Mapping[str, Any] = field(repr=False)
    """The settings with ``{value}`` still in them."""


@dataclass(frozen=True, slots=True)
class Option:
    """What else may be chosen within a profile."""

    name: str
    display_name: str
    choices: Mapping[str, Offered]
    default: str
    """The choice that is taken when none is named; empty where only a typed text will do."""
    unlisted: Unlisted | None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user may choose.  Slice, terms and limits are those of its default choices."""

    slug: str
    display_name: str
    description: str
    default: bool
    wish: Wish
    terms: Terms
    image: str
    cpu_limit: float | None
    mem_limit: int | None
    cpuset: str
    tensorflow: Mapping[str, str]
    unsafe: tuple[str, ...]
    """Names of the dangers that the admin accepts with the default choices."""
    allowed_groups: tuple[str, ...]
    """Empty: everybody."""
    options: Mapping[str, Option]
    spawner_override: Mapping[str, Any]
    layer: Mapping[str, Any] = field(repr=False)
    """The profile's own settings, without those of any choice."""


@dataclass(frozen=True, slots=True, eq=False)
class Profiles(Mapping[str, Profile]):
    """The profile list by slug, in its order."""

    by_slug: Mapping[str, Profile]
    names: Collection[str]
    """The settings of KubeSpawner that the backend has."""
    missing: Mapping[str, tuple[str, ...]]
    """Names of ``kubespawner_override`` that were left out, with the slugs of their profiles."""

    def __getitem__(self, slug: str) -> Profile:
        return self.by_slug[slug]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_slug)

    def __len__(self) -> int:
        return len(self.by_slug)

    @property
    def default(self) -> Profile:
        return next(profile for profile in self.by_slug.values() if profile.default)


def read(profiles: Any, *, names: Collection[str] = SPAWNER_NAMES) -> Profiles:
    """Read a profile list.  ``names``: settings of KubeSpawner that the backend has too.

    Raises ProfileError, one sentence that names profile and key and lists what is allowed.
    """
    if not isinstance(profiles, list | tuple) or not profiles:
        raise ProfileError(
            f"The profile list is {shown(profiles)}; allowed is a list with one profile or more."
        )
    found: dict[str, Profile] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for number, entry in enumerate(profiles, 1):
        profile, left_out = _read_profile(entry, number, names)
        if profile.slug in found:
            raise ProfileError(
                f"Profile {shown(profile.slug)}: slug is used twice (also by number {number}); "
                "allowed is a slug of its own for each profile."
            )
        found[profile.slug] = profile
        for name in left_out:
            missing[name] = (*(slug for slug in missing.get(name, ()) if slug != profile.slug), profile.slug)
    marked = [slug for slug, profile in found.items() if profile.default]
    if len(marked) > 1:
        raise ProfileError(
            f"Profile {shown(marked[1])}: default is set in {listed(marked)}; allowed is one default."
        )
    if not marked:
        first = next(iter(found))
        found[first] = replace(found[first], default=True)
    return Profiles(by_slug=found, names=names, missing=missing)


def variants(profile: Profile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the merged settings of the default choices, and of each other choice in turn over them.

    Each with words for a message ("option image, choice big"; empty for the defaults).  Where a person types
    a text, ``{value}`` stands for it.  Combinations of several choices are not tried.
    """

    def over(name: str, layer: Mapping[str, Any]) -> Mapping[str, Any]:
        found = profile.layer
        for other, option in profile.options.items():
            if other == name:
                found = lay_over(found, layer)
            elif option.default:
                found = lay_over(found, option.choices[option.default].layer)
        return found

    yield "", over("", {})
    for name, option in profile.options.items():
        for key, choice in option.choices.items():
            if key != option.default:
                yield f"option {name}, choice {key}", over(name, choice.layer)
        if option.unlisted:
            yield f"option {name}, a typed text", over(name, option.unlisted.layer)


def warnings(profiles: Profiles) -> list[str]:
    """One warning that lists what ``kubespawner_override`` names and this backend lacks; or none."""
    if not profiles.missing:
        return []
    names = "; ".join(f"{shown(name)} (in {listed(slugs)})" for name, slugs in profiles.missing.items())
    return [f"kubespawner_override has names that this backend lacks, they are left out: {names}."]


def slugify(title: str) -> str:
    """Make a slug as KubeSpawner does; empty where only its transliteration of foreign letters could."""
    plain = unicodedata.normalize("NFKD", html.unescape(title)).replace("⁄", "/").casefold()
    bare = re.sub(r"(?<=[0-9]),(?=[0-9])", "", "".join(c for c in plain if not unicodedata.combining(c)))
    if any(char.isalnum() and not char.isascii() for char in bare):
        return ""
    return re.sub(r"[^a-z0-9]+", "-", bare).strip("-")


def _read_profile(entry: Any, number: int, names: Collection[str]) -> tuple[Profile, list[str]]:
    label = f"number {number}"
    if isinstance(entry, Mapping):
        titles = (entry.get("slug"), entry.get("display_name"))
        label = next((shown(title) for title in titles if isinstance(title, str) and title), label)
    where = Where(label)
    keys = read_section(entry, where, PROFILE)
    slug = keys.get("slug") or slugify(keys["display_name"])
    if not is_name(slug):
        raise where.error("lacks the key 'slug', and none can be made of its display_name; write one")
    layer, left_out = read_layer(entry, where, names)
    options: dict[str, Option] = {}
    missing = list(left_out)
    for name, section in (keys.get("profile_options") or {}).items():
        options[name] = _read_option(name, section, where.at("profile_options"), names, missing)
    usual = _check_choices(layer, options, where)
    settings = build(usual, where)
    return (
        Profile(
            slug=slug,
            display_name=keys["display_name"],
            description=keys.get("description") or "",
            default=bool(keys.get("default")),
            wish=settings.wish,
            terms=settings.terms,
            image=settings.image,
            cpu_limit=settings.cpu_limit,
            mem_limit=settings.mem_limit,
            cpuset=settings.cpuset,
            tensorflow=settings.tensorflow,
            unsafe=settings.unsafe,
            allowed_groups=keys.get("allowed_groups") or (),
            options=options,
            spawner_override=settings.spawner_override,
            layer=layer,
        ),
        missing,
    )


def _check_choices(
    layer: Mapping[str, Any], options: Mapping[str, Option], where: Where
) -> Mapping[str, Any]:
    """Return the settings with all defaults, after each choice was tried in turn over them."""

    def with_choices(chosen: Mapping[str, str]) -> Mapping[str, Any]:
        found = layer
        for name, option in options.items():
            if key := chosen.get(name, option.default):
                found = lay_over(found, option.choices[key].layer)
        return found

    for name, option in options.items():
        for key in option.choices:
            build(with_choices({name: key}), where.at("profile_options").at(name).at("choices").at(key))
    return with_choices({})


def _read_option(name: str, section: Any, outer: Where, names: Collection[str], missing: list[str]) -> Option:
    where = outer.at(name)
    if not is_name(name) or name in RESERVED:
        raise outer.error(
            f"has an option {shown(name)}; allowed are 1 to 63 letters, digits, '.', '_' and single '-', "
            f"and not {listed(sorted(RESERVED))}"
        )
    keys = read_section(section, where, OPTION)
    choices: dict[str, Offered] = {}
    marked: list[str] = []
    for key, entry in (keys.get("choices") or {}).items():
        if not key.strip() or len(key) > LONGEST_KEY or not is_plain(key) or key == UNLISTED_CHOICE:
            raise where.at("choices").error(
                f"has a choice {shown(key)}; allowed is a name of 1 to {LONGEST_KEY} printable characters "
                f"other than {UNLISTED_CHOICE}"
            )
        inside = where.at("choices").at(key)
        said = read_section(entry, inside, CHOICE)
        layer, left_out = read_layer(entry, inside, names)
        missing += left_out
        choices[key] = Offered(key, said.get("display_name") or key, layer)
        marked += [key] if said.get("default") else []
    if len(marked) > 1:
        raise where.error(f"has the defaults {listed(marked)}; allowed is one default")
    title = keys.get("display_name") or name
    unlisted = _read_unlisted(keys.get("unlisted_choice"), title, where.at("unlisted_choice"), names, missing)
    if not choices and unlisted is None:
        raise where.error("offers nothing; allowed are choices, an enabled unlisted_choice, or both")
    return Option(name, title, choices, (marked or list(choices) or [""])[0], unlisted)


def _read_unlisted(
    section: Any, title: str, where: Where, names: Collection[str], missing: list[str]
) -> Unlisted | None:
    if section is None:
        return None
    inside = replace(where, placeholders=True)
    refuse_typed_names(section, where)
    read_section(section, inside, UNLISTED)
    entry = {name: value for name, value in section.items() if name in LAYER_KEYS}
    keys = read_section({n: v for n, v in section.items() if n not in LAYER_KEYS}, where, UNLISTED)
    layer, left_out = read_layer(entry, inside, names)
    missing += left_out
    if not keys.get("enabled"):
        return None
    return Unlisted(
        display_name=keys.get("display_name") or title,
        display_name_in_choices=keys.get("display_name_in_choices") or "Other...",
        validation_regex=keys.get("validation_regex") or "",
        validation_message=keys.get("validation_message") or "",
        entry=entry,
        layer=layer,
    )
