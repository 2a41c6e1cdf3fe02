"""Tests of the canary assignment and of routes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_inference.releases.rollout_step import RolloutStep
from flywheel_inference.routing.canary_assignment import bucket
from flywheel_inference.routing.route import Choice, Route, Variant

R1 = RolloutStep("r1", 1)


def route(**changes: object) -> Route[str]:
    return Route(
        **{"model": "m", "generation": 1, "champion": "old", "challenger": "new", "rollout": "r1", **changes}
    )  # type: ignore[arg-type]


def test_the_bucket_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"projects/p/models/m/rollouts/1/UA|JFK").hexdigest()
    assert bucket("projects/p/models/m/rollouts/1", "UA|JFK") == int(digest[:16], 16) % 10_000


def test_the_bucket_of_a_known_subject_never_changes() -> None:
    assert [bucket("salt", s) for s in ("a", "b", "ü")] == [
        int.from_bytes(hashlib.sha256(f"salt/{s}".encode()).digest()[:8], "big") % 10_000
        for s in ("a", "b", "ü")
    ]


def test_subjects_spread_evenly_over_the_buckets() -> None:
    counts = [0] * 20
    for i in range(40_000):
        counts[bucket("r", f"subject-{i}") // 500] += 1
    chi_squared = sum((c - 2_000) ** 2 / 2_000 for c in counts)
    assert chi_squared < 43.8  # 0.999 quantile of chi-squared with 19 degrees of freedom


def test_different_rollouts_choose_independently() -> None:
    both = sum(bucket("r1", f"s{i}") < 2_000 and bucket("r2", f"s{i}") < 2_000 for i in range(20_000))
    assert both == pytest.approx(20_000 * 0.04, rel=0.15)


def test_a_forced_variant_belongs_to_no_rollout() -> None:
    found = route(variants=(Variant("holdback", "oldest", 5.0),))
    assert [found.forced(name) for name in ("champion", "challenger", "holdback", "other", "")] == [
        Choice("old", False),
        Choice("new", True),
        Choice("oldest", True),
        None,
        None,
    ]
    assert route(challenger=None).forced("challenger") is None


@given(subject=st.text(max_size=40), percents=st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_a_subject_stays_in_the_canary_while_the_percentage_grows(
    subject: str, percents: list[float]
) -> None:
    answers = [route(challenger_percent=p).choose(subject).challenger for p in sorted(percents)]
    assert answers == sorted(answers)


@pytest.mark.parametrize(("percent", "expected"), [(0.0, 0), (5.0, 500), (20.0, 2_000), (100.0, 10_000)])
def test_the_challenger_gets_its_share(percent: float, expected: int) -> None:
    chosen = sum(route(challenger_percent=percent).choose(f"s{i}").challenger for i in range(10_000))
    assert chosen == pytest.approx(expected, abs=150 if 0 < percent < 100 else 0)


def test_in_shadow_the_champion_answers_and_the_challenger_gets_a_copy() -> None:
    choice = route(shadow_percent=100.0).choose("subject")
    assert (choice.release, choice.challenger, choice.shadows) == ("old", False, (("new", R1),))


def test_shadow_copies_its_share_of_the_requests() -> None:
    copies = sum(route(shadow_percent=30.0).choose(f"s{i}").shadows == (("new", R1),) for i in range(10_000))
    assert copies == pytest.approx(3_000, abs=150)


def test_an_answer_by_the_challenger_is_not_copied_to_it() -> None:
    assert route(challenger_percent=100.0, shadow_percent=100.0).choose("x").shadows == ()


def test_without_a_challenger_the_champion_answers() -> None:
    choice = route(challenger=None, challenger_percent=50.0).choose("x")
    assert (choice.release, choice.challenger, choice.shadows) == ("old", False, ())


def step(variant: str) -> RolloutStep:
    return RolloutStep(f"m/variants/{variant}", 1)


HOLD = Variant("hold", "old", percent=10.0)
MONTHS = Variant("months", "other", percent=25.0)
COPY = Variant("copy", "third", shadow_percent=40.0)


def test_variants_take_their_shares_in_order_and_keep_their_subjects() -> None:
    subjects = [f"s{i}" for i in range(20_000)]
    routed = route(challenger_percent=50.0, variants=(HOLD, MONTHS))
    groups = {subject: routed.choose(subject).step.rollout for subject in subjects}
    for subject in subjects:
        held = bucket("m/variants/hold", subject) < 1_000
        in_months = bucket("m/variants/months", subject) < 2_500
        expected = "m/variants/hold" if held else "m/variants/months" if in_months else "r1"
        assert groups[subject] == expected
    shares = {group: list(groups.values()).count(group) / 20_000 for group in set(groups.values())}
    assert shares["m/variants/hold"] == pytest.approx(0.1, abs=0.01)
    assert shares["m/variants/months"] == pytest.approx(0.9 * 0.25, abs=0.01)
    without_rollout = route(challenger=None, rollout="", variants=(HOLD, MONTHS))
    kept = [s for s in subjects if without_rollout.choose(s).step.rollout == "m/variants/hold"]
    assert kept == [s for s in subjects if groups[s] == "m/variants/hold"]


def test_a_holdback_answers_with_the_champion_and_is_in_no_rollout() -> None:
    everyone = route(challenger_percent=100.0, shadow_percent=100.0, variants=(Variant("h", "old", 100.0),))
    choice = everyone.choose("x")
    assert (choice.release, choice.challenger, choice.step.rollout) == ("old", False, "m/variants/h")
    assert choice.shadows == ()


def test_several_shadows_get_copies_but_never_of_their_own_answers() -> None:
    copy_all = (Variant("a", "third", shadow_percent=100.0), Variant("b", "fourth", shadow_percent=100.0))
    both = route(shadow_percent=100.0, variants=copy_all).choose("x")
    assert (both.release, both.shadows) == (
        "old",
        (("new", R1), ("third", step("a")), ("fourth", step("b"))),
    )
    mine = Variant("a", "third", percent=100.0, shadow_percent=100.0)
    answered = route(variants=(mine, copy_all[1])).choose("x")
    assert (answered.release, answered.challenger, answered.shadows) == (
        "third",
        True,
        (("fourth", step("b")),),
    )
    copies = sum(bool(route(variants=(COPY,)).choose(f"s{i}").shadows) for i in range(10_000))
    assert copies == pytest.approx(4_000, abs=250)
