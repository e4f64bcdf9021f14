-- A store of format 1, as the version before format 2 wrote it; the body of the first job lacks its last field, as in an
-- older one.
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
INSERT INTO givalia.facts VALUES ('format', '1');
INSERT INTO givalia.facts VALUES ('last_seq', '2097153');
INSERT INTO givalia.facts VALUES ('mark', '["", 0, 1700000003000000, 1700000003000000, 30000000]');
INSERT INTO givalia.jobs VALUES ('1048576', '0195d6c0-7a80-7000-8000-000000000001', 'cart-7', '0', 'Sample', 'any', '0', 'false', '4000000000000000', NULL, '0', NULL, '1', E'\\xdc0012cf00060a24181e400000c0c0c0c0c000c0c0c2000000c0c0c090', E'\\xa9706172616d65746572', NULL, '0', 'false');
INSERT INTO givalia.jobs VALUES ('1048577', '0195d6c0-7a80-7000-8000-000000000002', NULL, '0', 'Sample', 'any >=2', '3', 'true', '4000000000000000', '4000000000000005', '0', NULL, '1', E'\\xdc0013cf00060a24181e400000c0c005c0c000c0c0c2000000c0c0c09000', E'\\x01', NULL, '0', 'false');
INSERT INTO givalia.jobs VALUES ('1048578', '0195d6c0-7a80-7000-8000-000000000003', 'runs', '1', 'Sample', 'w1', '-9', 'false', '1700000000000000', NULL, '0', NULL, '2', E'\\xdc0013cf00060a24181e40000105c0c0c092ce000f4240ce23c34600ce00200005a27731c41068686868686868686868686868686868c2000000c0c0c09002', E'\\xc403616263', NULL, '2', 'false');
INSERT INTO givalia.jobs VALUES ('1048579', '0195d6c0-7a80-7000-8000-000000000004', 'done', '2', 'Sample', 'any', '0', 'false', '1700000000000000', NULL, '1700000001000000', '4000000000000000', '3', E'\\xdc0013cf00060a24181e40000105c0c0c0c0ce00200006a27731c0c2000000c0c0c09000', E'\\x', E'\\x07', '0', 'false');
INSERT INTO givalia.jobs VALUES ('1048580', '0195d6c0-7a80-7000-8000-000000000005', 'done', '3', 'Other', 'any', '0', 'false', '1700000000000000', NULL, '1700000002000000', '4000000000000000', '9', E'\\xdc0013cf00060a24181e40000505c0c0c0c0ce00200007c0c0c2000000a66661696c6564ad56616c75654572726f723a2078c09000', E'\\xc0', NULL, '0', 'false');
INSERT INTO givalia.jobs VALUES ('1048581', '0195d6c0-7a80-7000-8000-000000000006', NULL, '4', 'Other', 'any', '0', 'false', '4000000000000000', NULL, '1700000003000000', '4000000000000000', '2', E'\\xdc0013cf00060a24181e400000c0c0c0c0c000c0c0c2000000c0c0c09193c4100195d6c07a8070008000000000000064a663616e63656c0000', E'\\x90', NULL, '0', 'false');
INSERT INTO givalia.jobs VALUES ('1048582', '0195d6c0-7a80-7000-8000-000000000007', 'asked', '1', 'Other', 'any', '0', 'false', '1700000000000000', NULL, '0', NULL, '3', E'\\xdc0013cf00060a24181e40000105c0c0c0c0ce00200008a27732c41069696969696969696969696969696969c3000000c0c0c09193c4100195d6c07a8070008000000000000065a861736b5f73746f700002', E'\\x80', NULL, '2', 'true');
INSERT INTO givalia.jobs VALUES (2097153, '00000000-0000-0000-0000-000000000001', 'waits', 0, 'Mail', 'any', 0, false, 1750003606000000, NULL, 0, NULL, 7, '\xdc0013cf0006379da05b600000c0c0c0c0c000c0c0c2000000c0c0c09493c41000000000000000000000000000000066a3657874cf0006379e771ccac093c41000000000000000000000000000000067a3657874cf0006379e772c0d0093c41000000000000000000000000000000068a3657874cf0006379e773b4f4093c41000000000000000000000000000000069a3657874cf0006379e774a918000', '\x01', NULL, 0, false);
INSERT INTO givalia.requests VALUES ('0195d6c0-7a80-7000-8000-000000000064', '1048581');
INSERT INTO givalia.requests VALUES ('0195d6c0-7a80-7000-8000-000000000065', '1048582');
INSERT INTO givalia.requests VALUES ('00000000-0000-0000-0000-000000000066', 2097153);
INSERT INTO givalia.requests VALUES ('00000000-0000-0000-0000-000000000067', 2097153);
INSERT INTO givalia.requests VALUES ('00000000-0000-0000-0000-000000000068', 2097153);
INSERT INTO givalia.requests VALUES ('00000000-0000-0000-0000-000000000069', 2097153);
INSERT INTO givalia.counts VALUES ('Mail', '0', '1');
INSERT INTO givalia.counts VALUES ('Other', '1', '1');
INSERT INTO givalia.counts VALUES ('Other', '3', '1');
INSERT INTO givalia.counts VALUES ('Other', '4', '1');
INSERT INTO givalia.counts VALUES ('Sample', '0', '2');
INSERT INTO givalia.counts VALUES ('Sample', '1', '1');
INSERT INTO givalia.counts VALUES ('Sample', '2', '1');
INSERT INTO givalia.servers VALUES ('1', '1796004582063071', '0', E'\\x', E'\\x');
SELECT setval('givalia.tick', 2);
