"""The one door: what may be chosen, by whom, and that nothing else ever gets through."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jupyterhub_gpupool import profiles
from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.model import Kind, Wish
from jupyterhub_gpupool.profiles import Choice

OFFER = profiles.read(
    [
        {
            "slug": "quarter",
            "display_name": "Quarter",
            "gpu": {"memory": "20G", "compute": 25, "model": "A100*"},
            "idle": {"window": 60},
            "spawner_override": {"environment": {"A": "profile", "B": "profile", "C": {"deep": 1}}},
            "profile_options": {
                "size": {
                    "choices": {
                        "as-it-is": {},
                        "whole": {"gpu": {"count": 1}},
                        "half": {"gpu": {"memory": "40G"}},
                        "none": {"gpu": None},
                    }
                },
                "image": {
                    "choices": {
                        "one": {"image": "registry/one:1"},
                        "two": {
                            "default": True,
                            "kubespawner_override": {
                                "image": "registry/two:2",
                                "environment": {"A": None, "B": "two"},
                            },
                        },
                    },
                    "unlisted_choice": {
                        "enabled": True,
                        "validation_regex": "registry/[a-z]+(:[0-9]+)?",
                        "validation_message": "an image of our registry",
                        "kubespawner_override": {
                            "image": "{value}",
                            "environment": {"TYPED": "{{x}} {value} {y}"},
                        },
                    },
                },
            },
        },
        {
            "slug": "vision",
            "display_name": "Vision",
            "allowed_groups": ["vision", "staff"],
            "gpu": {"count": 2},
        },
        {
            "slug": "typed",
            "display_name": "Typed",
            "profile_options": {
                "cores": {
                    "unlisted_choice": {"enabled": True, "cpu_limit": "{value}"},
                },
            },
        },
        {"slug": "cpu", "display_name": "CPU"},
    ]
)


def choose(options: Any, groups: tuple[str, ...] = (), **more: Any) -> Choice:
    return profiles.resolve(OFFER, options, user="ada", groups=groups, **more)


def refused(options: Any, **more: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        choose(options, **more)
    return caught.value


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"profile": None},
        {"profile": ""},
        {"user_options": None},
        {"user_options": {}},
        {"profile": "quarter"},
        {"user_options": {"profile": "quarter"}},
        {"profile": "quarter", "image": "two"},
        {"image": "two", "image--unlisted-choice": ""},
        {"size": None},
    ],
)
def test_nothing_said_is_the_default(options: Any) -> None:
    choice = choose(options)
    assert choice.options == {"profile": "quarter", "size": "as-it-is", "image": "two"}
    assert choice.wish == Wish(Kind.SHARE, memory_mib=20480, compute=25, model="A100*")
    assert (choice.image, choice.terms.window) == ("registry/two:2", 60)


@pytest.mark.parametrize(
    ("size", "wish"),
    [
        ("as-it-is", Wish(Kind.SHARE, memory_mib=20480, compute=25, model="A100*")),
        ("whole", Wish(Kind.GPU, count=1, model="A100*")),
        ("half", Wish(Kind.SHARE, memory_mib=40960, compute=25, model="A100*")),
        ("none", Wish(Kind.CPU)),
    ],
)
def test_choices_lie_over_their_profile(size: str, wish: Wish) -> None:
    assert choose({"size": size}).wish == wish


def test_overrides_are_merged_deeply_and_none_goes_on_to_the_spawner() -> None:
    merged = choose({"image": "two"}).spawner_override
    assert merged == {"environment": {"A": None, "B": "two", "C": {"deep": 1}}}
    assert profiles.merge({"A": "hub", "Z": "hub"}, merged["environment"]) == {
        "B": "two",
        "C": {"deep": 1},
        "Z": "hub",
    }
    assert choose({"image": "one"}).spawner_override["environment"]["A"] == "profile"


def test_a_typed_text_is_put_in_and_wins_over_the_list() -> None:
    for options in (
        {"image--unlisted-choice": "registry/own:1"},
        {"image": "unlisted-choice", "image--unlisted-choice": "registry/own:1"},
        {"image": "one", "image--unlisted-choice": "registry/own:1"},
    ):
        choice = choose(options)
        assert choice.image == "registry/own:1"
        assert choice.spawner_override["environment"]["TYPED"] == "{x} registry/own:1 {y}"
        assert choice.options == {
            "profile": "quarter",
            "size": "as-it-is",
            "image--unlisted-choice": "registry/own:1",
        }


def test_one_persons_text_is_not_left_in_the_offer() -> None:
    choose({"image--unlisted-choice": "registry/first"})
    assert choose({"image--unlisted-choice": "registry/second"}).image == "registry/second"


@pytest.mark.parametrize(
    "typed",
    [
        "registry/own:1 --privileged",
        "registry/own\n",
        "x registry/own",
        "{value}",
        "registry/" + "a" * 1000,
        "registry/\0",
    ],
)
def test_a_typed_text_must_match_as_a_whole(typed: str) -> None:
    problem = refused({"image--unlisted-choice": typed})
    assert (problem.status, problem.reason) == (400, "bad-option")


def test_typed_numbers_are_numbers_and_nothing_else() -> None:
    assert choose({"profile": "typed", "cores--unlisted-choice": "2.5"}).cpu_limit == 2.5
    for typed in ("nan", "inf", "-1", "0", "1e3", "9" * 15, "0x10", "{value}"):
        problem = refused({"profile": "typed", "cores--unlisted-choice": typed})
        assert "cpu_limit" in problem.message and "4096" in problem.message


@pytest.mark.parametrize("options", [{"profile": "typed"}, {"profile": "typed", "cores": "unlisted-choice"}])
def test_an_option_without_choices_asks_for_its_text(options: Any) -> None:
    assert "cores--unlisted-choice" in refused(options).message


def test_rights_are_checked_for_every_origin() -> None:
    for options in ({"profile": "vision"}, {"user_options": {"profile": "vision"}}):
        problem = refused(options, groups=("students",))
        assert (problem.status, problem.reason) == (403, "not-allowed")
        assert "vision, staff" in problem.message
        assert choose(options, groups=("students", "staff")).wish.count == 2
        assert choose(options, admin=True).wish.count == 2


def test_who_may_not_use_the_default_gets_the_first_allowed_one() -> None:
    offer = profiles.read(
        [
            {"display_name": "A", "allowed_groups": ["x"], "default": True},
            {"display_name": "B", "allowed_groups": ["y"]},
            {"display_name": "C", "allowed_groups": ["y"]},
        ]
    )
    assert profiles.resolve(offer, None, user="u", groups=["y"]).profile == "b"
    assert profiles.resolve(offer, None, user="u", groups=["x", "y"]).profile == "a"
    with pytest.raises(Rejected) as caught:
        profiles.resolve(offer, None, user="u", groups=[])
    assert (caught.value.status, caught.value.reason) == (403, "not-allowed")


DEEP: Any = "end"
for _ in range(1000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("options", "reason", "said"),
    [
        ({"profile": "nope"}, "unknown-profile", "'nope'; allowed are quarter, typed, cpu"),
        (
            {"profile": "quarter", "size": "huge"},
            "bad-option",
            "'huge'; allowed are as-it-is, whole, half, none",
        ),
        ({"size": "unlisted-choice"}, "bad-option", "allowed are as-it-is"),
        ({"size--unlisted-choice": "x"}, "bad-option", "takes no text"),
        ({"image": "unlisted-choice"}, "bad-option", "an image of our registry"),
        ({"profile": "cpu", "size": "whole"}, "unknown-option", "'size'"),
        ({"gpu": {"count": 8}}, "bad-option", "a dictionary"),
        ({"gpu": "8"}, "unknown-option", "'gpu'; allowed are size, image"),
        ({"profile": 1}, "bad-option", "is 1"),
        ({"profile": -1.5}, "bad-option", "-1.5"),
        ({"profile": math.nan}, "bad-option", "nan"),
        ({"profile": 10**5000}, "bad-option", "a very large number"),
        ({"profile": True}, "bad-option", "true"),
        ({"profile": ["cpu"]}, "bad-option", "a list"),
        ({"profile": DEEP}, "bad-option", "a list"),
        ({"profile": "x" * 10_000_000}, "bad-option", "10000000 characters"),
        ({"x" * 10_000_000: "cpu"}, "unknown-option", "xxx…"),
        ({"profile": "a\x1b[31m\r\nb"}, "bad-option", "\\x1b[31m\\r\\nb"),
        ({"profile": "\ud800"}, "bad-option", "\\ud800"),
        ({"profile": "\u202egpu"}, "unknown-profile", "\\u202e"),
        ({"user_options": {"user_options": {"profile": "cpu"}}}, "bad-option", "a dictionary"),
        ({"user_options": {}, "profile": "cpu"}, "bad-option", "user_options"),
        ({"user_options": []}, "bad-option", "a list"),
        ({str(n): "x" for n in range(200)}, "bad-option", "200 options"),
        ({1: "x"}, "bad-option", "key 1"),
        ([], "bad-option", "a list"),
        ("cpu", "bad-option", "'cpu'"),
        (0, "bad-option", "are 0"),
        (math.nan, "bad-option", "nan"),
        (DEEP, "bad-option", "a list"),
    ],
)
def test_hostile_options(options: Any, reason: str, said: str) -> None:
    problem = refused(options)
    assert (problem.status, problem.reason) == (400, reason)
    assert said in problem.message
    assert len(problem.message) < 600
    assert problem.message.isprintable()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
WORDS = (
    st.sampled_from(
        ["profile", "user_options", "quarter", "vision", "typed", "cpu", "size", "image", "cores"]
    )
    | st.sampled_from(["one", "two", "whole", "half", "none", "unlisted-choice", "registry/own:3", "4", ""])
    | st.sampled_from(["image", "cores", "size"]).map("{}--unlisted-choice".format)
)
NEAR = st.dictionaries(WORDS, WORDS | st.text() | ANY_JSON)


def is_offered(choice: Choice, groups: list[str]) -> bool:
    """Whether it is a combination that the profile list has: looked up here without the door's code."""
    profile = OFFER[choice.profile]
    if profile.allowed_groups and not set(profile.allowed_groups) & set(groups):
        return False
    for name, option in profile.options.items():
        key, typed = choice.options.get(name), choice.options.get(f"{name}--unlisted-choice")
        if (key is None) == (typed is None) or (key is not None and key not in option.choices):
            return False
        if typed is not None and option.unlisted is None:
            return False
    return len(choice.options) == 1 + len(profile.options)


@settings(max_examples=400)
@given(
    options=ANY_JSON | NEAR | NEAR.map(lambda inner: {"user_options": inner}),
    groups=st.lists(st.sampled_from(["vision", "x"])),
)
@example(options={"profile": "vision"}, groups=["x"])
def test_whatever_comes_is_offered_or_refused(options: Any, groups: list[str]) -> None:
    try:
        choice = profiles.resolve(OFFER, options, user="ada", groups=groups)
    except Rejected as problem:
        assert problem.status in (400, 403)
        assert problem.message.isprintable() and len(problem.message) < 800
        return
    assert is_offered(choice, groups)
    again = profiles.resolve(OFFER, choice.options, user="ada", groups=groups)
    assert again == choice


@given(
    size=st.sampled_from(list(OFFER["quarter"].options["size"].choices)),
    image=st.sampled_from(["one", "two"])
    | st.from_regex(r"registry/[a-z]{1,9}(:[0-9]{1,3})?", fullmatch=True),
)
def test_a_form_and_rest_come_to_the_same(size: str, image: str) -> None:
    listed = image in ("one", "two")
    prefix = "profile-option-quarter--"
    form = {
        "profile": ["quarter"],
        prefix + "size": [size],
        prefix + "image": [image if listed else "unlisted-choice"],
        prefix + "image--unlisted-choice": ["" if listed else image],
        "profile-option-typed--cores": ["unlisted-choice"],
        "profile-option-typed--cores--unlisted-choice": [""],
        "_xsrf": ["token"],
    }
    rest = {"profile": "quarter", "size": size, ("image" if listed else "image--unlisted-choice"): image}
    by_rest = choose(rest)
    assert choose(profiles.parse_form(form)) == by_rest
    assert choose({"user_options": rest}) == by_rest
    assert by_rest.options == rest
