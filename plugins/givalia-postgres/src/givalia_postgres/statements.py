"""Every statement of the store; each is made for one index of `schema`, and its text is the same for any number of jobs."""

from __future__ import annotations

from typing import Final

from givalia_core.model import REMEMBERED_AT_LEAST_US
from givalia_core.store.shared import ALIVE_US

from givalia_postgres.connection import SESSION
from givalia_postgres.rows import COLUMNS

_SELECT: Final = f"SELECT {COLUMNS} FROM givalia.jobs"
_J_COLUMNS: Final = ", ".join(f"j.{name.strip()}" for name in COLUMNS.split(","))
# The two clocks of dues; a server gives both the same time, but a store keeps them apart.
_CLOCKS: Final = (
    "(VALUES (false, $1::bigint, 0::bigint), (true, $2::bigint, $1::bigint - $2::bigint)) AS c(on_wall, now_us, shift_us)"
)
_RANKS: Final = "generate_series(-9, 9) AS r(rank)"

BEGIN: Final = "BEGIN"
COMMIT: Final = "COMMIT"
# For statements that may take long. A commit does not need this: no statement timeout ends a wait for a standby.
PATIENT: Final = "SELECT set_config('statement_timeout', '0', true)"
NOW_US: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

BY_ID: Final = f"{_SELECT} WHERE id = ANY($1::uuid[])"
BY_SEQ: Final = f"{_SELECT} WHERE seq = ANY($1::bigint[])"
BY_KEY: Final = f"{_SELECT} WHERE ended_at_us = 0 AND key IS NOT NULL AND key = ANY($1::text[])"
BY_PAST_KEY: Final = f"""
SELECT j.* FROM unnest($1::text[]) AS k(key), LATERAL (
    {_SELECT} WHERE key = k.key AND key IS NOT NULL AND ended_at_us > 0 ORDER BY key, ended_at_us DESC, seq DESC LIMIT 1
) AS j"""
BY_REQUEST: Final = f"""
SELECT q.request, q.answer, {_J_COLUMNS} FROM givalia.requests q LEFT JOIN givalia.jobs j ON j.seq = q.seq
WHERE q.request = ANY($1::uuid[]) AND (q.answer IS NOT NULL OR j.seq IS NOT NULL)"""
# Hops along the index of waiting jobs. The variants of a route are adjacent, since no name has a blank or a character that
# sorts right after a blank; $3: the most variants per clock.
VARIANTS: Final = """
SELECT DISTINCT r.module, r.plain, v.target
FROM unnest($1::text[], $2::text[]) AS r(module, plain), (VALUES (false), (true)) AS c(on_wall), LATERAL (
    WITH RECURSIVE hops(target, number) AS (
        (SELECT target_worker, 1 FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall AND module = r.module
            AND target_worker > r.plain || ' ' AND target_worker < r.plain || '!' ORDER BY target_worker LIMIT 1)
        UNION ALL
        SELECT n.target_worker, h.number + 1 FROM hops h, LATERAL (
            SELECT target_worker FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall AND module = r.module
                AND target_worker > h.target AND target_worker < r.plain || '!' ORDER BY target_worker LIMIT 1
        ) AS n WHERE h.number < $3::bigint
    )
    SELECT target FROM hops
) AS v ORDER BY v.target"""
_WAYS: Final = ("seqscan", "hashjoin", "mergejoin", "bitmapscan")
TICK_BITS: Final = 20  # Each tick covers a million numbers.
NUMBERS: Final = f"SELECT nextval('givalia.tick') << {TICK_BITS}, {NOW_US}"
# Settings that the promise depends on and that may change while a server runs: read with the numbers, they cost no statement.
CURRENT: Final = "current_setting('fsync'), current_setting('full_page_writes')"
_KEPT: Final = ("jobs", "requests", "counts", "facts")  # Tables whose loss would lose jobs.
UNLOGGED: Final = f"""(
    SELECT string_agg(c.relname, ', ') FROM pg_class c WHERE c.relpersistence <> 'p'
    AND c.oid = ANY(ARRAY[{", ".join(f"to_regclass('givalia.{name}')" for name in _KEPT)}]::oid[])
)"""
LOOK: Final = f"""{CURRENT}, {SESSION}, current_setting('synchronous_commit'), {UNLOGGED},
    (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'), current_setting('synchronous_standby_names'),
    (SELECT value::text FROM givalia.facts WHERE name = 'format'),
    (SELECT value::text FROM givalia.facts WHERE name = 'store'),
    coalesce(pg_sequence_last_value(to_regclass('givalia.tick')), 0)"""
"""The columns of `promise.Seen`."""
NUMBERS_AND_MORE: Final = f"{NUMBERS}, {CURRENT}, {SESSION}"

# Rank by rank and clock by clock, each in the order of its index, from its floor on ($7, see `floors`), without jobs that
# another server has locked. The rows end after this many bytes of params ($6).
CLAIM: Final = f"""
SELECT {_J_COLUMNS} FROM (
SELECT j.*, sum(octet_length(j.params)) OVER (ROWS UNBOUNDED PRECEDING) - octet_length(j.params) AS bytes_before
FROM {_RANKS}, LATERAL (
    SELECT * FROM (
        SELECT l.*, l.due_at_us AS sort_us FROM (
            SELECT * FROM givalia.jobs WHERE state = 0 AND NOT on_wall AND module = $3 AND target_worker = $4
                AND rank = r.rank AND due_at_us <= $1 AND due_at_us >= ($7::bigint[])[r.rank + 10]
                ORDER BY due_at_us, seq LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED
        ) AS l
        UNION ALL
        SELECT l.*, l.due_at_us + ($1::bigint - $2::bigint) AS sort_us FROM (
            SELECT * FROM givalia.jobs WHERE state = 0 AND on_wall AND module = $3 AND target_worker = $4
                AND rank = r.rank AND due_at_us <= $2 AND due_at_us >= ($7::bigint[])[r.rank + 29]
                ORDER BY due_at_us, seq LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED
        ) AS l
    ) AS both_clocks ORDER BY sort_us, seq LIMIT $5
) AS j LIMIT $5
) AS j WHERE j.bytes_before < $6"""

# $6: the floors of all routes, one route after the other.
UPCOMING: Final = f"""
SELECT s.place, ready.is_ready, near.due_us, near.seq
FROM unnest($3::text[], $4::text[], $5::bigint[]) WITH ORDINALITY AS s(module, target_worker, most, place)
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM {_RANKS}, {_CLOCKS}, LATERAL (
            SELECT FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall AND module = s.module
                AND target_worker = s.target_worker AND rank = r.rank AND due_at_us <= c.now_us
                AND due_at_us >= ($6::bigint[])[(s.place - 1) * 38 + r.rank + 10 + 19 * c.on_wall::int] LIMIT 1
        ) AS j
    ) AS is_ready
) AS ready
LEFT JOIN LATERAL (
    SELECT j.due_at_us + c.shift_us AS due_us, j.seq FROM {_RANKS}, {_CLOCKS}, LATERAL (
        SELECT due_at_us, seq FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall AND module = s.module
            AND target_worker = s.target_worker AND rank = r.rank AND due_at_us > c.now_us
            ORDER BY due_at_us, seq LIMIT s.most + 1
    ) AS j ORDER BY due_us, seq LIMIT s.most + 1
) AS near ON true
ORDER BY s.place, near.due_us, near.seq"""

# The first waiting job, on any rank and clock, in each of these ranges of dues.
BELOW: Final = f"""
SELECT s.place, min(j.due_at_us)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS s(module, target_worker, low, high, place),
    {_RANKS}, (VALUES (false), (true)) AS c(on_wall), LATERAL (
        SELECT due_at_us FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall AND module = s.module
            AND target_worker = s.target_worker AND rank = r.rank AND due_at_us >= s.low AND due_at_us < s.high
        ORDER BY due_at_us LIMIT 1
    ) AS j
GROUP BY s.place"""

RUNNING: Final = f"{_SELECT} WHERE state = 1 ORDER BY seq"
EXPIRED: Final = f"""
SELECT j.* FROM {_CLOCKS}, LATERAL (
    {_SELECT} WHERE state = 0 AND expires_at_us IS NOT NULL AND on_wall = c.on_wall AND expires_at_us <= c.now_us
    ORDER BY expires_at_us LIMIT $3
) AS j LIMIT $3"""

_SIZE: Final = "octet_length(params) + coalesce(octet_length(result), 0)"
_HEADS: Final = f"SELECT seq, key, state, module, target_worker, on_wall, due_at_us, ended_at_us, {_SIZE} FROM givalia.jobs"


def _page_waiting(of: str) -> str:
    """Return a statement for waiting jobs, by due: hops along the index of waiting jobs find each rank of each route.

    The hops go backwards: the latest due comes first, and dead rows last. $3, $4: only this module, only this worker; $5: only
    due jobs, or only others; $6, $7: after this due, by the timer clock, and seq; $8: the most jobs; $9: the most ranks of
    routes that are visited on each clock; $10, $11: due from this time on, and before this time, by the timer clock.
    """
    return f"""
WITH RECURSIVE hops AS (
    SELECT c.*, f.*, 1 AS number FROM {_CLOCKS}, LATERAL (
        SELECT module, target_worker, rank FROM givalia.jobs WHERE state = 0 AND on_wall = c.on_wall{of}
        ORDER BY module DESC, target_worker DESC, rank DESC LIMIT 1
    ) AS f
    UNION ALL
    SELECT h.on_wall, h.now_us, h.shift_us, n.*, h.number + 1 FROM hops h, LATERAL (
        SELECT module, target_worker, rank FROM givalia.jobs WHERE state = 0 AND on_wall = h.on_wall{of}
            AND (module, target_worker, rank) < (h.module, h.target_worker, h.rank)
        ORDER BY module DESC, target_worker DESC, rank DESC LIMIT 1
    ) AS n WHERE h.number < $9::bigint
)
SELECT m.number, j.due_us, j.seq, (SELECT {_SIZE} FROM givalia.jobs WHERE seq = j.seq) AS size
FROM (SELECT max(number) AS number FROM hops) AS m LEFT JOIN LATERAL (
    SELECT first.* FROM hops h, LATERAL (
        SELECT due_at_us + h.shift_us AS due_us, seq FROM givalia.jobs
        WHERE state = 0 AND on_wall = h.on_wall AND module = h.module AND target_worker = h.target_worker AND rank = h.rank
            AND (due_at_us, seq) > ($6::bigint - h.shift_us, $7::bigint)
            AND due_at_us > CASE WHEN $5::boolean THEN -1 ELSE h.now_us END
            AND due_at_us <= CASE WHEN $5::boolean THEN h.now_us ELSE 1::bigint << 62 END
            AND due_at_us >= $10::bigint - h.shift_us AND due_at_us < $11::bigint - h.shift_us
        ORDER BY due_at_us, seq LIMIT $8::bigint
    ) AS first
    WHERE ($3::text IS NULL OR h.module = $3::text)
        AND ($4::text IS NULL OR h.target_worker = $4::text OR starts_with(h.target_worker, $4::text || ' '))
        AND m.number < $9::bigint
    ORDER BY first.due_us, first.seq LIMIT $8::bigint
) AS j ON true"""


PAGE_WAITING: Final = _page_waiting("")
PAGE_WAITING_OF: Final = _page_waiting(" AND module = $3::text")
PAGE: Final = f"{_HEADS} WHERE seq > $1 ORDER BY seq LIMIT $2"
PAGE_RUNNING: Final = f"{_HEADS} WHERE state = 1 AND seq > $1 ORDER BY seq LIMIT $2"
PAGE_ENDED: Final = f"""
{_HEADS} WHERE state = $1 AND ended_at_us > 0 AND (-ended_at_us, seq) > (-$2::bigint, $3)
ORDER BY -ended_at_us, seq LIMIT $4"""

CHECK: Final = f"{_SELECT} WHERE seq > $1 ORDER BY seq LIMIT $2"
COUNTS: Final = "SELECT module, state, sum(jobs)::bigint FROM givalia.counts GROUP BY module, state HAVING sum(jobs) > 0"
# $3: the most jobs counted per route; $4 to $7: the route before the first; $8: the most routes.
READY: Final = """
WITH RECURSIVE routes AS (
    (SELECT on_wall, module, target_worker, rank FROM givalia.jobs
     WHERE state = 0 AND (on_wall, module, target_worker, rank) > ($4::boolean, $5::text, $6::text, $7::smallint)
     ORDER BY on_wall, module, target_worker, rank LIMIT 1)
    UNION ALL
    SELECT n.* FROM routes r, LATERAL (
        SELECT on_wall, module, target_worker, rank FROM givalia.jobs
        WHERE state = 0 AND (on_wall, module, target_worker, rank) > (r.on_wall, r.module, r.target_worker, r.rank)
        ORDER BY on_wall, module, target_worker, rank LIMIT 1
    ) AS n
)
SELECT r.on_wall, r.module, r.target_worker, r.rank, counted.jobs, counted.since_us
FROM (SELECT * FROM routes LIMIT $8::bigint) AS r, LATERAL (
    SELECT count(*) AS jobs, min(due_at_us) AS since_us FROM (
        SELECT due_at_us FROM givalia.jobs WHERE state = 0 AND on_wall = r.on_wall AND module = r.module
            AND target_worker = r.target_worker AND rank = r.rank
            AND due_at_us <= CASE WHEN r.on_wall THEN $2::bigint ELSE $1::bigint END
        ORDER BY due_at_us LIMIT $3::bigint
    ) AS j
) AS counted"""

_NAMES: Final = COLUMNS
_TYPES: Final = [
    "bigint",
    "uuid",
    "text",
    "smallint",
    "text",
    "text",
    "smallint",
    "boolean",
    "bigint",
    "bigint",
    "bigint",
    "bigint",
    "bigint",
    "bytea",
    "bytea",
    "bytea",
    "bigint",
    "boolean",
]
_ARRAYS: Final = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(_TYPES, 1))
_U_NAMES: Final = ", ".join(f"u.{name.strip()}" for name in _NAMES.split(","))

INSERT: Final = f"""
INSERT INTO givalia.jobs ({_NAMES}) SELECT {_U_NAMES} FROM unnest({_ARRAYS}) AS u({_NAMES})
ON CONFLICT DO NOTHING RETURNING seq"""

# These columns change seldom; an UPDATE that does not set them does not write large params again.
_STEADY: Final = {"seq", "id", "key", "module", "target_worker", "rank", "params"}
_FREE_KEY: Final = """NOT EXISTS (
    SELECT FROM givalia.jobs h WHERE h.key = u.key AND h.key IS NOT NULL AND h.ended_at_us = 0 AND h.seq <> u.seq
)"""


def _update(names: list[str], guard: str = "") -> str:
    """Return an UPDATE that skips locked rows as if they had changed: a wait for one would delay all other changes."""
    sets = ", ".join(f"{name} = u.{name}" for name in names)
    return f"""
WITH u AS MATERIALIZED (
    SELECT u.* FROM unnest({_ARRAYS}, $19::bigint[]) AS u({_NAMES}, was), LATERAL (
        SELECT FROM givalia.jobs WHERE seq = u.seq AND id = u.id AND version = u.was FOR NO KEY UPDATE SKIP LOCKED
    ) AS held
)
UPDATE givalia.jobs j SET {sets} FROM u WHERE j.seq = u.seq AND j.version = u.was{guard} RETURNING j.seq"""


_ALL: Final = [name.strip() for name in _NAMES.split(",")]
UPDATE: Final = _update([name for name in _ALL if name not in _STEADY])
REPLACE: Final = _update(_ALL[2:], f" AND (u.ended_at_us > 0 OR u.key IS NULL OR {_FREE_KEY})")

# Rows that another session has locked. The locks of this query need no sync.
LOCKED: Final = """
SELECT seq FROM givalia.jobs, set_config('synchronous_commit', 'off', true)
WHERE seq = ANY($1::bigint[]) AND seq <> ALL(ARRAY(
    SELECT seq FROM givalia.jobs WHERE seq = ANY($1::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
))"""
CAN_WRITE: Final = "LOCK TABLE givalia.jobs, givalia.counts, givalia.requests IN ROW EXCLUSIVE MODE NOWAIT"
# The keys and ids that other transactions are about to take: PostgreSQL reveals one only to a session that tries to take it.
# Each insert here is undone at once. Seqs are texts, so that JSON loses none of their digits.
PROBE_WHAT: Final = "SELECT set_config('givalia.probe', $1, true)"
_PROBE_NAMES: Final = (
    "seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, ended_at_us, version, record, params, keeper,"
    " stop_asked"
)
_PROBE_REST: Final = "'', '', 0, false, 0, 0, 0, '', '', 0, false"
PROBE: Final = f"""
DO $$
DECLARE
    asked json;
    ids text[] := '{{}}';
    keys text[] := '{{}}';
BEGIN
    FOR asked IN SELECT value FROM json_array_elements(current_setting('givalia.probe')::json) LOOP
        IF asked ->> 1 IS NOT NULL THEN
            BEGIN
                INSERT INTO givalia.jobs ({_PROBE_NAMES})
                VALUES ((asked ->> 0)::bigint, (asked ->> 1)::uuid, NULL, 1, {_PROBE_REST});
                RAISE EXCEPTION SQLSTATE 'GIVAL';
            EXCEPTION WHEN lock_not_available THEN ids := ids || (asked ->> 0); WHEN OTHERS THEN NULL;
            END;
        END IF;
        IF asked ->> 2 IS NOT NULL THEN
            BEGIN
                INSERT INTO givalia.jobs ({_PROBE_NAMES})
                VALUES ((asked ->> 0)::bigint, gen_random_uuid(), asked ->> 2, 1, {_PROBE_REST});
                RAISE EXCEPTION SQLSTATE 'GIVAL';
            EXCEPTION WHEN lock_not_available THEN keys := keys || (asked ->> 0); WHEN OTHERS THEN NULL;
            END;
        END IF;
    END LOOP;
    PERFORM set_config('givalia.probe', json_build_object('ids', ids, 'keys', keys)::text, true);
END $$"""
PROBED: Final = "SELECT current_setting('givalia.probe')"
IN_PROGRESS: Final = "SELECT ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot())::text::bigint)"

# Counts and request ids apply only to the rows that this transaction has written.
_WRITTEN: Final = "JOIN givalia.jobs j ON j.seq = u.seq AND j.xmin = pg_current_xact_id()::xid"
COUNT: Final = f"""
INSERT INTO givalia.counts SELECT module, state, sum(jobs) FROM (
    SELECT u.module, u.state, u.jobs
    FROM unnest($1::bigint[], $2::text[], $3::smallint[], $4::smallint[]) AS u(seq, module, state, jobs) {_WRITTEN}
) AS counted GROUP BY module, state HAVING sum(jobs) <> 0"""
FORGET_REQUESTS: Final = f"""
DELETE FROM givalia.requests q USING unnest($1::uuid[], $2::bigint[]) AS u(request, seq) {_WRITTEN}
WHERE q.request = u.request"""
KEEP_REQUESTS: Final = f"""
INSERT INTO givalia.requests (request, seq)
SELECT u.request, u.seq FROM unnest($1::uuid[], $2::bigint[]) AS u(request, seq) {_WRITTEN}
ON CONFLICT (request) DO UPDATE SET seq = excluded.seq"""

# Answers that changed no job. The unique index of the requests makes sure that one server decides each: a server whose change
# takes a request that another one has answered violates `requests_decided_once`.
KEEP_ANSWERS: Final = f"""
INSERT INTO givalia.requests SELECT u.request, 0, u.answer, {NOW_US} + {REMEMBERED_AT_LEAST_US}
FROM unnest($1::uuid[], $2::bytea[]) AS u(request, answer) ON CONFLICT (request) DO NOTHING RETURNING request"""
# The id of a refused enq could be a job's by now, or soon. A row that takes the id's place in the index until the end of the
# transaction makes one of two servers wait for the other; the second one finds what the first has decided.
TAKE_IDS: Final = """
INSERT INTO givalia.jobs (seq, id, state, module, target_worker, rank, on_wall, due_at_us, ended_at_us, version, record, params,
    keeper, stop_asked)
SELECT -1 - floor(random() * 9e18)::bigint, u.id, 4, '', '', 0, false, 0, 1, 1, '', '', 0, false
FROM unnest($1::uuid[]) AS u(id) ON CONFLICT DO NOTHING"""
DROP_ANSWERS_OF_JOBS: Final = """
DELETE FROM givalia.requests q WHERE q.request = ANY($1::uuid[]) AND q.answer IS NOT NULL
    AND EXISTS (SELECT FROM givalia.jobs j WHERE j.id = q.request AND j.seq > 0) RETURNING q.request"""
GIVE_IDS_BACK: Final = "DELETE FROM givalia.jobs WHERE id = ANY($1::uuid[]) AND seq < 0"
# Fails for an id that is already a request: another server has refused it since this one looked. After $2 it fails for all
# ids, by `requests_decided_once`: the refusal of another server may be forgotten by then.
ARE_NEW_IDS: Final = f"""
INSERT INTO givalia.requests (request, seq, answer)
SELECT request, 0, NULL::bytea FROM givalia.requests WHERE request = ANY($1::uuid[])
UNION ALL SELECT gen_random_uuid(), 1, '' WHERE {NOW_US} > ($2::bigint[])[1]"""
KEEP_WAIT: Final = "SELECT set_config('lock_timeout', '50ms', true)"
SWEEP_ANSWERS: Final = f"""
WITH gone AS (
    DELETE FROM givalia.requests WHERE request = ANY(ARRAY(
        SELECT request FROM givalia.requests WHERE until_us < {NOW_US} ORDER BY until_us LIMIT $1 FOR UPDATE SKIP LOCKED
    )) RETURNING request
)
SELECT count(*) FROM gone"""

# $1: dead jobs, or the others; $2: now; $3: jobs that ended later stay; $4: the number that stays; $5: the most that go.
RETIRE: Final = """
WITH gone AS (
    DELETE FROM givalia.jobs WHERE seq IN (
        SELECT seq FROM givalia.jobs
        WHERE forget_at_us IS NOT NULL AND (state = 3) = $1 AND (forget_at_us <= $2 OR ended_at_us <= $3)
            AND state > 1 AND ended_at_us > 0  -- Else it is a live job whose row is damaged.
        ORDER BY forget_at_us, seq LIMIT greatest(
            (SELECT count(*) FROM (
                SELECT FROM givalia.jobs WHERE forget_at_us IS NOT NULL AND (state = 3) = $1 AND forget_at_us <= $2 LIMIT $5
            ) AS passed),
            (SELECT least(coalesce(sum(jobs), 0)::bigint - $4, $5) FROM givalia.counts WHERE state > 1 AND (state = 3) = $1)
        )
        FOR UPDATE SKIP LOCKED
    ) RETURNING seq, module, state
), asked AS (
    DELETE FROM givalia.requests WHERE seq IN (SELECT seq FROM gone)
), counted AS (
    INSERT INTO givalia.counts SELECT module, state, -count(*) FROM gone GROUP BY module, state
)
SELECT count(*) FROM gone"""
# Among dead jobs, and among other ended jobs: the one that is forgotten first, and their number.
FORGETTABLE: Final = """
SELECT d.dead, f.forget_at_us, f.ended_at_us,
    (SELECT coalesce(sum(jobs), 0)::bigint FROM givalia.counts WHERE state > 1 AND (state = 3) = d.dead)
FROM (VALUES (false), (true)) AS d(dead), LATERAL (
    SELECT forget_at_us, ended_at_us FROM givalia.jobs WHERE forget_at_us IS NOT NULL AND (state = 3) = d.dead
    ORDER BY forget_at_us, seq LIMIT 1
) AS f"""

# Each transaction adds its counts as new rows, so that none waits for another. This sums rows up now and then: some rows in
# their physical order, and all rows of some modules, since rows of one module that cancel out may lie far apart.
FOLD: Final = """
WITH chosen AS MATERIALIZED (
    SELECT parts, floor(random() * parts)::int AS part FROM (SELECT count(*)::int / 5000 + 1 AS parts FROM givalia.counts) AS c
), gone AS (
    DELETE FROM givalia.counts WHERE ctid = ANY(
        ARRAY(SELECT ctid FROM givalia.counts LIMIT 5000 FOR UPDATE SKIP LOCKED)
        || ARRAY(
            SELECT of_part.ctid FROM givalia.counts AS of_part, chosen WHERE abs(hashtext(module) % parts) = part LIMIT 10000
            FOR UPDATE OF of_part SKIP LOCKED
        )
    ) RETURNING module, state, jobs
)
INSERT INTO givalia.counts SELECT module, state, sum(jobs) FROM gone GROUP BY module, state HAVING sum(jobs) <> 0"""

# The upper bound is the longest time that one beat grants: after the clock was set back, a server that is gone counts as gone.
IS_ALIVE: Final = f"alive_until_us > {NOW_US} AND alive_until_us <= {NOW_US} + {ALIVE_US}"
# The keepers of running jobs that are not alive: keeper by keeper along the index, however many jobs each has.
_STRAYED: Final = f"""
WITH RECURSIVE keepers AS (
    (SELECT keeper FROM givalia.jobs WHERE state = 1 ORDER BY keeper LIMIT 1)
    UNION ALL
    SELECT (SELECT j.keeper FROM givalia.jobs j WHERE j.state = 1 AND j.keeper > k.keeper ORDER BY j.keeper LIMIT 1)
    FROM keepers k WHERE k.keeper IS NOT NULL
)
SELECT keeper FROM keepers k WHERE k.keeper IS NOT NULL
    AND NOT EXISTS (SELECT FROM givalia.servers s WHERE s.epoch = k.keeper AND {IS_ALIVE})"""
STRAYED: Final = f"""
SELECT coalesce((SELECT lease_us FROM givalia.servers WHERE epoch = k.keeper), 0), {_J_COLUMNS}
FROM ({_STRAYED}) AS k, LATERAL (
    SELECT * FROM givalia.jobs WHERE state = 1 AND keeper = k.keeper ORDER BY keeper, seq LIMIT $1
) AS j LIMIT $1"""
OWN: Final = f"{_SELECT} WHERE state = 1 AND keeper = $1 AND (stop_asked OR $2) ORDER BY keeper, seq"
# $1: this server; $2: how long it counts as alive; $3: its lease; $4: its description; $5: the part of that for users' own
# transactions; $6: its hooks; $7: the store that it has opened (in another store the beat does nothing); $8: whether to read
# what may lie behind dead rows.
BEAT: Final = f"""
INSERT INTO givalia.servers AS me SELECT $1::bigint, {NOW_US} + $2::bigint, $3::bigint, $4::bytea, $5::bytea
WHERE EXISTS (SELECT FROM givalia.facts WHERE name = 'store' AND value = $7::text) ON CONFLICT (epoch) DO UPDATE
SET alive_until_us = excluded.alive_until_us, lease_us = excluded.lease_us, about = excluded.about,
    terms = excluded.terms
RETURNING
    coalesce((SELECT before.alive_until_us FROM givalia.servers before WHERE before.epoch = $1), 0) < {NOW_US},
    {NOW_US},
    CASE WHEN $8::boolean THEN (SELECT count(*) FROM givalia.jobs WHERE state = 1 AND keeper = $1) END,
    (SELECT count(*) FROM givalia.counts),
    (SELECT coalesce(sum(jobs), 0)::bigint FROM givalia.counts WHERE state < 2),
    $8::boolean AND EXISTS (
        SELECT FROM (VALUES (false), (true)) AS c(on_wall), givalia.jobs j
        WHERE j.state = 0 AND j.expires_at_us IS NOT NULL AND j.on_wall = c.on_wall AND j.expires_at_us <= {NOW_US}
    ),
    ARRAY(SELECT about FROM givalia.servers WHERE epoch <> $1 AND {IS_ALIVE} ORDER BY epoch),
    EXISTS (SELECT FROM givalia.events WHERE hook = ANY($6::text[])),
    $8::boolean AND EXISTS (SELECT FROM givalia.jobs WHERE state = 1 AND keeper = $1 AND stop_asked),
    $8::boolean AND EXISTS ({_STRAYED}),
    NOT EXISTS (SELECT FROM givalia.servers WHERE epoch < $1 AND {IS_ALIVE}),
    {LOOK}"""
BEAT_WIDTH: Final = 11  # The number of columns before those of `LOOK`.
# An event is for one of the servers that have a plugin for it: the server that takes the event calls the hook.
EVENTS: Final = f"""
WITH gone AS (
    DELETE FROM givalia.events WHERE number = ANY(ARRAY(
        SELECT number FROM givalia.events WHERE hook = ANY($2::text[]) ORDER BY number LIMIT $1 FOR UPDATE SKIP LOCKED
    )) RETURNING number, hook, running, seq
)
SELECT gone.hook, gone.running, {_J_COLUMNS} FROM gone JOIN givalia.jobs j ON j.seq = gone.seq ORDER BY gone.number"""

# Damaged rows: a row is locked, read again, and moved under the same lock.
LOCK_ROWS: Final = f"{_SELECT} WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED"
SET_ASIDE: Final = """
WITH gone AS (
    DELETE FROM givalia.jobs WHERE seq = ANY($1::bigint[]) RETURNING *
), asked AS (
    DELETE FROM givalia.requests WHERE seq IN (SELECT seq FROM gone)
), counted AS (
    INSERT INTO givalia.counts SELECT module, state, -count(*) FROM gone GROUP BY module, state
)
INSERT INTO givalia.quarantine SELECT gone.*, w.why FROM gone
JOIN unnest($1::bigint[], $2::text[]) AS w(seq, why) ON w.seq = gone.seq RETURNING seq, id, key, why"""
QUARANTINED: Final = "SELECT id, key, to_char(at, 'YYYY-MM-DD HH24:MI:SS TZ'), why FROM givalia.quarantine ORDER BY at, seq"
COUNT_ALONE: Final = "SELECT pg_try_advisory_xact_lock($1)"
COUNT_FREELY: Final = f"""
SELECT set_config('statement_timeout', '0', true), {", ".join(f"set_config('enable_{way}', 'on', true)" for way in _WAYS)}"""
# Rows and their counts change in the same commits, so one statement sees both as of the same moment.
COUNT_ANEW: Final = """
INSERT INTO givalia.counts SELECT module, state, sum(jobs) FROM (
    SELECT module, state, count(*) AS jobs FROM givalia.jobs GROUP BY module, state
    UNION ALL SELECT module, state, -jobs FROM givalia.counts
) AS off GROUP BY module, state HAVING sum(jobs) <> 0"""

# For a user's own transaction.
LOCK: Final = """
SELECT seq FROM givalia.jobs WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR NO KEY UPDATE"""
TERMS: Final = f"SELECT terms FROM givalia.servers WHERE {IS_ALIVE} AND terms <> '' ORDER BY epoch"
ADD_COUNTS: Final = """
INSERT INTO givalia.counts SELECT * FROM unnest($1::text[], $2::smallint[], $3::smallint[])"""
ADD_REQUESTS: Final = """
INSERT INTO givalia.requests (request, seq) SELECT * FROM unnest($1::uuid[], $2::bigint[])
ON CONFLICT (request) DO UPDATE SET seq = excluded.seq"""
DROP_REQUESTS: Final = "DELETE FROM givalia.requests WHERE request = ANY($1::uuid[])"
ADD_EVENTS: Final = """
INSERT INTO givalia.events (hook, running, seq) SELECT * FROM unnest($1::text[], $2::boolean[], $3::bigint[])"""
DATABASE: Final = """
SELECT to_regclass('givalia.facts') IS NOT NULL,
    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('givalia.jobs') AND attname = 'record'),
    current_setting('fsync') <> 'off' AND current_setting('full_page_writes') <> 'off'
        AND NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('givalia.jobs') AND relpersistence <> 'p'),
    current_setting('synchronous_commit') <> 'off'"""
