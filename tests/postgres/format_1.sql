-- The tables of format 1, as version 0.1 made and filled them.
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
) WITH (fillfactor = 80, autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX jobs_id ON givalia.jobs (id);
CREATE UNIQUE INDEX jobs_live_key ON givalia.jobs (key) WHERE key IS NOT NULL AND ended_at_us = 0;
CREATE INDEX jobs_past_key ON givalia.jobs (key, ended_at_us, seq) WHERE key IS NOT NULL AND ended_at_us > 0;
CREATE INDEX jobs_due ON givalia.jobs (on_wall, module, target_worker, rank, due_at_us, seq) WHERE state = 0;
CREATE INDEX jobs_expiry ON givalia.jobs (on_wall, expires_at_us) WHERE state = 0 AND expires_at_us IS NOT NULL;
CREATE INDEX jobs_running ON givalia.jobs (keeper, seq) WHERE state = 1;
CREATE INDEX jobs_ended ON givalia.jobs ((state = 3), forget_at_us, seq) WHERE forget_at_us IS NOT NULL;
CREATE TABLE givalia.requests (request uuid PRIMARY KEY, seq bigint NOT NULL) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX requests_seq ON givalia.requests (seq);
CREATE TABLE givalia.counts (module text COLLATE "C" NOT NULL, state smallint NOT NULL, jobs bigint NOT NULL)
    WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
CREATE TABLE givalia.servers (
    epoch bigint PRIMARY KEY, alive_until_us bigint NOT NULL, lease_us bigint NOT NULL, about bytea NOT NULL,
    terms bytea NOT NULL
);
CREATE TABLE givalia.events (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, hook text NOT NULL, running boolean, seq bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO givalia.facts (name, value) VALUES ('format', '1');
INSERT INTO givalia.facts (name, value) VALUES ('last_seq', '15728641');
INSERT INTO givalia.facts (name, value) VALUES ('mark', '["manual", 1749999000000000, 1750000000000000, 1750000000000000, 30000000]');
INSERT INTO givalia.jobs (seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us, version, body, params, result, keeper, stop_asked) VALUES (2097153, '00000000-0000-0000-0000-000000000001', 'waits', 0, 'Mail', 'any', 0, false, 1750003606000000, NULL, 0, NULL, 7, '\xdc0013cf0006379da05b600000c0c0c0c0c000c0c0c2000000c0c0c09493c41000000000000000000000000000000066a3657874cf0006379e771ccac093c41000000000000000000000000000000067a3657874cf0006379e772c0d0093c41000000000000000000000000000000068a3657874cf0006379e773b4f4093c41000000000000000000000000000000069a3657874cf0006379e774a918000', '\x01', NULL, 0, false);
INSERT INTO givalia.jobs (seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us, version, body, params, result, keeper, stop_asked) VALUES (9437185, '00000000-0000-0000-0000-000000000002', 'over', 4, 'Mail', 'any', 0, false, 1750003600000000, NULL, 1750000000000000, 1750003600000000, 2, '\xdc0013cf0006379da05b600000c0c0c0c0c000c0c0c2000000c0c0c09293c41000000000000000000000000000000002a3656e71cf0006379e76ef040093c410000000000000000000000000000000c8a663616e63656c0000', '\x', NULL, 0, false);
INSERT INTO givalia.jobs (seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us, version, body, params, result, keeper, stop_asked) VALUES (12582913, '00000000-0000-0000-0000-000000000003', 'runs', 1, 'Mail', 'any', 0, false, 1750000000000000, NULL, 0, NULL, 3, '\xdc0013cf0006379da05b60000105c0c0c092ce000f4240ce23c34600ce00c00001a3616e79c4100000000000000000000000000000000ac3000000c0c0c09293c41000000000000000000000000000000003a3656e71cf0006379da05b600093c4100000000000000000000000000000012ca861736b5f73746f700001', '\x02', NULL, 1, true);
INSERT INTO givalia.jobs (seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us, version, body, params, result, keeper, stop_asked) VALUES (15728641, '00000000-0000-0000-0000-000000000004', NULL, 2, 'Other', 'any', 0, false, 1750000000000000, NULL, 1750000000000001, 1750003600000001, 3, '\xdc0013cf0006379da05b60000105c0c0c092ce000f4240ce23c34600ce00f00001a3616e79c4100000000000000000000000000000000bc2000000c0c0c09193c41000000000000000000000000000000004a3656e71cf0006379da05b600000', '\x', '\x07', 0, false);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-000000000066', 2097153);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-000000000067', 2097153);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-000000000068', 2097153);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-000000000069', 2097153);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-0000000000c8', 9437185);
INSERT INTO givalia.requests (request, seq) VALUES ('00000000-0000-0000-0000-00000000012c', 12582913);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Mail', 0, 1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Mail', 0, 1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Mail', 0, -1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Mail', 4, 1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Mail', 1, 1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Other', 1, 1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Other', 1, -1);
INSERT INTO givalia.counts (module, state, jobs) VALUES ('Other', 2, 1);
SELECT setval('givalia.tick', 16);
