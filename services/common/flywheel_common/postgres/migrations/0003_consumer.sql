-- Positions of consumer groups, moved in the transaction of the effect (flywheel_common.kafka.consumer).
-- epoch rises with every claim of a partition: a consumer that lost it cannot commit any more.
CREATE TABLE consumer_offset (
    consumer_group text        NOT NULL,
    topic          text        NOT NULL,
    partition      integer     NOT NULL,
    next_offset    bigint,
    epoch          bigint      NOT NULL DEFAULT 0,
    owner          text        NOT NULL DEFAULT '',
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer_group, topic, partition)
);
CREATE TABLE consumer_event (
    consumer_group text        NOT NULL,
    event_id       text        NOT NULL,
    seen_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer_group, event_id)
);
CREATE INDEX consumer_event_age ON consumer_event (seen_at);
