"""Generates docs/reference/errors.md, permissions.md and types.md from the code.

python docs/reference/generate.py            writes the files
python docs/reference/generate.py --check    changes nothing; lists problems and exits with status 1

Error reasons come from the classes in every `errors.py`, permissions from the table in every
`permissions.py`, conversions from the rules in `flywheel_common.conversion`.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from flywheel_common import conversion
from flywheel_common.errors import BY_CODE, FlywheelError
from flywheel_common.grpc import auth
from flywheel_protos.types.v1 import value_pb2

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SOURCES = ("services", "sdk", "deploy", "examples", "bench", "tests")
ErrorClass = type[FlywheelError]


def packages() -> list[Path]:
    """The folders of the importable packages of all services, and of the code that they share."""
    return sorted(p.parent for p in ROOT.glob("services/**/flywheel_*/__init__.py"))


def module_name(path: Path) -> str:
    """`services/feature/flywheel_feature/online/errors.py` → `flywheel_feature.online.errors`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[next(i for i, part in enumerate(parts) if part.startswith("flywheel_")) :])


def error_classes() -> list[ErrorClass]:
    """Every error class that an `errors.py` defines, the classes of status codes excluded."""
    found: list[ErrorClass] = []
    for path in sorted(path for package in packages() for path in package.rglob("errors.py")):
        module = importlib.import_module(module_name(path))
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        found += [
            cls for cls in classes if issubclass(cls, FlywheelError) and cls.__module__ == module.__name__
        ]
    return [cls for cls in found if cls is not FlywheelError and cls not in BY_CODE.values()]


def package_of(cls: ErrorClass) -> str:
    """`flywheel_feature` of a class that the feature service defines."""
    return cls.__module__.partition(".")[0]


def meaning(cls: ErrorClass) -> str:
    """The class's own docstring on one line."""
    return " ".join(str(vars(cls).get("__doc__") or "").split())


def remedy(cls: ErrorClass) -> str:
    """What the caller can do, as the class itself states it."""
    return str(vars(cls).get("remedy", ""))


def class_problems(classes: list[ErrorClass]) -> Iterator[str]:
    """Classes without a reason, docstring or remedy, and reasons with two descriptions in one package."""
    first: dict[tuple[object, ...], ErrorClass] = {}
    for cls in (*BY_CODE.values(), *classes):
        name = f"{cls.__module__}.{cls.__name__}"
        if "reason" not in vars(cls):
            if not cls.__subclasses__():
                yield f"{name} has no `reason`"
            continue
        if not meaning(cls):
            yield f"{name} has no docstring (the meaning of {cls.reason})"
        if not remedy(cls):
            yield f"{name} has no `remedy`"
        other = first.setdefault((package_of(cls), cls.reason, cls.code), cls)
        if (meaning(other), remedy(other)) != (meaning(cls), remedy(cls)):
            yield (
                f"{cls.reason} has two descriptions; make them equal or use one class:\n"
                f"    {other.__module__}.{other.__name__}: {meaning(other)} {remedy(other)}\n"
                f"    {name}: {meaning(cls)} {remedy(cls)}"
            )


def source_problems(classes: list[ErrorClass]) -> Iterator[str]:
    """Calls that pass `reason=` to an error class, and error classes defined outside an `errors.py`."""
    names = {cls.__name__ for cls in (FlywheelError, *BY_CODE.values(), *classes)}
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if "reason" not in text:
            continue
        in_tests = path.is_relative_to(ROOT / "tests")
        for node in ast.walk(ast.parse(text)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and called_name(node.func) in names:
                if any(keyword.arg == "reason" for keyword in node.keywords):
                    yield f"{where}: raise a class that has this reason instead of passing `reason=`"
            elif isinstance(node, ast.ClassDef) and path.name != "errors.py" and not in_tests:
                bases = {called_name(base) for base in node.bases}
                if bases & names and "reason" in assigned_names(node):
                    yield f"{where}: move {node.name} to an errors.py"


def called_name(node: ast.expr) -> str:
    """`NotFound` of `NotFound` and of `errors.NotFound`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def assigned_names(node: ast.ClassDef) -> set[str]:
    """The names that the body of a class assigns."""
    targets = [t for item in node.body if isinstance(item, ast.Assign) for t in item.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, ("---",) * len(head), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def errors_page(classes: list[ErrorClass]) -> str:
    """The text of errors.md: one table per package."""
    by_package: dict[str, dict[tuple[str, str], ErrorClass]] = {}
    for cls in classes:
        if "reason" in vars(cls):
            by_package.setdefault(package_of(cls), {}).setdefault((cls.reason, cls.code.name), cls)
    lines = [
        "# Error reasons",
        "",
        "An error response carries a `google.rpc.Status` with one `ErrorInfo` of domain `flywheel`. Its",
        "`reason` is part of the API: match on it, not on the message. The metadata of the `ErrorInfo`",
        "holds the values that the message is about. A service also passes on reasons of the services that",
        "it calls. This page is generated by `make reference`.",
    ]
    for package, reasons in by_package.items():
        rows = [
            (f"`{key[0]}`", key[1], meaning(reasons[key]), remedy(reasons[key])) for key in sorted(reasons)
        ]
        name = package.removeprefix("flywheel_")
        lines += ["", f"## {'All services' if name == 'common' else name}", ""]
        lines += table(("Reason", "Status", "Meaning", "What to do"), rows)
    general = [(f"`{cls.reason}`", meaning(cls), remedy(cls)) for cls in BY_CODE.values()]
    lines += ["", "## Without a specific reason", ""]
    lines += ["An error that has no reason of its own uses the name of its status code.", ""]
    lines += table(("Reason and status", "Meaning", "What to do"), general)
    return "\n".join([*lines, ""])


def roles(permission: auth.Permission) -> str:
    """The roles of which a caller needs one, in words."""
    if permission == auth.PUBLIC:
        return "everyone, without credentials"
    return "any authenticated caller" if permission == auth.AUTHENTICATED else ", ".join(sorted(permission))


STORED_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8 to int64, uint8 to uint32": pa.int64(),
    "uint64": pa.uint64(),
    "half, float, double": pa.float64(),
    "decimal": pa.decimal128(38, 2),
    "string, large_string, string_view": pa.string(),
    "binary, fixed_size_binary, binary_view": pa.binary(),
    "timestamp (s, ms, us, ns; with or without zone)": pa.timestamp("us"),
    "date32, date64": pa.date32(),
    "time, duration": pa.time64("us"),
    "struct, map, union": pa.struct([("a", pa.int64())]),
    "null": pa.null(),
}


FILES_OF_TABLES = (
    "## Files of tables",
    "",
    "Materialization and training sets read the files of a source by the same rules.",
    "",
    "| Files | Rule |",
    "| --- | --- |",
    "| `s3://bucket/t`, `s3://bucket/t/`, `s3://bucket//t/` | the same table |",
    "| Names that do not end in `.parquet` | not read |",
    "| Files and folders that begin with `_` or `.` | not read, except Hive folders like `_day=3` |",
    "| A Delta table | the files of its newest version, as its log lists them |",
    "| `store=01` as a folder, and a column `store` in the file | the column |",
    "| A column that only some files have | null in the other files, in any order |",
    "| A join key or the event time missing in a file | the file is refused |",
    "| A field that no file has | the table is refused |",
    "| Two columns of one name | the file is refused, if a field reads the column |",
    "| Text that is not UTF-8 | the file is refused |",
    '| A mapped field (`columns={"Order Amount": "order_amount"}`) | the mapped column or folder |',
    "| A mapped field, and a column with the name of the field | the file is refused |",
    "",
    "A materialization leaves out a refused file, names it in `FILES_LEFT_OUT` and reads all others. A",
    "training set fails with the reason and names the file. Names are compared exactly, with upper and",
    "lower case. A decimal of 256 bits with more than 38 digits becomes the nearest float; if this float",
    "is whole and the decimal is not, the file is refused.",
)
"""How the files of a table are read (flywheel_feature.tables), for types.md."""


def types_page() -> str:
    """The text of types.md, from the rules of flywheel_common.conversion."""
    declared = [int(data_type) for data_type in conversion.ARROW_TYPES]
    names = [value_pb2.DataType.Name(d).removeprefix("DATA_TYPE_") for d in declared]
    rows = [
        (stored, *(conversion.rule_text(arrow, data_type) for data_type in declared))
        for stored, arrow in STORED_TYPES.items()
    ]
    lines = [
        "# Stored types and declared types",
        "",
        "A value arrives exactly or is refused with its column, row and value: reason `WRONG_TYPE`,",
        "for tables `SOURCE_MISMATCH`, for spines `WRONG_SPINE`. The rules hold for pushes, online",
        "requests, events, Parquet and Delta files, folder names and spines. This page is generated by",
        "`make reference`.",
        "",
        *table(("Stored \\ declared", *names), rows),
        "",
        "- NaN is null, in every column of floats. A column without a single value fits every type.",
        "- Infinity, times outside the years 1642 to 2100 and values of more than 256 KiB are refused in",
        "  pushes and in tables.",
        "- Naive times are UTC.",
        "- Dictionary and run-length encoded columns and extension types count as the type of their values.",
        "- Lists of every kind become lists or vectors; their elements follow the table. A null or NaN",
        "  inside a list is refused, as is a vector of another size than declared.",
        "- Names of Hive folders are text, which is parsed as the declared type: `store=01` is `01` for",
        "  STRING and 1 for INT64.",
        "- Without a declared type (a push without a schema) integers and decimals of scale 0 are INT64,",
        "  other decimals FLOAT64, half floats FLOAT32, dates TIMESTAMP.",
        "",
        *FILES_OF_TABLES,
    ]
    return "\n".join([*lines, ""])


def permissions_page() -> tuple[str, list[str]]:
    """The text of permissions.md, and the services that have no table."""
    names = {
        value: key for key, value in vars(auth).items() if key.isupper() and isinstance(value, frozenset)
    }
    sections, problems = [], []
    for package in packages():
        if package.name in {"flywheel_common", "flywheel_job"}:
            continue
        if not (package / "permissions.py").exists():
            problems.append(f"{package.relative_to(ROOT)} has no permissions.py")
            continue
        module = importlib.import_module(f"{package.name}.permissions")
        permissions = module.PERMISSIONS
        rows: dict[str, list[tuple[str, ...]]] = {}
        for method, permission in permissions.items():
            service, _, name = method.lstrip("/").partition("/")
            rows.setdefault(service, []).append((f"`{name}`", names[permission], roles(permission)))
        for service, of_service in rows.items():
            sections += [
                "",
                f"## {service}",
                "",
                *table(("Method", "Permission", "Roles that have it"), of_service),
            ]
        if of_request := getattr(module, "REQUEST_PERMISSIONS", {}):
            rows_of_requests = [(what, names[needed], roles(needed)) for what, needed in of_request.items()]
            sections += ["", "Beside the method's permission, a request needs:", ""]
            sections += table(("Request", "Permission", "Roles that have it"), rows_of_requests)
    head = [
        "# Permissions",
        "",
        "With `auth_mode=jwt` a caller needs one of the roles of a method; a method without a row is denied.",
        "With `auth_mode=open` every caller has every role. This page is generated from the `permissions.py`",
        "of each service by `make reference`.",
    ]
    return "\n".join([*head, *sections, ""]), problems


def main() -> int:
    """Writes or checks the pages; returns the exit status."""
    classes = error_classes()
    permissions, problems = permissions_page()
    problems += [*class_problems(classes), *source_problems(classes)]
    pages = {"errors.md": errors_page(classes), "permissions.md": permissions, "types.md": types_page()}
    for name, text in pages.items():
        path = HERE / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            problems.append(f"{path.relative_to(ROOT)} is out of date: run `make reference`")
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
