-- Why the stored pipeline of a policy was refused.
ALTER TABLE retraining_decision ADD COLUMN message text NOT NULL DEFAULT '';
