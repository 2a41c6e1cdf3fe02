"""The SQL that an expression may use: functions of one row, and no queries, clocks or comments."""

from __future__ import annotations

import re

from flywheel_feature.expressions.errors import InvalidExpression

MAX_SQL_CHARACTERS = 4000

ROW_FUNCTIONS = frozenset(
    [
        *("ABS", "CEIL", "CEILING", "FLOOR", "ROUND", "SIGN", "SQRT", "CBRT", "EXP", "LN", "LOG", "LOG2"),
        *("LOG10", "LOG1P", "POW", "POWER", "MOD", "DIV", "PI", "SIN", "COS", "TAN", "COT", "ASIN", "ACOS"),
        *("ATAN", "ATAN2", "SIND", "COSD", "TAND", "DEGREES", "RADIANS"),
        *("COALESCE", "IFNULL", "NULLIF", "IF", "GREATEST", "LEAST", "TRY_CAST"),
        *("EXTRACT", "DATE_PART", "YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND"),
        *("STRFTIME", "LENGTH", "LEN", "CHAR_LENGTH", "CHARACTER_LENGTH", "OCTET_LENGTH", "UPPER", "LOWER"),
        *("INITCAP", "LTRIM", "RTRIM", "TRIM", "BTRIM", "LEFT", "RIGHT", "SUBSTR", "SUBSTRING", "REPLACE"),
        *("REVERSE", "CONCAT", "CONCAT_WS", "STARTS_WITH", "ENDS_WITH", "STRPOS", "SPLIT_PART"),
        *("REGEXP_LIKE", "POSITION"),
        *("ARRAY_LENGTH", "ARRAY_GET", "ARRAY_CONTAINS", "ARRAY_SUM", "ARRAY_MEAN", "ARRAY_UPPER"),
        *("ARRAY_LOWER", "BIT_AND", "BIT_OR", "BIT_XOR", "BIT_COUNT"),
    ]
)
"""Functions of one row.

All others are refused, so that a new aggregate function of Polars is not allowed by accident.
"""

_BEFORE_BRACKET = frozenset(
    [
        *("AND", "OR", "NOT", "XOR", "IN", "WHEN", "THEN", "ELSE", "CASE", "BETWEEN", "LIKE", "ILIKE", "IS"),
        *("END", "FROM", "DECIMAL", "NUMERIC", "VARCHAR", "CHAR"),
    ]
)
"""Words that may stand before a bracket although they are not functions."""
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


def checked_sql(name: str, sql: str) -> str:
    """The text with CAST replaced by TRY_CAST. Raises InvalidExpression for text that is not allowed."""
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
                f"{name}: function {word} is not allowed: an expression may use these functions of one row: "
                f"{', '.join(sorted(ROW_FUNCTIONS))}.",
                expression=name,
            )
        out.append(text)
    return "".join(out)
