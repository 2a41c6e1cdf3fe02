-- Watermarks follow times that several events have reached (flywheel_monitor.windows.support), not the newest one:
-- recent_us are the times of the last events of the partition in order of arrival, reached_us is derived from them.
ALTER TABLE progress DROP COLUMN newest_us,
    ADD COLUMN recent_us bigint[] NOT NULL DEFAULT '{}', ADD COLUMN reached_us bigint;
ALTER TABLE label_progress DROP COLUMN newest_us,
    ADD COLUMN recent_us bigint[] NOT NULL DEFAULT '{}', ADD COLUMN reached_us bigint;
ALTER TABLE variant DROP COLUMN last_event;
