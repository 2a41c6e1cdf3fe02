-- The earliest time at which a row of the file becomes valid that is not online yet, microseconds; 0: none.
-- The stamp is empty for a file that was not read as a whole.
ALTER TABLE materialized_file ADD COLUMN due bigint NOT NULL DEFAULT 0;
-- When the rows that become valid were read, microseconds: an erasure after it erases them too.
ALTER TABLE materialized_file ADD COLUMN read_at bigint NOT NULL DEFAULT 0;
CREATE INDEX materialized_file_due ON materialized_file (due) WHERE due > 0;
