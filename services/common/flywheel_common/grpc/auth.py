"""Authentication and authorization of calls.

`auth_mode=open` (loopback only): every caller is anonymous and has every role. `auth_mode=jwt`: callers send
a bearer token, and the table in the `permissions.py` of the service gives the roles that each method
requires. A method without a row is denied. docs/reference/permissions.md is generated from these tables.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from flywheel_common.config import ServiceSettings, split_address
from flywheel_common.context import ANONYMOUS, ROLE_ANY, Principal, actor, current_principal
from flywheel_common.grpc.errors import (
    ExpiredToken,
    InvalidToken,
    MissingToken,
    RoleRequired,
    SigningKeysUnavailable,
)

__all__ = [
    "ADMIN",
    "APPROVE",
    "ATTEMPT",
    "AUTHENTICATED",
    "MEASURE",
    "OPERATE",
    "PROMOTE",
    "PUBLIC",
    "READ",
    "REPORT",
    "RESUME",
    "WRITE",
    "Authenticator",
    "OpenAuthenticator",
    "Permission",
    "Permissions",
    "Principal",
    "actor",
    "authenticator",
    "current_principal",
    "missing_rows",
    "require_role",
]

Permission = frozenset[str]
"""A set of roles: a caller needs one of them."""
Permissions = Mapping[str, Permission]
"""Full method (`/package.Service/Method`) → Permission."""

READ: Permission = frozenset({"viewer", "editor", "operator", "admin", "service"})
WRITE: Permission = frozenset({"editor", "operator", "admin", "service"})
REPORT: Permission = WRITE | {"attempt"}
"""Those who may write, and attempts of training jobs, which have tokens of the trainer for their metrics."""
ATTEMPT: Permission = frozenset({"attempt"})
"""To store what only an attempt of a job knows."""
RESUME: Permission = READ | ATTEMPT
"""To read what an attempt of a job needs to continue an earlier one."""
OPERATE: Permission = frozenset({"operator", "admin", "service"})
PROMOTE: Permission = OPERATE | {"promoter"}
"""To change what answers callers. A promoter has this beside another role, such as editor."""
MEASURE: Permission = frozenset({"service"})
"""To report what only a service measures."""
APPROVE: Permission = PROMOTE - MEASURE
"""To approve what others have made: people, no services."""
ADMIN: Permission = frozenset({"admin"})
AUTHENTICATED: Permission = frozenset({ROLE_ANY})
"""Any authenticated caller."""
PUBLIC: Permission = frozenset({ROLE_ANY, "public"})
"""Everyone, without credentials."""


class Authenticator(Protocol):
    """Turns the `authorization` metadata (empty when absent) into a Principal, before the request is parsed.

    Raises MissingToken, InvalidToken, ExpiredToken or SigningKeysUnavailable.
    """

    open: bool

    async def authenticate(self, authorization: str) -> Principal: ...


class OpenAuthenticator:
    """Accepts every caller as ANONYMOUS, which has every role."""

    open = True

    async def authenticate(self, authorization: str) -> Principal:
        return ANONYMOUS


class JwtAuthenticator:
    """Verifies signature, audience, issuer and expiry with PyJWT; caches verified tokens until they
    expire."""

    open = False
    _CACHE_SIZE = 4096

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        algorithms: Iterable[str],
        key: str | bytes | None = None,
        jwks_url: str = "",
        roles_claim: str = "roles",
    ) -> None:
        import jwt

        self._jwt = jwt
        self._issuer, self._audience, self._algorithms = issuer, audience, list(algorithms)
        self._key, self._roles_claim = key, roles_claim
        self._jwks = jwt.PyJWKClient(jwks_url, cache_keys=True, timeout=5) if jwks_url else None
        self._verified: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    async def authenticate(self, authorization: str) -> Principal:
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise MissingToken("Send metadata `authorization: Bearer <token>`.")
        known = self._verified.get(token)
        if known is not None and known[1] > time.time():
            return known[0]
        claims = await self._verify(token)
        roles = claims.get(self._roles_claim) or ()
        principal = Principal(
            str(claims["sub"]), frozenset([roles] if isinstance(roles, str) else map(str, roles)) - {ROLE_ANY}
        )
        self._verified[token] = (principal, float(claims["exp"]))
        if len(self._verified) > self._CACHE_SIZE:
            self._verified.popitem(last=False)
        return principal

    async def _verify(self, token: str) -> dict[str, Any]:
        jwt = self._jwt
        try:
            key: Any = self._key
            if self._jwks is not None:
                import asyncio

                key = (await asyncio.to_thread(self._jwks.get_signing_key_from_jwt, token)).key
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise ExpiredToken("The token has expired: fetch a new one.") from None
        except jwt.PyJWKClientConnectionError:
            raise SigningKeysUnavailable("The signing keys cannot be fetched now: try again.") from None
        except jwt.PyJWTError:
            raise InvalidToken(
                "The token is not valid for this service: check its signature, issuer and audience."
            ) from None
        return claims


def authenticator(settings: ServiceSettings) -> Authenticator:
    """The authenticator that the settings select. Raises ValueError if they are unsafe or incomplete."""
    if settings.auth_mode == "open":
        if not settings.auth_open_anywhere and not _is_loopback(split_address(settings.listen)[0]):
            raise ValueError(
                f"auth_mode=open on {settings.listen} would accept every caller: listen on 127.0.0.1, "
                "set auth_mode=jwt, or set auth_open_anywhere=true inside a closed network."
            )
        return OpenAuthenticator()
    missing = [name for name in ("jwt_issuer", "jwt_audience") if not getattr(settings, name)]
    if (settings.jwt_key_file is None) == (not settings.jwt_jwks_url):
        missing.append("exactly one of jwt_key_file and jwt_jwks_url")
    if missing:
        raise ValueError(f"auth_mode=jwt needs {', '.join(missing)}.")
    key = settings.jwt_key_file.read_bytes().strip() if settings.jwt_key_file is not None else None
    return JwtAuthenticator(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        algorithms=settings.jwt_algorithms,
        key=key,
        jwks_url=settings.jwt_jwks_url,
        roles_claim=settings.jwt_roles_claim,
    )


def authorize(principal: Principal, permission: Permission | None, method: str) -> None:
    """Raises RoleRequired unless the principal has the permission; `None` (no row in the table) is denied."""
    if permission is None or (ROLE_ANY not in permission and permission.isdisjoint(principal.roles)):
        why = "the method has no entry in the permission table"
        if permission is not None:
            why = f"it requires one of the roles {sorted(permission)}"
        raise RoleRequired(f"{principal.subject} may not call {method}: {why}.", method=method)


def require_role(permission: Permission, action: str) -> None:
    """Checks the caller of the current call, for decisions inside a method. Raises RoleRequired."""
    principal = current_principal()
    if ROLE_ANY in principal.roles or not permission.isdisjoint(principal.roles):
        return
    raise RoleRequired(f"{action} requires one of the roles {sorted(permission)}.", action=action)


def missing_rows(methods: Iterable[str], permissions: Permissions) -> list[str]:
    """Methods without a row in the table; a test of each service asserts that there are none."""
    return sorted(set(methods) - set(permissions))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
