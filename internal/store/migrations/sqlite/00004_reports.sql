-- +goose Up

-- loaded is when the sender had loaded the livepatch that a report is about, as of
-- the report: a machine that went down loads it again at its next boot, which says
-- nothing about how long it had run when it went down.
ALTER TABLE reports ADD COLUMN loaded BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE reports DROP COLUMN loaded;
