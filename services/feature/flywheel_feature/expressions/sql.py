"""SQL expressions over the columns of one row: on-demand features, stream filters and labels.

The same compiled text runs over a training table and over the rows of one request, so an expression may only
look at its own row: aggregates, window functions, subqueries and clocks are refused, and 1 row gives what n rows give.

Dialect: Polars SQL. Null in, null out, as SQL has it; `COALESCE`, `CASE`, `IS NULL` say otherwise, and `GREATEST`, `LEAST`
and `CONCAT` skip nulls. `CAST` means `TRY_CAST`: a value that cannot be converted becomes null, so that one bad row cannot
fail the others. A result that is not a number (0/0) is null.
Timestamps are UTC; `TIMESTAMP '2013-01-01 00:00:00'` is read as UTC too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.frame_types import TIMESTAMP, polars_type, same_kind

MAX_SQL_CHARACTERS = 4000

ROW_FUNCTIONS = frozenset(
    [
        "ABS",
        "CEIL",
        "CEILING",
        "FLOOR",
        "ROUND",
        "SIGN",
        "SQRT",
        "CBRT",
        "EXP",
        "LN",
        "LOG",
        "LOG2",
        "LOG10",
        "LOG1P",
        "POW",
        "POWER",
        "MOD",
        "DIV",
        "PI",
        "SIN",
        "COS",
        "TAN",
        "COT",
        "ASIN",
        "ACOS",
        "ATAN",
        "ATAN2",
        "SIND",
        "COSD",
        "TAND",
        "DEGREES",
        "RADIANS",
        "COALESCE",
        "IFNULL",
        "NULLIF",
        "IF",
        "GREATEST",
        "LEAST",
        "TRY_CAST",
        "EXTRACT",
        "DATE_PART",
        "YEAR",
        "QUARTER",
        "MONTH",
        "WEEK",
        "DAY",
        "HOUR",
        "MINUTE",
        "SECOND",
        "STRFTIME",
        "LENGTH",
        "LEN",
        "CHAR_LENGTH",
        "CHARACTER_LENGTH",
        "OCTET_LENGTH",
        "UPPER",
        "LOWER",
        "INITCAP",
        "LTRIM",
        "RTRIM",
        "TRIM",
        "BTRIM",
        "LEFT",
        "RIGHT",
        "SUBSTR",
        "SUBSTRING",
        "REPLACE",
        "REVERSE",
        "CONCAT",
        "CONCAT_WS",
        "STARTS_WITH",
        "ENDS_WITH",
        "STRPOS",
        "SPLIT_PART",
        "REGEXP_LIKE",
        "POSITION",
        "ARRAY_LENGTH",
        "ARRAY_GET",
        "ARRAY_CONTAINS",
        "ARRAY_SUM",
        "ARRAY_MEAN",
        "ARRAY_UPPER",
        "ARRAY_LOWER",
        "BIT_AND",
        "BIT_OR",
        "BIT_XOR",
        "BIT_COUNT",
    ]
)
"""Functions of one row. Everything else is refused, so that a new aggregate of the engine is never let in by accident."""

_BEFORE_BRACKET = frozenset(
    [
        "AND",
        "OR",
        "NOT",
        "XOR",
        "IN",
        "WHEN",
        "THEN",
        "ELSE",
        "CASE",
        "BETWEEN",
        "LIKE",
        "ILIKE",
        "IS",
        "END",
        "FROM",
        "DECIMAL",
        "NUMERIC",
        "VARCHAR",
        "CHAR",
    ]
)
_FORBIDDEN_WORDS = {
    **dict.fromkeys(
        ("OVER", "PARTITION", "WINDOW", "WITHIN", "DISTINCT", "FILTER"), "it looks at other rows"
    ),
    **dict.fromkeys(
        ("SELECT", "UNION", "WITH", "EXISTS", "UNNEST", "JOIN"), "it is a query, not an expression"
    ),
    **dict.fromkeys(
        ("CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "LOCALTIME", "LOCALTIMESTAMP"),
        "it reads the clock; use a request field for the time of the request",
    ),
}
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*"|`[^`]*`)|(?P<comment>--|/\*)|(?P<cast>::)
      |(?P<word>[A-Za-z_][A-Za-z_0-9]*)|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


class InvalidExpression(InvalidArgument):
    """The text is not an expression that may run; the message says why and what to write instead."""

    reason = "INVALID_EXPRESSION"


def _checked_sql(name: str, sql: str) -> str:
    """The text with CAST made TRY_CAST. Raises InvalidExpression for what must not run."""
    if not sql.strip():
        raise InvalidExpression(f"{name}: the expression is empty.", expression=name)
    if len(sql) > MAX_SQL_CHARACTERS:
        raise InvalidExpression(
            f"{name}: the expression is longer than {MAX_SQL_CHARACTERS} characters.", expression=name
        )
    tokens = [(m.lastgroup or "other", m.group()) for m in _TOKEN.finditer(sql)]
    out: list[str] = []
    for index, (kind, text) in enumerate(tokens):
        if kind == "comment":
            raise InvalidExpression(f"{name}: comments are not allowed in an expression.", expression=name)
        if kind == "cast":
            raise InvalidExpression(f"{name}: write CAST(x AS type) instead of x::type.", expression=name)
        if kind != "word":
            out.append(text)
            continue
        word = text.upper()
        after = next((t for _, t in tokens[index + 1 :] if not t.isspace()), "")
        if word in _FORBIDDEN_WORDS:
            raise InvalidExpression(
                f"{name}: {word} is not allowed: {_FORBIDDEN_WORDS[word]}.", expression=name
            )
        if word == "CAST":
            word = text = "TRY_CAST"
        if after == "(" and word not in ROW_FUNCTIONS and word not in _BEFORE_BRACKET:
            raise InvalidExpression(
                f"{name}: function {word} is not allowed: an expression sees one row and has these functions: "
                f"{', '.join(sorted(ROW_FUNCTIONS))}.",
                expression=name,
            )
        out.append(text)
    return "".join(out)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _probe(schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Three rows of nulls: shows at compile time what fails on real rows."""
    return pl.DataFrame({name: pl.Series([None] * 3, dtype=dtype) for name, dtype in schema.items()})


IN_TURN_ROWS = 4096
"""Up to so many rows expressions are computed one after the other: waking threads for them takes longer than the work."""


@dataclass(frozen=True, slots=True)
class CompiledExpressions:
    """Expressions ready to run. Immutable and safe to share between threads."""

    names: tuple[str, ...]
    input_columns: tuple[str, ...]
    """Columns that `evaluate` needs, in order of first use."""
    output_schema: dict[str, pl.DataType]
    _prepare: tuple[pl.Expr, ...]
    _select: tuple[pl.Expr, ...]

    def evaluate(self, frame: pl.DataFrame) -> pl.DataFrame:
        """One column per expression, rows as in `frame` (0, 1 or many; other columns are ignored).

        Input columns must have the compiled types; timestamps may be in any time zone (naive ones are UTC). NaN becomes null.
        Raises InvalidExpression naming what is missing.
        """
        answer = self.compute(frame)
        floats = [name for name, dtype in self.output_schema.items() if dtype.is_float()]
        return answer.with_columns(pl.col(floats).fill_nan(None)) if floats else answer

    def compute(self, frame: pl.DataFrame) -> pl.DataFrame:
        """`evaluate` for those who take NaN for null themselves: asking for it here costs a few rows more than all else."""
        if not self.names:
            return pl.DataFrame(height=frame.height)
        if frame.height == 1:
            # To Polars a column of one row is a constant, which it computes another way: x / 3 of a column is x times the inverse.
            twice = [pl.concat([s, s]) for s in frame.get_columns() if s.name in self.input_columns]
            return self.compute(pl.DataFrame(twice)).head(1)
        try:
            if frame.height > IN_TURN_ROWS:
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
    """Compile `(name, data type, SQL)` over columns of the given data types (definitions.DataType or its numbers).

    Raises InvalidExpression: bad SQL, unknown column, another row looked at, or a result of another kind than declared
    (any number fits FLOAT32/FLOAT64, only whole ones INT64). Results are cast to the declared type.
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
    # A cast between time zones keeps the instant; naive timestamps are taken as UTC.
    return pl.col(column).cast(TIMESTAMP).dt.replace_time_zone(None)


def _compile_one(name: str, sql: str, schema: Mapping[str, pl.DataType]) -> tuple[pl.Expr, list[str]]:
    text = _checked_sql(name, sql)
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
            f"{name}: unknown column {unknown[0]!r}; there are: {', '.join(schema) or 'none'}.",
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
            f"{name}: it gives {found.height} rows for {probe.height}: it must look at one row only.",
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
    """A condition on one row; the result's only column is a BOOL called `name`. Null counts as not true."""
    return compile_expressions([(name, 1, sql)], input_schema)


def compile_label(sql: str, input_schema: Mapping[str, int], *, name: str = "label") -> CompiledExpressions:
    """A label: a number or BOOL of one row, answered as FLOAT64 (true = 1). Null means unlabelled."""
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
