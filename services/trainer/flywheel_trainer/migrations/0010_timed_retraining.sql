-- Decisions on times of schedules and on windows of continuous training, beside those on drift.
ALTER TABLE retraining_decision ADD COLUMN trigger text NOT NULL DEFAULT 'DRIFT';
ALTER TABLE retraining_decision DROP CONSTRAINT retraining_decision_once;
ALTER TABLE retraining_decision
    ADD CONSTRAINT retraining_decision_once UNIQUE (project, policy, trigger, alert, event_time);
