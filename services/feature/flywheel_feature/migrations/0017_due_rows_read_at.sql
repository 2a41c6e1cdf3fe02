-- When the rows that become valid were read, microseconds; 0: no such rows. An erasure after it erases them too.
ALTER TABLE materialized_file ADD COLUMN read_at bigint NOT NULL DEFAULT 0;
