"""Files that include others, and the words of rinetd-uv."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fastfwd.config.load import LARGEST, load
from fastfwd.model import Config, ConfigError


def written(directory: Path, **files: str) -> str:
    """Files by name (`_` is a dot, `__` a slash); the path of `rinetd.conf` among them."""
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(directory / "rinetd.conf")


def errors(path: str) -> list[str]:
    """What is wrong with it, paths shortened to names."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    directory = str(Path(path).parent)
    return [str(problem).replace(f"{directory}/", "") for problem in caught.value.problems]


def ports(config: Config) -> list[int]:
    """Those it listens on, in order."""
    return [forward.listen.port for forward in config.forwards]


def line(port: int) -> str:
    """A forward."""
    return f"127.0.0.1 {port} 192.0.2.1 80\n"


def test_an_included_file_is_read_in_its_place(tmp_path: Path) -> None:
    """Before and after it the including file goes on."""
    path = written(tmp_path, rinetd_conf=f"{line(1)}include more.conf\n{line(3)}", more_conf=line(2))
    assert ports(load(path)) == [1, 2, 3]


def test_a_pattern_means_all_that_match_in_order(tmp_path: Path) -> None:
    """As a directory of snippets."""
    path = written(
        tmp_path, rinetd_conf="include conf.d/*.conf\n", conf_d__b_conf=line(2), conf_d__a_conf=line(1)
    )
    assert ports(load(path)) == [1, 2]


def test_a_pattern_that_nothing_matches_is_a_warning(tmp_path: Path) -> None:
    """An empty directory is no mistake."""
    config = load(written(tmp_path, rinetd_conf=f"include conf.d/*.conf\n{line(1)}"))
    assert [str(each.message) for each in config.warnings] == [
        "no file matches 'conf.d/*.conf': nothing is included"
    ]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A name without wildcards means that file, which may hold a deny."""
    assert errors(written(tmp_path, rinetd_conf=f"{line(1)}include own.conf\n")) == [
        "rinetd.conf:2: expected a file that can be read, found 'own.conf': No such file or directory"
    ]


def test_a_file_that_is_not_there_stays_an_error_for_a_lenient_start(tmp_path: Path) -> None:
    """It would open what the file was written to close."""
    with pytest.raises(ConfigError):
        load(written(tmp_path, rinetd_conf=f"{line(1)}include own.conf\n"), lenient=True)


def test_a_name_is_beside_the_file_that_includes_it(tmp_path: Path) -> None:
    """At every level."""
    path = written(
        tmp_path,
        rinetd_conf="include a/one.conf\n",
        a__one_conf="include two.conf\n",
        a__two_conf=line(7),
    )
    assert ports(load(path)) == [7]


def test_rules_go_on_across_files(tmp_path: Path) -> None:
    """What follows a forward belongs to it, wherever it stands; what comes before all is for all."""
    path = written(
        tmp_path,
        rinetd_conf=f"include all.conf\n{line(1)}include own.conf\n{line(2)}",
        all_conf="allow 10.*\n",
        own_conf="deny 10.1.*\n",
    )
    config = load(path)
    assert [rule.pattern for rule in config.rules] == ["10.*"]
    assert [[rule.pattern for rule in forward.rules] for forward in config.forwards] == [["10.1.*"], []]


def test_an_error_is_where_it_is(tmp_path: Path) -> None:
    """With the file's name and the line in it, file by file."""
    path = written(tmp_path, rinetd_conf="garbage\ninclude a.conf\nworkers 0\n", a_conf="\n\nmore garbage\n")
    assert [each.partition(": ")[0] for each in errors(path)] == [
        "rinetd.conf:1",
        "rinetd.conf:3",
        "a.conf:3",
    ]


def test_two_files_in_each_others_way(tmp_path: Path) -> None:
    """The other line is named with its file."""
    path = written(tmp_path, rinetd_conf=f"{line(1)}include a.conf\n", a_conf=line(1))
    [error] = errors(path)
    assert error.startswith("a.conf:1: ")
    assert error.endswith("the same as '127.0.0.1:1/tcp' of rinetd.conf:1")


def test_a_circle(tmp_path: Path) -> None:
    """A file that includes itself, by way of another one and of a link."""
    path = written(tmp_path, rinetd_conf="include a.conf\n", a_conf="include b.conf\n")
    (tmp_path / "b.conf").symlink_to(tmp_path / "rinetd.conf")
    [error] = errors(path)
    assert (
        error
        == f"a.conf:1: expected a file that does not include itself, found '{tmp_path}/b.conf'".replace(
            f"{tmp_path}/", ""
        )
    )


def test_a_file_that_includes_itself(tmp_path: Path) -> None:
    """The shortest circle; the rest of the file is read."""
    path = written(tmp_path, rinetd_conf=f"include *.conf\n{line(1)}nonsense\n")
    found = errors(path)
    assert [each.partition(", found")[0] for each in found] == [
        "rinetd.conf:1: expected a file that does not include itself",
        "rinetd.conf:3: expected a forward ('bindaddress bindport connectaddress connectport') "
        "or a directive",
    ]


def test_the_same_file_twice_is_no_circle(tmp_path: Path) -> None:
    """Two forwards may have the same rules."""
    path = written(
        tmp_path,
        rinetd_conf=f"{line(1)}include own.conf\n{line(2)}include own.conf\n",
        own_conf="deny 10.*\n",
    )
    assert [len(forward.rules) for forward in load(path).forwards] == [1, 1]


def test_too_deep(tmp_path: Path) -> None:
    """Ten levels are enough."""
    files = {f"f{level}_conf": f"include f{level + 1}.conf\n" for level in range(12)}
    path = written(tmp_path, rinetd_conf="include f0.conf\n", **files, f12_conf=line(1))
    assert errors(path) == ["f9.conf:1: expected at most 10 levels of files in each other, found 'f10.conf'"]


def test_ten_levels(tmp_path: Path) -> None:
    """As deep as it goes."""
    files = {f"f{level}_conf": f"include f{level + 1}.conf\n" for level in range(1, 10)}
    path = written(tmp_path, rinetd_conf="include f1.conf\n", **files, f10_conf=line(7))
    assert ports(load(path)) == [7]


def test_an_included_file_without_an_end(tmp_path: Path) -> None:
    """It is refused, not cut off."""
    path = written(tmp_path, rinetd_conf="include /dev/zero\n")
    assert errors(path) == [
        f"rinetd.conf:1: expected a file that can be read, found '/dev/zero': more than {LARGEST} bytes"
    ]


def test_an_included_file_that_may_not_be_read(tmp_path: Path) -> None:
    """An error where it is named."""
    path = written(tmp_path, rinetd_conf="include a.conf\n", a_conf=line(1))
    (tmp_path / "a.conf").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert errors(path) == [
        "rinetd.conf:1: expected a file that can be read, found 'a.conf': Permission denied"
    ]


def test_a_name_is_taken_in_another_file(tmp_path: Path) -> None:
    """The other line is named with its file."""
    first, second = (line(port).replace("80\n", "80 [name=web]\n") for port in (1, 2))
    path = written(tmp_path, rinetd_conf=f"{first}include a.conf\n", a_conf=second)
    assert errors(path) == ["a.conf:1: expected a name of its own, found 'web' of rinetd.conf:1"]


def test_a_directive_is_repeated_in_another_file(tmp_path: Path) -> None:
    """The line that it replaces is named with its file."""
    path = written(tmp_path, rinetd_conf=f"workers 1\ninclude a.conf\n{line(1)}", a_conf="workers 2\n")
    [warning] = load(path).warnings
    assert warning.message == f"'workers' is repeated: this line replaces {path}:1"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """What matches must be readable, since it may hold a deny."""
    (tmp_path / "a.conf").mkdir()
    assert errors(written(tmp_path, rinetd_conf="include *.conf\n"))[0].startswith(
        "rinetd.conf:1: expected a file that"
    )


# rinetd-uv's words.


@pytest.mark.parametrize("word", ["buffersize", "pool-min-free", "pool-max-free", "pool-trim-delay"])
def test_words_about_its_buffers(tmp_path: Path, word: str) -> None:
    """They are taken, with one warning however often they come."""
    config = load(written(tmp_path, rinetd_conf=f"{word} 4096\n{word} 8192\n{line(1)}"))
    assert [each.message for each in config.warnings] == [
        f"{word!r} means nothing here: buffers are the kernel's"
    ]


def test_words_with_a_meaning(tmp_path: Path) -> None:
    """They mean what they mean there."""
    config = load(
        written(
            tmp_path,
            rinetd_conf="pidfile /run/x.pid\nlisten-backlog 500\ndns-refresh 60\ndns-multi-ip-expand on\n"
            f"dns-multi-ip-proto ipv4\nconnect-timeout 0\nmax-udp-connections 100\n{line(1)}",
        )
    )
    assert (config.pidfile, config.backlog, config.dns_refresh, config.dns_expand) == (
        "/run/x.pid",
        500,
        60,
        True,
    )
    assert config.dns_family == socket.AF_INET
    assert (config.limits.connect_timeout, config.limits.udp_connections) == (127, 100)


@pytest.mark.parametrize("line", ["listen-backlog 0", "dns-multi-ip-expand yes", "dns-multi-ip-proto 4"])
def test_wrong_values(tmp_path: Path, line: str) -> None:
    """An error with the line."""
    [error] = errors(written(tmp_path, rinetd_conf=f"{line}\n"))
    assert error.startswith("rinetd.conf:1: expected ")
