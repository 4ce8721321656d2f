-- Times are milliseconds since 1970 (UTC); 0 means never. Documents are JSON text.

-- +goose Up
CREATE TABLE operators (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    hash       TEXT NOT NULL UNIQUE,
    created    BIGINT NOT NULL
);

CREATE TABLE accounts (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    plan       TEXT NOT NULL,
    seat_limit BIGINT NOT NULL,
    created    BIGINT NOT NULL
);

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    uses       BIGINT NOT NULL,
    max_uses   BIGINT NOT NULL,
    created    BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    revoked    BIGINT NOT NULL
);
CREATE INDEX tokens_by_account ON tokens (account_id);

-- state is the latest check-in without its reports. release, arch, version and
-- hostname repeat parts of it for searching.
CREATE TABLE machines (
    id              TEXT PRIMARY KEY,
    account_id      TEXT NOT NULL REFERENCES accounts (id),
    token_id        TEXT NOT NULL REFERENCES tokens (id),
    machine_id      TEXT NOT NULL,
    credential_hash TEXT NOT NULL UNIQUE,
    hostname        TEXT NOT NULL,
    tier            TEXT NOT NULL,
    release         TEXT NOT NULL,
    arch            TEXT NOT NULL,
    version         TEXT NOT NULL,
    state           TEXT NOT NULL,
    enrolled        BIGINT NOT NULL,
    last_seen       BIGINT NOT NULL,
    UNIQUE (account_id, machine_id)
);
CREATE INDEX machines_by_kernel ON machines (release, arch, version);
CREATE INDEX machines_by_machine_id ON machines (machine_id);
CREATE INDEX machines_by_hostname ON machines (hostname);

-- One row a kernel: its catalogue without the patches. revision is another one
-- after each change, so that what is read once can be kept.
CREATE TABLE catalogues (
    release  TEXT NOT NULL,
    arch     TEXT NOT NULL,
    revision TEXT NOT NULL,
    body     TEXT NOT NULL,
    changed  BIGINT NOT NULL,
    PRIMARY KEY (release, arch)
);

CREATE TABLE patches (
    release   TEXT NOT NULL,
    arch      TEXT NOT NULL,
    major     BIGINT NOT NULL,
    minor     BIGINT NOT NULL,
    body      TEXT NOT NULL,
    withdrawn BIGINT NOT NULL,
    PRIMARY KEY (release, arch, major, minor)
);

-- reported is set when a report came under the grant: it is used up.
CREATE TABLE grants (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    release    TEXT NOT NULL,
    arch       TEXT NOT NULL,
    action     TEXT NOT NULL,
    version    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    created    BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    reported   BIGINT NOT NULL
);
CREATE INDEX grants_by_machine ON grants (machine_id, seq);

-- seq orders the reports of a machine as they came.
CREATE TABLE reports (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    id         TEXT NOT NULL,
    release    TEXT NOT NULL,
    arch       TEXT NOT NULL,
    version    TEXT NOT NULL,
    kind       TEXT NOT NULL,
    body       TEXT NOT NULL,
    received   BIGINT NOT NULL,
    UNIQUE (machine_id, id)
);
CREATE INDEX reports_by_kernel ON reports (release, arch, version, kind);

-- A publication is pending from before the stream changes until the rows agree
-- with the stream. body is dropped once it is complete.
CREATE TABLE publications (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    state     TEXT NOT NULL,
    actor     TEXT NOT NULL,
    body      TEXT NOT NULL,
    created   BIGINT NOT NULL,
    completed BIGINT NOT NULL
);
CREATE INDEX publications_by_state ON publications (state, seq);

CREATE TABLE audit (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    at     BIGINT NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
);

-- +goose Down
DROP TABLE audit;
DROP TABLE publications;
DROP TABLE reports;
DROP TABLE grants;
DROP TABLE patches;
DROP TABLE catalogues;
DROP TABLE machines;
DROP TABLE tokens;
DROP TABLE accounts;
DROP TABLE operators;
