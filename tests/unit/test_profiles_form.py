"""The form: what it shows, what comes back from it, and what a link may fill in."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_gpupool import fairness, profiles
from jupyterhub_gpupool.errors import Rejected
from jupyterhub_gpupool.fairness import Budget, Span
from jupyterhub_gpupool.model import Kind, Limit, Wish
from jupyterhub_gpupool.profiles import Availability

OFFER = profiles.read(
    [
        {
            "slug": "share",
            "display_name": "<i>Share</i>",
            "description": 'for "most" & more',
            "gpu": {"memory": "20G", "compute": 25},
            "max_age": 43200,
            "profile_options": {
                "image": {
                    "display_name": "Image",
                    "choices": {"one": {"display_name": "One"}, "two": {}},
                    "unlisted_choice": {
                        "enabled": True,
                        "display_name": "Your image",
                        "validation_regex": '[a-z"<>]+',
                        "validation_message": "small letters",
                    },
                }
            },
        },
        {"slug": "vision", "display_name": "Vision", "gpu": {"count": 2}, "allowed_groups": ["vision"]},
        {"slug": "cpu", "display_name": "CPU"},
    ]
)


class Form(HTMLParser):
    """What a browser without JavaScript would show and send."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, list[str]] = {}
        self.radios: dict[str, dict[str, Any]] = {}
        self.ids: list[str] = []
        self.about: list[str] = []
        self.labels: set[str] = set()
        self.controls: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self._select = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        have = dict(attrs)
        self.tags.append(tag)
        self.ids += [have["id"]] if have.get("id") else []
        self.about += (have.get("aria-describedby") or "").split()
        if tag == "label":
            self.labels.add(have["for"] or "")
        if tag in ("input", "select"):
            self.controls.append(have["id"] or "")
        if tag == "input" and have.get("type") == "radio":
            self.radios[have["value"] or ""] = have
            if "checked" in have and "disabled" not in have:
                self.fields.setdefault(have["name"] or "", []).append(have["value"] or "")
        elif tag == "input":
            self.fields.setdefault(have["name"] or "", []).append(have["value"] or "")
        elif tag == "select":
            self._select = have["name"] or ""
        elif tag == "option" and "selected" in have:
            self.fields.setdefault(self._select, []).append(have["value"] or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def render(**more: Any) -> Form:
    known: dict[str, Any] = {"user": "ada", "groups": [], "availability": {}, "selected": None} | more
    return Form(profiles.render_form(OFFER, **known))


def test_what_the_form_sends_untouched_is_the_default() -> None:
    form = render()
    assert form.fields == {
        "profile": ["share"],
        "profile-option-share--image": ["one"],
        "profile-option-share--image--unlisted-choice": [""],
    }
    choice = profiles.resolve(OFFER, profiles.parse_form(form.fields), user="ada", groups=[])
    assert choice == profiles.resolve(OFFER, None, user="ada", groups=[])


@pytest.mark.parametrize(
    "selected",
    [
        {"profile": "cpu"},
        {"profile": "share", "image": "two"},
        {"profile": "share", "image--unlisted-choice": 'a"<b>'},
    ],
)
def test_the_last_choice_is_filled_in_and_comes_back(selected: dict[str, str]) -> None:
    sent = profiles.parse_form(render(selected=selected).fields)
    assert profiles.resolve(OFFER, sent, user="ada", groups=[]).options == selected


@pytest.mark.parametrize(
    "selected",
    [
        {"profile": "gone"},
        {"profile": "vision"},
        {"profile": ["cpu"]},
        {"profile": "share", "image": "gone"},
        {"profile": "share", "image": 3, "image--unlisted-choice": "x" * 1001},
        {"profile": "share", "image--unlisted-choice": "a\0"},
        {"image": "two"},
        {},
        None,
    ],
)
def test_what_is_no_longer_offered_is_passed_over(selected: Any) -> None:
    assert render(selected=selected).fields == render().fields


def test_a_foreign_profile_is_shown_with_the_reason_and_cannot_be_picked() -> None:
    form = render(availability={"vision": Availability(allowed=True)})
    assert "disabled" in form.radios["vision"]
    assert "not for you: for group vision" in form.words
    assert "disabled" not in render(groups=["vision"]).radios["vision"]
    assert "disabled" not in render(admin=True).radios["vision"]


def test_what_can_never_be_had_is_closed_with_its_reason() -> None:
    form = render(availability={"share": Availability(allowed=False, reason="larger than your limit")})
    assert "disabled" in form.radios["share"]
    assert "not for you: larger than your limit" in form.words
    assert form.fields == {"profile": ["cpu"]}


def test_what_keeps_somebody_from_many_profiles_is_said_once() -> None:
    long = "you hold 2 of your 2 GPUs <b>, and nothing more starts"
    closed = Availability(allowed=False, reason=long)
    form = render(groups=["vision"], availability={"share": closed, "vision": closed})
    assert form.words.count(long) == 1
    assert f"<i>Share</i>, Vision: {long}" in form.words
    assert form.words.count("not for you: the reason is above") == 2
    for slug in ("share", "vision"):
        assert "gpupool-why-1" in form.radios[slug]["aria-describedby"].split(), (
            "a screen reader reads it there"
        )
    assert set(form.about) <= set(form.ids)
    assert "gpupool-why" not in form.radios["cpu"]["aria-describedby"]
    other = Availability(allowed=False, reason="another reason")
    slugs = {"share": closed, "vision": closed, "cpu": other}
    assert "not for you: another reason" in render(groups=["vision"], availability=slugs).words
    four = profiles.read([{"slug": slug, "display_name": slug} for slug in "abcd"])
    seen = {"a": closed, "b": other, "c": closed, "d": other}
    form = Form(profiles.render_form(four, user="ada", groups=[], availability=seen, selected=None))
    assert "Reason 1: a, c:" in form.words and "Reason 2: b, d:" in form.words
    assert form.words.count("not for you: reason 2 above") == 2
    assert "gpupool-why-2" in form.radios["d"]["aria-describedby"]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Availability(free=2), "2 free"),
        (Availability(free=2, place_wait=(0.0, 0.0)), "2 free"),
        (Availability(free=0, queued=3), "none free, 3 in the queue, wait unknown"),
        (
            Availability(free=0, queued=3, place_wait=(120, 600)),
            "none free, 3 in the queue, wait 2 min to 10 min",
        ),
        (Availability(free=None, queued=3), "not known yet"),
        (None, "not known yet"),
    ],
)
def test_what_is_free_is_said_in_words(seen: Availability | None, words: str) -> None:
    assert words in render(availability={"share": seen} if seen else {}).words


def test_where_something_is_free_no_wait_is_named() -> None:
    form = render(availability={"share": Availability(free=2, queued=1, place_wait=(120, 600))})
    assert "2 free, 1 in the queue" in form.words and "wait" not in form.words.partition("Vision")[0]


def test_the_budget_that_decides_is_said_and_when_a_start_works_again() -> None:
    limits = {"group:vision": Limit(gpu_hours=40, window=604800)}

    def shown(used: float | list[Span]) -> str:
        budget = fairness.budget("ada", ["vision"], {"group:vision": used}, limits, 1e9)
        return render(budget=budget).words

    assert "12.5 of 40 GPU-hours left (group vision, in any 7 days)." in shown(27.5)
    assert "Only 4 of 40 GPU-hours left (group vision" in shown(36)
    assert "a start works again in 5.3 days" in shown([Span(1e9 - 172800, 1e9, 1)])
    assert "GPU-hours" not in render(budget=Budget()).words


def test_limits_that_are_exceeded_are_said_of_those_who_are_concerned() -> None:
    over = {
        "group:vision": "over limit: holds 3 of its 2 GPUs",
        "user:bob": "over limit: holds 2 of its 1 session",
    }
    assert profiles.over_in_words(over, "ada", ["arts"]) == []
    (sentence,) = profiles.over_in_words(over, "ada", ["vision", "arts"])
    assert sentence.startswith("Over limit: group vision holds 3 of its 2 GPUs.")
    assert sentence in render(over=[sentence]).words


@pytest.mark.parametrize(
    ("wait", "words"),
    [(None, "unknown"), ((0, 4), "about 10 s"), ((55, 640), "60 s to 11 min"), ((3600, 8000), "60 min to 2 h"),
     ((90000, 500000), "25 h to 6 days"), ((650, 660), "about 11 min")],
)  # fmt: skip
def test_waits_are_no_more_exact_than_estimates_can_be(wait: tuple[float, float] | None, words: str) -> None:
    assert profiles.wait_in_words(wait) == words


def test_everything_is_said_that_was_asked_for() -> None:
    form = render(
        notice="The ledger does not answer.", simulated=True, isolation_note="It isolates <nobody>."
    )
    for words in (
        "The ledger does not answer.",
        "GPUs here are simulated",
        "It isolates <nobody>.",
        "share of a GPU: 20 GiB, 25 % of the compute",
        "ends after 12 h",
        "taken back after 30 min without use, with a warning 10 min before",
        "small letters",
    ):
        assert words in form.words
    assert "simulated" not in render().words
    given_up = "a fatal error of one ends the GPU programs of all others on it"
    assert given_up in render(mps=True).words and given_up not in render().words


def test_nobody_can_write_markup_into_the_page() -> None:
    page = profiles.render_form(
        OFFER,
        user="<script>u",
        groups=[],
        availability={"share": Availability(False, "<script>r"), "cpu": Availability(False, "<script>c")},
        selected={"profile": "share", "image--unlisted-choice": "<script>s"},
        notice="<script>n",
    )
    assert page.count("<script>") == 1  # the form's own
    assert "<i>Share" not in page and "&lt;i&gt;Share" in page
    assert "No profile is open to &lt;script&gt;u" in page


def test_every_control_has_a_label_and_every_reference_a_target() -> None:
    form = render(groups=["vision"])
    assert len(form.ids) == len(set(form.ids))
    assert set(form.about) <= set(form.ids) and form.about
    assert set(form.controls) <= form.labels
    assert form.tags.count("fieldset") == form.tags.count("legend") == 2


@pytest.mark.parametrize(
    "form",
    [
        {"profile": ["cpu", "share"]},
        {"profile": ["share"], "profile-option-share--image": ["one", "two"]},
        {"profile": ["cpu"], "gpu": ["8"]},
        {"profile": ["cpu"], "x" * 10_000: ["\n"]},
        {"profile_file": [{"filename": "x", "body": b""}]},
        {"profile": [{"filename": "x"}]},
        {"profile": []},
    ],
)
def test_fields_that_no_form_of_ours_has_are_refused(form: Any) -> None:
    with pytest.raises(Rejected) as caught:
        profiles.parse_form(form)
    assert caught.value.status == 400
    assert caught.value.message.isprintable() and len(caught.value.message) < 300


def test_a_form_with_no_profile_is_an_empty_choice() -> None:
    assert profiles.parse_form({"_xsrf": ["a", "b"], "profile-option-share--image": ["two"]}) == {}


@pytest.mark.parametrize(
    ("query", "filled"),
    [
        ({"profile": ["share"], "image": ["two"]}, {"profile": "share", "image": "two"}),
        (
            {"profile": ["share"], "profile-option-share--image": ["two"]},
            {"profile": "share", "image": "two"},
        ),
        ({"profile": ["share"], "profile-option-cpu--image": ["two"]}, {"profile": "share"}),
        ({"profile": ["share"], "image": ["x" * 1001], "y": ["\0"], "z": []}, {"profile": "share"}),
        ({"profile": "share"}, {}),
        ({}, {}),
    ],
)
def test_a_link_fills_the_form_in(query: Any, filled: dict[str, str]) -> None:
    assert profiles.parse_query(query) == filled


@given(st.dictionaries(st.text(), st.lists(st.text()) | st.none() | st.integers()))
def test_a_link_never_breaks_the_form(query: Any) -> None:
    filled = profiles.parse_query(query)
    assert render(selected=filled).fields["profile"] == ["cpu" if filled.get("profile") == "cpu" else "share"]


@given(st.dictionaries(st.text() | st.just("profile"), st.lists(st.text() | st.sampled_from(list(OFFER)))))
def test_any_form_is_a_choice_or_refused(form: Any) -> None:
    try:
        profiles.resolve(OFFER, profiles.parse_form(form), user="ada", groups=[])
    except Rejected as problem:
        assert problem.status in (400, 403)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(), "no GPU"),
        (Wish(Kind.GPU), "1 whole GPU"),
        (Wish(Kind.GPU, count=2, model="A100*"), "2 whole GPUs (A100*)"),
        (Wish(Kind.MIG, mig="1g.10gb"), "MIG instance 1g.10gb"),
        (Wish(Kind.SHARE, memory_mib=512), "share of a GPU: 512 MiB"),
        (
            Wish(Kind.SHARE, fraction="1/3", compute=20),
            "share of a GPU: 1/3 of the memory, 20 % of the compute",
        ),
        (Wish(Kind.SHARE, compute=20), "share of a GPU: 20 % of the compute"),
    ],
)
def test_wishes_in_words(wish: Wish, words: str) -> None:
    assert profiles.describe_wish(wish) == words
