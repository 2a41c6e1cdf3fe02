-- For PurgeRuns: deleted runs by the time of their deletion, and runs by the digests of their files.

CREATE INDEX run_deleted ON run (project, deleted_at, id) WHERE deleted_at IS NOT NULL;
CREATE INDEX run_artifacts ON run USING gin (artifacts jsonb_path_ops);
