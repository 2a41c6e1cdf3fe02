"""SQL expressions over the columns of one row: on-demand features, stream filters and labels.

The same compiled expression runs over a training table and over the rows of one request. So an expression
reads only its own row (no aggregates, window functions, subqueries or clocks), and a row has the same result
alone and among others.

Dialect: Polars SQL. Null in, null out, except for `COALESCE`, `CASE` and `IS NULL`; `GREATEST`, `LEAST` and
`CONCAT` skip nulls. `CAST` means `TRY_CAST`: a value that cannot be converted becomes null, so that one bad
row does not fail the others. NaN (0/0) becomes null. Timestamps are UTC, also `TIMESTAMP '2013-01-01
00:00:00'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from flywheel_feature.definitions.frame_types import TIMESTAMP, polars_type, same_kind
from flywheel_feature.expressions.allowed_sql import checked_sql
from flywheel_feature.expressions.errors import InvalidExpression

SEQUENTIAL_ROWS = 4096
"""Up to this many rows, expressions run one after the other: starting threads takes longer than the work."""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _probe(schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Three rows of nulls: an expression that fails on them is refused at compile time."""
    return pl.DataFrame({name: pl.Series([None] * 3, dtype=dtype) for name, dtype in schema.items()})


@dataclass(frozen=True, slots=True)
class CompiledExpressions:
    """Expressions that are ready to run. Immutable and safe to share between threads."""

    names: tuple[str, ...]
    input_columns: tuple[str, ...]
    """Columns that `evaluate` needs, in order of first use."""
    output_schema: dict[str, pl.DataType]
    _prepare: tuple[pl.Expr, ...]
    _select: tuple[pl.Expr, ...]

    def evaluate(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One column per expression and one row per row of `frame`; other columns are ignored.

        Input columns must have the compiled types; timestamps may be in any time zone (naive ones are UTC).
        NaN becomes null. Raises InvalidExpression naming the missing columns.
        """
        result = self.compute(frame)
        floats = [name for name, dtype in self.output_schema.items() if dtype.is_float()]
        return result.with_columns(pl.col(floats).fill_nan(None)) if floats else result

    def compute(self, frame: pl.DataFrame) -> pl.DataFrame:
        """As `evaluate`, but NaN stays: for a few rows, replacing it takes longer than the expressions."""
        if not self.names:
            return pl.DataFrame(height=frame.height)
        if frame.height == 1:
            # Polars treats a column of one row as a constant and computes it differently: x / 3 of a column
            # is x times the inverse of 3. Two equal rows give the same bits as many rows.
            twice = [pl.concat([s, s]) for s in frame.get_columns() if s.name in self.input_columns]
            return self.compute(pl.DataFrame(twice)).head(1)
        try:
            if frame.height > SEQUENTIAL_ROWS:
                inputs = frame.select(*self._prepare) if self._prepare else frame
                return inputs.select(*self._select)
            inputs = frame.select_seq(*self._prepare) if self._prepare else frame
            return inputs.select_seq(*self._select)
        except pl.exceptions.ColumnNotFoundError as error:
            missing = [c for c in self.input_columns if c not in frame.columns]
            raise InvalidExpression(
                f"Columns {missing} are missing: {', '.join(self.names)} read them."
            ) from error
        except pl.exceptions.PolarsError as error:
            raise InvalidExpression(
                f"{', '.join(self.names)} cannot be computed: {_first_line(error)}"
            ) from error


def compile_expressions(
    expressions: Iterable[tuple[str, int, str]],
    input_schema: Mapping[str, int],
    *,
    vector_sizes: Mapping[str, int] | None = None,
) -> CompiledExpressions:
    """Compile `(name, data type, SQL)` over columns of the given data types (definitions.DataType or its
    numbers).

    Raises InvalidExpression for invalid SQL, an unknown column, an expression over several rows, or a result
    that does not have the declared type (FLOAT32 and FLOAT64 accept every number, INT64 only integers).
    Results are cast to the declared type.
    """
    sizes = vector_sizes or {}
    schema = {name: polars_type(kind, sizes.get(name, 0)) for name, kind in input_schema.items()}
    naive = {n: pl.Datetime("us") if t == TIMESTAMP else t for n, t in schema.items()}
    names: list[str] = []
    inputs: dict[str, None] = {}
    selected: list[pl.Expr] = []
    output: dict[str, pl.DataType] = {}
    for name, kind, sql in expressions:
        if name in output:
            raise InvalidExpression(f"{name}: two expressions have this name.", expression=name)
        declared = polars_type(kind, sizes.get(name, 0))
        expr, roots = _compile_one(name, sql, naive)
        selected.append(_typed(name, kind, declared, expr, naive))
        names.append(name)
        output[name] = declared
        inputs.update(dict.fromkeys(roots))
    used = tuple(inputs)
    prepare: tuple[pl.Expr, ...] = ()
    if any(schema[c] == TIMESTAMP for c in used):
        prepare = tuple(_as_naive(c) if schema[c] == TIMESTAMP else pl.col(c) for c in used)
    return CompiledExpressions(tuple(names), used, output, prepare, tuple(selected))


def _as_naive(column: str) -> pl.Expr:
    # A cast between time zones keeps the instant; naive timestamps are UTC.
    return pl.col(column).cast(TIMESTAMP).dt.replace_time_zone(None)


def _compile_one(name: str, sql: str, schema: Mapping[str, pl.DataType]) -> tuple[pl.Expr, list[str]]:
    text = checked_sql(name, sql)
    try:
        expr = pl.sql_expr(text)
        roots = list(dict.fromkeys(expr.meta.root_names()))
    except pl.exceptions.PolarsError as error:
        raise InvalidExpression(
            f"{name}: {sql!r} is not a valid SQL expression: {_first_line(error)}", expression=name
        ) from error
    unknown = [c for c in roots if c not in schema]
    if unknown:
        raise InvalidExpression(
            f"{name}: unknown column {unknown[0]!r}; the columns are: {', '.join(schema) or 'none'}.",
            expression=name,
            column=unknown[0],
        )
    if not roots:
        raise InvalidExpression(
            f"{name}: {sql!r} reads no column, so it is a constant and no feature.", expression=name
        )
    return expr, roots


def _typed(
    name: str, kind: int, declared: pl.DataType, expr: pl.Expr, schema: Mapping[str, pl.DataType]
) -> pl.Expr:
    probe = _probe(schema)
    try:
        found = probe.select(expr.alias(name))
    except pl.exceptions.PolarsError as error:
        raise InvalidExpression(
            f"{name}: the types do not fit: {_first_line(error)}", expression=name
        ) from error
    if found.height != probe.height:
        raise InvalidExpression(
            f"{name}: it gives {found.height} rows for {probe.height}: an expression may read one row only.",
            expression=name,
        )
    actual = found.schema[name]
    if not same_kind(actual, kind):
        raise InvalidExpression(f"{name}: it gives {actual}, but {declared} is declared.", expression=name)
    if isinstance(declared, pl.Datetime):
        return expr.cast(pl.Datetime("us"), strict=False).dt.replace_time_zone("UTC").alias(name)
    return (expr if actual == declared else expr.cast(declared, strict=False)).alias(name)


def compile_predicate(
    sql: str, input_schema: Mapping[str, int], *, name: str = "filter"
) -> CompiledExpressions:
    """Compile a condition on one row to a BOOL column `name`. The caller treats null as false."""
    return compile_expressions([(name, 1, sql)], input_schema)


def compile_label(sql: str, input_schema: Mapping[str, int], *, name: str = "label") -> CompiledExpressions:
    """Compile a label, a number or BOOL of one row, to a FLOAT64 column `name` (true = 1). Null: no label."""
    schema = {
        n: pl.Datetime("us") if (t := polars_type(k, 0)) == TIMESTAMP else t for n, k in input_schema.items()
    }
    expr, roots = _compile_one(name, sql, schema)
    probe = _probe(schema)
    try:
        actual = probe.select(expr.alias(name)).schema[name]
    except pl.exceptions.PolarsError as error:
        raise InvalidExpression(
            f"{name}: the types do not fit: {_first_line(error)}", expression=name
        ) from error
    if not (actual == pl.Boolean or actual.is_numeric() or actual == pl.Null):
        raise InvalidExpression(f"{name}: it gives {actual}; a label is a number or a BOOL.", expression=name)
    prepare: Sequence[pl.Expr] = [
        _as_naive(c) if schema[c] == pl.Datetime("us") else pl.col(c) for c in roots
    ]
    float64: pl.DataType = pl.Float64()
    return CompiledExpressions(
        (name,),
        tuple(roots),
        {name: float64},
        tuple(prepare),
        (expr.cast(float64).alias(name),),
    )
