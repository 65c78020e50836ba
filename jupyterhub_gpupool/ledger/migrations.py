"""How a database of an older schema becomes one of the next.

The statements are written out and never change again: what :mod:`.schema` says today is not what it said
when a migration was made.  They hold for SQLite and PostgreSQL alike.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

Migration = Callable[[Connection], None]


def to_2(conn: Connection) -> None:
    """Add what containers, limits at run time and the books need."""
    for statement in (
        "ALTER TABLE devices ADD COLUMN driver TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE devices ADD COLUMN suspect_until FLOAT",
        "ALTER TABLE devices ADD COLUMN suspect_reason TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE devices ADD COLUMN \"foreign\" TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN image TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN checked TEXT DEFAULT '{}' NOT NULL",
        """CREATE TABLE checks (
            image TEXT NOT NULL,
            device VARCHAR(64) NOT NULL,
            driver TEXT NOT NULL,
            passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
            at FLOAT NOT NULL,
            report TEXT NOT NULL,
            PRIMARY KEY (image, device, driver),
            FOREIGN KEY(device) REFERENCES devices (id)
        )""",
        """CREATE TABLE logs (
            lease VARCHAR(32) NOT NULL,
            text TEXT NOT NULL,
            at FLOAT NOT NULL,
            PRIMARY KEY (lease),
            FOREIGN KEY(lease) REFERENCES leases (id)
        )""",
        "ALTER TABLE pool ADD COLUMN limits_version INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE pool ADD COLUMN waits TEXT DEFAULT '{}' NOT NULL",
        "ALTER TABLE devices ADD COLUMN drain_at FLOAT",
        "ALTER TABLE devices ADD COLUMN drain_by VARCHAR(255) DEFAULT '' NOT NULL",
        "ALTER TABLE devices ADD COLUMN drain_why TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN idle_total FLOAT DEFAULT '0' NOT NULL",
        "ALTER TABLE leases ADD COLUMN peak_utilization FLOAT",
        "ALTER TABLE leases ADD COLUMN peak_memory_mib INTEGER",
        "ALTER TABLE leases ADD COLUMN note TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN wait_low FLOAT",
        "ALTER TABLE leases ADD COLUMN wait_high FLOAT",
        """CREATE TABLE limits (
            scope VARCHAR(300) NOT NULL,
            caps TEXT NOT NULL,
            actor VARCHAR(255) NOT NULL,
            at FLOAT NOT NULL,
            why TEXT NOT NULL,
            PRIMARY KEY (scope)
        )""",
        """CREATE TABLE idle_days (
            lease VARCHAR(32) NOT NULL,
            day INTEGER NOT NULL,
            seconds FLOAT NOT NULL,
            PRIMARY KEY (lease, day),
            FOREIGN KEY(lease) REFERENCES leases (id)
        )""",
        "CREATE INDEX idle_days_day ON idle_days (day)",
    ):
        conn.exec_driver_sql(statement)


SIGNALS_AND_RUNGS = (
    "ALTER TABLE leases ADD COLUMN idle_samples INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE leases ADD COLUMN low_samples INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE leases ADD COLUMN unseen_seconds FLOAT DEFAULT '0' NOT NULL",
    "ALTER TABLE leases ADD COLUMN signal VARCHAR(16) DEFAULT '' NOT NULL",
    "ALTER TABLE devices ADD COLUMN examined INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE devices ADD COLUMN unclean TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE leases ADD COLUMN gone_at FLOAT",
    "ALTER TABLE leases ADD COLUMN trouble TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE leases ADD COLUMN rung VARCHAR(32) DEFAULT '' NOT NULL",
    "ALTER TABLE leases ADD COLUMN over_seconds FLOAT",
)
WHERE_AND_HOW_WARM = tuple(
    f"ALTER TABLE devices ADD COLUMN {column}"
    for column in (
        "numa INTEGER",
        "cpus TEXT DEFAULT '' NOT NULL",
        "links TEXT DEFAULT '[]' NOT NULL",
        "power_watts FLOAT",
        "temperature_celsius FLOAT",
        "ecc_errors FLOAT",
        "trust VARCHAR(255) DEFAULT '' NOT NULL",
    )
)


def to_3(conn: Connection) -> None:
    """Add which process of which machine a hub is, and what the delivery of warnings needs.

    What has happened before is not told any more.
    """
    for name in ("host", "process"):
        conn.exec_driver_sql(f"ALTER TABLE hubs ADD COLUMN {name} VARCHAR(255) DEFAULT '' NOT NULL")
    for statement in (
        "ALTER TABLE pool ADD COLUMN told_seq INTEGER DEFAULT '0' NOT NULL",
        "UPDATE pool SET told_seq = (SELECT COALESCE(MAX(seq), 0) FROM events)",
        "ALTER TABLE leases ADD COLUMN warning VARCHAR(32) DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN delivered_at FLOAT",
        "ALTER TABLE leases ADD COLUMN delivered_by VARCHAR(16) DEFAULT '' NOT NULL",
        "ALTER TABLE leases ADD COLUMN counting INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE leases ADD COLUMN undelivered_seconds FLOAT DEFAULT '0' NOT NULL",
        """CREATE TABLE deliveries (
            id VARCHAR(32) NOT NULL,
            event VARCHAR(16) NOT NULL,
            channel VARCHAR(16) NOT NULL,
            lease VARCHAR(32),
            warning VARCHAR(32) NOT NULL,
            owner VARCHAR(32),
            state VARCHAR(16) NOT NULL,
            tries INTEGER NOT NULL,
            at FLOAT NOT NULL,
            due_at FLOAT NOT NULL,
            tried_at FLOAT,
            done_at FLOAT,
            error TEXT NOT NULL,
            notice TEXT NOT NULL,
            PRIMARY KEY (id),
            UNIQUE (lease, warning, event, channel),
            FOREIGN KEY(lease) REFERENCES leases (id),
            FOREIGN KEY(owner) REFERENCES owners (id)
        )""",
        "CREATE INDEX deliveries_due ON deliveries (state, due_at)",
        "CREATE INDEX deliveries_owner ON deliveries (owner, channel, tried_at)",
        """CREATE TABLE choices (
            owner VARCHAR(32) NOT NULL,
            unwanted TEXT NOT NULL,
            address TEXT NOT NULL,
            at FLOAT NOT NULL,
            PRIMARY KEY (owner),
            FOREIGN KEY(owner) REFERENCES owners (id)
        )""",
        """CREATE TABLE endings (
            lease VARCHAR(32) NOT NULL,
            saved TEXT NOT NULL,
            script TEXT NOT NULL,
            PRIMARY KEY (lease),
            FOREIGN KEY(lease) REFERENCES leases (id)
        )""",
        # A warning that was given before knows nothing of a delivery: it is given again, in full.
        "UPDATE leases SET deadline_seconds = NULL, warned_at = NULL, warned_for = '' WHERE state = 'active'",
        *SIGNALS_AND_RUNGS,
        *WHERE_AND_HOW_WARM,
        "ALTER TABLE devices ADD COLUMN forgotten INTEGER DEFAULT '0' NOT NULL",
    ):
        conn.exec_driver_sql(statement)


MIGRATIONS: tuple[Migration, ...] = (to_2, to_3)
"""The n-th takes a database from schema version n to n + 1."""
