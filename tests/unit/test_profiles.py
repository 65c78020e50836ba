"""Reading the profile list: what is understood, and the sentence for everything else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jupyterhub_gpupool import profiles
from jupyterhub_gpupool.model import Kind, Terms, When, Wish
from jupyterhub_gpupool.profiles import ProfileError, keys


def one(**more: Any) -> profiles.Profile:
    offer = profiles.read([{"display_name": "P", "slug": "p"} | more])
    return offer["p"]


def option(**more: Any) -> dict[str, Any]:
    return {"profile_options": {"o": more}}


@pytest.mark.parametrize(
    ("gpu", "wish"),
    [
        (None, Wish(Kind.CPU)),
        ({"count": 1}, Wish(Kind.GPU, count=1)),
        ({"count": 2, "model": "A100*"}, Wish(Kind.GPU, count=2, model="A100*")),
        ({"mig": "1g.10gb"}, Wish(Kind.MIG, mig="1g.10gb")),
        ({"mig": "1g.10gb+me"}, Wish(Kind.MIG, mig="1g.10gb+me")),
        ({"memory": "20G"}, Wish(Kind.SHARE, memory_mib=20480)),
        ({"memory": "512M"}, Wish(Kind.SHARE, memory_mib=512)),
        ({"memory": "1.5G"}, Wish(Kind.SHARE, memory_mib=1536)),
        ({"memory": 1 << 30}, Wish(Kind.SHARE, memory_mib=1024)),
        ({"memory": "1/3", "compute": 25}, Wish(Kind.SHARE, fraction="1/3", compute=25)),
        ({"compute": 25}, Wish(Kind.SHARE, compute=25)),
        ({"count": None, "memory": "1/2"}, Wish(Kind.SHARE, fraction="1/2")),
    ],
)
def test_gpu_becomes_a_wish(gpu: Any, wish: Wish) -> None:
    assert one(gpu=gpu).wish == wish


def test_all_other_keys() -> None:
    profile = one(
        description="what\nit is",
        image="img@sha256:0",
        cpu_limit=8,
        mem_limit="32G",
        tensorflow={"xla": "off"},
        idle={"window": 60, "when": "wanted"},
        max_age=43200,
        allowed_groups=["vision"],
        spawner_override={"environment": {"A": "1", "B": None}},
    )
    assert (profile.image, profile.cpu_limit, profile.mem_limit) == ("img@sha256:0", 8.0, 32 << 30)
    assert profile.tensorflow == {"precision": "auto", "xla": "off", "memory": "limit"}
    assert profile.terms == Terms(window=60, when=When.WANTED, max_age=43200)
    assert profile.allowed_groups == ("vision",)
    assert profile.spawner_override == {"environment": {"A": "1", "B": None}}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"gpus": {}}, "'gpus'", "did you mean 'gpu'"),
    ({3: 1}, "3", "display_name"),
    ({"display_name": ""}, "display_name", "not empty"),
    ({"display_name": "a\x1b[1m"}, "display_name", "not empty"),
    ({"slug": "a--b"}, "slug", "single '-'"),
    ({"slug": "-a"}, "slug", "letter or digit"),
    ({"slug": "a" * 64}, "slug", "1 to 63"),
    ({"slug": 7}, "slug", "letters"),
    ({"default": "yes"}, "default", "True or False"),
    ({"gpu": {}}, "gpu", "one of count"),
    ({"gpu": {"model": "A*"}}, "gpu", "one of count"),
    ({"gpu": 1}, "gpu", "count, mig, memory, compute, model"),
    ({"gpu": {"count": 1, "mig": "1g.10gb"}}, "gpu", "one of count"),
    ({"gpu": {"count": 1, "memory": "1G"}}, "gpu", "one of count"),
    ({"gpu": {"mig": "1g.10gb", "compute": 5}}, "gpu", "one of count"),
    ({"gpu": {"count": 0}}, "gpu.count", "1 to 64"),
    ({"gpu": {"count": True}}, "gpu.count", "1 to 64"),
    ({"gpu": {"count": 1.5}}, "gpu.count", "1 to 64"),
    ({"gpu": {"count": "1"}}, "gpu.count", "1 to 64"),
    ({"gpu": {"memory": "20GB"}}, "gpu.memory", "K, M, G, T"),
    ({"gpu": {"memory": "20Gi"}}, "gpu.memory", "K, M, G, T"),
    ({"gpu": {"memory": "4/3"}}, "gpu.memory", "fraction"),
    ({"gpu": {"memory": "1/0"}}, "gpu.memory", "fraction"),
    ({"gpu": {"memory": "0/3"}}, "gpu.memory", "fraction"),
    ({"gpu": {"memory": "1K"}}, "gpu.memory", "size"),
    ({"gpu": {"memory": -1}}, "gpu.memory", "size"),
    ({"gpu": {"memory": 10**400}}, "gpu.memory", "size"),
    ({"gpu": {"memory": math.inf}}, "gpu.memory", "size"),
    ({"gpu": {"compute": 101}}, "gpu.compute", "1 to 100"),
    ({"gpu": {"mig": "large"}}, "gpu.mig", "1g.10gb"),
    ({"gpu": {"count": 1, "model": ""}}, "gpu.model", "A100*"),
    ({"gpu": {"count": 1, "models": "T4"}}, "'models'", "did you mean 'model'"),
    ({"image": ""}, "image", "image"),
    ({"cpu_limit": math.nan}, "cpu_limit", "4096"),
    ({"cpu_limit": -1}, "cpu_limit", "4096"),
    ({"cpu_limit": "2"}, "cpu_limit", "4096"),
    ({"mem_limit": "32"}, "mem_limit", "K, M, G, T"),
    ({"mem_limit": "999999999T"}, "mem_limit", "K, M, G, T"),
    ({"tensorflow": {"xla": True}}, "tensorflow.xla", '"off"'),
    ({"tensorflow": {"precision": "half"}}, "tensorflow.precision", "mixed_float16"),
    ({"idle": {"window": -1}}, "idle.window", "0 to a year"),
    ({"idle": {"window": 1e12}}, "idle.window", "0 to a year"),
    ({"idle": {"warn": 0}}, "idle.warn", "above 0"),
    ({"idle": {"when": "never"}}, "idle.when", "wanted"),
    ({"idle": {"thresholds": 5}}, "'thresholds'", "did you mean 'threshold'"),
    ({"max_age": "1 d"}, "max_age", "seconds"),
    ({"allowed_groups": []}, "allowed_groups", "one or more"),
    ({"allowed_groups": "vision"}, "allowed_groups", "list"),
    ({"spawner_override": {"mem_limit": "1G"}}, "mem_limit", "key of its own"),
    ({"spawner_override": {"apply_user_options": "x"}}, "apply_user_options", "belongs to the pool"),
    ({"spawner_override": {"default_url": print}}, "spawner_override.default_url", "plain values"),
    ({"spawner_override": {"args": {1: 2}}}, "spawner_override", "plain values"),
    ({"spawner_override": []}, "spawner_override", "dictionary"),
    ({"profile_options": []}, "profile_options", "dictionary"),
    ({"profile_options": {"profile": {}}}, "'profile'", "letters"),
    ({"profile_options": {"a--b": {}}}, "'a--b'", "single '-'"),
    (option(), "profile_options.o", "choices"),
    (option(unlisted_choice={"enabled": False}), "profile_options.o", "choices"),
    (option(choices={"x": {"colour": 1}}), "profile_options.o.choices.x", "display_name"),
    (option(choices={"x": {}, "unlisted-choice": {}}), "profile_options.o.choices", "printable"),
    (option(choices={"x": {}, "": {}}), "profile_options.o.choices", "printable"),
    (option(choices={"x": {"default": True}, "y": {"default": True}}), "profile_options.o", "one default"),
    (option(choices={"x": {"gpu": {"count": 99}}}), "profile_options.o.choices.x.gpu.count", "1 to 64"),
    (option(choices={"x": {}}, unlisted={}), "'unlisted'", "did you mean 'unlisted_choice'"),
    (option(unlisted_choice={"enabled": 1}), "unlisted_choice.enabled", "True or False"),
    (option(unlisted_choice={"validation_regex": "("}), "validation_regex", "regular expression"),
    (option(unlisted_choice={"cpu_limit": "lots"}), "unlisted_choice.cpu_limit", "4096"),
    ({"kubespawner_override": {"cpu_limit": print}}, "cpu_limit", "4096"),
    ({"kubespawner_override": {"default_url": print}}, "default_url", "plain values"),
    ({"kubespawner_override": {"extra_resource_limits": []}}, "extra_resource_limits", "dictionary"),
    (
        {"kubespawner_override": {"extra_resource_limits": {"nvidia.com/gpu": "all"}}},
        "nvidia.com/gpu",
        "whole number",
    ),
    (
        {"kubespawner_override": {"extra_resource_limits": {"nvidia.com/mig-1g.10gb": 2}}},
        "nvidia.com/mig-1g.10gb",
        "allowed is 1",
    ),
    (
        {
            "kubespawner_override": {
                "extra_resource_limits": {"nvidia.com/gpu": 2},
                "extra_resource_guarantees": {"nvidia.com/gpu": 1},
            }
        },
        "nvidia.com/gpu",
        "another",
    ),
]


@pytest.mark.parametrize(("more", "key", "allowed"), BAD)
def test_wrong_keys_are_named_with_what_is_allowed(more: dict[str, Any], key: str, allowed: str) -> None:
    with pytest.raises(ProfileError) as refused:
        one(**more) if all(isinstance(k, str) for k in more) else profiles.read(
            [{"display_name": "P"} | more]
        )
    sentence = str(refused.value)
    assert sentence.startswith("Profile ")
    assert key in sentence
    assert allowed in sentence
    assert "\n" not in sentence and sentence.endswith(".")


@pytest.mark.parametrize("wrong", [None, [], {}, "x", [1], [None], [[]], [{}], [{"slug": "x"}]])
def test_what_is_no_profile_list_is_refused(wrong: Any) -> None:
    with pytest.raises(ProfileError, match="rofile"):
        profiles.read(wrong)


def test_slugs_and_defaults_are_single() -> None:
    with pytest.raises(ProfileError, match="'p': slug is used twice"):
        profiles.read([{"display_name": "P"}, {"display_name": "Q", "slug": "p"}])
    with pytest.raises(ProfileError, match="'q': default is set in p, q"):
        profiles.read([{"display_name": "P", "default": True}, {"display_name": "Q", "default": True}])


def test_the_first_is_the_default_unless_one_is_marked() -> None:
    both = [{"display_name": "P"}, {"display_name": "Q"}]
    assert profiles.read(both).default.slug == "p"
    assert profiles.read([both[0], both[1] | {"default": True}]).default.slug == "q"
    assert list(profiles.read(both)) == ["p", "q"]


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Demo - profile_list entry 1", "demo-profile-list-entry-1"),
        ("A100 (80 GB)", "a100-80-gb"),
        ("Bob's &amp; Co", "bob-s-co"),
        ("Größe ½, 1,000", "grosse-1-2-1000"),
        ("GPU – klein", "gpu-klein"),
        ("日本", ""),
        ("!!", ""),
    ],
)
def test_slugs_are_made_as_kubespawner_makes_them(title: str, slug: str) -> None:
    assert profiles.slugify(title) == slug


def test_a_title_that_makes_no_slug_asks_for_one() -> None:
    with pytest.raises(ProfileError, match="lacks the key 'slug'"):
        profiles.read([{"display_name": "日本"}])
    assert profiles.read([{"display_name": "日本", "slug": "jp"}])["jp"].display_name == "日本"


@pytest.mark.parametrize(
    ("resources", "wish"),
    [
        ({"nvidia.com/gpu": "1"}, Wish(Kind.GPU, count=1)),
        ({"nvidia.com/gpu": 2}, Wish(Kind.GPU, count=2)),
        ({"nvidia.com/gpu": 0}, Wish(Kind.CPU)),
        ({"nvidia.com/mig-1g.10gb": "1"}, Wish(Kind.MIG, mig="1g.10gb")),
    ],
)
@pytest.mark.parametrize("name", ["extra_resource_limits", "extra_resource_guarantees"])
def test_resources_of_kubernetes_become_slices(name: str, resources: Any, wish: Wish) -> None:
    assert one(kubespawner_override={name: resources}).wish == wish


def test_kubespawner_names_are_taken_over_or_listed_in_one_warning() -> None:
    override = {
        "image": "i",
        "cpu_limit": 2,
        "mem_limit": "4G",
        "default_url": "/lab",
        "environment": {"A": "1"},
        "node_selector": {"x": "y"},
        "extra_resource_limits": {"nvidia.com/gpu": 1, "amd.com/gpu": 1},
        "options_form": "x",
    }
    offer = profiles.read(
        [
            {
                "display_name": "P",
                "kubespawner_override": override,
                "spawner_override": {"environment": {"B": "2"}},
            },
            {"display_name": "Q", "kubespawner_override": {"node_selector": {}}},
        ],
        names=profiles.SPAWNER_NAMES | {"options_form"},
    )
    profile = offer["p"]
    assert (profile.image, profile.cpu_limit, profile.mem_limit) == ("i", 2.0, 4 << 30)
    assert profile.spawner_override == {"default_url": "/lab", "environment": {"A": "1", "B": "2"}}
    (warning,) = profiles.warnings(offer)
    assert "'node_selector' (in p, q)" in warning
    assert "'extra_resource_limits.amd.com/gpu' (in p)" in warning
    assert "'options_form' (in p)" in warning
    assert profiles.warnings(profiles.read([{"display_name": "P"}])) == []


def test_own_keys_win_over_those_of_kubespawner() -> None:
    profile = one(
        gpu={"memory": "1/2"},
        image="own",
        kubespawner_override={"image": "kube", "extra_resource_limits": {"nvidia.com/gpu": 1}},
    )
    assert (profile.wish, profile.image) == (Wish(Kind.SHARE, fraction="1/2"), "own")


def test_kubespawners_own_example_is_read() -> None:
    example = {
        "display_name": "Demo - profile_list entry 1",
        "description": "Demo description",
        "slug": "demo-1",
        "default": True,
        "profile_options": {
            "image": {
                "display_name": "Image",
                "choices": {
                    "base": {
                        "display_name": "base",
                        "kubespawner_override": {"image": "jupyter/base:latest"},
                    },
                    "minimal": {
                        "display_name": "minimal",
                        "default": True,
                        "kubespawner_override": {"image": "jupyter/minimal:latest"},
                    },
                },
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Other image",
                    "display_name_in_choices": "Enter image manually",
                    "validation_regex": "^jupyter/.+:.+$",
                    "validation_message": "Must be an image matching ^jupyter/<name>:<tag>$",
                    "kubespawner_override": {"image": "{value}"},
                },
            },
        },
        "kubespawner_override": {"default_url": "/lab"},
    }
    profile = profiles.read([example])["demo-1"]
    assert profile.image == "jupyter/minimal:latest"  # the default choice's
    assert profile.spawner_override == {"default_url": "/lab"}
    assert list(profile.options["image"].choices) == ["base", "minimal"]


def test_the_table_of_keys_tells_the_defaults_of_the_terms() -> None:
    terms = Terms()
    for name, key in keys.IDLE.items():
        default = getattr(terms, name)
        assert key.default == (f'"{default}"' if isinstance(default, When) else f"{default:g}"), name


def test_the_reference_has_every_key() -> None:
    text = profiles.reference()
    for table in (
        keys.PROFILE,
        keys.GPU,
        keys.IDLE,
        keys.TENSORFLOW,
        keys.OPTION,
        keys.CHOICE,
        keys.UNLISTED,
    ):
        for name in table:
            assert f"| `{name}` |" in text
    assert all(line.count("|") == 5 for line in text.splitlines() if line.startswith("|"))


def test_reading_changes_nothing_of_what_it_is_given() -> None:
    given = [{"display_name": "P", "gpu": {"memory": "1/2"}, **option(choices={"x": {"gpu": {"count": 1}}})}]
    before = repr(given)
    profiles.read(given)
    assert repr(given) == before
