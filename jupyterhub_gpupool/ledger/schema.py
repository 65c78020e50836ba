"""The ledger's tables.  What may never happen is refused here, by keys, and not by care elsewhere.

* ``claims`` has the primary key (device, cell): no two open leases hold one cell, whatever the kinds.
* ``claims`` refers to (lease, held=1): a lease that is queued or closed holds nothing.
* ``leases`` refers to its latest event by (lease, step, state), ``events`` to its predecessor by (lease,
  step - 1, from) and to ``transitions`` by (from, to): no move that is not legal, none without a trace.
* ``leases`` has one open row for each owner and server, and one row for each session name.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 3

# What grows with every transaction.  SQLite's own integers are wide enough, and only these count up by themselves.
Wide = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()

pool = Table(
    "pool",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("version", Wide, nullable=False),
    Column("schema_version", Integer, nullable=False),
    Column("inventory", Integer, nullable=False),  # raised when a device changes; keys the process's cache
    Column("epoch", Wide, nullable=False),  # raised at each grant; part of the session's name
    Column("settled_at", Float),  # since when all running sessions have been looked at; NULL: grant nothing
    Column("leader", String(64), nullable=False),
    Column("leader_until", Float, nullable=False),
    Column("swept_at", Float),
    Column("sweep_seconds", Float),
    Column("mode", String(16), nullable=False),
    Column("limits_version", Integer, nullable=False, server_default="0"),  # raised at each edit of a limit
    Column("waits", Text, nullable=False, server_default="{}"),  # expected for a new request, by profile
    Column(
        "told_seq", Integer, nullable=False, server_default="0"
    ),  # the last event that notices were made of
)

cell_numbers = Table("cell_numbers", metadata, Column("n", Integer, primary_key=True))
"""0 … 119: lets a whole GPU be claimed by one INSERT … SELECT."""

transitions = Table(
    "transitions",
    metadata,
    Column("from_state", String(16), primary_key=True),
    Column("to_state", String(16), primary_key=True),
)

hubs = Table(
    "hubs",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("beat_at", Float, nullable=False),
    Column("host", String(255), nullable=False, server_default=""),
    Column("process", String(255), nullable=False, server_default=""),  # empty: nobody claims the pool
)
"""Hubs of this pool.  One at a time may serve it: who has a process here, and says again and again that it lives."""

owners = Table(
    "owners",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("hub_id", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("name", String(255), unique=True),  # NULL: the user is gone and somebody else has the name
    UniqueConstraint("hub_id", "created"),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("node", String(255), nullable=False),
    Column("idx", Integer, nullable=False),
    Column("model", String(255), nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("compute_capability", String(16), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("cells", Integer, nullable=False),
    Column("used", Integer, nullable=False, server_default="0"),  # = its rows in claims
    Column("health", String(16), nullable=False),
    Column("health_reason", Text, nullable=False),
    Column("drained", Integer, nullable=False, server_default="0"),
    Column("simulated", Integer, nullable=False),
    Column("instances", Text, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("utilization", Float),
    Column("memory_used_mib", Integer),
    Column("sampled_at", Float),
    Column("driver", Text, nullable=False, server_default=""),
    Column("suspect_until", Float),  # NULL: it is not; beside the health, which the inventory writes
    Column("suspect_reason", Text, nullable=False, server_default=""),
    Column("foreign", Text, nullable=False, server_default=""),
    Column("drain_at", Float),  # when the sessions on a drained device end at the earliest
    Column("drain_by", String(255), nullable=False, server_default=""),
    Column("drain_why", Text, nullable=False, server_default=""),
    Column("examined", Integer, nullable=False, server_default="0"),
    Column("unclean", Text, nullable=False, server_default=""),  # what a session has left; beside the health
    Column("numa", Integer),
    Column("cpus", Text, nullable=False, server_default=""),
    Column("links", Text, nullable=False, server_default="[]"),
    Column("power_watts", Float),
    Column("temperature_celsius", Float),
    Column("ecc_errors", Float),  # a count; no integer of a database is sure to hold what a driver may say
    Column(
        "trust", String(255), nullable=False, server_default=""
    ),  # who shares it through MPS; empty: nobody
    Column(
        "forgotten", Integer, nullable=False, server_default="0"
    ),  # 1: the row is there for its history alone
    CheckConstraint("used >= 0 AND used <= cells"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(32), ForeignKey("owners.id"), nullable=False),
    Column("user", String(255), nullable=False),
    Column("server", String(255), nullable=False),
    Column("profile", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("open_key", Integer),
    Column("version", Wide, nullable=False),
    Column("epoch", Wide, nullable=False),
    Column("session", String(255), unique=True),
    Column("hub", String(255), nullable=False),
    Column("left_at", Float),  # since when no hub process waits for it; NULL: one does
    Column("ticket", Wide, nullable=False),  # order of arrival
    Column("wish", Text, nullable=False),
    Column("terms", Text, nullable=False),
    Column("groups", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("group", String(255), nullable=False),
    Column("gpus", Float, nullable=False),
    Column("ends_at", Float),
    Column("url", Text, nullable=False),
    Column("runtime", Text, nullable=False),
    Column("requested_at", Float, nullable=False),
    Column("granted_at", Float),
    Column("active_at", Float),
    Column("closed_at", Float),
    Column("idle_seconds", Float, nullable=False),
    Column("grace_seconds", Float, nullable=False),
    Column("extended_seconds", Float, nullable=False),
    Column("warned_at", Float),
    Column("warned_for", String(16), nullable=False),
    Column("deadline_seconds", Float),
    Column("verdict", String(16)),
    Column("verdict_reason", Text, nullable=False),
    Column("verdict_at", Float),
    Column("utilization", Float),
    Column("memory_used_mib", Integer),
    Column("sampled_at", Float),
    Column("absent_since", Float),
    Column("doubt", Text, nullable=False),
    Column("doubt_since", Float),
    Column("reason", Text, nullable=False),
    Column("stopped_by", String(255), nullable=False),
    Column("image", Text, nullable=False, server_default=""),
    Column("checked", Text, nullable=False, server_default="{}"),
    Column("idle_total", Float, nullable=False, server_default="0"),
    Column("peak_utilization", Float),
    Column("peak_memory_mib", Integer),
    Column("note", Text, nullable=False, server_default=""),
    Column("wait_low", Float),  # as last worked out for a request in the queue; NULL: no ground
    Column("wait_high", Float),
    Column("warning", String(32), nullable=False, server_default=""),  # id of the last one
    Column("delivered_at", Float),
    Column("delivered_by", String(16), nullable=False, server_default=""),
    Column("counting", Integer, nullable=False, server_default="0"),  # whether its countdown runs
    Column("undelivered_seconds", Float, nullable=False, server_default="0"),
    Column("idle_samples", Integer, nullable=False, server_default="0"),  # looks that make up idle_seconds
    Column("low_samples", Integer, nullable=False, server_default="0"),  # looks in a row that saw little use
    Column("unseen_seconds", Float, nullable=False, server_default="0"),  # for which looks have seen nothing
    Column("signal", String(16), nullable=False, server_default=""),  # which one decided the verdict
    Column("gone_at", Float),  # when its session was proved gone; set where its slices are examined
    Column("trouble", Text, nullable=False, server_default=""),
    Column("rung", String(32), nullable=False, server_default=""),  # what holds it to its slice
    Column("over_seconds", Float),  # over its memory since its owner was warned of it; NULL: it is not
    UniqueConstraint("owner", "server", "open_key"),
    UniqueConstraint("id", "held"),
    CheckConstraint("(open_key IS NULL) = (state = 'closed')"),
    CheckConstraint("open_key IS NULL OR open_key = 1"),
    CheckConstraint("held = CASE WHEN state IN ('starting', 'active', 'stopping') THEN 1 ELSE 0 END"),
    # Deferred, because a lease and its first event name each other.
    ForeignKeyConstraint(
        ["id", "step", "state"],
        ["events.lease", "events.step", "events.to_state"],
        name="lease_follows_event",
        deferrable=True,
        initially="DEFERRED",
        use_alter=False,
    ),
    Index("leases_open", "state", "ticket"),
    Index("leases_held", "held", "owner", "group", "gpus"),
    Index("leases_closed", "closed_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", Wide, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("action", String(32), nullable=False),
    Column("lease", String(32), ForeignKey("leases.id")),
    Column("user", String(255)),
    Column("device", String(64)),
    Column("step", Integer),
    Column("prev_step", Integer),
    Column("from_state", String(16)),
    Column("to_state", String(16)),
    Column("reason", Text, nullable=False),
    UniqueConstraint("lease", "step"),
    UniqueConstraint("lease", "step", "to_state"),
    ForeignKeyConstraint(["from_state", "to_state"], ["transitions.from_state", "transitions.to_state"]),
    ForeignKeyConstraint(
        ["lease", "prev_step", "from_state"],
        ["events.lease", "events.step", "events.to_state"],
        name="event_follows_event",
    ),
    CheckConstraint("(step IS NULL) = (to_state IS NULL) AND (step IS NULL) = (from_state IS NULL)"),
    CheckConstraint("step IS NULL OR lease IS NOT NULL"),
    CheckConstraint("step IS NULL OR (step = 1) = (from_state = 'none')"),
    CheckConstraint("step IS NULL OR step = 1 OR (prev_step IS NOT NULL AND prev_step = step - 1)"),
    sqlite_autoincrement=True,
)

slices = Table(
    "slices",
    metadata,
    Column("lease", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("cells", Text, nullable=False),  # as ranges; the claims are the truth, a check compares them
    Column("size", Integer, nullable=False),
    Column("of", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("compute", Integer, nullable=False),
    Column("instance", String(64), nullable=False),
    UniqueConstraint("lease", "ordinal", "device"),
)

claims = Table(
    "claims",
    metadata,
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("cell", Integer, primary_key=True),
    Column("lease", String(32), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("held", Integer, CheckConstraint("held = 1"), nullable=False),
    ForeignKeyConstraint(["lease", "held"], ["leases.id", "leases.held"], name="claim_of_holder"),
    ForeignKeyConstraint(["lease", "ordinal", "device"], ["slices.lease", "slices.ordinal", "slices.device"]),
    Index("claims_lease", "lease"),
)

checks = Table(
    "checks",
    metadata,
    Column("image", Text, primary_key=True),
    Column("device", String(64), ForeignKey("devices.id"), primary_key=True),
    Column("driver", Text, primary_key=True),
    Column("passed", Integer, CheckConstraint("passed IN (0, 1)"), nullable=False),
    Column("at", Float, nullable=False),
    Column("report", Text, nullable=False),
)
"""The last launch check of each image on each device with each driver."""

logs = Table(
    "logs",
    metadata,
    Column("lease", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("text", Text, nullable=False),
    Column("at", Float, nullable=False),
)
"""The end of what a session wrote.  Not in ``leases``: every sweep reads all open rows of that."""

limits = Table(
    "limits",
    metadata,
    Column("scope", String(300), primary_key=True),
    Column("caps", Text, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("at", Float, nullable=False),
    Column("why", Text, nullable=False),
)
"""The admin's edits at run time: each stands in the place of what is configured for its scope."""

idle_days = Table(
    "idle_days",
    metadata,
    Column("lease", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("day", Integer, primary_key=True),  # days since 1970, UTC
    Column("seconds", Float, nullable=False),
    Index("idle_days_day", "day"),
)
"""How long each lease was seen idle on each day; for the books."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("event", String(16), nullable=False),
    Column("channel", String(16), nullable=False),
    Column("lease", String(32), ForeignKey("leases.id")),  # NULL: it is about no lease
    Column("warning", String(32), nullable=False),  # empty: it is not about a warning
    Column("owner", String(32), ForeignKey("owners.id")),  # NULL: it is for those who run the pool
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("tried_at", Float),
    Column("done_at", Float),
    Column("error", Text, nullable=False),
    Column("notice", Text, nullable=False),
    UniqueConstraint("lease", "warning", "event", "channel"),
    Index("deliveries_due", "state", "due_at"),
    Index("deliveries_owner", "owner", "channel", "tried_at"),
)
"""Who was told what by which channel, and what is still to be told."""

choices = Table(
    "choices",
    metadata,
    Column("owner", String(32), ForeignKey("owners.id"), primary_key=True),
    Column("unwanted", Text, nullable=False),  # the events that are not wanted, by channel
    Column("address", Text, nullable=False),
    Column("at", Float, nullable=False),
)
"""What people have chosen to be told."""

endings = Table(
    "endings",
    metadata,
    Column("lease", String(32), ForeignKey("leases.id"), primary_key=True),
    Column("saved", Text, nullable=False),
    Column("script", Text, nullable=False),
)
"""What was done for a session before its end.  Not in ``leases``: every sweep reads all open rows of that."""
