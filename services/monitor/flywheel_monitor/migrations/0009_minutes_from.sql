-- Panes of a minute that begin before this are deleted; hours and days stay. 0: all are kept.
ALTER TABLE model_version ADD COLUMN minutes_from_us bigint NOT NULL DEFAULT 0;
