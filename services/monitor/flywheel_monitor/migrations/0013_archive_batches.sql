-- Where each batch of `payload` ends, little-endian uint32; empty: it is one batch. Several ones have no `kept`: all
-- rows were new.
ALTER TABLE archive_queue ADD COLUMN ends bytea NOT NULL DEFAULT '';
-- Rows of the queue live for seconds: compressing them costs more than writing them.
ALTER TABLE archive_queue ALTER COLUMN payload SET STORAGE EXTERNAL;
