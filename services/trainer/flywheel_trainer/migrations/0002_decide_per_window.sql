-- An alert stays open while its windows drift: each of them is a reason to decide anew.
ALTER TABLE retraining_decision DROP CONSTRAINT retraining_decision_once;
ALTER TABLE retraining_decision ADD CONSTRAINT retraining_decision_once UNIQUE (project, policy, alert, event_time);
