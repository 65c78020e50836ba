"""What a profile says about its container, and that a typed text never reaches what must not be typed."""

from __future__ import annotations

from typing import Any

import pytest

from jupyterhub_gpupool import containment, profiles
from jupyterhub_gpupool.profiles import ProfileError, keys


def one(**more: Any) -> profiles.Profile:
    return profiles.read([{"display_name": "P", "slug": "p"} | more])["p"]


def typed(**entry: Any) -> dict[str, Any]:
    return {"profile_options": {"o": {"unlisted_choice": {"enabled": True, **entry}}}}


def choose(offer: list[dict[str, Any]], **options: str) -> profiles.Choice:
    return profiles.resolve(profiles.read(offer), options or None, user="ada", groups=[])


# --- cpuset and unsafe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("0", "0"),
        ("0-7", "0-7"),
        ("0-7,16", "0-7,16"),
        ("16,0-7", "0-7,16"),
        ("1,2,3", "1-3"),
        ("0-3,2-5", "0-5"),
        ("4095", "4095"),
        ("007", "7"),
    ],
)
def test_cpus_are_read_into_one_form(said: str, read: str) -> None:
    assert one(cpuset=said).cpuset == read
    assert choose([{"display_name": "P", "cpuset": said}]).cpuset == read


@pytest.mark.parametrize(
    "said",
    [
        "",
        "a",
        "0-",
        "-1",
        "7-0",
        "0,,1",
        "0 1",
        "0-7 ",
        "0-1-2",
        "4096",
        "0-99999",
        "٣",
        "0\n",
        3,
        [0, 1],
        True,
        1.5,
    ],
)
def test_other_lists_of_cpus_are_refused(said: Any) -> None:
    with pytest.raises(ProfileError, match=r"Profile 'p': cpuset is .*; allowed is a list of CPUs"):
        one(cpuset=said)


def test_without_a_word_there_are_all_cpus_and_no_danger_is_accepted() -> None:
    choice = choose([{"display_name": "P"}])
    assert (choice.cpuset, choice.unsafe) == ("", ())
    assert (one().cpuset, one().unsafe) == ("", ())


def test_dangers_are_accepted_by_name() -> None:
    profile = one(unsafe=["devices", "cap-add", "devices"])
    assert profile.unsafe == ("devices", "cap-add")
    assert set(profile.unsafe) <= set(containment.DANGERS)


@pytest.mark.parametrize("said", ["privileged", {"privileged": True}, [["privileged"]], [None], True])
def test_dangers_come_as_a_list(said: Any) -> None:
    with pytest.raises(ProfileError, match=r"unsafe is .*; allowed is a list of names of dangers"):
        one(unsafe=said)


@pytest.mark.parametrize(
    ("name", "said"), [("privilegd", "did you mean 'privileged'"), ("all", "host-path"), ("*", "'*'")]
)
def test_an_unknown_danger_is_refused_with_the_list(name: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        one(unsafe=[name])
    assert said in str(caught.value) and "oom-exempt" in str(caught.value)


def test_a_choice_replaces_what_its_profile_accepts() -> None:
    offer = [
        {
            "display_name": "P",
            "unsafe": ["devices"],
            "cpuset": "0-3",
            "profile_options": {
                "o": {
                    "choices": {
                        "as-it-is": {},
                        "more": {"unsafe": ["cap-add"], "cpuset": "4"},
                        "none": {"unsafe": [], "cpuset": None},
                    }
                }
            },
        }
    ]
    assert [
        (found.unsafe, found.cpuset)
        for key in ("as-it-is", "more", "none")
        for found in [choose(offer, o=key)]
    ] == [
        (("devices",), "0-3"),
        (("cap-add",), "4"),
        ((), ""),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "name_template",
        "remove",
        "object_name",
        "client_kwargs",
        "tls_config",
        "allowed_images",
        "escape",
        "format_volume_name",
    ],
)
def test_what_belongs_to_the_pool_is_no_setting_of_a_profile(name: str) -> None:
    with pytest.raises(ProfileError, match="belongs to the pool"):
        one(spawner_override={name: "x"})


# --- the typed text -----------------------------------------------------------------------------------

VALUE = "{value}"


@pytest.mark.parametrize(
    "entry",
    [
        {"unsafe": VALUE},
        {"unsafe": [VALUE]},
        {"unsafe": f"x{VALUE}"},
        {"cpuset": VALUE},
        {"cpuset": f"0-{VALUE}"},
        {"spawner_override": VALUE},
        {"spawner_override": {"volumes": {"/srv": VALUE}}},
        {"spawner_override": {"volumes": {f"/srv/{VALUE}": "/x"}}},
        {"spawner_override": {"volumes": {"/srv": {"bind": VALUE, "mode": "ro"}}}},
        {"spawner_override": {"read_only_volumes": {"/srv": VALUE}}},
        {"spawner_override": {"mounts": [{"source": VALUE, "target": "/x"}]}},
        {"spawner_override": {"extra_host_config": {"pid_mode": VALUE}}},
        {"spawner_override": {"extra_host_config": {"binds": [f"/srv:{VALUE}"]}}},
        {"spawner_override": {"extra_host_config": {VALUE: True}}},
        {"spawner_override": {"extra_create_kwargs": {"user": VALUE}}},
        {"spawner_override": {"extra_create_kwargs": {"environment": {"A": VALUE}}}},
        {"spawner_override": {"cmd": ["sh", "-c", VALUE]}},
        {"spawner_override": {"args": [VALUE]}},
        {"spawner_override": {"network_name": VALUE}},
        {"spawner_override": {"links": {"a": VALUE}}},
        {"spawner_override": {"default_url": f"/lab/tree/{VALUE}"}},
        {"spawner_override": {"notebook_dir": VALUE}},
        {"spawner_override": {"env_keep": [VALUE]}},
        {"spawner_override": {VALUE: "x"}},
        {"spawner_override": {f"extra_{VALUE}": {}}},
        {"spawner_override": {"environment": {VALUE: "x"}}},
        {"spawner_override": {"environment": {f"TF_{VALUE}": "x"}}},
        {"spawner_override": {"environment": VALUE}},
        {"kubespawner_override": {"cmd": [VALUE]}},
        {"kubespawner_override": {"environment": {VALUE: "x"}}},
        {"kubespawner_override": {VALUE: "x"}},
        {"kubespawner_override": {"extra_resource_limits": {VALUE: 1}}},
        {"kubespawner_override": {"anything": {"else": [{VALUE: 1}]}}},
        {VALUE: "x"},
    ],
    ids=str,
)
def test_a_typed_text_cannot_reach_it(entry: dict[str, Any]) -> None:
    with pytest.raises(ProfileError) as caught:
        one(**typed(**entry))
    assert str(caught.value).startswith("Profile 'p': profile_options.o.unlisted_choice")
    assert VALUE in str(caught.value) or "allowed" in str(caught.value)


def test_a_typed_text_reaches_image_numbers_and_values_of_the_environment() -> None:
    offer = [
        {
            "display_name": "P",
            **typed(
                image=VALUE,
                kubespawner_override={"environment": {"A": f"<{VALUE}>", "B": "{{value}}"}},
                spawner_override={"environment": {"C": [VALUE]}},
            ),
        }
    ]
    choice = choose(offer, **{"o--unlisted-choice": "x:1"})
    assert choice.image == "x:1"
    assert choice.spawner_override == {"environment": {"A": "<x:1>", "B": "{value}", "C": ["x:1"]}}


def test_what_stands_beside_a_typed_text_may_be_anything() -> None:
    entry = {
        "image": VALUE,
        "unsafe": ["devices"],
        "cpuset": "0-3",
        "spawner_override": {
            "extra_host_config": {"devices": ["/dev/fuse"]},
            "volumes": {"a": "/{username}"},
        },
    }
    choice = choose([{"display_name": "P", **typed(**entry)}], **{"o--unlisted-choice": "x:1"})
    assert (choice.unsafe, choice.cpuset) == (("devices",), "0-3")
    assert choice.spawner_override["volumes"] == {"a": "/{username}"}


def test_only_these_settings_take_a_typed_text() -> None:
    assert {name for name, key in keys.SETTINGS.items() if not key.typed} == {
        "cpuset",
        "unsafe",
        "spawner_override",
    }
    assert keys.TYPED_SETTINGS == ("environment",)


# --- variants -----------------------------------------------------------------------------------------


def test_variants_are_the_defaults_and_each_other_choice_over_them() -> None:
    profile = one(
        spawner_override={"environment": {"A": "1"}},
        profile_options={
            "image": {"choices": {"one": {"image": "one:1"}, "two": {"image": "two:2", "default": True}}},
            "extra": {
                "choices": {"none": {}, "fuse": {"unsafe": ["devices"], "spawner_override": {"x": {"y": 1}}}},
                "unlisted_choice": {"enabled": True, "kubespawner_override": {"environment": {"B": VALUE}}},
            },
        },
    )
    found = {
        where: (layer.get("image"), layer.get("unsafe"), layer.get("spawner_override"))
        for where, layer in profiles.variants(profile)
    }
    plain = {"environment": {"A": "1"}}
    assert found == {
        "": ("two:2", None, plain),
        "option image, choice one": ("one:1", None, plain),
        "option extra, choice fuse": ("two:2", ("devices",), plain | {"x": {"y": 1}}),
        "option extra, a typed text": ("two:2", None, {"environment": {"A": "1", "B": VALUE}}),
    }


def test_a_profile_without_options_has_one_variant() -> None:
    assert [where for where, _ in profiles.variants(one(image="x:1"))] == [""]
