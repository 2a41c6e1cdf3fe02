"""The late-arrival model: training and scoring pipelines, gates, rollout, monitoring and policy."""

from datetime import UTC, datetime, timedelta

import features

import flywheel as fw
from flywheel_protos.feature.v1.training_set_pb2 import Spine
from flywheel_protos.monitor.v1.monitor_pb2 import MonitorPolicy
from flywheel_protos.registry.v1.model_pb2 import GatePolicy, RolloutPolicy
from flywheel_protos.trainer.v1.policy_pipeline_pb2 import StoredPipeline
from flywheel_protos.trainer.v1.trainer_pb2 import PipelineSpec, RetrainingPolicy

NAME = "late-arrival"
START, SPLIT = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CACHED = timedelta(hours=26)  # from one nightly SCORE job to the next
BETTER = [{"metric": "auc", "min": 0.55, "min_delta": -0.02}, {"metric": "log_loss", "max": 0.65}]
SHADOW = {"shadow_min_labelled": 400, "shadow_max_log_loss_delta": 0.01, "min_bake": 3 * DAY}
CLOCK = {"min_wall_bake": timedelta(0), "max_step": timedelta(hours=1)}  # a year is replayed in minutes
CANARY = {"canary_min_predictions": 40, "canary_max_log_loss_delta": 0.05, "max_error_rate": 0.02}
WATCH = {"window": 7 * DAY, "lateness": DAY, "min_predictions": 250, "min_labels": 250}
# Schedules and windows follow the wall clock, so the replay of a past year does not reach them.
NIGHTLY = "late-arrival-nightly"
NIGHT = {"cron": "30 2 * * *", "time_zone": "America/New_York"}
RECENT = {"window": 28 * DAY, "delay": DAY, "min_rows": 1000}
RETRAIN = {"cooldown": 80 * DAY, "history": 90 * DAY, "continuous": RECENT}
NETWORK = {"hidden_sizes": [64, 32], "dropout": 0.1, "epochs": 8, "batch_size": 256, "learning_rate": 2e-3}


def spine(moment: str = "prediction_time") -> Spine:
    """Every flight that landed in the first quarter, with its features as of the field `moment`."""
    label = {"timestamp_field": moment, "label": "arr_delay >= 15"}
    quarter = {"start_time": START, "end_time": SPLIT, "known_before": SPLIT}
    return Spine(source={"source": "projects/default/sources/arrivals", **label, **quarter})


def pipeline() -> PipelineSpec:
    """Training set → train → evaluate → register → release → rollout. Retraining moves the range of the
    spine."""
    network = {**NETWORK, "weight_decay": 1e-4, "seed": 2013}
    return PipelineSpec(
        model=f"projects/default/models/{NAME}",
        feature_set="projects/default/featureSets/late_arrival",
        spine=spine(),
        train={"experiment": "projects/default/experiments/flights", "tabular": network, "workers": 2},
        fallback={"default_score": 0.24, "cached_max_age": CACHED},
        segment_keys=["origin"],
        start_rollout=True,
    )


@fw.pipeline(NIGHTLY)
def nightly(p: fw.PipelineBuilder) -> None:
    """Scores the tables of the coming flights with the release that serves, as answers of the gateways."""
    champion = p.champion("champion", model=NAME)
    job = fw.ScoreJob(
        release="",
        table=features.SCORED_URI,
        experiment="flights",
        timestamp_field="prediction_time",
        cache_for=CACHED,
    )
    p.score("score", job, released=champion, when=[champion["release_in_production"].differs("")])


async def declare(client: fw.Client) -> None:
    """Creates the model with its pipelines and policies."""
    gates = GatePolicy(offline=BETTER, min_evaluation_rows=200)
    rollout = RolloutPolicy(**SHADOW, **CANARY, **CLOCK)
    await client.create_model(NAME, gate_policy=gates, rollout_policy=rollout, description="15 minutes late")
    await client.set_monitor_policy(NAME, MonitorPolicy(**WATCH))
    await client.create_experiment("flights")
    await client.apply_pipeline(nightly)
    night = {**NIGHT, "pipeline": StoredPipeline(pipeline=f"projects/default/pipelines/{NIGHTLY}")}
    await client.set_retraining_policy(NAME, RetrainingPolicy(pipeline=pipeline(), schedule=night, **RETRAIN))
