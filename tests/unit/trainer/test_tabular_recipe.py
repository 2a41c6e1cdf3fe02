"""The tabular recipe: encoding, splitting, the network and its exported graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flywheel_job.errors import TooFewEventTimes
from flywheel_job.launch import Column, LaunchSpec, Resources, Source
from flywheel_job.outcome import Artifact, MetricPoint, Outcome
from flywheel_job.recipes.dataset import (
    UnusableTrainingSet,
    choose_inputs,
    encode,
    in_time_order,
    labels_of,
    most_frequent,
    split_by_time,
)
from flywheel_job.recipes.tabular.export import check_parity, to_onnx, torch_scores
from flywheel_job.recipes.tabular.network import Activation, TabularNet, renamed_layers
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec, WarmStart
from flywheel_job.recipes.tabular.training import shard
from flywheel_job.scoring import onnx_scores, open_session
from flywheel_job.signature import Input
from tests.support.training_job import tabular_job

START = datetime(2013, 1, 1, tzinfo=UTC)


def test_null_numbers_become_nan_and_unknown_categories_minus_one() -> None:
    frame = pl.DataFrame({"v__n": [1.5, None], "v__c": ["b", "z"], "v__d": [None, "a"], "v__f": [True, None]})
    inputs = (
        Input("v__c", "STRING", ("a", "b")),
        Input("v__n", "FLOAT64"),
        Input("v__f", "BOOL"),
        Input("v__d", "STRING", ("a",)),
    )
    nan = np.nan
    np.testing.assert_array_equal(encode(frame, inputs), np.float32([[1, 1.5, 1, -1], [-1, nan, nan, 0]]))


def test_a_vocabulary_has_the_most_frequent_values_ties_by_text() -> None:
    values = pl.Series("c", ["x", "b", "a", "x", None, None, None, "b", "a", "c"])
    assert most_frequent(values, limit=3) == ("a", "b", "x")
    many = pl.Series("c", [f"v{i:04d}" for i in range(500)])
    assert len(most_frequent(many)) == 200


def test_unsupported_feature_types_and_labels_are_rejected() -> None:
    frame = pl.DataFrame({"v__l": [[1.0], [2.0]], "label": [0, 2]})
    with pytest.raises(UnusableTrainingSet, match="v__l"):
        choose_inputs([Column("v__l", "FLOAT64_LIST")], frame)
    with pytest.raises(UnusableTrainingSet, match="0 or 1"):
        labels_of(frame)
    with pytest.raises(UnusableTrainingSet, match="Every label is 1"):
        labels_of(pl.DataFrame({"label": [1, 1]}))


def test_unlabelled_rows_are_dropped_and_the_rest_sorted_by_time() -> None:
    frame = pl.DataFrame({"event_timestamp": [3, 1, 2], "label": [1, 0, None]})
    assert in_time_order(frame)["event_timestamp"].to_list() == [1, 3]


def nearest_border(times: list[int], wanted: int, start: int, end: int) -> int:
    """The row in [start, end) nearest to `wanted` at which a new time starts, by trying all of them."""
    borders = [row for row in range(start, end) if times[row - 1] != times[row]]
    return min(borders, key=lambda row: (abs(row - wanted), row))


def series(microseconds: Iterable[int]) -> pl.Series:
    """Times in microseconds since the epoch."""
    return pl.Series(microseconds).cast(pl.Datetime("us", "UTC"))


@given(st.integers(10, 10_000), st.floats(0.01, 0.99))
def test_the_holdout_is_the_newest_share_and_no_part_is_empty(rows: int, fraction: float) -> None:
    split = split_by_time(series(range(rows)), fraction)
    assert 0 < split.train_end < split.calibration_end < split.rows == rows
    assert abs((rows - split.train_end) - rows * fraction) <= 2


@given(st.lists(st.integers(0, 12), min_size=10, max_size=60), st.floats(0.01, 0.99))
def test_rows_of_one_time_are_in_one_part_of_the_split(times: list[int], fraction: float) -> None:
    times.sort()
    if len(set(times)) < 3:
        with pytest.raises(TooFewEventTimes, match=f"{len(set(times))} distinct"):
            split_by_time(series(times), fraction)
        return
    split = split_by_time(series(times), fraction)
    train, calibration = set(times[: split.train_end]), set(times[split.train_end : split.calibration_end])
    evaluation = set(times[split.calibration_end :])
    assert train
    assert calibration
    assert evaluation
    assert not train & calibration
    assert not calibration & evaluation
    last = times.index(times[-1])  # evaluation needs at least this time
    rows = len(times)
    assert split.train_end == nearest_border(times, rows - round(rows * fraction), 1, last)
    held = rows - split.train_end
    wanted = split.train_end + round(held * 0.4)
    assert split.calibration_end == nearest_border(times, wanted, split.train_end + 1, rows)
    starts = times[split.train_end], times[split.calibration_end]
    assert (split.holdout_start_us, split.evaluation_start_us) == starts
    whole = split.without_calibration()
    assert (whole.calibration_end, whole.evaluation_start_us) == (split.train_end, starts[0])


@given(st.integers(1, 500), st.integers(1, 8), st.integers(0, 1000), st.integers(1, 50))
def test_ranks_get_equal_disjoint_shares_of_an_epoch(rows: int, world: int, seed: int, epoch: int) -> None:
    shards = [shard(rows, world, rank, seed, epoch).tolist() for rank in range(world)]
    rows_used = [row for one in shards for row in one]
    assert len({len(one) for one in shards}) == 1
    assert len(rows_used) == len(set(rows_used)) == rows - rows % world
    assert set(rows_used) <= set(range(rows))


def test_scaling_uses_mean_and_deviation_of_the_known_values() -> None:
    rows = np.float32([[1, 0, 10], [3, 1, np.nan], [np.nan, 0, 10]])
    network = TabularNet([None, 2, None], [4])
    network.fit_scaling(rows)
    np.testing.assert_allclose(network.mean.numpy(), [2, 10])
    np.testing.assert_allclose(network.scale.numpy(), [1, 1])  # a constant column is not divided by zero


def test_unknown_categories_share_an_embedding_and_missing_is_flagged() -> None:
    torch.manual_seed(1)
    network = TabularNet([None, 3], [8])
    network.fit_scaling(np.float32([[1, 0], [3, 1]]))
    unknown, beyond, nothing, known = torch_scores(
        network, np.float32([[2, -1], [2, 7], [2, np.nan], [2, 1]])
    )
    assert unknown == beyond == nothing != known
    missing, mean = torch_scores(network, np.float32([[np.nan, 0], [2, 0]]))
    assert missing != mean


def random_rows(rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    table = np.column_stack(
        [random.normal(5, 3, rows), random.integers(-1, 3, rows), random.random(rows)]
    ).astype(np.float32)
    table[random.random(rows) < 0.2, 0] = np.nan
    return table


@pytest.mark.parametrize("sizes", [[None, 3, None], [None, None, None], [2, 3, 2]])
def test_the_exported_graph_scores_like_torch_for_any_row_count(sizes: list[int | None]) -> None:
    torch.manual_seed(2)
    network = TabularNet(sizes, [16, 8])
    rows = random_rows(300, 1)
    network.fit_scaling(rows)
    model = to_onnx(network, rows)
    session = open_session(model)
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("INPUT", [3])]
    assert [(o.name, o.shape[1:]) for o in session.get_outputs()] == [("SCORE", [1])]
    for count in (1, 2, 7, 300):
        np.testing.assert_allclose(
            onnx_scores(session, rows[:count]), torch_scores(network, rows[:count]), atol=1e-6
        )
    assert check_parity(network, model, rows) <= 1e-6


def test_weights_of_a_network_with_dropout_fit_one_without() -> None:
    torch.manual_seed(2)
    source = TabularNet([None, 3], [4, 5], dropout=0.5)
    target = TabularNet([None, 3], [4, 5], dropout=0.0)
    assert source.state_dict().keys() == target.state_dict().keys()
    # Versions before this one had a layer for the dropout.
    older = {
        name.replace("layers.2.", "layers.3.").replace("layers.4.", "layers.6."): value
        for name, value in source.state_dict().items()
    }
    for state in (older, dict(source.state_dict())):
        target.load_state_dict(renamed_layers(state))
        rows = random_rows(20, 1)[:, :2]
        np.testing.assert_array_equal(torch_scores(target, rows), torch_scores(source, rows))


def test_dropout_is_used_in_training_only() -> None:
    torch.manual_seed(2)
    network, values = Activation(0.5), torch.full((1000,), 3.0)
    dropped = network.train()(values)
    assert set(dropped.tolist()) == {0.0, 6.0}
    assert 400 < int((dropped == 0).sum()) < 600
    assert torch.equal(network.eval()(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_specifications_and_outcomes_survive_a_json_round_trip() -> None:
    spec = TabularSpec(
        training_set="projects/p/trainingSets/t",
        uri="s3://b/t/",
        columns=(Column("v__a", "BOOL"),),
        workers=2,
        hyperparameters=Hyperparameters(hidden_sizes=(3,), epochs=2),
        warm_start=WarmStart("v", "s3://b/w", "00"),
    )
    launch = replace(tabular_job(spec), source=Source("s3://b/s", "cd"), resources=Resources(gpus=0.5))
    assert LaunchSpec.from_json(launch.to_json()) == launch
    assert TabularSpec.of(LaunchSpec.from_json(launch.to_json())) == spec
    outcome = Outcome(
        True,
        artifacts=(Artifact("m", 3, "ab", "s3://b/ab"),),
        points=(MetricPoint("loss", 1, 0.5, 7),),
        params={"a": "b"},
    )
    assert Outcome.from_json(outcome.to_json()) == outcome
    for half in (b"", outcome.to_json()[:-5], b"{}", b"[]"):
        with pytest.raises(ValueError, match=r".*"):
            Outcome.from_json(half)
