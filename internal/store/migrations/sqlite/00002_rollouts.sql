-- +goose Up

-- Each row is one version of a policy; none is ever changed.
CREATE TABLE policies (
    name    TEXT NOT NULL,
    version BIGINT NOT NULL,
    body    TEXT NOT NULL,
    actor   TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);

-- How a version that is not public yet is to be rolled out, if this module becomes it.
CREATE TABLE plans (
    release TEXT NOT NULL,
    arch    TEXT NOT NULL,
    version TEXT NOT NULL,
    module  TEXT NOT NULL,
    body    TEXT NOT NULL,
    PRIMARY KEY (release, arch, version, module)
);

-- body is a rollout.Rollout and changes with revision; state repeats a part of it.
-- progress and judge are the judge's; judged is the seq of the last report weighed.
CREATE TABLE rollouts (
    id       TEXT PRIMARY KEY,
    release  TEXT NOT NULL,
    arch     TEXT NOT NULL,
    version  TEXT NOT NULL,
    state    TEXT NOT NULL,
    revision TEXT NOT NULL,
    body     TEXT NOT NULL,
    progress TEXT NOT NULL,
    judge    TEXT NOT NULL,
    judged   BIGINT NOT NULL,
    created  BIGINT NOT NULL,
    started  BIGINT NOT NULL,
    changed  BIGINT NOT NULL,
    UNIQUE (release, arch, version)
);
CREATE INDEX rollouts_by_state ON rollouts (state, changed);

CREATE TABLE rollout_changes (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout_id TEXT NOT NULL REFERENCES rollouts (id),
    body       TEXT NOT NULL
);
CREATE INDEX rollout_changes_by_rollout ON rollout_changes (rollout_id, seq);

-- One row for each machine that a rollout exposed. loaded is when the machine said
-- that it applied the patch. outcome is empty while it is being watched, else
-- healthy, harmed, stuck, failed, unloaded or void. Rows outlive the machine: they are
-- evidence.
CREATE TABLE trials (
    rollout_id TEXT NOT NULL REFERENCES rollouts (id),
    machine_id TEXT NOT NULL,
    granted    BIGINT NOT NULL,
    loaded     BIGINT NOT NULL,
    outcome    TEXT NOT NULL,
    PRIMARY KEY (rollout_id, machine_id)
);
CREATE INDEX trials_by_outcome ON trials (rollout_id, outcome, granted);

-- Of each machine and kind of harm only the first report of a rollout is weighed.
CREATE TABLE weighed (
    rollout_id TEXT NOT NULL REFERENCES rollouts (id),
    machine_id TEXT NOT NULL,
    kind       TEXT NOT NULL,
    PRIMARY KEY (rollout_id, machine_id, kind)
);

ALTER TABLE grants ADD COLUMN rollout_id TEXT NOT NULL DEFAULT '';
-- voided is when a halt made the grant worth nothing.
ALTER TABLE grants ADD COLUMN voided BIGINT NOT NULL DEFAULT 0;
CREATE INDEX grants_by_rollout ON grants (rollout_id, expires);

ALTER TABLE reports ADD COLUMN signature TEXT NOT NULL DEFAULT '';
CREATE INDEX reports_by_signature ON reports (signature, received);

-- +goose Down
DROP INDEX reports_by_signature;
ALTER TABLE reports DROP COLUMN signature;
DROP INDEX grants_by_rollout;
ALTER TABLE grants DROP COLUMN voided;
ALTER TABLE grants DROP COLUMN rollout_id;
DROP TABLE weighed;
DROP TABLE trials;
DROP TABLE rollout_changes;
DROP TABLE rollouts;
DROP TABLE plans;
DROP TABLE policies;
