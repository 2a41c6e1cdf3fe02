"""Conditions of filters on text fields in memory."""

from __future__ import annotations

from flywheel_trainer.runs.filter_terms import Term


def has_text(term: Term, text: str) -> bool:
    """Whether the text of the term's field matches the term."""
    return (text == term.value) == (term.operator == "=")
