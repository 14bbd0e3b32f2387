"""What the doctor makes of facts: the formulas, and the formulas turned round."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.config.parse import parse
from fastfwd.doctor.bursts import bursts
from fastfwd.doctor.capacity import (
    BASE_MEMORY,
    EXPORTER_MEMORY,
    KERNEL_PART,
    PROCESS_PART,
    WORKER_MEMORY,
    Facts,
    Limit,
    first,
    limits,
    most_pipes,
    of_forwards,
    share,
    spread,
)
from fastfwd.doctor.demand import Demand, demand, usual
from fastfwd.doctor.findings import findings
from fastfwd.doctor.machine import GroupLimit, Machine, port_list, ports, read
from fastfwd.doctor.program import Program
from fastfwd.doctor.remedy import Remedy, merged, remedy
from fastfwd.doctor.report import WIDTH, holds, text
from fastfwd.model import Address, Config

ROOT = Path(__file__).parents[2]

SYSCTLS = {
    "fs.epoll.max_user_watches": "5491511",
    "fs.file-max": "2466170",
    "fs.file-nr": "559\t0\t2466170",
    "fs.nr_open": "1048576",
    "fs.pipe-user-pages-soft": "16384",
    "kernel.pid_max": "32768",
    "kernel.threads-max": "192730",
    "net.core.rmem_max": "212992",
    "net.core.somaxconn": "4096",
    "net.core.wmem_max": "212992",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.ip_unprivileged_port_start": "1024",
    "net.ipv4.tcp_max_syn_backlog": "4096",
    "net.ipv4.tcp_mem": "287898\t383867\t575796",
    "net.ipv4.tcp_rmem": "4096\t131072\t6291456",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv4.tcp_tw_reuse": "2",
    "net.ipv4.tcp_wmem": "4096\t16384\t4194304",
    "net.netfilter.nf_conntrack_buckets": "262144",
    "net.netfilter.nf_conntrack_count": "112",
    "net.netfilter.nf_conntrack_max": "262144",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait": "120",
}
"""Debian's defaults on a machine with 24 GiB, where connections are tracked."""

MACHINE = Machine(
    pid=4242,
    sysctls=SYSCTLS,
    resources={"Max open files": (1024, 524_288), "Max processes": (96_365, 96_365)},
    available=24 << 30,
    processors=2,
    connections=8,
    capabilities=0,
)


def asked(config: str, addresses: dict[str, list[Address]] | None = None) -> Demand:
    """What a configuration asks for."""
    found, problems = parse(config.encode(), "/etc/rinetd.conf", read_file=Path.read_bytes, matching=list)
    assert not problems
    return demand(found, addresses or {})


def facts(config: str = "0.0.0.0 8080 10.1.1.2 80\n", machine: Machine = MACHINE) -> Facts:
    """A machine with a configuration that does not run."""
    return Facts(machine, asked(config))


def allowed(found: Facts, key: str) -> int | None:
    """Sessions by one limit."""
    (limit,) = (each for each in limits(found) if each.key == key)
    return limit.sessions


# Any machine.

COUNTS = st.integers(0, 1 << 40)
MANY = st.one_of(st.integers(0, 1 << 22), COUNTS)


@st.composite
def ranges(draw: st.DrawFn) -> str:
    """A range of source ports."""
    low, high = sorted((draw(st.integers(1, 65_535)), draw(st.integers(1, 65_535))))
    return f"{low}\t{high}"


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines of which this or that is not known."""
    numbers = [name for name in SYSCTLS if name not in ("net.ipv4.ip_local_port_range", "fs.file-nr")]
    sysctls = draw(st.dictionaries(st.sampled_from(numbers), MANY.map(str)))
    if draw(st.booleans()):
        sysctls["net.ipv4.ip_local_port_range"] = draw(ranges())
    sysctls["net.ipv4.ip_local_reserved_ports"] = draw(st.sampled_from(["", "40000-40010,50000", "1-65535"]))
    sysctls["fs.file-nr"] = f"{draw(st.integers(0, 5000))} 0 9"
    for name in ("net.ipv4.tcp_mem", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):
        sysctls[name] = f"1 2 {draw(MANY)}"
    resources = {}
    if draw(st.booleans()):
        files = draw(st.integers(0, 1 << 21))
        resources["Max open files"] = files, files
    if draw(st.booleans()):
        resources["Max processes"] = (draw(st.integers(0, 10_000)),) * 2
    group = st.builds(
        GroupLimit,
        st.sampled_from(["memory", "pids"]),
        COUNTS,
        st.integers(0, 1 << 20),
        st.sampled_from(["/sys/fs/cgroup/a.service/limit", "/sys/fs/cgroup/a.slice/limit"]),
    )
    return Machine(
        pid=1,
        sysctls=sysctls,
        resources=resources,
        groups=tuple(draw(st.lists(group, max_size=3))),
        available=draw(st.none() | COUNTS),
        processors=draw(st.none() | st.integers(1, 64)),
        listening=frozenset(draw(st.sets(st.integers(1, 65_535), max_size=3))),
        connections=draw(st.none() | st.integers(0, 9)),
        capabilities=draw(st.none() | st.integers(0, 1 << 40)),
    )


CONFIGS = (
    "0.0.0.0 8080 10.1.1.2 80\n",
    "0.0.0.0 8080 10.1.1.2,10.1.1.3 80 [src=10.0.0.0/30]\nmax-connections 700\nworkers 3\n",
    "0.0.0.0 40000-40009 10.1.1.2 8000-8009 [max-connections=90]\n0.0.0.0 53/udp 10.1.1.2 53/udp\n",
    "0.0.0.0 53/udp 10.1.1.2,10.1.1.3 53/udp\nworkers 64\nmetrics 127.0.0.1:9464\n",
    "0.0.0.0 7 10.1.1.2 80 [transparent=on]\nlogfile /dev/null\nlisten-backlog 60000\n",
    "unix:/run/a example.org 80 [max-connections=5]\n",
)
DEMANDS = st.sampled_from([asked(each) for each in CONFIGS] + [usual("/etc/rinetd.conf")])


@st.composite
def anything(draw: st.DrawFn) -> Facts:
    """A machine and what is asked of it, by a program that runs or does not."""
    workers = draw(st.integers(1, 5))
    held = st.none() | st.integers(0, 10_000)
    program = st.none() | st.builds(Program, st.just(7), st.just(tuple(range(workers))), held, held)
    return Facts(draw(machines()), draw(DEMANDS), draw(program))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything())
def test_the_first_limit_is_the_smallest(found: Facts) -> None:
    """And those that are not known come last."""
    listed = limits(found)
    known = [each.sessions for each in listed if each.sessions is not None]
    assert known == sorted(known)
    assert [each.sessions for each in listed[len(known) :]] == [None] * (len(listed) - len(known))
    head = first(listed)
    assert (head.sessions if head else None) == min(known, default=None)
    assert all(each >= 0 for each in known)


def _more_ports(machine: Machine, _: int) -> Machine:
    name = "net.ipv4.ip_local_port_range"
    return machine.with_sysctls({name: "1 65535"} if name in machine.sysctls else {})


def _none_reserved(machine: Machine, _: int) -> Machine:
    return machine.with_sysctls({"net.ipv4.ip_local_reserved_ports": ""})


def _nobody_listens(machine: Machine, _: int) -> Machine:
    return replace(machine, listening=frozenset())


def _sysctl(name: str) -> Callable[[Machine, int], Machine]:
    def raised(machine: Machine, by: int) -> Machine:
        before = machine.number(name)
        return machine if before is None else machine.with_sysctls({name: str(before + by)})

    return raised


def _resource(name: str) -> Callable[[Machine, int], Machine]:
    def raised(machine: Machine, by: int) -> Machine:
        soft = machine.resources.get(name, (None, None))[0]
        # In steps of 16, each of which may bring a pipe.
        after = {} if soft is None else {name: (soft + 16 * by,) * 2}
        return replace(machine, resources=machine.resources | after)

    return raised


def _memory(machine: Machine, by: int) -> Machine:
    return replace(machine, available=None if machine.available is None else machine.available + by)


def _groups(machine: Machine, by: int) -> Machine:
    return replace(machine, groups=tuple(replace(each, limit=each.limit + by) for each in machine.groups))


RAISED = [
    *(_more_ports, _none_reserved, _nobody_listens, _memory, _groups),
    *(_resource(name) for name in ("Max open files", "Max processes")),
    *(
        _sysctl(name)
        for name in (
            *("fs.file-max", "fs.epoll.max_user_watches", "kernel.pid_max", "kernel.threads-max"),
            *("net.netfilter.nf_conntrack_max", "fs.nr_open", "net.core.somaxconn"),
        )
    ),
]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything(), st.sampled_from(RAISED), st.integers(0, 1 << 30))
def test_raising_a_limit_never_lowers_the_answer(
    found: Facts, raised: Callable[[Machine, int], Machine], by: int
) -> None:
    """Neither the whole one, nor any row's."""
    before, after = limits(found), limits(replace(found, machine=raised(found.machine, by)))
    rows = {each.key: each.sessions for each in after}
    for each in before:
        if each.sessions is not None and rows[each.key] is not None:
            assert rows[each.key] >= each.sessions, each.name  # type: ignore[operator]
    if (head := first(before)) and (now := first(after)):
        assert now.sessions >= head.sessions  # type: ignore[operator]


def apply(found: Facts, said: Remedy) -> Facts:
    """The same after everything in it has been done."""
    machine = found.machine.with_sysctls(said.sysctls)
    resources = dict(machine.resources)
    for setting, name in (("LimitNOFILE", "Max open files"), ("LimitNPROC", "Max processes")):
        if setting in said.service:
            resources[name] = (int(said.service[setting]),) * 2
    groups = machine.groups
    for setting, what in (("MemoryMax", "memory"), ("TasksMax", "pids")):
        if setting in said.service:
            limit = float(said.service[setting].replace("infinity", "1e12"))
            groups = tuple(
                replace(each, limit=limit) if (each.what, ".service" in each.source) == (what, True) else each
                for each in groups
            )
    return replace(found, machine=replace(machine, resources=resources, groups=groups))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything(), st.integers(1, 3_000_000))
def test_what_it_says_is_enough(found: Facts, wanted: int) -> None:
    """Who does it has a limit that allows the sessions, unless words say that no line does it."""
    for limit in limits(found):
        if limit.sessions is None or limit.sessions >= wanted:
            continue
        said = remedy(found, limit, wanted)
        after = allowed(apply(found, said), limit.key)
        assert said.words or after is None or after >= wanted, (limit, said, after)
        assert said != Remedy(), limit


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything(), st.integers(1, 3_000_000))
def test_everything_that_it_says_together_is_enough(found: Facts, wanted: int) -> None:
    """One piece of advice does not undo another's."""
    low = [each for each in limits(found) if each.sessions is not None and each.sessions < wanted]
    said = merged([remedy(found, each, wanted) for each in low])
    after = apply(found, said)
    for each in low:
        if each.key in ("descriptors", "files", "conntrack", "watches", "supervisor"):
            now = allowed(after, each.key)
            assert now is None or now >= wanted, (each, said)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything(), st.none() | st.integers(1, 3_000_000))
def test_the_report_fits_a_terminal(found: Facts, wanted: int | None) -> None:
    """Whatever the facts are, it has at most 80 columns, and its first word is an answer."""
    said = text(found, wanted)
    assert max(map(len, said.splitlines())) <= WIDTH
    assert said.startswith(("This machine holds about ", "No limit of this machine "))
    assert said.endswith("\n")
    assert not said.endswith("\n\n")


@given(st.integers(0, 10_000_000), st.integers(1, 1024))
def test_spreading_and_sharing_are_opposites(sessions: int, workers: int) -> None:
    """What the fullest worker must have room for is enough for all."""
    most = share(sessions, workers)
    assert spread(most, workers) >= sessions
    assert most >= sessions / workers


@given(st.sets(st.integers(1, 65_535)))
def test_lists_of_ports(numbers: set[int]) -> None:
    """They are read as they are written."""
    assert ports(port_list(numbers)) == numbers


# The formulas, one by one.


def test_descriptors() -> None:
    """(LimitNOFILE - 9 - listeners - log - 2 per pipe) / 2, for the fullest worker."""
    one = facts("0.0.0.0 8080 10.1.1.2 80\nworkers 1\nlogfile /x\n")
    assert most_pipes(524_288) == 1024
    assert allowed(one, "descriptors") == (524_288 - 9 - 1 - 1 - 2048) // 2
    two = facts("0.0.0.0 8080 10.1.1.2 80\nworkers 2\nlogfile /x\n")
    assert allowed(two, "descriptors") == spread((524_288 - 9 - 1 - 1 - 2048) // 2, 2)


def test_a_running_program_has_its_soft_limit() -> None:
    """It has raised that as far as it goes, and a worker's is what counts."""
    running = replace(facts(), program=Program(1, (2,)))
    assert allowed(running, "descriptors") == (1024 - 9 - 1 - 2 * 64) // 2


@pytest.mark.parametrize(
    ("config", "sessions"),
    [
        ("0.0.0.0 8080 10.1.1.2 80", 28_232),
        ("0.0.0.0 8080 10.1.1.2 80\n0.0.0.0 8081 10.1.1.2 80", 28_232),
        ("0.0.0.0 8080 10.1.1.2 80\n0.0.0.0 8081 10.1.1.2 81", 2 * 28_232),
        ("0.0.0.0 8080-8081 10.1.1.2 80", 28_232),
        ("0.0.0.0 8080-8081 10.1.1.2 80-81", 2 * 28_232),
        ("0.0.0.0 8080 10.1.1.2,10.1.1.3 80", 2 * 28_232),
        ("0.0.0.0 8080 10.1.1.2 80 [src=10.9.0.0/29]", 8 * 28_232),
        ("0.0.0.0 8080 10.1.1.2 80 [src=10.9.0.1;10.9.0.2]", 2 * 28_232),
        ("0.0.0.0 40000 10.1.1.2 80", 28_231),
        ("0.0.0.0 53/udp 10.1.1.2 53/udp\nmax-udp-connections 50000", 28_232),
        ("0.0.0.0 53/udp 10.1.1.2,10.1.1.3 53/udp\nmax-udp-connections 50000", 28_232),
        ("0.0.0.0 53/udp 10.1.1.2 53/udp", 5_000),
        ("0.0.0.0 53/udp 10.1.1.2 53/udp\n0.0.0.0 80 10.1.1.2 80", 5_000 + 28_232),
        ("0.0.0.0 80 10.1.1.2 80 [max-connections=9]\n0.0.0.0 81 10.1.1.2 81", 9 + 28_232),
        ("0.0.0.0 8080 10.1.1.2 80 [transparent=on]", None),
        ("0.0.0.0 8080 10.1.1.2 0 [port=original]", None),
        ("0.0.0.0 8080 unix:/run/socket", None),
        ("0.0.0.0 8080 example.org 80", 2 * 28_232),
        ("0.0.0.0 8080 example.org 80\ndns-multi-ip-proto ipv6", 28_232),
        ("0.0.0.0 8080 unknown.example 80", 28_232),
        ("0.0.0.0 8080 2001:db8::1 80 [src=2001:db8::8;2001:db8::9]", 2 * 28_232),
    ],
)
def test_source_ports(config: str, sessions: int | None) -> None:
    """Over TCP for each pair of source and backend, over UDP for each source."""
    found = {
        "example.org": [Address(socket.AF_INET, "192.0.2.1"), Address(socket.AF_INET6, "2001:db8::1")],
    }
    assert allowed(Facts(MACHINE, asked(config + "\n", found)), "ports") == sessions


def test_ports_that_are_reserved_or_listened_on_are_no_sources() -> None:
    """Those outside the range do not matter."""
    machine = replace(MACHINE, listening=frozenset({22, 40_000, 50_000}))
    machine = machine.with_sysctls({"net.ipv4.ip_local_reserved_ports": "1000-2000,50000-50009"})
    assert allowed(facts(machine=machine), "ports") == 28_232 - 10 - 1


def test_conntrack() -> None:
    """Two entries for each session, beside others'."""
    assert allowed(facts(), "conntrack") == (262_144 - 112) // 2
    running = replace(facts(), program=Program(1, (2,), files=100, sockets=2 + 2 * 50))
    assert allowed(running, "conntrack") == (262_144 - 12) // 2


def test_conntrack_that_tracks_nothing() -> None:
    """There are connections and no entries: no rule asks for them."""
    machine = MACHINE.with_sysctls({"net.netfilter.nf_conntrack_count": "0"})
    assert allowed(facts(machine=machine), "conntrack") is None
    assert allowed(facts(machine=replace(machine, connections=0)), "conntrack") == 131_072


def test_files_of_the_machine() -> None:
    """fs.file-max less what is open, and what the workers have beside sessions. 2^63 - 1 is no limit."""
    assert allowed(facts(), "files") == (2_466_170 - 559 - 2 * (9 + 1 + 64)) // 2
    machine = MACHINE.with_sysctls({"fs.file-max": str((1 << 63) - 1)})
    assert allowed(facts(machine=machine), "files") is None


def test_memory() -> None:
    """What is available, less the program, by the session; the tightest group's if that is less."""
    tracked = 2 * KERNEL_PART["entry"]
    each = PROCESS_PART["session"] + KERNEL_PART["session"] + tracked
    base = BASE_MEMORY + 2 * WORKER_MEMORY
    found = allowed(facts(), "memory")
    assert found is not None
    assert found == pytest.approx(((24 << 30) - base) / each, abs=5)
    groups = (
        GroupLimit("memory", 2 << 30, 1 << 30, "/a/memory.max"),
        GroupLimit("memory", 1 << 40, 0, "/b/memory.max"),
    )
    found = allowed(facts(machine=replace(MACHINE, groups=groups)), "memory")
    assert found == pytest.approx(((1 << 30) - base) / each, abs=5)


@pytest.mark.parametrize(
    ("options", "sides"), [("tls-accept, cert=a", 1), ("tls-accept, cert=a, tls-connect", 2)]
)
def test_memory_of_tls(options: str, sides: int) -> None:
    """Each side that is encrypted has its part."""
    plain, found = facts().memory_of_session, facts(f"0.0.0.0 1 10.1.1.2 2 [{options}]\n").memory_of_session
    assert found == plain + sides * PROCESS_PART["tls"]


def test_memory_of_flows() -> None:
    """Where there are no streams a session is a flow: one descriptor, and less memory."""
    found = facts("0.0.0.0 53/udp 10.1.1.2 53/udp\n")
    assert found.files_of_session == 1
    assert found.memory_of_session == PROCESS_PART["flow"] + KERNEL_PART["flow"] + 2 * KERNEL_PART["entry"]


def test_the_configuration_s_limits() -> None:
    """One over all forwards; those of forwards only if each has one."""
    assert allowed(facts("0.0.0.0 1 10.1.1.2 2\nmax-connections 77\n"), "max-connections") == 77
    keys = {
        each.key for each in limits(facts("0.0.0.0 1 10.1.1.2 2 [max-connections=5]\n0.0.0.0 2 10.1.1.2 2\n"))
    }
    assert "forwards" not in keys
    both = facts("0.0.0.0 1 10.1.1.2 2 [max-connections=5]\n0.0.0.0 2/udp 10.1.1.2 2/udp\n")
    assert allowed(both, "forwards") == 5 + 5000


def test_the_supervisor_needs_every_listener() -> None:
    """300 ports for 4 workers are 1,200 descriptors of one process."""
    config = "0.0.0.0 2000-2299 10.1.1.2 80\nworkers 4\n"
    machine = replace(MACHINE, resources={"Max open files": (1200, 1200)})
    assert allowed(facts(config, machine), "supervisor") == 0
    assert allowed(facts(config), "supervisor") is None


@pytest.mark.parametrize("where", ["sysctl", "resource", "group"])
def test_processes(where: str) -> None:
    """All of them, or it does not start."""
    machine = {
        "sysctl": MACHINE.with_sysctls({"kernel.pid_max": "4"}),
        "resource": replace(MACHINE, resources={**MACHINE.resources, "Max processes": (4, 4)}),
        "group": replace(MACHINE, groups=(GroupLimit("pids", 10, 6, "/a.service/pids.max"),)),
    }[where]
    config = "0.0.0.0 1 10.1.1.2 2\nmetrics 127.0.0.1:9\nworkers {}\n"
    assert allowed(facts(config.format(3), machine), "processes") == 0
    assert allowed(facts(config.format(2), machine), "processes") is None


def test_forwards_by_themselves() -> None:
    """The one that has least comes first; one without any limit is not listed."""
    found = of_forwards(
        facts(
            "0.0.0.0 1 10.1.1.2 2 [name=one]\n0.0.0.0 2 10.1.1.2 2 [name=two, max-connections=5]\n"
            "0.0.0.0 3 unix:/x [name=three]\n0.0.0.0 4/udp 10.1.1.2 2/udp [name=four]\n"
        )
    )
    assert [(way.label, sessions, by) for way, sessions, by in found] == [
        ("two", 5, "max-connections"),
        ("four", 5000, "max-udp-connections"),
        ("one", 28_232, "source ports"),
    ]


# What is told besides.


def burst(found: Facts, name: str) -> str | None:
    """One row of the second table."""
    return {each.name: each.value for each in bursts(found)}.get(name)


def test_connections_a_second() -> None:
    """A port waits for 60 s, or for one where tcp_tw_reuse says so."""
    assert burst(facts(), "connections/s, one backend") == "470"
    machine = MACHINE.with_sysctls({"net.ipv4.tcp_tw_reuse": "1"})
    assert burst(facts(machine=machine), "connections/s, one backend") == "28,232"
    pool = facts("0.0.0.0 1 10.1.1.2 2 [src=10.9.0.0/29]\n")
    assert burst(pool, "connections/s, one backend") == f"{28_232 * 8 // 60:,}"


def test_pipes() -> None:
    """An account has pages for 64 large ones; what is opened with more rights is not counted there."""
    assert burst(facts(), "directions that splice") == "64"
    assert burst(facts(machine=replace(MACHINE, capabilities=1 << 24)), "directions that splice") == "128"


@pytest.mark.parametrize(
    ("config", "sysctls", "others", "said", "cure"),
    [
        ("0.0.0.0 80 10.1.1.2 80", {}, {}, "port 80 cannot", "AmbientCapabilities"),
        ("0.0.0.0 40000 10.1.1.2 80", {}, {}, "the kernel may take port 40000", "ip_local_reserved_ports"),
        ("0.0.0.0 8080 10.1.1.2 80\nworkers 3", {}, {}, "3 workers on 2 processors", ""),
        ("0.0.0.0 8080 10.1.1.2 80", {"net.core.somaxconn": "128"}, {}, "end at 128 clients", "somaxconn"),
        ("0.0.0.0 8080 10.1.1.2 80\nlisten-backlog 9999", {}, {}, "end at 4,096 clients", "somaxconn"),
        ("0.0.0.0 5353/udp 10.1.1.2 53/udp", {}, {}, "room for 212,992 bytes", "net.core.rmem_max"),
        (
            "0.0.0.0 8080 10.1.1.2 80",
            {"net.ipv4.tcp_syncookies": "0", "net.ipv4.tcp_max_syn_backlog": "128"},
            *({}, "a flood of 128 SYNs", "tcp_syncookies"),
        ),
        (
            "0.0.0.0 8080 10.1.1.2 80",
            {"net.netfilter.nf_conntrack_count": "250000"},
            *({}, "conntrack has 250,000 of 262,144", "nf_conntrack_max"),
        ),
        (
            "0.0.0.0 8080 10.1.1.2 80",
            {"net.netfilter.nf_conntrack_buckets": "1024"},
            *({}, "1,024 buckets", "nf_conntrack_buckets"),
        ),
        ("0.0.0.0 8080 10.1.1.2 80", {}, {"here": False}, "nsenter -t 4242 -n", ""),
    ],
)
def test_findings(
    config: str, sysctls: dict[str, str], others: dict[str, bool], said: str, cure: str
) -> None:
    """Each has a sentence, and a line where one helps; done, it is not said again."""
    machine = replace(MACHINE.with_sysctls(sysctls), **others)  # type: ignore[arg-type]
    found = facts(config + "\n", machine)
    (one,) = findings(found)
    assert said in one.text
    assert cure in " ".join([*one.remedy.sysctls, *one.remedy.service])
    assert said in " ".join(text(found).split())
    if one.remedy.sysctls:
        assert findings(facts(config + "\n", machine.with_sysctls(one.remedy.sysctls))) == []


def test_nothing_is_wrong() -> None:
    """Then it says nothing: the usual configuration on the usual machine."""
    assert findings(facts()) == []
    assert "!" not in text(facts())


def test_the_configuration_s_own_limit_first() -> None:
    """It says whose it is, and advises nothing, unless more is wanted."""
    found = facts("0.0.0.0 8080 10.1.1.2 80\nmax-connections 100\n")
    assert "the first limit is the configuration's own max-connections." in " ".join(text(found).split())
    assert "sysctl" not in text(found)
    assert "max-connections 50000 at /etc/rinetd.conf:2" in text(found, 50_000)
    assert holds(found, 100)
    assert not holds(found, 101)


def test_more_ports_than_there_are() -> None:
    """No range is wide enough: it says how many addresses to dial from."""
    said = text(facts(), 1_000_000)
    assert "net.ipv4.ip_local_port_range = 1024 65535" in said
    assert "src= with a pool of 16 addresses" in " ".join(said.split())


def test_descriptors_beyond_what_the_kernel_lets_anybody_have() -> None:
    """Then fs.nr_open must go first."""
    said = text(facts("0.0.0.0 8080 unix:/x\nworkers 1\n"), 1_000_000)
    assert (
        re.search(r"^fs.nr_open = (\d+)$", said, re.M)[1] == re.search(r"^LimitNOFILE=(\d+)$", said, re.M)[1]
    )  # type: ignore[index]


# Reading.


def plant(root: Path, files: dict[str, str]) -> None:
    """Make files below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """A machine without /proc and /sys has no known limit, and a report all the same."""
    machine = read(1, root=str(tmp_path))
    assert machine == Machine(pid=1)
    assert "unknown" in text(Facts(machine, usual("/etc/rinetd.conf")))
    assert text(Facts(machine, usual("/etc/rinetd.conf"))).startswith("No limit of this machine")


def test_nonsense_is_read(tmp_path: Path) -> None:
    """What is no number is not known."""
    names = [f"proc/sys/{name.replace('.', '/')}" for name in SYSCTLS]
    others = ["limits", "status", "cgroup"]
    names += [f"proc/1/{name}" for name in others] + ["proc/net/tcp", "proc/net/sockstat", "proc/meminfo"]
    plant(tmp_path, dict.fromkeys(names, "sl:\nTCP: inuse\nMemAvailable:\nCapEff: x\nMax open files none\n"))
    plant(tmp_path, {"proc/self/mountinfo": "1 2 3\n1 2 0:3 / /x - cgroup2 c rw\n"})
    machine = read(1, root=str(tmp_path))
    assert all(machine.number(name) is None for name in SYSCTLS)
    assert "unknown" in text(Facts(machine, usual("/etc/rinetd.conf")))


def test_a_file_may_be_kept_from_us(tmp_path: Path) -> None:
    """A directory in its place cannot be read either."""
    (tmp_path / "proc/sys/fs/file-max").mkdir(parents=True)
    assert read(1, root=str(tmp_path)).number("fs.file-max") is None


def test_what_is_read(tmp_path: Path) -> None:
    """Sysctls, limits, memory, processors, capabilities, listeners up to the first connection."""
    plant(
        tmp_path,
        {
            "proc/sys/fs/file-max": "2466170\n",
            "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
            "proc/9/limits": "Limit  Soft Limit  Hard Limit  Units\n"
            "Max open files            1024                 524288               files     \n"
            "Max processes             unlimited            96365                processes \n",
            "proc/9/status": "Name:\tx\nCapEff:\t0000000000000400\nCpus_allowed_list:\t0-2,5\n",
            "proc/8/status": "CapEff:\t0000000000001000\n",
            "proc/meminfo": "MemTotal:  100 kB\nMemAvailable:  50 kB\n",
            "proc/net/tcp": "  sl  local_address rem_address   st\n"
            "   0: 00000000:1F90 00000000:0000 0A 0\n   1: 0100007F:0016 0100007F:D431 01 0\n"
            "   2: 00000000:1F91 00000000:0000 0A 0\n",
            "proc/net/tcp6": "  sl  local_address rem_address   st\n"
            "   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0\n",
            "proc/net/sockstat": "sockets: used 9\nTCP: inuse 3 orphan 0 tw 0\n",
            "proc/net/sockstat6": "TCP6: inuse 4\n",
        },
    )
    machine = read(9, root=str(tmp_path))
    assert machine.number("fs.file-max") == 2_466_170
    assert machine.number("net.ipv4.ip_local_port_range", 1) == 60_999
    assert machine.resources == {"Max open files": (1024, 524_288), "Max processes": (None, 96_365)}
    assert (machine.processors, machine.capabilities, machine.available) == (4, 0x400, 50 * 1024)
    assert machine.listening == {8080, 443}
    assert machine.connections == 7
    assert read(9, 8, root=str(tmp_path)).capabilities == 0x1000


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    """Those above count too; cached files make room."""
    group = "sys/fs/cgroup/system.slice/fastfwd.service"
    plant(
        tmp_path,
        {
            "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n",
            "proc/9/cgroup": "0::/system.slice/fastfwd.service\n",
            f"{group}/memory.max": "1000\n",
            f"{group}/memory.high": "max\n",
            f"{group}/memory.current": "700\n",
            f"{group}/memory.stat": "anon 1\ninactive_file 300\n",
            f"{group}/pids.max": "max\n",
            f"{group}/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/pids.max": "50\n",
            "sys/fs/cgroup/system.slice/pids.current": "20\n",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
        },
    )
    machine = read(9, root=str(tmp_path))
    assert [(each.what, each.limit, each.used) for each in machine.groups] == [
        ("memory", 1000, 400),
        ("cpu", 1.5, 0),
        ("pids", 50, 20),
    ]
    assert machine.group("memory")[0].source == f"{tmp_path}/{group}/memory.max"


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    """Each controller has a tree; what it calls no limit is none."""
    plant(
        tmp_path,
        {
            "proc/self/mountinfo": "1 2 0:3 / /cg/memory rw - cgroup cgroup rw,memory\n"
            "1 2 0:3 / /cg/pids rw - cgroup cgroup rw,pids\n"
            "1 2 0:3 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            "proc/9/cgroup": "4:memory:/a/b\n3:cpu,cpuacct:/a\n2:pids:/elsewhere\n",
            "cg/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory/a/memory.limit_in_bytes": "5000\n",
            "cg/memory/a/memory.usage_in_bytes": "1000\n",
            "cg/cpu/a/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_quota_us": "50000\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
            "cg/pids/pids.max": "7\n",
        },
    )
    assert [(each.what, each.limit, each.used) for each in read(9, root=str(tmp_path)).groups] == [
        ("memory", 5000, 1000),
        ("cpu", 0.5, 0),
        ("pids", 7, 0),
    ]


def test_a_quota_is_fewer_processors() -> None:
    """Of four, one and a half."""
    machine = replace(MACHINE, processors=4, groups=(GroupLimit("cpu", 1.5, 0, "x"),))
    assert machine.usable_processors == 1.5


# The document.


DOCUMENT = ROOT / "docs" / "doctor.md"


def test_the_document_s_sample_is_what_it_says() -> None:
    """To the letter, for this machine."""
    config = "0.0.0.0 80 10.1.1.2 8080 [name=web]\n0.0.0.0 53/udp 10.1.1.3 53/udp [name=dns]\n"
    program = Program(4240, (4242, 4243), files=2404, sockets=2 * 3 + 2 * 1100)
    running = replace(MACHINE, resources={"Max open files": (65_536, 65_536)}, capabilities=1 << 10)
    said = text(Facts(running, asked(config), program), 40_000)
    sample = re.search(r"```\n(This machine holds .*?)```\n", DOCUMENT.read_text(), re.S)
    assert sample
    assert sample[1] == said


def test_the_document_explains_every_row() -> None:
    """By its name."""
    document = DOCUMENT.read_text()
    everything = facts(
        "0.0.0.0 1 10.1.1.2 2 [max-connections=5]\n0.0.0.0 2/udp 10.1.1.2 2/udp\nmax-connections 9\n"
    )
    names = [each.name for each in limits(everything)] + [each.name for each in bursts(everything)]
    assert len(names) == 17
    assert [name for name in names if f"| {name} |" not in document] == []


CAPACITY = ROOT / "docs" / "capacity.md"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("M_worker", WORKER_MEMORY),
        ("M_supervisor", BASE_MEMORY),
        ("M_exporter", EXPORTER_MEMORY),
        ("M_session", PROCESS_PART["session"]),
        ("M_flow", PROCESS_PART["flow"]),
        ("M_tls", PROCESS_PART["session"] + PROCESS_PART["tls"]),
        ("K_session", KERNEL_PART["session"]),
        ("K_flow", KERNEL_PART["flow"]),
        ("K_conntrack", KERNEL_PART["entry"]),
        ("K_listener", KERNEL_PART["listener"]),
    ],
)
def test_the_constants_are_those_that_were_measured(name: str, ours: int) -> None:
    """Within a seventh of docs/capacity.md."""
    (row,) = re.findall(rf"^\| {name} \| [^|]+ \| ([\d.,]+) (B|KiB|MiB) \|", CAPACITY.read_text(), re.M)
    measured = float(row[0].replace(",", "")) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[row[1]]
    assert ours == pytest.approx(measured, rel=0.15)


def test_a_limit_is_told_with_its_place() -> None:
    """Where one can look it up: a sysctl, a file, a line of the configuration, ulimit."""
    everything = facts("0.0.0.0 1 10.1.1.2 2 [max-connections=5]\nmax-connections 9\n")
    sources = {each.source for each in limits(everything)}
    assert sources <= {
        *SYSCTLS,
        "ulimit -Hn",
        "ulimit -u",
        "/proc/meminfo",
        "/etc/rinetd.conf",
        "/etc/rinetd.conf:2",
    }
    assert all(isinstance(each, Limit) for each in limits(everything))
    assert isinstance(everything.demand, Demand)
    assert Config("x").forwards == ()
