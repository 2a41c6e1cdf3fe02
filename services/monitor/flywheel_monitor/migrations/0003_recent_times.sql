-- Watermarks follow times that several events have reached (flywheel_monitor.windows.support), not the newest time. They
-- begin anew: a partition has progress after its next events.
DROP TABLE label_progress;
DROP TABLE progress;

-- recent_us: times of the last events of a model in a partition, in order of arrival; of outcomes (`labels`) the times at
-- which they became known, of predictions the event times. reached_us is derived from them, NULL with too few.
CREATE TABLE progress (
    model_id   integer  NOT NULL REFERENCES model,
    labels     boolean  NOT NULL,
    partition  smallint NOT NULL,
    recent_us  bigint[] NOT NULL,
    reached_us bigint,
    PRIMARY KEY (model_id, labels, partition)
);

-- Replaced by the times in `prediction`.
ALTER TABLE variant DROP COLUMN last_event;
