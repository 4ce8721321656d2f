-- +goose Up

-- What a machine is compared by; they repeat a part of state.
ALTER TABLE machines ADD COLUMN hardware TEXT NOT NULL DEFAULT '';
ALTER TABLE machines ADD COLUMN virt TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE machines DROP COLUMN virt;
ALTER TABLE machines DROP COLUMN hardware;
