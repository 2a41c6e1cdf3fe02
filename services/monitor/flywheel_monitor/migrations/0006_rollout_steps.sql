-- Predictions of different steps of a rollout are different variants: the generation of the routing tells them
-- apart. 0: without a rollout, or logged before gateways sent it.
ALTER TABLE variant ADD COLUMN generation bigint NOT NULL DEFAULT 0;
ALTER TABLE variant DROP CONSTRAINT variant_model_version_id_release_rollout_role_key;
ALTER TABLE variant ADD UNIQUE (model_version_id, release, rollout, role, generation);
