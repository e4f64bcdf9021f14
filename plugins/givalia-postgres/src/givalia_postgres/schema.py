"""The tables, in their own schema `givalia`, and the statements that create and upgrade them.

`facts` says which format the tables have. The first server creates them; `givalia store upgrade` brings them to a later format
(see `upgrading`). A server whose user may only use the tables starts once their owner has run that command.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 3
LOCK: Final = 0x47495641  # "GIVA": the advisory lock for creating the tables.

# A row moves with each step of its job; room in the pages and a frequent vacuum keep rows from spreading.
_BUSY: Final = "autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0"
_STORAGE: Final = f"fillfactor = 80, autovacuum_vacuum_insert_scale_factor = 0.2, {_BUSY}"

_FIRST: Final = f"""
CREATE SCHEMA IF NOT EXISTS givalia;
CREATE TABLE givalia.facts (name text PRIMARY KEY, value text NOT NULL);
CREATE SEQUENCE givalia.tick;
CREATE TABLE givalia.jobs (
    seq bigint PRIMARY KEY,
    id uuid NOT NULL,
    key text COLLATE "C",
    state smallint NOT NULL,
    module text COLLATE "C" NOT NULL,
    target_worker text COLLATE "C" NOT NULL,
    rank smallint NOT NULL,
    on_wall boolean NOT NULL,
    due_at_us bigint NOT NULL,
    expires_at_us bigint,
    ended_at_us bigint NOT NULL,
    forget_at_us bigint,
    version bigint NOT NULL,
    body bytea NOT NULL,
    params bytea NOT NULL,
    result bytea,
    keeper bigint NOT NULL,
    stop_asked boolean NOT NULL
) WITH ({_STORAGE});
CREATE UNIQUE INDEX jobs_id ON givalia.jobs (id);
CREATE UNIQUE INDEX jobs_live_key ON givalia.jobs (key) WHERE key IS NOT NULL AND ended_at_us = 0;
CREATE INDEX jobs_past_key ON givalia.jobs (key, ended_at_us, seq) WHERE key IS NOT NULL AND ended_at_us > 0;
CREATE INDEX jobs_due ON givalia.jobs (on_wall, module, target_worker, rank, due_at_us, seq) WHERE state = 0;
CREATE INDEX jobs_expiry ON givalia.jobs (on_wall, expires_at_us) WHERE state = 0 AND expires_at_us IS NOT NULL;
CREATE INDEX jobs_running ON givalia.jobs (keeper, seq) WHERE state = 1;
CREATE INDEX jobs_ended ON givalia.jobs ((state = 3), forget_at_us, seq) WHERE forget_at_us IS NOT NULL;
CREATE TABLE givalia.requests (request uuid PRIMARY KEY, seq bigint NOT NULL) WITH ({_BUSY});
CREATE INDEX requests_seq ON givalia.requests (seq);
CREATE TABLE givalia.counts (module text COLLATE "C" NOT NULL, state smallint NOT NULL, jobs bigint NOT NULL)
    WITH ({_BUSY});
CREATE TABLE givalia.servers (
    epoch bigint PRIMARY KEY, alive_until_us bigint NOT NULL, lease_us bigint NOT NULL, about bytea NOT NULL,
    terms bytea NOT NULL
);
CREATE TABLE givalia.events (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, hook text NOT NULL, running boolean, seq bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
"""

# Records end with a checksum. The column has a new name, so that the statements of the version before fail: no such program,
# not even an application that enqueues in its own transactions, writes a row without a checksum.
_SECOND: Final = (
    "ALTER TABLE givalia.jobs RENAME COLUMN body TO record",
    "CREATE TABLE givalia.quarantine (LIKE givalia.jobs, why text NOT NULL, at timestamptz NOT NULL DEFAULT now())",
    # A role that may delete jobs may set them aside.
    """DO $$ DECLARE who oid; BEGIN
        FOR who IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.oid = 'givalia.jobs'::regclass AND a.privilege_type = 'DELETE'
        LOOP
            EXECUTE 'GRANT SELECT, INSERT ON givalia.quarantine TO '
                || CASE who WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(who)) END;
        END LOOP;
    END $$""",
    # A request that changed a job has that job's seq; one that changed nothing has its answer, for a while, and no seq.
    """ALTER TABLE givalia.requests ADD COLUMN answer bytea, ADD COLUMN until_us bigint,
        ADD CONSTRAINT requests_decided_once CHECK (answer IS NULL OR seq = 0)""",
    "CREATE INDEX requests_until ON givalia.requests (until_us) WHERE until_us IS NOT NULL",
)

# Records have a field for the start of the last attempt, which earlier versions do not know.
_THIRD: Final = ("CREATE INDEX jobs_newest ON givalia.jobs (state, (-ended_at_us), seq) WHERE ended_at_us > 0",)

STEPS: Final = (tuple(words for words in _FIRST.split(";") if words.strip()), _SECOND, _THIRD)
"""The statements that bring the tables from each format to the next; the first step goes from nothing to format 1."""
