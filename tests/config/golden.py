"""Golden pairs: a configuration and, beside it, what it means or what is wrong with it, as text.

`python -m tests.config.golden` writes every expectation anew, for a person to
read the difference before it is believed.
"""

from __future__ import annotations

from pathlib import Path

from fastfwd.config.check import check
from fastfwd.config.parse import parse
from fastfwd.model import AccessRule, Address, Config, Forward

HERE = Path(__file__).parent
VALID = sorted((HERE / "valid").glob("*.conf"))
INVALID = sorted((HERE / "invalid").glob("*.conf"))

SERVICES = {("http", "tcp"): 80, ("www", "tcp"): 80, ("domain", "tcp"): 53, ("domain", "udp"): 53}
SERVICES |= {("tftp", "udp"): 69}


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
    text = f"{forward.origin.line}: {forward.listen} -> {forward.target}, timeout {forward.timeout}"
    for backend in forward.backends:
        text += "".join(f", source {each}" for each in backend.sources)
    if forward.max_connections is not None:
        text += f", max-connections {forward.max_connections}"
    if forward.original_port:
        text += ", the port asked for"
    return text if forward.name is None else f"{text}, name {forward.name}"


def _settings(config: Config) -> list[str]:
    values = {
        "logfile": config.logfile,
        "logformat": config.logformat.value,
        "logduration": config.logduration,
        "pidlogfile": config.pidfile,
        "workers": config.workers,
        "user": config.user,
        "group": config.group,
        "metrics": config.metrics,
        "max-connections": config.limits.connections,
        "max-connections-per-client": config.limits.connections_per_client,
        "connect-timeout": config.limits.connect_timeout,
        "idle-timeout": config.limits.idle_timeout,
        "half-close-timeout": config.limits.half_close_timeout,
    }
    return [f"{line.line}: {name} {values[name]}" for name, line in config.origins.items()]


def main() -> None:
    """Write every expectation anew."""
    for paths, render in (VALID, meaning), (INVALID, errors):
        for conf in paths:
            expectation(conf).write_text(render(conf.read_bytes()), encoding="utf-8")


if __name__ == "__main__":
    main()
