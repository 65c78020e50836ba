"""The profile list: read it, render the form, parse what comes back, resolve and authorise a choice.

Pure: no I/O but the form's template, no framework.  :func:`resolve` is the one door for everything that a
person may ask for, whichever way it comes in.
"""

from __future__ import annotations

from .choice import Choice, may_use, resolve
from .form import Availability, describe_wish, parse_form, parse_query, render_form
from .keys import reference
from .reading import Offered, Option, Profile, Profiles, Unlisted, read, slugify, variants, warnings
from .schema import ProfileError
from .settings import SPAWNER_NAMES, merge
from .standing import budget_in_words, over_in_words, over_limit, wait_in_words

__all__ = [
    "SPAWNER_NAMES",
    "Availability",
    "Choice",
    "Offered",
    "Option",
    "Profile",
    "ProfileError",
    "Profiles",
    "Unlisted",
    "budget_in_words",
    "describe_wish",
    "may_use",
    "merge",
    "over_in_words",
    "over_limit",
    "parse_form",
    "parse_query",
    "read",
    "reference",
    "render_form",
    "resolve",
    "slugify",
    "variants",
    "wait_in_words",
    "warnings",
]
