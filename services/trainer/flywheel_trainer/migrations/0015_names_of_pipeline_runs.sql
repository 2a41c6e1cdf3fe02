-- Decisions of policies find their runs by name, and the reruns of these.
CREATE INDEX pipeline_run_name ON pipeline_run (('projects/' || project || '/pipelineRuns/' || id));
CREATE INDEX pipeline_run_rerun_of ON pipeline_run (rerun_of) WHERE rerun_of <> '';
