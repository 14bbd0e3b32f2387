"""Golden pairs: a configuration and, beside it, what it means or what is wrong with it, as text.

`python -m tests.config.golden` writes every expectation anew, for a person to
read the difference before it is believed.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from fastfwd.config.check import check
from fastfwd.config.directives import FILES, LIMITS, SETTINGS, WITHOUT_MEANING
from fastfwd.config.parse import parse
from fastfwd.model import AccessRule, Address, Backend, Balance, Config, Forward, Rate

HERE = Path(__file__).parent
VALID = sorted((HERE / "valid").glob("*.conf"))
INVALID = sorted((HERE / "invalid").glob("*.conf"))

SERVICES = {("http", "tcp"): 80, ("www", "tcp"): 80, ("domain", "tcp"): 53, ("domain", "udp"): 53}
SERVICES |= {("tftp", "udp"): 69}


TOLD = {"listen", "backends", "origin", "timeout", "rules"}
"""Fields of a forward that have a place of their own in its line."""


def service(name: str, protocol: str) -> int:
    """getservbyname(3) of a machine that knows a few services only."""
    try:
        return SERVICES[name, protocol]
    except KeyError:
        raise OSError("service/proto not found") from None


def loopback(address: Address) -> bool:
    """`is_local` of a machine that has nothing but its loopback interface."""
    return address.text.startswith("127.") or address.text == "::1"


def meaning(data: bytes) -> str:
    """What a good configuration says, without its spelling."""
    config, problems = parse(data, "file", service=service)
    assert not problems, problems
    lines = [*map(_rule, config.rules)]
    for forward in config.forwards:
        lines += [_forward(forward), *(f"    {_rule(rule)}" for rule in forward.rules)]
    lines += _settings(config)
    lines += [f"warning {warning.origin.line}: {warning.message}" for warning in config.warnings]
    return "".join(f"{line}\n" for line in lines)


def errors(data: bytes) -> str:
    """Every problem of a bad configuration, nothing resolved."""
    config, problems = parse(data, "file", service=service)
    problems += check(config, addresses={}, is_local=loopback)
    problems.sort(key=lambda problem: problem.origin.line)
    return "".join(f"{problem.origin.line}: {problem.message}\n" for problem in problems)


def expectation(conf: Path) -> Path:
    """The other file of the pair."""
    return conf.with_suffix(".txt")


def _rule(rule: AccessRule) -> str:
    return f"{'allow' if rule.allow else 'deny'} {rule.pattern}"


def _forward(forward: Forward) -> str:
    """Where it listens, its backends, its timeout, and every other field that is not its default."""
    targets = ", ".join(map(_backend, forward.backends))
    text = f"{forward.origin.line}: {forward.listen} -> {targets}, timeout {forward.timeout}"
    for each in fields(Forward):
        value = getattr(forward, each.name)
        if each.name not in TOLD and value != each.default:
            text += f", {each.name.replace('_', '-')} {_shown(value)}"
    return text


def _backend(backend: Backend) -> str:
    text = str(backend.endpoint)
    if backend.weight != 1:
        text += f" * {backend.weight}"
    text += "".join(f", source {each}" for each in backend.sources)
    return text if backend.dns_refresh is None else f"{text}, dns-refresh {backend.dns_refresh}"


def _shown(value: object) -> str:
    if isinstance(value, Rate):
        return f"{value.count} in {value.seconds} s"
    return str(value.value if isinstance(value, Balance) else value)


def _settings(config: Config) -> list[str]:
    values = {word: getattr(config, setting.field) for word, setting in SETTINGS.items()}
    values |= {word: getattr(config.limits, setting.field) for word, setting in LIMITS.items()}
    values |= {word: getattr(config, field) for word, field in FILES.items()}
    values |= {"logformat": config.logformat.value, "logduration": config.logduration}
    values |= {"metrics": config.metrics} | dict.fromkeys(WITHOUT_MEANING)
    return [f"{line.line}: {name} {values[name]}" for name, line in config.origins.items()]


def main() -> None:
    """Write every expectation anew."""
    for paths, render in (VALID, meaning), (INVALID, errors):
        for conf in paths:
            expectation(conf).write_text(render(conf.read_bytes()), encoding="utf-8")


if __name__ == "__main__":
    main()
